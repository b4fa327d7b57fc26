"""Answers: the fields of the contract, their types and their descriptions.

The OpenAPI document is made from these models, and the client reads answers through them.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from attention_wire.fields import FloatTensor, IntTensor


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)


class TopK(_Answer):
    """The k largest weights of each row."""

    indices: IntTensor = Field(description="[B,H,L,k] keys, by falling weight")
    values: FloatTensor = Field(description="[B,H,L,k] their weights")
    rest: FloatTensor = Field(
        description="[B,H,L] the mass of the keys left out, sinks not counted"
    )


class PlanStep(_Answer):
    """One kernel that a call runs, and on what."""

    kernel: str
    computes: list[str] = Field(description="What it gives of the answer")
    dtype: str = Field(description="What it computes in")
    tiles: int = Field(description="Runs of the kernel's graph")
    tile_shape: list[int] = Field(description="Largest tile: heads, query rows, keys")
    flops: int = Field(description="Of its matrix products and softmax, what is masked left out")
    bytes: int = Field(description="Moved at least: tensors in and out, scores of each tile twice")


class PlanInfo(_Answer):
    """How a call was run, and what that was predicted to cost."""

    steps: list[PlanStep]
    lanes: int = Field(description="Threads that the tiles are shared among")
    flops: int
    bytes: int
    predicted_ms: float = Field(description="By this machine's measured speed")
    peak_bytes: int = Field(description="Most memory above the tensors that came in")


def _answered_weights_form(value: object) -> str:
    is_object = isinstance(value, TopK) or (isinstance(value, dict) and "indices" in value)
    return "top_k" if is_object else "tensor"


AnsweredWeights: TypeAlias = Annotated[
    Annotated[FloatTensor, Tag("tensor")] | Annotated[TopK, Tag("top_k")],
    Discriminator(_answered_weights_form),
]


class AttentionAnswer(_Answer):
    """Outputs and weights, each present only if it was asked for."""

    output: FloatTensor | None = Field(
        default=None, description="In the query's rank and dtype: [B,Hq,L,Dv], [B,L,Hq·Dv], [L,Dv]"
    )
    weights: AnsweredWeights | None = Field(
        default=None,
        description="[B,Hq,L,T], for rank 2 [L,T]; rows sum to 1, or to 0 if masked; or the "
        "selection asked for",
    )
    lse: FloatTensor | None = Field(
        default=None, description="[B,Hq,L] or [L], float32, or float64 for float64"
    )
    entropy: FloatTensor | None = Field(default=None, description="As lse, in nats")
    scores: FloatTensor | None = Field(default=None, description="In the shape of weights")
    present_key: FloatTensor | None = Field(default=None, description="[B,Hkv,T,D]")
    present_value: FloatTensor | None = Field(default=None, description="[B,Hkv,T,Dv]")
    module: str | None = Field(default=None, description="The learned module that answered")
    provider: str = Field(description="The execution provider that ran the call")
    plan: PlanInfo | None = None


class Words(_Answer):
    """The words of a text, special tokens each one of them."""

    text: list[str]
    offsets: list[tuple[int, int]] = Field(description="Span of each in its text, in characters")
    tokens: list[tuple[int, int]] = Field(description="Its first token, and the one after its last")
    segments: list[int | None]
    special_mask: list[int]


class Statistics(_Answer):
    """Numbers for each layer and head, [layers,H]: means of its rows."""

    entropy: FloatTensor = Field(description="−Σ w ln w, in nats")
    maximum: FloatTensor = Field(description="The largest weight")
    distance: FloatTensor = Field(description="Σ w·|i − j|")
    first: FloatTensor = Field(description="Weight of the first key")
    separator: FloatTensor = Field(description="Weight of special tokens but the first key")
    itself: FloatTensor = Field(description="Weight of the row's own key")


class HeadClasses(_Answer):
    """Scores from 0 to 1 for each layer and head, [layers,H], and what they say it is."""

    previous: FloatTensor = Field(description="Mean weight of the token before")
    next: FloatTensor = Field(description="Mean weight of the token after")
    first: FloatTensor = Field(description="Mean weight of the first token")
    separator: FloatTensor = Field(description="Mean weight of special tokens but the first")
    duplicate: FloatTensor = Field(description="Mean weight of earlier tokens of the same id")
    induction: FloatTensor = Field(
        description="Mean weight of the tokens that followed earlier ones of the same id"
    )
    labels: list[list[str | None]] = Field(
        description="The class with the highest score, where that is 0.4 or more and the text has "
        "three such rows"
    )


class AttentionInputs(_Answer):
    """What a layer's attention is computed of, by the names of POST /v1/attention."""

    query: FloatTensor = Field(description="[1,Hq,L,D]")
    key: FloatTensor = Field(description="[1,Hkv,L,D]")
    value: FloatTensor = Field(description="[1,Hkv,L,D]")
    scale: float
    is_causal: bool
    left_window_size: int
    right_window_size: int


class TextResult(_Answer):
    """One text's tokens and what was asked for of its attention."""

    tokens: list[str] = Field(description="As the model's vocabulary writes them")
    token_ids: list[int]
    offsets: list[tuple[int, int]] = Field(
        description="Span of each token in its text, in characters (Unicode code points)"
    )
    word_ids: list[int | None] = Field(description="Word of each token; null for special tokens")
    special_tokens_mask: list[int] = Field(description="1 for tokens that stand in no text")
    segments: list[int | None] = Field(
        description="0 for `text`, 1 for `text_pair`; null for special tokens"
    )
    output: FloatTensor | None = Field(default=None, description="Last hidden state, [L,E]")
    weights: AnsweredWeights | None = Field(
        default=None,
        description="[layers,heads,U,U], or the selection asked for; U counts tokens or words",
    )
    words: Words | None = Field(default=None, description="With the unit `word`")
    entropy: FloatTensor | None = Field(default=None, description="[layers,H,U], in nats")
    statistics: Statistics | None = None
    classes: HeadClasses | None = None
    rollout: FloatTensor | None = Field(default=None, description="[layers,U,U]; rows sum to 1")
    flow: FloatTensor | None = Field(default=None, description="[layers,U,U]")
    blocks: FloatTensor | None = Field(
        default=None, description="[layers,H,2,2]: mean mass of the rows of a text on each text"
    )
    inputs: list[AttentionInputs] | None = Field(
        default=None, description="One for each layer asked for"
    )
    change: FloatTensor | None = Field(
        default=None, description="[L,E]: the ablated output less the whole one"
    )


class TextAnswer(_Answer):
    """One result for each text, in the order sent."""

    module: str
    provider: str
    results: list[TextResult]


class ModuleInfo(_Answer):
    """A learned module that the service has loaded."""

    name: str
    kind: Literal["multi_head", "text"]
    num_heads: int = Field(description="Attention heads, in each layer")
    num_layers: int
    embed_dim: int = Field(description="E: size of a query and of an output row")
    key_dim: int = Field(description="Size of a key row; E for text modules")
    value_dim: int = Field(description="Size of a value row; E for text modules")
    head_dim: int = Field(description="D: size of one head's queries and keys")
    max_length: int | None = Field(
        default=None, description="Most tokens of a text, special tokens included"
    )
    dtype: str
    license: str | None = None
    source: str | None = Field(default=None, description="Where the weights come from")
    sha256: str = Field(description="Checksum of the module's ONNX file")


class RefusedModule(_Answer):
    """A folder of the module repository that could not be loaded, and why."""

    name: str
    reason: str


class ModuleList(_Answer):
    """The modules that serve, and the folders that were refused."""

    modules: list[ModuleInfo]
    refused: list[RefusedModule] = []


class Limits(_Answer):
    """What the service takes."""

    body_bytes: int
    answer_bytes: int
    memory_bytes: int
    json_depth: int
    running_calls: int = Field(description="Large calls that compute at once")
    waiting_calls: int = Field(description="Calls that may wait; one more is answered 429")
    timeout_seconds: float = Field(description="What X-Request-Timeout can be at most")


class ServiceInfo(_Answer):
    """What runs here and what it takes."""

    name: str
    version: str
    provider: str = Field(description="The execution provider in use")
    available_providers: list[str]
    threads: int = Field(description="Intra-op threads of a session")
    workers: int = Field(description="Processes that serve; threads and limits are of each")
    limits: Limits
    keys_required: bool
    warnings: list[str] = Field(default=[], description="What an operator should look at")


class Health(_Answer):
    """Whether the process lives, or is ready to take calls."""

    status: Literal["ok", "starting", "draining"]
