"""What callers pass, as the fields of a request: arrays for tensors, JSON values for the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy.typing as npt
from pydantic import BaseModel

from attention_client._arrays import integers, mask, plain, tensor
from attention_client.options import AttentionOptions, ReturnSpec, TextReturnSpec
from attention_wire.names import meant
from attention_wire.schemas import AttentionRequest, Return, TextReturn


def of_attention(
    query: npt.ArrayLike, key: npt.ArrayLike, value: npt.ArrayLike, options: AttentionOptions
) -> dict[str, Any]:
    """The fields of plain attention.

    Raises:
        TypeError, ValueError: there is no such option, or a value cannot be sent.
    """
    tensors = {"query": query, "key": key, "value": value}
    return {name: tensor(name, given) for name, given in tensors.items()} | of_options(options)


def of_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of those options that are not None.

    Raises:
        TypeError, ValueError: there is no such option, or a value cannot be sent.
    """
    fields = {}
    for name, given in options.items():
        if name not in _CONVERTERS:
            raise _no_argument("attention", name, AttentionRequest)
        converted = None if given is None else _CONVERTERS[name](name, given)
        if converted is not None:
            fields[name.rstrip("_")] = converted
    return fields


def refuse(method: str, unknown: Iterable[str], model: type[BaseModel]) -> None:
    """Refuse keyword arguments that a method does not have, as :func:`of_options` does.

    Args:
        method: its name.
        unknown: the arguments that were given beside its own.
        model: the request that it makes.

    Raises:
        TypeError: there is one; it says which may have been meant.
    """
    for name in unknown:
        raise _no_argument(method, name, model)


def _no_argument(method: str, name: str, model: type[BaseModel]) -> TypeError:
    cure = meant(model, name)
    return TypeError(f"{method}() has no argument {name!r}{f'; {cure}' if cure else ''}")


def of_return(return_: ReturnSpec | TextReturnSpec | None) -> Any:
    """The field `return`."""
    if isinstance(return_, Return | TextReturn):
        return return_.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return plain(return_)


def _number(name: str, value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number; got {value!r}")
    return float(value)


def _json(_: str, value: Any) -> Any:
    return plain(value)


_CONVERTERS: dict[str, Callable[[str, Any], Any]] = {
    "attn_mask": mask,
    "is_causal": lambda _, value: bool(value) or None,
    "scale": _number,
    "softcap": _number,
    "left_window_size": _json,
    "right_window_size": _json,
    "q_num_heads": _json,
    "kv_num_heads": _json,
    "nonpad_kv_seqlen": integers,
    "softmax_precision": _json,
    "past_key": tensor,
    "past_value": tensor,
    "sinks": tensor,
    "alibi_slopes": tensor,
    "query_document_ids": integers,
    "key_document_ids": integers,
    "query_offset": _json,
    "key_offset": _json,
    "return_": lambda _, value: of_return(value),
}
