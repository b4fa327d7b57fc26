"""Requests and answers: the fields of the contract, their types and their descriptions.

The OpenAPI document is made from these models, and both sides read bodies through them.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    model_validator,
)

from attention_wire.fields import (
    FloatTensor,
    IndexList,
    Indices,
    IntTensor,
    MaskTensor,
    TextInput,
    field_error,
    one_of,
)
from attention_wire.problems import Code
from attention_wire.tensors import TensorFormat

# --- Requests --------------------------------------------------------------------------


class _Request(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        arbitrary_types_allowed=True,
        allow_inf_nan=False,
        validate_by_alias=True,
        validate_by_name=False,
    )


class Range(_Request):
    """Rows from `start` up to, not including, `stop`."""

    start: int = Field(ge=0)
    stop: int = Field(ge=0)

    @model_validator(mode="after")
    def _in_order(self) -> Range:
        if self.stop <= self.start:
            raise ValueError(f"stop is {self.stop} and start {self.start}: the range holds no row")
        return self


def _queries_form(value: object) -> str | None:
    if isinstance(value, list):
        return "list"
    return "range" if isinstance(value, dict | Range) else None


def _weights_form(value: object) -> str | None:
    if isinstance(value, bool):
        return "flag"
    return "selection" if isinstance(value, dict | _Selection) else None


Queries: TypeAlias = Annotated[
    Annotated[IndexList, Tag("list")] | Annotated[Range, Tag("range")],
    Discriminator(
        _queries_form,
        custom_error_type="invalid_field",
        custom_error_message='must be a list of integers, or {"start": …, "stop": …}',
    ),
]


class _Selection(_Request):
    """What a selection of the weights has in every kind of call."""

    queries: Queries | None = Field(
        default=None, description="Query rows, in this order; all by default"
    )
    reduce: Literal["mean", "max"] | None = Field(
        default=None, description="Over the selected heads, which leaves one"
    )
    top_k: int | None = Field(
        default=None,
        ge=1,
        description="Only the k largest of each row (after `reduce`), sorted, ties to the lower "
        "index: `indices`, `values` and `rest`",
    )


class WeightsSelection(_Selection):
    """The part of the weights that is wanted, and of the scores; no more is computed."""

    heads: IndexList | None = Field(
        default=None, description="Query heads, in this order; all by default"
    )


class TextWeightsSelection(_Selection):
    """The part of a text's weights that is wanted; its layers and heads stand beside the text."""

    value_weighted: bool = Field(
        default=False,
        description="Each weight times the norm of what it carries to the row: |w·f(x)| of "
        "Kobayashi et al. 2020, f the head's value and output projections",
    )

    @model_validator(mode="before")
    @classmethod
    def _no_heads(cls, value: object) -> object:
        if isinstance(value, dict) and "heads" in value:
            raise field_error(
                Code.INVALID_FIELD,
                "heads of a text are chosen beside it, for all layers: write "
                '"heads": [...] next to "text"',
            )
        return value


_WEIGHTS_MESSAGE = "must be true, false, or an object that selects a part of them"
_Scores: TypeAlias = Literal[False, "raw", "softcap", "masked"]


class Return(_Request):
    """What to compute and to answer; what is not asked for is not computed."""

    output: bool = Field(default=True, description="softmax(…)·V")
    weights: Annotated[
        Annotated[bool, Tag("flag")] | Annotated[WeightsSelection, Tag("selection")],
        Discriminator(
            _weights_form,
            custom_error_type="invalid_field",
            custom_error_message=_WEIGHTS_MESSAGE,
        ),
    ] = Field(default=True, description="The attention weights: all, none or a selection")
    lse: bool = Field(
        default=False, description="Natural logarithm of each row's sum of exp(score), sinks too"
    )
    entropy: bool = Field(
        default=False, description="−Σ w ln w of each row of weights, over the keys"
    )
    scores: Annotated[
        _Scores, PlainValidator(one_of(*get_args(_Scores)), json_schema_input_type=_Scores)
    ] = Field(
        default=False,
        description="The scores: scale·QKᵀ, after the softcap, or after mask and ALiBi. ONNX "
        "qk_matmul_output_mode 0, 1 and 2",
    )
    present: bool = Field(
        default=False, description="present_key and present_value; always given with a past"
    )
    plan: bool = Field(default=False, description="How the call was run, and what it cost")


class PlainReturn(_Request):
    """What to compute and to answer; what is not asked for is not computed."""

    output: bool = Field(default=True, description="The last rows, after any output projection")
    weights: bool = Field(default=True, description="The attention weights of every head")


class TextReturn(_Request):
    """What to compute of a text and to answer; what is not asked for is not computed.

    What belongs to two tokens is of the heads asked for; what is a number for a head, of all.
    """

    output: bool = Field(default=True, description="The last hidden state")
    weights: Annotated[
        Annotated[bool, Tag("flag")] | Annotated[TextWeightsSelection, Tag("selection")],
        Discriminator(
            _weights_form,
            custom_error_type="invalid_field",
            custom_error_message=_WEIGHTS_MESSAGE,
        ),
    ] = Field(default=True, description="The attention weights: all, none or a selection")
    entropy: bool = Field(
        default=False, description="−Σ w ln w of each row of every head, over the keys"
    )
    statistics: bool = Field(
        default=False, description="Numbers for each layer and head: the means of its rows"
    )
    classes: bool = Field(
        default=False, description="How far each head does what known kinds of heads do"
    )
    rollout: bool = Field(
        default=False, description="Attention rollout up to each layer, Abnar and Zuidema 2020"
    )
    flow: bool = Field(
        default=False, description="Attention flow up to each layer, Abnar and Zuidema 2020"
    )
    blocks: bool = Field(
        default=False, description="Mass of each head from and to the two texts of a pair"
    )
    inputs: bool = Field(
        default=False,
        description="Query, key and value of each layer asked for, as POST /v1/attention takes "
        "them",
    )


class _Compute(_Request):
    tensor_format: TensorFormat = Field(
        default="list", description="How a JSON answer carries tensors"
    )


class _AttentionOptions(_Compute):
    attn_mask: MaskTensor | None = Field(
        default=None,
        description="bool (true = may attend) or float (added to the scores), broadcast from the "
        "right to [B,Hq,L,S]; where its last dimension is shorter than S, the rest is masked",
    )
    is_causal: bool = Field(
        default=False, description="Query i sees the keys at its own position and before it"
    )
    scale: float | None = Field(
        default=None, description="Factor on the scores; 1/√D where it is not given"
    )


MAX_HEADS = 2**16
_POSITION = 2**31 - 1
_Precision: TypeAlias = Literal[1, 10, 11, 16, "float32", "float16", "float64", "bfloat16"]
SoftmaxPrecision: TypeAlias = Annotated[
    _Precision,
    PlainValidator(one_of(*get_args(_Precision)), json_schema_input_type=_Precision),
]


class AttentionRequest(_AttentionOptions):
    """Scaled dot-product attention over tensors: softmax(scale·QKᵀ + mask)·V."""

    query: FloatTensor = Field(
        description="[B,Hq,L,D], or [B,L,Hq·D] with q_num_heads and kv_num_heads, or [L,D]"
    )
    key: FloatTensor = Field(
        description="[B,Hkv,S,D], [B,S,Hkv·D] or [S,D]; query head h reads key head h // (Hq/Hkv)"
    )
    value: FloatTensor = Field(description="[B,Hkv,S,Dv], [B,S,Hkv·Dv] or [S,Dv]")
    q_num_heads: int | None = Field(
        default=None, ge=1, le=MAX_HEADS, description="Hq, for rank 3 only"
    )
    kv_num_heads: int | None = Field(
        default=None, ge=1, le=MAX_HEADS, description="Hkv, for rank 3 only"
    )
    softcap: float = Field(
        default=0.0, ge=0, description="c > 0 bounds the scores: c·tanh(score / c); before any mask"
    )
    left_window_size: int = Field(
        default=-1, ge=-1, le=_POSITION, description="Keys before a query that it sees; −1: all"
    )
    right_window_size: int = Field(
        default=-1, ge=-1, le=_POSITION, description="Keys after a query that it sees; −1: all"
    )
    nonpad_kv_seqlen: IntTensor | None = Field(
        default=None,
        description="[B]: keys of each batch element that are no padding; not with a past",
    )
    softmax_precision: SoftmaxPrecision | None = Field(
        default=None,
        description="Least precision of the softmax: an ONNX number (1, 10, 11, 16) or a dtype's "
        "name; it is computed in float32 or better anyway",
    )
    past_key: FloatTensor | None = Field(
        default=None, description="[B,Hkv,P,D], keys before `key`: T = P + S keys in all"
    )
    past_value: FloatTensor | None = Field(default=None, description="[B,Hkv,P,Dv]")
    sinks: FloatTensor | None = Field(
        default=None, description="[Hq]: a logit in the denominator of each head's softmax"
    )
    alibi_slopes: FloatTensor | None = Field(
        default=None, description="[Hq]: adds −slope·|query position − key position|"
    )
    query_document_ids: IntTensor | None = Field(
        default=None, description="[B,L]: a query sees the keys of its own document only"
    )
    key_document_ids: IntTensor | None = Field(default=None, description="[B,T]")
    query_offset: int | None = Field(
        default=None,
        ge=-_POSITION,
        le=_POSITION,
        description="Position of the first query; by default the past's length, with "
        "nonpad_kv_seqlen that minus L, else 0",
    )
    key_offset: int = Field(
        default=0, ge=-_POSITION, le=_POSITION, description="Position of the first key"
    )
    return_: Return = Field(default=Return(), alias="return")


class ModuleRequest(_AttentionOptions):
    """Attention through a learned multi-head module: projections, attention, projection."""

    query: FloatTensor = Field(description="[B,L,E]")
    key: FloatTensor | None = Field(default=None, description="[B,S,Ek]; the query by default")
    value: FloatTensor | None = Field(default=None, description="[B,S,Ev]; the key by default")
    return_: PlainReturn = Field(default=PlainReturn(), alias="return")


HeadOfLayer: TypeAlias = Annotated[
    list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)
]


class TextRequest(_Compute):
    """Attention of a trained text model over raw text."""

    text: TextInput = Field(description="One text, or a list of them")
    text_pair: TextInput | None = Field(
        default=None, description="The second text of each pair, in the form of `text`"
    )
    module: str | None = Field(
        default=None, description="A text module; by default the service's, or its only one"
    )
    layers: Indices = Field(default="all", description="Layers to return, in the order asked")
    heads: Indices = Field(default="all", description="Heads to return, in the order asked")
    unit: Literal["token", "word"] = Field(
        default="token",
        description="What rows and columns are: tokens, or words, whose rows are the means of "
        "their tokens' and whose columns the sums",
    )
    ablate: list[HeadOfLayer] | None = Field(
        default=None,
        min_length=1,
        description="[layer, head] of heads whose context is zeroed; what is answered is what "
        "the model then computes, and `change` says how its output differs",
    )
    truncate: bool = Field(
        default=False, description="Cut a text that is too long rather than refuse it"
    )
    return_: TextReturn = Field(default=TextReturn(), alias="return")


# --- Answers ---------------------------------------------------------------------------


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


class AttentionAnswer(_Answer):
    """Outputs and weights, each present only if it was asked for."""

    output: FloatTensor | None = Field(
        default=None, description="In the query's rank and dtype: [B,Hq,L,Dv], [B,L,Hq·Dv], [L,Dv]"
    )
    weights: (
        Annotated[
            Annotated[FloatTensor, Tag("tensor")] | Annotated[TopK, Tag("top_k")],
            Discriminator(_answered_weights_form),
        ]
        | None
    ) = Field(
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
        description="The class with the highest score, where that is 0.4 or more"
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
    weights: (
        Annotated[
            Annotated[FloatTensor, Tag("tensor")] | Annotated[TopK, Tag("top_k")],
            Discriminator(_answered_weights_form),
        ]
        | None
    ) = Field(
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
    """What the service takes, in bytes and levels."""

    body_bytes: int
    answer_bytes: int
    memory_bytes: int
    json_depth: int


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
