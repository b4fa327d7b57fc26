"""Types of fields: tensors in any of their forms, texts, indices.

Tensor fields hold numpy arrays once read; lists of numbers never go through pydantic one
by one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Literal, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PlainValidator
from pydantic_core import PydanticCustomError
from pydantic_core.core_schema import ValidationInfo
from typing_extensions import TypeAliasType

from attention_wire.problems import Code, MalformedTensor, TensorError
from attention_wire.tensors import FLOAT_DTYPES, Array, dtype_name, from_json

# --- Tensor fields ---------------------------------------------------------------------

NonFinite: TypeAlias = Literal["NaN", "Infinity", "-Infinity"]
NestedNumbers = TypeAliasType("NestedNumbers", "list[NestedNumbers] | list[float | NonFinite]")
NestedIntegers = TypeAliasType("NestedIntegers", "list[NestedIntegers] | list[int]")
NestedBools = TypeAliasType("NestedBools", "list[NestedBools] | list[bool]")


class EncodedTensor(BaseModel):
    """A tensor with its dtype and shape: base64 of little-endian, row-major bytes, or a list."""

    model_config = ConfigDict(extra="forbid")

    dtype: Literal["float16", "bfloat16", "float32", "float64", "bool", "int32", "int64"]
    shape: list[Annotated[int, Field(ge=0)]] = Field(max_length=16)
    data: str | NestedNumbers | NestedBools = Field(
        description="base64 in the standard alphabet, or a list, flat or nested"
    )


def _decoder(
    check: Callable[[object, Array], None], *, integers: bool = False
) -> Callable[[object, ValidationInfo], Array]:
    """A validator that reads a tensor in any of its forms, then checks it."""

    def decode(value: object, info: ValidationInfo) -> Array:
        if isinstance(value, np.ndarray):
            array = value
        else:
            only_numbers = bool(info.context and info.context["only_numbers"])
            try:
                array = from_json(value, only_numbers=only_numbers, integers=integers)
            except TensorError as error:
                malformed = isinstance(error, MalformedTensor)
                code = Code.MALFORMED_TENSOR if malformed else Code.INVALID_TENSOR
                raise field_error(code, str(error)) from None
        check(value, array)
        return array

    return decode


def field_error(code: Code, message: str) -> PydanticCustomError:
    """A validator's refusal that becomes a problem of this code."""
    # The message goes in as a value: pydantic would read its braces as a template.
    return PydanticCustomError(code, "{message}", {"message": message})


def _check_float(_: object, array: Array) -> None:
    if dtype_name(array) not in FLOAT_DTYPES:
        raise field_error(
            Code.INVALID_TENSOR,
            f"dtype {dtype_name(array)} is not taken here; send one of {', '.join(FLOAT_DTYPES)}",
        )


def _check_int(_: object, array: Array) -> None:
    if dtype_name(array) not in {"int32", "int64"}:
        raise field_error(
            Code.INVALID_TENSOR,
            f"dtype {dtype_name(array)} is not taken here; send integers, int64 or int32",
        )


def _check_mask(value: object, array: Array) -> None:
    if dtype_name(array) not in {"bool", *FLOAT_DTYPES}:
        raise field_error(
            Code.INVALID_TENSOR,
            f"a mask of {dtype_name(array)} could mean 'may attend' or 'add to the scores'; "
            "send bool (true = may attend) or a float bias",
        )
    is_number_list = isinstance(value, list) and array.dtype.kind == "f"
    if is_number_list and array.any() and np.isin(array, (0, 1)).all():
        raise field_error(
            Code.INVALID_TENSOR,
            "a list of 0s and 1s could mean 'may attend' or 'add to the scores'; write "
            "true and false for a mask, or send a float bias as an object with its dtype",
        )


FloatTensor: TypeAlias = Annotated[
    Array,
    PlainValidator(_decoder(_check_float), json_schema_input_type=NestedNumbers | EncodedTensor),
]
IntTensor: TypeAlias = Annotated[
    Array,
    PlainValidator(
        _decoder(_check_int, integers=True),
        json_schema_input_type=NestedIntegers | EncodedTensor,
    ),
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
        raise field_error(Code.INVALID_FIELD, "holds no text; send a string or a list of strings")
    raise field_error(Code.INVALID_FIELD, "must be a string or a list of strings")


def _index_list(value: object) -> list[int]:
    return _distinct(value, "", "")


def _distinct(value: object, other: str, cure: str) -> list[int]:
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise field_error(Code.INVALID_FIELD, f"must be {other}a list of integers")
    if not value or min(value) < 0 or len(set(value)) < len(value):
        message = f"must name each index once, from 0 up, and at least one{cure}"
        raise field_error(Code.INVALID_FIELD, message)
    return value


def _indices(value: object) -> Literal["all"] | list[int]:
    if isinstance(value, str) and value == "all":
        return "all"
    return _distinct(value, '"all" or ', '; use "all", or return.weights = false for none')


_IndexListSchema: TypeAlias = Annotated[
    list[Annotated[int, Field(ge=0)]],
    Field(min_length=1, json_schema_extra={"uniqueItems": True}),
]
IndexList: TypeAlias = Annotated[
    list[int],
    PlainValidator(_index_list, json_schema_input_type=_IndexListSchema),
]
TextInput: TypeAlias = Annotated[
    str | list[str],
    PlainValidator(_text, json_schema_input_type=str | Annotated[list[str], Field(min_length=1)]),
]
Indices: TypeAlias = Annotated[
    Literal["all"] | list[int],
    PlainValidator(
        _indices,
        json_schema_input_type=Literal["all"] | _IndexListSchema,
    ),
]


def one_of(*values: object) -> Callable[[object], object]:
    """A validator that takes exactly these values: of 0, 0.0 and false JSON means three things."""

    def check(value: object) -> object:
        for known in values:
            if type(value) is type(known) and value == known:
                return value
        words = [json.dumps(known) for known in values]
        raise field_error(Code.INVALID_FIELD, f"must be one of {', '.join(words)}")

    return check
