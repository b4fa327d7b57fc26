"""What callers pass as tensors, as arrays that can go on the wire.

Lists mean what they mean in a JSON request: numbers are float32, true and false a mask.
Arrays keep their dtype, but for integers, which become float32 where a float is asked for.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from attention_wire.tensors import FLOAT_DTYPES, Array, dtype_name

_FLOAT32 = FLOAT_DTYPES["float32"]
# From a mask to the line that called the client: the options, the call and the client's method.
_TO_CALLER = 5


def tensor(name: str, value: npt.ArrayLike) -> Array:
    """A float tensor.

    Args:
        name: the argument's name, for messages.
        value: anything that numpy can turn into an array of numbers.

    Raises:
        TypeError: it does not hold real numbers, or of a dtype that the wire does not know.
        ValueError: it is ragged.
    """
    array, typed = _array(name, value)
    if array.dtype.kind in "iu" or (array.dtype.kind == "f" and not typed):
        return array.astype(_FLOAT32)
    if dtype_name(array) in FLOAT_DTYPES:
        return array
    raise TypeError(f"{name}: {_strange(array)}; give numbers, or one of {', '.join(FLOAT_DTYPES)}")


def mask(name: str, value: npt.ArrayLike) -> Array:
    """A mask: bool (true = may attend), or a float bias that is added to the scores.

    A bias of 0s and 1s alone may be meant, so it goes through, but hardly ever is.

    Raises:
        TypeError: it holds neither, or integers, which could mean either.
        ValueError: it is ragged, or a list of 0s and 1s, which could mean either.
    """
    array, typed = _array(name, value)
    if array.dtype.kind == "b":
        return array
    if array.dtype.kind in "iu" and typed:
        raise TypeError(
            f"{name}: a mask of {dtype_name(array)} could mean 'may attend' or 'add to the "
            "scores'; give bool (true = may attend) or a float bias"
        )
    if not typed and array.any() and np.isin(array, (0, 1)).all():
        raise ValueError(
            f"{name}: a list of 0s and 1s could mean 'may attend' or 'add to the scores'; write "
            "True and False for a mask, or give a float bias as an array"
        )
    bias = tensor(name, value)
    ones = bias == 1
    if ones.any() and not ones.all() and (ones | (bias == 0)).all():
        warnings.warn(
            f"{name}: this array of {dtype_name(bias)} 0s and 1s is added to the scores and masks "
            "nothing; to mask, give bool (true = may attend), such as mask.astype(bool)",
            stacklevel=_TO_CALLER,
        )
    return bias


def integers(name: str, value: npt.ArrayLike) -> Array:
    """A tensor of integers: int32 stays, all others become int64.

    Raises:
        TypeError: it does not hold integers.
        ValueError: it is ragged, or an integer is past the range of int64.
    """
    array, typed = _array(name, value)
    if array.dtype == np.int32:
        return array
    if array.dtype.kind not in "iu" and (typed or array.size):
        raise TypeError(f"{name}: {_strange(array)}; give integers")
    if array.dtype == np.uint64 and array.max(initial=0) > np.iinfo(np.int64).max:
        raise ValueError(f"{name}: holds {array.max()}, which is past the range of int64")
    return array.astype(np.int64)


def _array(name: str, value: npt.ArrayLike) -> tuple[Array, bool]:
    """The value as an array, and whether it had a dtype of its own."""
    try:
        array = _from_torch(value) if _is_bfloat16_of_torch(value) else np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        # RuntimeError: what tensors of other libraries raise when they can't be shared.
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name}: cannot be made into an array: {error}") from error
    return array, _is_typed(value)


def _is_bfloat16_of_torch(value: object) -> bool:
    """Whether it is a tensor that PyTorch shares with nobody, for numpy has no such dtype."""
    return str(getattr(value, "dtype", None)) == "torch.bfloat16"


def _from_torch(value: Any) -> Array:
    """Its numbers by way of float32, which has each of them."""
    return np.asarray(value.float()).astype(FLOAT_DTYPES["bfloat16"])


def _is_typed(value: object) -> bool:
    while isinstance(value, list | tuple) and value:
        value = value[0]
    return not isinstance(value, list | tuple | bool | int | float) or isinstance(value, np.generic)


def _strange(array: Array) -> str:
    if array.dtype.kind == "b":
        return "holds true and false"
    return f"is an array of {dtype_name(array)}, which is not taken"


def plain(value: Any) -> Any:
    """Options as JSON values: numpy's numbers and arrays, tuples and ranges become Python's."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [plain(item) for item in value]
    return value
