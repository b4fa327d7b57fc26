"""Everything that the client raises of its own.

The tree of exceptions::

    AttentionError                   whatever goes wrong between a caller and the service
     ├─ ConfigurationError           an URL, key, timeout or header that cannot be used
     │                               (also a ValueError)
     ├─ ConnectionFailedError        no answer: refused, unreachable, broken off, TLS
     ├─ DeadlineExceededError        the `timeout` of the call has passed
     │   └─ ServiceDeadlineError     504: the service, or a proxy, noticed first
     ├─ InvalidAnswerError           an answer that is not the service's, such as a web page
     ├─ NotReturnedError             an array that the call did not ask for
     │                               (also an AttributeError)
     └─ ApiError                     the service answered with a problem
         ├─ BadRequestError          400: the body cannot be parsed
         ├─ UnauthorizedError        401: no key, or one that is not known
         ├─ NotFoundError            404: no such module or path
         ├─ MethodNotAllowedError    405: the path takes other methods
         ├─ BodyTimeoutError         408: the body came too slowly
         ├─ TooLargeError            413: the body, the answer or the memory it takes
         ├─ UnsupportedMediaError    415: a content type or encoding that is not taken
         ├─ InvalidRequestError      422: a field of the wrong type, range, dtype or shape
         ├─ OverloadedError          429: the queue is full
         └─ ServerError              5xx
             ├─ UnavailableError     503: starting, or draining
             └─ ServiceDeadlineError 504: past the deadline

Wrong arguments that never leave the process are plain ``TypeError`` and ``ValueError``.
"""

from __future__ import annotations

from attention_wire.problems import FieldProblem, ProblemDetails, dotted


class AttentionError(Exception):
    """Whatever goes wrong between a caller and the service."""


class ConfigurationError(AttentionError, ValueError):
    """An URL, a key, a timeout or a header that cannot be used."""


class ConnectionFailedError(AttentionError):
    """There was no answer: refused, unreachable, broken off, or no trust in its certificate."""


class DeadlineExceededError(AttentionError):
    """The timeout of the call has passed, its repetitions included."""


class InvalidAnswerError(AttentionError):
    """The answer is not what the service would send; the URL may name something else."""


class NotReturnedError(AttentionError, AttributeError):
    """An array that the call did not ask for."""


class ApiError(AttentionError):
    """The service answered with a problem.

    Args:
        problem: the problem document that was answered, or one made from an answer of
            something else on the way, such as a proxy.
        retry_after: seconds after which a repeat may succeed, if the answer named them.
    """

    def __init__(self, problem: ProblemDetails, retry_after: float | None = None) -> None:
        super().__init__(problem, retry_after)
        self.problem = problem
        self.retry_after = retry_after

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.problem.status

    @property
    def code(self) -> str:
        """A stable word to branch on; ``unknown`` if the answer was no problem document."""
        return self.problem.code

    @property
    def title(self) -> str:
        """The kind of problem, the same for every occurrence."""
        return self.problem.title

    @property
    def detail(self) -> str:
        """What happened this time, and the cure."""
        return self.problem.detail

    @property
    def errors(self) -> tuple[FieldProblem, ...]:
        """Each wrong field; empty where no field is to blame."""
        return tuple(self.problem.errors)

    @property
    def request_id(self) -> str | None:
        """What the service's logs call this request."""
        return self.problem.request_id

    def __str__(self) -> str:
        lines = [f"{self.status} {self.code}: {self.detail}"]
        for problem in self.errors:
            field = f"{dotted(problem.loc)}: {problem.msg}"
            if self.detail not in {field, problem.msg}:  # which told it already
                lines.append(f"  {field}")
        if self.request_id:
            lines.append(f"  (request {self.request_id})")
        return "\n".join(lines)


class BadRequestError(ApiError):
    """400: the body cannot be parsed."""


class UnauthorizedError(ApiError):
    """401: no key, or one that the service does not know."""


class NotFoundError(ApiError):
    """404: no such module, or no such path."""


class MethodNotAllowedError(ApiError):
    """405: the path takes other methods."""


class BodyTimeoutError(ApiError):
    """408: the body came too slowly."""


class TooLargeError(ApiError):
    """413: the body, the answer, or the memory that it takes is over its limit."""


class UnsupportedMediaError(ApiError):
    """415: a content type or encoding that the service does not take."""


class InvalidRequestError(ApiError):
    """422: a field is unknown, or of the wrong type, range, dtype or shape."""


class OverloadedError(ApiError):
    """429: the queue is full."""


class ServerError(ApiError):
    """5xx: the fault is on the other side."""


class UnavailableError(ServerError):
    """503: the service is starting or draining."""


class ServiceDeadlineError(ServerError, DeadlineExceededError):
    """504: the service, or a proxy before it, saw the deadline pass."""


BY_STATUS: dict[int, type[ApiError]] = {
    400: BadRequestError,
    401: UnauthorizedError,
    404: NotFoundError,
    405: MethodNotAllowedError,
    408: BodyTimeoutError,
    413: TooLargeError,
    415: UnsupportedMediaError,
    422: InvalidRequestError,
    429: OverloadedError,
    503: UnavailableError,
    504: ServiceDeadlineError,
}
"""The class for each status that has one; see :func:`api_error` for the others."""


def api_error(problem: ProblemDetails, retry_after: float | None = None) -> ApiError:
    """The error of the class that stands for the problem's status."""
    fallback = ServerError if problem.status >= 500 else ApiError
    return BY_STATUS.get(problem.status, fallback)(problem, retry_after)
