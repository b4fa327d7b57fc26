"""A typed client of the attention service: outputs and attention weights, by HTTP.

Example:
    >>> from attention_client import AttentionClient
    >>> with AttentionClient() as client:
    ...     print(client.text_attention("The cat sat."))
    mean of 6 layers, mean of 12 heads; rows: queries, columns: keys
    ...
"""

from importlib.metadata import version as _version

from attention_client._async_client import AsyncAttentionClient
from attention_client._client import AttentionClient
from attention_client.errors import (
    ApiError,
    AttentionError,
    BadRequestError,
    BodyTimeoutError,
    ConfigurationError,
    ConnectionFailedError,
    DeadlineExceededError,
    InvalidAnswerError,
    InvalidRequestError,
    MethodNotAllowedError,
    NotFoundError,
    NotReturnedError,
    OverloadedError,
    ServerError,
    ServiceDeadlineError,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
    UnsupportedMediaError,
)
from attention_client.maps import attention_map
from attention_client.merging import merge
from attention_client.options import AttentionOptions
from attention_client.results import AttentionResult, TopK
from attention_client.text_parts import LayerInputs
from attention_client.text_results import TextAttention
from attention_wire.answers import (
    HeadClasses,
    ModuleInfo,
    ModuleList,
    PlanInfo,
    PlanStep,
    ServiceInfo,
    Statistics,
    Words,
)
from attention_wire.problems import FieldProblem
from attention_wire.schemas import Range, Return, TextReturn, TextWeightsSelection, WeightsSelection

__version__ = _version("attention-service")

__all__ = [
    "ApiError",
    "AsyncAttentionClient",
    "AttentionClient",
    "AttentionError",
    "AttentionOptions",
    "AttentionResult",
    "BadRequestError",
    "BodyTimeoutError",
    "ConfigurationError",
    "ConnectionFailedError",
    "DeadlineExceededError",
    "FieldProblem",
    "HeadClasses",
    "InvalidAnswerError",
    "InvalidRequestError",
    "LayerInputs",
    "MethodNotAllowedError",
    "ModuleInfo",
    "ModuleList",
    "NotFoundError",
    "NotReturnedError",
    "OverloadedError",
    "PlanInfo",
    "PlanStep",
    "Range",
    "Return",
    "ServerError",
    "ServiceDeadlineError",
    "ServiceInfo",
    "Statistics",
    "TextAttention",
    "TextReturn",
    "TextWeightsSelection",
    "TooLargeError",
    "TopK",
    "UnauthorizedError",
    "UnavailableError",
    "UnsupportedMediaError",
    "WeightsSelection",
    "Words",
    "__version__",
    "attention_map",
    "merge",
]
