"""The OpenAPI document: the light routes as FastAPI knows them, and the compute routes.

Compute routes are plain Starlette routes, since FastAPI would read and validate their
bodies number by number. Their models are the same pydantic ones that read the bodies.
"""

from __future__ import annotations

import re
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from attention_service.api import examples
from attention_service.api.guard import is_open
from attention_service.api.problems import STATUS
from attention_wire import answers, schemas
from attention_wire.bodies import JSON, PROBLEM, SAFETENSORS
from attention_wire.inference import InferenceError
from attention_wire.problems import Code, ProblemDetails

ATTENTION = "/v1/attention"
MODULE_ATTENTION = "/v1/modules/{name}/attention"
TEXT_ATTENTION = "/v1/text/attention"
INFER = "/v2/models/{name}/infer"
INFER_VERSION = "/v2/models/{name}/versions/{version}/infer"

DESCRIPTION = """\
Post query, key and value tensors, or text, and get the outputs **and the attention weights**.

Tensors are nested lists, objects with base64 data, or a safetensors body; the answer takes the
form of the request unless `Accept` says otherwise. Every error is `application/problem+json`
and names the field and the cure.
"""
TAGS = [
    {"name": "attention", "description": "Compute"},
    {"name": "modules", "description": "Learned modules that are loaded"},
    {"name": "inference", "description": "The Open Inference Protocol, for clients that speak it"},
    {"name": "service", "description": "What runs here, and whether it is well"},
]

_KEY = "key"
_REF = "#/components/schemas/{model}"
_MODELS: tuple[type[BaseModel], ...] = (
    schemas.AttentionRequest,
    schemas.ModuleRequest,
    schemas.TextRequest,
    answers.AttentionAnswer,
    answers.TextAnswer,
    ProblemDetails,
    InferenceError,
)
_COMPUTE_PROBLEMS = (
    Code.MALFORMED_JSON,
    Code.BODY_TIMEOUT,
    Code.BODY_TOO_LARGE,
    Code.UNSUPPORTED_MEDIA_TYPE,
    Code.INVALID_FIELD,
    Code.QUEUE_FULL,
    Code.NOT_READY,
    Code.DEADLINE,
)
_TITLES = {
    Code.MALFORMED_JSON: "The body cannot be parsed",
    Code.UNKNOWN_MODULE: "There is no such module",
    Code.UNAUTHORIZED: "The service asks for keys, and none of them was sent",
    Code.BODY_TIMEOUT: "The body comes too slowly",
    Code.BODY_TOO_LARGE: "Body, answer or memory would be over its limit",
    Code.UNSUPPORTED_ENCODING: "A Content-Encoding that is not taken",
    Code.UNSUPPORTED_MEDIA_TYPE: "A Content-Type or Content-Encoding that is not taken",
    Code.INVALID_FIELD: "A field is unknown, missing, or of the wrong type, range, dtype or shape",
    Code.QUEUE_FULL: "The queue is full",
    Code.NOT_READY: "The service is starting or draining",
    Code.DEADLINE: "The seconds that the call may take are over",
}
_ID_HEADER = {
    "X-Request-ID": {
        "description": "The request's own id, or one that was made",
        "schema": {"type": "string"},
    }
}
_TIMEOUT = {
    "name": "X-Request-Timeout",
    "in": "header",
    "description": "Seconds that the call may take; the service has a limit of its own",
    "schema": {"type": "number", "exclusiveMinimum": 0},
}
_COMPUTE_HEADERS = {
    **_ID_HEADER,
    "Server-Timing": {
        "description": "Milliseconds of parse, queue, compute and serialize",
        "schema": {"type": "string"},
    },
    "X-Attention-Provider": {
        "description": "The execution provider that ran the call",
        "schema": {"type": "string"},
    },
}


def install(app: FastAPI) -> None:
    """Let the app's document hold every route."""
    light_routes_only = app.openapi

    def whole() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _completed(light_routes_only())
        return app.openapi_schema

    # FastAPI documents this way of extending its schema.
    app.openapi = whole  # type: ignore[method-assign]


def _completed(document: dict[str, Any]) -> dict[str, Any]:
    _, definitions = models_json_schema(
        [(model, "validation") for model in _MODELS], ref_template=_REF
    )
    document["components"]["schemas"] |= definitions["$defs"]
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
    for path, item in document["paths"].items():
        for operation in item.values():
            _complete_light(path, operation)
    document["paths"] |= {
        ATTENTION: _compute(
            "attention",
            "Attention over tensors",
            schemas.AttentionRequest,
            answers.AttentionAnswer,
            examples.ATTENTION,
        ),
        MODULE_ATTENTION: _compute(
            "module_attention",
            "Attention through a learned multi-head module",
            schemas.ModuleRequest,
            answers.AttentionAnswer,
            examples.MODULE_ATTENTION,
            module=True,
        ),
        TEXT_ATTENTION: _compute(
            "text_attention",
            "Attention of a trained model over text",
            schemas.TextRequest,
            answers.TextAnswer,
            examples.TEXT_ATTENTION,
            module=True,
        ),
        INFER: _infer("infer", INFER),
        INFER_VERSION: _infer("infer_version", INFER_VERSION),
    }
    document["components"]["securitySchemes"] = {
        _KEY: {
            "type": "http",
            "scheme": "bearer",
            "description": "A key of the operator's, where `/v1/info` says that keys are asked for",
        }
    }
    for path, item in document["paths"].items():
        if not is_open(path):
            for operation in item.values():
                operation["security"] = [{}, {_KEY: []}]
                operation["responses"] |= _problem(Code.UNAUTHORIZED, path)
    for path in (MODULE_ATTENTION, INFER, INFER_VERSION):
        document["paths"][path]["post"]["parameters"] += [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in re.findall(r"{(\w+)}", path)
        ]
    return document


def _complete_light(path: str, operation: dict[str, Any]) -> None:
    """FastAPI's own 422 never happens on these routes; the service's problems do."""
    responses = operation["responses"]
    responses.pop("422", None)
    responses["200"]["headers"] = _ID_HEADER
    if "{name}" in path:
        responses |= _problem(Code.UNKNOWN_MODULE, path)
    if path.endswith(("/readyz", "/ready")):
        responses |= _problem(Code.NOT_READY, path)


def _compute(
    operation_id: str,
    summary: str,
    request: type[BaseModel],
    answer: type[BaseModel],
    worked: examples.Examples,
    *,
    module: bool = False,
) -> dict[str, Any]:
    problems = [*_COMPUTE_PROBLEMS, *([Code.UNKNOWN_MODULE] if module else [])]
    responses: dict[str, Any] = {
        "200": {
            "description": "What was asked for",
            "headers": _COMPUTE_HEADERS,
            "content": _content(answer, "response"),
        }
    }
    for code in sorted(problems, key=lambda code: STATUS[code]):
        responses |= _problem(code)
    content = _content(request, "request")
    content[JSON]["examples"] = worked
    return {
        "post": {
            "tags": ["attention"],
            "operationId": operation_id,
            "summary": summary,
            "description": request.__doc__,
            "parameters": [_TIMEOUT],
            "requestBody": {"required": True, "content": content},
            "responses": responses,
        }
    }


def _infer(operation_id: str, path: str) -> dict[str, Any]:
    """A route of the Open Inference Protocol, whose own text has the fields."""
    binary = {
        "type": "string",
        "format": "binary",
        "description": "JSON, as long as `Inference-Header-Content-Length` says, then the tensors",
    }
    content: dict[str, Any] = {
        JSON: {"schema": {"type": "object"}},
        "application/octet-stream": {"schema": binary},
    }
    asked = {**content, JSON: {**content[JSON], "examples": examples.INFER}}
    responses: dict[str, Any] = {
        "200": {"description": "Outputs", "headers": _COMPUTE_HEADERS, "content": content}
    }
    codes = {*_COMPUTE_PROBLEMS, Code.UNKNOWN_MODULE} - {Code.UNSUPPORTED_MEDIA_TYPE}
    for code in sorted({*codes, Code.UNSUPPORTED_ENCODING}, key=lambda code: STATUS[code]):
        responses |= _problem(code, path)
    return {
        "post": {
            "tags": ["inference"],
            "operationId": operation_id,
            "summary": "Inputs of a model to its outputs",
            "description": "The inputs and outputs stand in the model's metadata; "
            "docs/inference-protocol.md has its parameters.",
            "parameters": [_TIMEOUT],
            "requestBody": {"required": True, "content": asked},
            "responses": responses,
        }
    }


def _content(model: type[BaseModel], member: str) -> dict[str, Any]:
    return {
        JSON: {"schema": {"$ref": _REF.format(model=model.__name__)}},
        SAFETENSORS: {
            "schema": {
                "type": "string",
                "format": "binary",
                "description": "Tensors by name; every other field as JSON text under the "
                f"metadata key `{member}`",
            }
        },
    }


def _problem(code: Code, path: str = "") -> dict[str, Any]:
    """The answer to a problem, in the form that it has at a path."""
    headers: dict[str, Any] = dict(_ID_HEADER)
    if code is Code.UNAUTHORIZED:
        headers["WWW-Authenticate"] = {"description": "Bearer", "schema": {"type": "string"}}
    if code in (Code.QUEUE_FULL, Code.NOT_READY):
        headers["Retry-After"] = {
            "description": "Seconds to wait",
            "schema": {"type": "string", "pattern": "^[0-9]+$"},
        }
    is_inference = path.startswith("/v2")
    model = InferenceError if is_inference else ProblemDetails
    schema = {"$ref": _REF.format(model=model.__name__)}
    return {
        str(int(STATUS[code])): {
            "description": _TITLES[code],
            "headers": headers,
            "content": {JSON if is_inference else PROBLEM: {"schema": schema}},
        }
    }
