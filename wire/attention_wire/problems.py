"""Problems: what can go wrong between a caller and the service, as stable codes.

The tree of exceptions::

    ProblemError            a problem with a code; the service answers it as problem+json
    TensorError (ValueError)
     ├─ MalformedTensor     its bytes or text cannot be read (a 400 over HTTP)
     └─ InvalidTensor       it was read, and is not a tensor that the field takes (a 422)

Codes, not HTTP statuses, are what this package and the domain know; the service's
``api`` maps each code to its status.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class Code(StrEnum):
    """What went wrong, in one stable word. Clients may rely on these."""

    MALFORMED_BODY = "malformed_body"
    MALFORMED_JSON = "malformed_json"
    MALFORMED_TENSOR = "malformed_tensor"
    TOO_DEEP = "too_deep"
    DUPLICATE_FIELD = "duplicate_field"

    UNAUTHORIZED = "unauthorized"
    NOT_FOUND = "not_found"
    UNKNOWN_MODULE = "unknown_module"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    BODY_TIMEOUT = "body_timeout"

    BODY_TOO_LARGE = "body_too_large"
    ANSWER_TOO_LARGE = "answer_too_large"
    MEMORY_TOO_LARGE = "memory_too_large"

    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    UNSUPPORTED_ENCODING = "unsupported_encoding"

    INVALID_FIELD = "invalid_field"
    UNKNOWN_FIELD = "unknown_field"
    MISSING_FIELD = "missing_field"
    INVALID_TENSOR = "invalid_tensor"
    NON_FINITE = "non_finite"
    OVERFLOW = "overflow"
    TEXT_TOO_LONG = "text_too_long"
    MODULE_KIND = "module_kind"
    MODULE_NOT_CHOSEN = "module_not_chosen"

    QUEUE_FULL = "queue_full"
    NOT_READY = "not_ready"
    DEADLINE = "deadline"
    INTERNAL = "internal"


TYPE_PREFIX = "urn:attention-service:problem:"

Loc = tuple[str | int, ...]


class FieldProblem(BaseModel):
    """One field that is wrong: where it is, what is wrong with it, and the cure."""

    model_config = ConfigDict(frozen=True)

    loc: Loc = Field(description="Path to the field, outermost name first", examples=[["key"]])
    msg: str = Field(description="What is wrong, and what would be right")


class ProblemDetails(BaseModel):
    """An error answer, `application/problem+json` (RFC 9457)."""

    type: str = Field(description="A URN that ends in the code")
    title: str = Field(description="The kind of problem, the same for every occurrence")
    status: int = Field(description="The HTTP status")
    detail: str = Field(description="What happened this time, and the cure")
    code: str = Field(description="A stable word to branch on")
    request_id: str | None = Field(default=None, description="The X-Request-ID of this call")
    errors: list[FieldProblem] = Field(
        default_factory=list, description="Each wrong field; empty where no field is to blame"
    )


class ProblemError(Exception):
    """A problem that is told to the caller.

    Args:
        code: the stable word.
        detail: one or two sentences for a person: what happened, and the cure.
        errors: the fields to blame, each with its path.
        retry_after: seconds after which a repeat may succeed, where that is known.
    """

    def __init__(
        self,
        code: Code,
        detail: str,
        errors: Sequence[FieldProblem] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.errors = tuple(errors)
        self.retry_after = retry_after

    @classmethod
    def of_field(cls, loc: str | Loc, msg: str, code: Code = Code.INVALID_FIELD) -> ProblemError:
        """A problem with one field; the detail names it."""
        path = (loc,) if isinstance(loc, str) else loc
        return cls(code, f"{dotted(path)}: {msg}", [FieldProblem(loc=path, msg=msg)])

    @classmethod
    def of_fields(
        cls,
        problems: Sequence[FieldProblem],
        code: Code = Code.INVALID_FIELD,
        count: int | None = None,
    ) -> ProblemError:
        """A problem with several fields; the detail tells the first.

        Args:
            problems: at least one.
            code: of them all.
            count: how many there are, where not all of them are told.
        """
        first, others = problems[0], (len(problems) if count is None else count) - 1
        more = f" ({others} more; see errors)" if others else ""
        return cls(code, f"{dotted(first.loc)}: {first.msg}{more}", problems)


class TensorError(ValueError):
    """A value on the wire is no tensor that could be used."""


class MalformedTensor(TensorError):
    """The bytes or the text of a tensor cannot be read: base64, lengths, offsets."""


class InvalidTensor(TensorError):
    """A tensor was read, but its dtype, shape or elements are not what the field takes."""


def dotted(loc: Loc) -> str:
    """The path as people write it: ``("return", "weights")`` → ``return.weights``."""
    return ".".join(str(part) for part in loc) or "body"
