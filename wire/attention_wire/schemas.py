"""Requests: the fields of the contract, their types and their descriptions.

The OpenAPI document is made from these models, and the service reads bodies through them.
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
