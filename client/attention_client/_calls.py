"""Each call of the service: what it asks, and how its answer is read.

Both clients make their calls of these descriptions, so that no call is written twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypeVar
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from attention_client._arrays import plain, tensor
from attention_client._fields import of_options, of_return, refuse
from attention_client._messages import Answer, Request, parse_server_timing
from attention_client._protocol import Call
from attention_client._settings import check_timeout
from attention_client._texts import Asked, arrays_of, text_result
from attention_client.errors import (
    AttentionError,
    ConnectionFailedError,
    DeadlineExceededError,
    InvalidAnswerError,
    ServerError,
)
from attention_client.options import ReturnSpec, TextReturnSpec
from attention_client.results import AttentionResult
from attention_client.text_parts import Unit
from attention_client.text_results import TextAttention
from attention_wire import bodies
from attention_wire.answers import (
    AttentionAnswer,
    Health,
    ModuleInfo,
    ModuleList,
    ServiceInfo,
    TextAnswer,
)
from attention_wire.problems import ProblemError
from attention_wire.schemas import ModuleRequest, TextRequest
from attention_wire.validation import validate

Texts: TypeAlias = list[str] | tuple[str, ...]
Indices: TypeAlias = Literal["all"] | Sequence[int] | npt.NDArray[np.integer[Any]]
Heads: TypeAlias = Sequence[tuple[int, int]] | Sequence[list[int]] | npt.NDArray[np.integer[Any]]
Model = TypeVar("Model", bound=BaseModel)
_MODULES = "/v1/modules"


# --- Calls -----------------------------------------------------------------------------


def attention(fields: Mapping[str, Any], timeout: float | None) -> Call[AttentionResult]:
    """``POST /v1/attention``, with fields as ``_fields.of_attention`` makes them."""
    return Call(_post("/v1/attention", fields), _attention_result, _seconds(timeout))


def module_attention(
    name: str,
    query: npt.ArrayLike,
    key: npt.ArrayLike | None,
    value: npt.ArrayLike | None,
    *,
    attn_mask: npt.ArrayLike | None,
    is_causal: bool,
    scale: float | None,
    return_: ReturnSpec | None,
    timeout: float | None,
    **unknown: object,
) -> Call[AttentionResult]:
    """``POST /v1/modules/{name}/attention``."""
    refuse("module_attention", unknown, ModuleRequest)
    fields = {
        "query": tensor("query", query),
        "key": None if key is None else tensor("key", key),
        "value": None if value is None else tensor("value", value),
        **of_options(
            {
                "attn_mask": attn_mask,
                "is_causal": is_causal,
                "scale": scale,
                "return_": return_,
            }
        ),
    }
    path = f"{_MODULES}/{_segment(name)}/attention"
    request = _post(path, fields, f"{_MODULES}/{{name}}/attention")
    return Call(request, _attention_result, _seconds(timeout))


def text_attention(
    text: str | Texts,
    text_pair: str | Texts | None,
    *,
    module: str | None,
    layers: Indices,
    heads: Indices,
    truncate: bool,
    return_: TextReturnSpec | None,
    timeout: float | None,
    unit: Unit = "token",
    ablate: Heads | None = None,
    **unknown: object,
) -> Call[TextAttention | list[TextAttention]]:
    """``POST /v1/text/attention``: one result for a string, a list of them for a list."""
    refuse("text_attention", unknown, TextRequest)
    fields = {
        "text": plain(text),
        "text_pair": plain(text_pair),
        "module": module,
        "layers": None if isinstance(layers, str) and layers == "all" else plain(layers),
        "heads": None if isinstance(heads, str) and heads == "all" else plain(heads),
        "unit": None if unit == "token" else unit,
        "ablate": plain(ablate),
        "truncate": truncate or None,
        "return": of_return(return_),
    }
    texts = [text] if isinstance(text, str) else list(text)
    pairs: Sequence[str | None]
    if isinstance(text_pair, str) or text_pair is None:
        pairs = [text_pair] * len(texts)
    else:
        pairs = list(text_pair)

    def parse(answer: Answer) -> TextAttention | list[TextAttention]:
        results = _text_results(answer, texts, pairs, Asked.of(fields))
        return results[0] if isinstance(text, str) else results

    return Call(_post("/v1/text/attention", fields), parse, _seconds(timeout))


def modules() -> Call[ModuleList]:
    """``GET /v1/modules``."""
    return Call(_get(_MODULES), _model(ModuleList))


def module(name: str) -> Call[ModuleInfo]:
    """``GET /v1/modules/{name}``."""
    request = _get(f"{_MODULES}/{_segment(name)}", f"{_MODULES}/{{name}}")
    return Call(request, _model(ModuleInfo))


def info() -> Call[ServiceInfo]:
    """``GET /v1/info``."""
    return Call(_get("/v1/info"), _model(ServiceInfo))


def ready() -> Call[bool]:
    """``GET /readyz``: whether calls are taken now; no answer means no."""

    def parse(answer: Answer) -> bool:
        return _read(Health, answer).status == "ok"

    def recover(error: AttentionError) -> bool:
        if isinstance(error, ServerError | ConnectionFailedError | DeadlineExceededError):
            return False
        raise error

    return Call(_get("/readyz"), parse, recover=recover)


# --- Requests --------------------------------------------------------------------------


def _get(path: str, template: str | None = None) -> Request:
    return Request("GET", path, bodies.JSON, template=template)


def _post(path: str, fields: Mapping[str, Any], template: str | None = None) -> Request:
    """A request with those of the fields that were given, in the form that suits them."""
    given = {name: value for name, value in fields.items() if value is not None}
    binary = any(isinstance(value, np.ndarray) for value in given.values())
    form = bodies.SAFETENSORS if binary else bodies.JSON
    return Request("POST", path, bodies.SAFETENSORS, bodies.write(form, given, "request"), template)


def _segment(name: str) -> str:
    if name in {"", ".", ".."}:
        raise ValueError(f"{name!r} is no name of a module")
    return quote(name, safe="")


def _seconds(timeout: float | None) -> float | None:
    return None if timeout is None else check_timeout(timeout)


# --- Answers ---------------------------------------------------------------------------


def _read(model: type[Model], answer: Answer) -> Model:
    """An answer's body as the model of it.

    Raises:
        InvalidAnswerError: it is something else.
    """
    if answer.media_type not in {bodies.JSON, bodies.SAFETENSORS}:
        raise InvalidAnswerError(
            f"status {answer.status} with {answer.media_type or 'no content type'} where "
            f"{bodies.JSON} or {bodies.SAFETENSORS} was expected; is this the service's address?"
        )
    try:
        return validate(model, bodies.read(answer.media_type, answer.body, "response"))
    except ProblemError as error:
        raise InvalidAnswerError(f"the answer cannot be read: {error.detail}") from error


def _model(model: type[Model]) -> Callable[[Answer], Model]:
    def parse(answer: Answer) -> Model:
        return _read(model, answer)

    return parse


def _attention_result(answer: Answer) -> AttentionResult:
    read = _read(AttentionAnswer, answer)
    return AttentionResult(
        arrays=arrays_of(read),
        module=read.module,
        provider=read.provider,
        request_id=answer.request_id,
        server_timing=parse_server_timing(answer.headers.get("server-timing", "")),
        _plan=read.plan,
    )


def _text_results(
    answer: Answer, texts: Sequence[str], pairs: Sequence[str | None], asked: Asked
) -> list[TextAttention]:
    read = _read(TextAnswer, answer)
    if not len(read.results) == len(texts) == len(pairs):
        raise InvalidAnswerError(f"{len(read.results)} results for {len(texts)} texts")
    about = {
        "module": read.module,
        "provider": read.provider,
        "request_id": answer.request_id,
        "server_timing": parse_server_timing(answer.headers.get("server-timing", "")),
    }
    return [
        text_result(result, asked, text=text, text_pair=pair, **about)
        for result, text, pair in zip(read.results, texts, pairs, strict=True)
    ]
