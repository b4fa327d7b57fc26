"""Models as the Open Inference Protocol sees them: their tensors, their calls, their results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from attention_service.attention.engine import Engine
from attention_service.attention.job import Job
from attention_service.attention.sdpa import AttentionJob
from attention_service.modules.asked import CLASSES, STATISTICS
from attention_service.modules.manifest import RESERVED_NAME
from attention_service.modules.multi_head import MultiHeadJob, MultiHeadModule
from attention_service.modules.repository import Repository
from attention_service.modules.text import TextModule
from attention_service.modules.text_job import TextJob
from attention_wire import documents
from attention_wire.bodies import Fields
from attention_wire.inference import TEXT, Inputs
from attention_wire.problems import Code, ProblemError
from attention_wire.schemas import AttentionRequest, ModuleRequest, TextRequest
from attention_wire.tensors import Array
from attention_wire.validation import validate

SDPA = RESERVED_NAME
# No number stands for "no word": a special token has none.
_NONE = -1


class Tensor(NamedTuple):
    """An input or an output.

    Attributes:
        name: its name.
        datatype: that it has by default; others may be taken.
        shape: −1 where a size is the caller's.
        is_optional: whether it may be left out.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    is_optional: bool = False


class Model(Protocol):
    """What can be called by name."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def inputs(self) -> Sequence[Tensor]:
        """What it takes."""
        ...

    @property
    def outputs(self) -> Sequence[Tensor]:
        """What it can give."""
        ...

    def job(self, given: Inputs) -> Job:
        """A request as a job.

        Raises:
            ProblemError: it does not fit the model.
        """
        ...

    def results(self, answer: Mapping[str, Any]) -> dict[str, Array]:
        """The tensors of an answer, by their names as outputs."""
        ...


def find(name: str, repository: Repository, engine: Engine) -> Model:
    """The model of that name.

    Raises:
        ProblemError: ``unknown_module``.
    """
    if name == SDPA:
        return PlainAttention(engine)
    module = repository.get(name)
    return TextModel(module) if isinstance(module, TextModule) else MultiHead(module)


_SCORES = (-1, -1, -1, -1)
_ROWS = (-1, -1, -1)


class PlainAttention:
    """Scaled dot-product attention over the tensors that are sent."""

    name = SDPA
    inputs = (
        *(Tensor(name, "FP32", _SCORES) for name in ("query", "key", "value")),
        Tensor("attn_mask", "FP32", _SCORES, is_optional=True),
        Tensor("nonpad_kv_seqlen", "INT64", (-1,), is_optional=True),
        Tensor("past_key", "FP32", _SCORES, is_optional=True),
        Tensor("past_value", "FP32", _SCORES, is_optional=True),
        Tensor("sinks", "FP32", (-1,), is_optional=True),
        Tensor("alibi_slopes", "FP32", (-1,), is_optional=True),
        Tensor("query_document_ids", "INT64", (-1, -1), is_optional=True),
        Tensor("key_document_ids", "INT64", (-1, -1), is_optional=True),
    )
    outputs = (
        Tensor("output", "FP32", _SCORES),
        Tensor("weights", "FP32", _SCORES),
        Tensor("weights.indices", "INT32", _SCORES),
        Tensor("weights.values", "FP32", _SCORES),
        Tensor("weights.rest", "FP32", _ROWS),
        Tensor("lse", "FP32", _ROWS),
        Tensor("entropy", "FP32", _ROWS),
        Tensor("scores", "FP32", _SCORES),
        Tensor("present_key", "FP32", _SCORES),
        Tensor("present_value", "FP32", _SCORES),
    )

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def job(self, given: Inputs) -> Job:
        """As a Model has it."""
        flags = ("output", "weights", "lse", "entropy", "scores", "present")
        fields = _fields(self, given, flags)
        return AttentionJob.of(validate(AttentionRequest, fields), self._engine)

    def results(self, answer: Mapping[str, Any]) -> dict[str, Array]:
        """As a Model has it."""
        return _arrays(answer)


class MultiHead:
    """A learned multi-head module."""

    def __init__(self, module: MultiHeadModule) -> None:
        info = module.info
        self._module = module
        self.name = info.name
        self.inputs = (
            Tensor("query", "FP32", (-1, -1, info.embed_dim)),
            Tensor("key", "FP32", (-1, -1, info.key_dim), is_optional=True),
            Tensor("value", "FP32", (-1, -1, info.value_dim), is_optional=True),
            Tensor("attn_mask", "FP32", _SCORES, is_optional=True),
        )
        self.outputs = (
            Tensor("output", "FP32", (-1, -1, info.embed_dim)),
            Tensor("weights", "FP32", (-1, info.num_heads, -1, -1)),
        )

    def job(self, given: Inputs) -> Job:
        """As a Model has it."""
        return MultiHeadJob(
            self._module, validate(ModuleRequest, _fields(self, given, _PLAIN_FLAGS))
        )

    def results(self, answer: Mapping[str, Any]) -> dict[str, Array]:
        """As a Model has it."""
        return _arrays(answer)


_PLAIN_FLAGS = ("output", "weights")
# Of tokens; offsets have two numbers for each.
_TOKEN_FIELDS = ("token_ids", "offsets", "word_ids", "special_tokens_mask", "segments")
_TEXT_FLAGS = (*_PLAIN_FLAGS, "entropy", "statistics", "classes", "rollout", "flow", "blocks")
# What is no tensor of every text alike.
_NOT_HERE = {"unit": ("parameters", "unit"), "inputs": ("parameters", "return", "inputs")}


class TextModel:
    """A text module. Texts of one request stand in one tensor, each to its own length."""

    def __init__(self, module: TextModule) -> None:
        info = module.info
        self._module = module
        self.name = info.name
        self.inputs = (
            Tensor("text", TEXT, (-1,)),
            Tensor("text_pair", TEXT, (-1,), is_optional=True),
        )
        of_heads = (-1, -1, info.num_heads)
        self.outputs = (
            Tensor("output", "FP32", (-1, -1, info.embed_dim)),
            Tensor("weights", "FP32", (-1, -1, -1, -1, -1)),
            Tensor("weights.indices", "INT32", (-1, -1, -1, -1, -1)),
            Tensor("weights.values", "FP32", (-1, -1, -1, -1, -1)),
            Tensor("weights.rest", "FP32", (-1, -1, -1, -1)),
            Tensor("entropy", "FP32", (*of_heads, -1)),
            *(Tensor(f"statistics.{name}", "FP32", of_heads) for name in STATISTICS),
            *(Tensor(f"classes.{name}", "FP32", of_heads) for name in CLASSES),
            Tensor("rollout", "FP32", (-1, -1, -1, -1)),
            Tensor("flow", "FP32", (-1, -1, -1, -1)),
            Tensor("blocks", "FP32", (*of_heads, 2, 2)),
            Tensor("change", "FP32", (-1, -1, info.embed_dim)),
            Tensor("lengths", "INT64", (-1,)),
            Tensor("tokens", TEXT, (-1, -1)),
            *(
                Tensor(name, "INT64", (-1, -1, 2) if name == "offsets" else (-1, -1))
                for name in _TOKEN_FIELDS
            ),
        )

    def job(self, given: Inputs) -> Job:
        """As a Model has it."""
        fields = _fields(self, given, _TEXT_FLAGS, ("layers", "heads", "ablate"))
        asked = fields.values["return"]
        for name, loc in _NOT_HERE.items():
            if name in fields.values or (isinstance(asked, dict) and asked.get(name)):
                message = "is answered by POST /v1/text/attention alone"
                raise ProblemError.of_field(loc, message)
        fields.values["module"] = self.name
        return TextJob(self._module, validate(TextRequest, fields))

    def results(self, answer: Mapping[str, Any]) -> dict[str, Array]:
        """As a Model has it. What is shorter than the longest text is filled with zeros."""
        results = answer["results"]
        lengths = [len(result["tokens"]) for result in results]
        tokens = np.full((len(results), max(lengths)), "", object)
        found = {"lengths": np.array(lengths, np.int64), "tokens": tokens}
        for row, result in enumerate(results):
            tokens[row, : lengths[row]] = result["tokens"]
        for name in _TOKEN_FIELDS:
            found[name] = _padded(
                [np.array(_numbers(result[name]), np.int64) for result in results]
            )
        arrays = [_arrays(result) for result in results]
        for name in arrays[0]:
            found[name] = _padded([of_text[name] for of_text in arrays])
        return {tensor.name: found[tensor.name] for tensor in self.outputs if tensor.name in found}


def _numbers(values: Iterable[Any]) -> list[Any]:
    return [_NONE if value is None else value for value in values]


def _padded(arrays: Sequence[Array]) -> Array:
    """Arrays of one rank stacked, each filled up with zeros to the largest of each size."""
    shape = tuple(np.max([array.shape for array in arrays], axis=0))
    whole = np.zeros((len(arrays), *shape), arrays[0].dtype)
    for row, array in enumerate(arrays):
        whole[row][tuple(slice(size) for size in array.shape)] = array
    return whole


def _arrays(answer: Mapping[str, Any], prefix: str = "") -> dict[str, Array]:
    """The tensors of an answer, those inside of objects by dotted names."""
    found: dict[str, Array] = {}
    for name, value in answer.items():
        if isinstance(value, np.ndarray):
            found[prefix + name] = value
        elif isinstance(value, Mapping):
            found |= _arrays(value, f"{prefix}{name}.")
    return found


# --- Requests --------------------------------------------------------------------------


def _fields(
    model: Model, given: Inputs, flags: Sequence[str], in_json: Sequence[str] = ()
) -> Fields:
    """A request's fields, as the routes of `/v1` name them.

    Args:
        model: which takes it.
        given: its inputs and parameters.
        flags: of `return`, that choose among the outputs.
        in_json: parameters that hold JSON text, beside `return`.

    Raises:
        ProblemError: an input, a parameter or an output that the model does not have.
    """
    inputs = [tensor.name for tensor in model.inputs]
    for name in given.tensors:
        if name not in inputs:
            message = f"{model.name} takes no such input; it takes {', '.join(inputs)}"
            raise ProblemError.of_field(("inputs", name[:100]), message, Code.UNKNOWN_FIELD)
    for name in given.parameters:
        if name in inputs or name in ("tensor_format", "module"):
            message = f"{name!r} is no parameter; tensors are inputs"
            raise ProblemError.of_field(("parameters", name), message, Code.UNKNOWN_FIELD)
    values: dict[str, Any] = {
        name: array.reshape(-1).tolist() if array.dtype == object else array
        for name, array in given.tensors.items()
    }
    for name, value in given.parameters.items():
        is_json = name in in_json and value != "all"
        values[name] = _parsed(name, value) if is_json or name == "return" else value
    values["return"] = _chosen(model, given, values.get("return", {}), flags)
    return Fields(values, only_numbers=False)


def _parsed(name: str, text: object) -> Any:
    if not isinstance(text, str):
        raise ProblemError.of_field(("parameters", name), "must be a string that holds JSON")
    try:
        return documents.parse(text.encode()).value
    except ProblemError as problem:
        message = f"holds no valid JSON: {problem.detail}"
        raise ProblemError.of_field(("parameters", name), message, problem.code) from None


def _chosen(model: Model, given: Inputs, asked: object, flags: Sequence[str]) -> Any:
    """What `return` says once the outputs that are asked for by name are chosen."""
    if given.outputs is None or not isinstance(asked, dict):
        return asked
    known = [tensor.name for tensor in model.outputs]
    for name in given.outputs:
        if name not in known:
            message = f"{model.name} has no such output; it has {', '.join(known)}"
            raise ProblemError.of_field(("outputs", name[:100]), message, Code.UNKNOWN_FIELD)
    roots = {name.split("_")[0].split(".")[0] for name in given.outputs}
    chosen = dict(asked)
    for flag in flags:
        if flag not in roots:
            chosen[flag] = False  # what is not asked for is not computed
        elif not chosen.setdefault(flag, True):
            message = f"return says false of it, and outputs name it: {sorted(given.outputs)}"
            raise ProblemError.of_field(("parameters", "return", flag), message)
    return chosen
