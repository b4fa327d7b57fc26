"""Requests and answers: the fields of the contract, their types and their descriptions.

The OpenAPI document is made from these models, and both sides read bodies through them.
Tensor fields hold numpy arrays once read; lists of numbers never go through pydantic one
by one.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_core.core_schema import ValidationInfo
from typing_extensions import TypeAliasType

from attention_wire.bodies import Fields
from attention_wire.problems import Code, FieldProblem, MalformedTensor, ProblemError, TensorError
from attention_wire.tensors import FLOAT_DTYPES, Array, TensorFormat, dtype_name, from_json

# --- Tensor fields ---------------------------------------------------------------------

NonFinite: TypeAlias = Literal["NaN", "Infinity", "-Infinity"]
NestedNumbers = TypeAliasType("NestedNumbers", "list[NestedNumbers] | list[float | NonFinite]")
NestedBools = TypeAliasType("NestedBools", "list[NestedBools] | list[bool]")


class EncodedTensor(BaseModel):
    """A tensor with its dtype and shape: base64 of little-endian, row-major bytes, or a list."""

    model_config = ConfigDict(extra="forbid")

    dtype: Literal["float16", "bfloat16", "float32", "float64", "bool", "int32", "int64"]
    shape: list[Annotated[int, Field(ge=0)]] = Field(max_length=16)
    data: str | NestedNumbers | NestedBools = Field(
        description="base64 in the standard alphabet, or a list, flat or nested"
    )


def _decoder(check: Callable[[object, Array], None]) -> Callable[[object, ValidationInfo], Array]:
    """A validator that reads a tensor in any of its forms, then checks it."""

    def decode(value: object, info: ValidationInfo) -> Array:
        if isinstance(value, np.ndarray):
            array = value
        else:
            only_numbers = bool(info.context and info.context["only_numbers"])
            try:
                array = from_json(value, only_numbers=only_numbers)
            except TensorError as error:
                malformed = isinstance(error, MalformedTensor)
                code = Code.MALFORMED_TENSOR if malformed else Code.INVALID_TENSOR
                raise _field_error(code, str(error)) from None
        check(value, array)
        return array

    return decode


def _field_error(code: Code, message: str) -> PydanticCustomError:
    # The message goes in as a value: pydantic would read its braces as a template.
    return PydanticCustomError(code, "{message}", {"message": message})


def _check_float(_: object, array: Array) -> None:
    if dtype_name(array) not in FLOAT_DTYPES:
        raise _field_error(
            Code.INVALID_TENSOR,
            f"dtype {dtype_name(array)} is not taken here; send one of {', '.join(FLOAT_DTYPES)}",
        )


def _check_mask(value: object, array: Array) -> None:
    if dtype_name(array) not in {"bool", *FLOAT_DTYPES}:
        raise _field_error(
            Code.INVALID_TENSOR,
            f"a mask of {dtype_name(array)} could mean 'may attend' or 'add to the scores'; "
            "send bool (true = may attend) or a float bias",
        )
    is_number_list = isinstance(value, list) and array.dtype.kind == "f"
    if is_number_list and array.any() and np.isin(array, (0, 1)).all():
        raise _field_error(
            Code.INVALID_TENSOR,
            "a list of 0s and 1s could mean 'may attend' or 'add to the scores'; write "
            "true and false for a mask, or send a float bias as an object with its dtype",
        )


FloatTensor: TypeAlias = Annotated[
    Array,
    PlainValidator(_decoder(_check_float), json_schema_input_type=NestedNumbers | EncodedTensor),
]
MaskTensor: TypeAlias = Annotated[
    Array,
    PlainValidator(
        _decoder(_check_mask), json_schema_input_type=NestedBools | NestedNumbers | EncodedTensor
    ),
]

# --- Other fields that take one of several forms ---------------------------------------


def _text(value: object) -> str | list[str]:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return value
    if isinstance(value, list) and not value:
        raise _field_error(Code.INVALID_FIELD, "holds no text; send a string or a list of strings")
    raise _field_error(Code.INVALID_FIELD, "must be a string or a list of strings")


def _indices(value: object) -> Literal["all"] | list[int]:
    if isinstance(value, str) and value == "all":
        return "all"
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise _field_error(Code.INVALID_FIELD, 'must be "all" or a list of integers')
    if not value or min(value) < 0 or len(set(value)) < len(value):
        raise _field_error(
            Code.INVALID_FIELD,
            "must name each index once, from 0 up, and at least one; "
            'use "all", or return.weights = false for none',
        )
    return value


TextInput: TypeAlias = Annotated[
    str | list[str],
    PlainValidator(_text, json_schema_input_type=str | Annotated[list[str], Field(min_length=1)]),
]
Indices: TypeAlias = Annotated[
    Literal["all"] | list[int],
    PlainValidator(
        _indices,
        json_schema_input_type=Literal["all"]
        | Annotated[
            list[Annotated[int, Field(ge=0)]],
            Field(min_length=1, json_schema_extra={"uniqueItems": True}),
        ],
    ),
]

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


class Return(_Request):
    """What to compute and to answer; what is not asked for is not computed."""

    output: bool = Field(default=True, description="softmax(…)·V, after any output projection")
    weights: bool = Field(default=True, description="The attention weights, of every head")


class _Compute(_Request):
    tensor_format: TensorFormat = Field(
        default="list", description="How a JSON answer carries tensors"
    )
    return_: Return = Field(default=Return(), alias="return")


class _AttentionOptions(_Compute):
    attn_mask: MaskTensor | None = Field(
        default=None,
        description="bool (true = may attend) or float (added to the scores), broadcast from the "
        "right to [B,Hq,L,S]; where its last dimension is shorter than S, the rest is masked",
    )
    is_causal: bool = Field(default=False, description="Query i sees the keys j ≤ i")
    scale: float | None = Field(
        default=None, description="Factor on the scores; 1/√D where it is not given"
    )


MAX_HEADS = 2**16


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


class ModuleRequest(_AttentionOptions):
    """Attention through a learned multi-head module: projections, attention, projection."""

    query: FloatTensor = Field(description="[B,L,E]")
    key: FloatTensor | None = Field(default=None, description="[B,S,Ek]; the query by default")
    value: FloatTensor | None = Field(default=None, description="[B,S,Ev]; the key by default")


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
    truncate: bool = Field(
        default=False, description="Cut a text that is too long rather than refuse it"
    )


# --- Answers ---------------------------------------------------------------------------


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)


class AttentionAnswer(_Answer):
    """Outputs and weights, each present only if it was asked for."""

    output: FloatTensor | None = Field(
        default=None, description="In the query's rank and dtype: [B,Hq,L,Dv], [B,L,Hq·Dv], [L,Dv]"
    )
    weights: FloatTensor | None = Field(
        default=None, description="[B,Hq,L,S], for rank 2 [L,S]; rows sum to 1, or to 0 if masked"
    )
    module: str | None = Field(default=None, description="The learned module that answered")
    provider: str = Field(description="The execution provider that ran the call")


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
    weights: FloatTensor | None = Field(default=None, description="[layers,heads,L,L]")


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
    limits: Limits
    keys_required: bool
    warnings: list[str] = Field(default=[], description="What an operator should look at")


class Health(_Answer):
    """Whether the process lives, or is ready to take calls."""

    status: Literal["ok", "starting", "draining"]


# --- Reading ---------------------------------------------------------------------------

Model = TypeVar("Model", bound=BaseModel)


def validate(model: type[Model], fields: Fields) -> Model:
    """Fields as a model, every wrong field named with what would be right.

    Raises:
        ProblemError: with a ``FieldProblem`` for each wrong field. Its code is the gravest:
            a tensor that cannot be read comes before a field that is wrong.
    """
    try:
        return model.model_validate(fields.values, context={"only_numbers": fields.only_numbers})
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)
        found = [_problem(model, item) for item in wrong[:_MOST_PROBLEMS]]
    codes = {code for code, _ in found}
    code = Code.MALFORMED_TENSOR if Code.MALFORMED_TENSOR in codes else found[0][0]
    first = found[0][1]
    more = f" ({len(wrong) - 1} more; see errors)" if len(wrong) > 1 else ""
    detail = ProblemError.of_field(first.loc, first.msg).detail + more
    raise ProblemError(code, detail, [problem for _, problem in found])


# A caller who gets more fields wrong than this has one thing wrong.
_MOST_PROBLEMS = 20
_LONGEST_NAME = 100
_CODES = {"extra_forbidden": Code.UNKNOWN_FIELD, "missing": Code.MISSING_FIELD}


def _problem(model: type[BaseModel], item: ErrorDetails) -> tuple[Code, FieldProblem]:
    kind = item["type"]
    loc = tuple(part[:_LONGEST_NAME] if isinstance(part, str) else part for part in item["loc"])
    if kind == "extra_forbidden":
        message = _unknown(model, loc)
    elif kind == "missing":
        message = "is missing"
    else:
        message = item["msg"]
    code = Code(kind) if kind in list(Code) else _CODES.get(kind, Code.INVALID_FIELD)
    return code, FieldProblem(loc=loc, msg=message)


def _unknown(model: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    names = _field_names(model, loc[:-1])
    near = difflib.get_close_matches(str(loc[-1]), names, n=1, cutoff=0.5)
    cure = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(names))}"
    return f"unknown field; {cure}"


def _field_names(model: type[BaseModel], parents: tuple[int | str, ...]) -> Mapping[str, Any]:
    """The names that the model's fields go by, or those of the model inside it."""
    fields = {info.alias or name: info for name, info in model.model_fields.items()}
    if not parents:
        return fields
    inner = fields[str(parents[0])].annotation
    if isinstance(inner, type) and issubclass(inner, BaseModel):
        return _field_names(inner, parents[1:])
    return {}
