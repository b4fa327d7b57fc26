"""Fields → models: every wrong field is named, with what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from attention_wire.bodies import Fields
from attention_wire.problems import Code, FieldProblem, ProblemError

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
    loc, known = _place(model, item["loc"])
    if kind == "extra_forbidden":
        message = _unknown(str(item["loc"][-1]), known)
        loc = (*loc, str(item["loc"][-1])[:_LONGEST_NAME])
    elif kind == "missing":
        message = "is missing"
    elif kind == "value_error":
        message = str(item["ctx"]["error"])
    else:
        message = item["msg"]
    code = Code(kind) if kind in list(Code) else _CODES.get(kind, Code.INVALID_FIELD)
    return code, FieldProblem(loc=loc, msg=message)


def _unknown(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    cure = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
    return f"unknown field; {cure}"


def _place(
    model: type[BaseModel], loc: tuple[int | str, ...]
) -> tuple[tuple[int | str, ...], Mapping[str, FieldInfo]]:
    """The path as a caller would write it, and the names that are known at its end.

    Pydantic puts the name of a union's member into the path, which no request holds.
    """
    place: list[int | str] = []
    known = _fields(model)
    for part in loc:
        if isinstance(part, int):
            place.append(part)
        elif part in known:
            place.append(part)
            inner = _models(known[part].annotation)
            known = {name: info for model in inner for name, info in _fields(model).items()}
    return tuple(place), known


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields by the names that they go by."""
    return {info.alias or name: info for name, info in model.model_fields.items()}


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models that an annotation names, be it in a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]
