"""Fields → models: every wrong field is named, with what would be right."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from attention_wire.bodies import Fields
from attention_wire.names import fields_at, meant
from attention_wire.problems import Code, FieldProblem, Loc, ProblemError
from attention_wire.tensors import kind_of

Model = TypeVar("Model", bound=BaseModel)


def validate(model: type[Model], fields: Fields) -> Model:
    """Fields as a model, every wrong field named with what would be right.

    Raises:
        ProblemError: with a ``FieldProblem`` for each wrong field. Its code is the gravest:
            a tensor that cannot be read comes before a field that is wrong.
    """
    if fields.unread:
        _check_unread(model, fields.unread)
    try:
        return model.model_validate(fields.values, context={"only_numbers": fields.only_numbers})
    except ValidationError as error:
        # What is missing may only be called otherwise, which is told first.
        wrong = sorted(error.errors(include_url=False), key=lambda item: item["type"] == "missing")
        found = [_problem(model, item) for item in wrong[:_MOST_PROBLEMS]]
    codes = {code for code, _ in found}
    code = Code.MALFORMED_TENSOR if Code.MALFORMED_TENSOR in codes else found[0][0]
    raise ProblemError.of_fields([problem for _, problem in found], code, len(wrong))


# A caller who gets more fields wrong than this has one thing wrong.
_MOST_PROBLEMS = 20
_LONGEST_NAME = 100
_CODES = {"extra_forbidden": Code.UNKNOWN_FIELD, "missing": Code.MISSING_FIELD}
# What pydantic finds, in the words of this project; of those that it has by itself, all that a
# field of the requests can lead to.
_WORDS = {
    "missing": "is missing",
    "bool_type": "must be true or false",
    "int_type": "must be an integer",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be a string",
    "list_type": "must be a list",
    "literal_error": "must be {expected}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than_equal": "must be at most {le:g}",
    "too_short": "must hold at least {min_length}; holds {actual_length}",
    "too_long": "must hold at most {max_length}; holds {actual_length}",
}


def _check_unread(model: type[BaseModel], names: Iterable[str]) -> None:
    """Refuse metadata that was meant to be fields, rather than answer as if it were not there."""
    message = "stands in __metadata__ itself; fields go into the JSON text under its key 'request'"
    known = fields_at(model)
    astray = [
        FieldProblem(loc=("__metadata__", name), msg=message) for name in names if name in known
    ]
    if astray:
        raise ProblemError.of_fields(astray, Code.UNKNOWN_FIELD)


def _problem(model: type[BaseModel], item: ErrorDetails) -> tuple[Code, FieldProblem]:
    kind = item["type"]
    loc = _place(model, item["loc"])
    if kind == "extra_forbidden":
        name = str(item["loc"][-1])
        cure = meant(model, name, loc) or f"known are {', '.join(sorted(fields_at(model, loc)))}"
        message = f"unknown field; {cure}"
        loc = (*loc, name[:_LONGEST_NAME])
    elif kind == "model_type":
        message = f"must be an object with any of {', '.join(fields_at(model, loc))}{_got(item)}"
    elif kind == "value_error":
        message = str(item["ctx"]["error"])
    elif kind in _WORDS:
        message = _WORDS[kind].format(**item.get("ctx", {}))
        message += _got(item) if message.startswith("must be") else ""
    else:
        message = item["msg"]
    code = Code(kind) if kind in list(Code) else _CODES.get(kind, Code.INVALID_FIELD)
    return code, FieldProblem(loc=loc, msg=message)


def _got(item: ErrorDetails) -> str:
    given = item["input"]
    if isinstance(given, str):
        return f"; got the string {given!r:.60}"
    if given is None or isinstance(given, bool | int | float):
        return f"; got {json.dumps(given):.40}"
    return f"; got {kind_of(given)}"


def _place(model: type[BaseModel], loc: tuple[int | str, ...]) -> Loc:
    """The path as a caller would write it, as far as its names are known.

    Pydantic puts the name of a union's member into the path, which no request holds.
    """
    place: Loc = ()
    for part in loc:
        if isinstance(part, int) or part in fields_at(model, place):
            place = (*place, part)
    return place
