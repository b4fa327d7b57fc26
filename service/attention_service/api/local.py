"""One call without a server: the answer that its route would send, as JSON."""

from __future__ import annotations

from attention_service.api.answers import check_limits
from attention_service.attention.engine import Engine
from attention_service.attention.job import Job
from attention_service.attention.sdpa import AttentionJob
from attention_service.modules import placing
from attention_service.modules.folder import ModuleFolder
from attention_service.modules.multi_head import MultiHeadJob
from attention_service.modules.repository import Repository
from attention_service.modules.text_job import TextJob
from attention_service.settings import Settings
from attention_wire import bodies
from attention_wire.problems import Code, ProblemError
from attention_wire.schemas import AttentionRequest, ModuleRequest, TextRequest
from attention_wire.tensors import TensorFormat
from attention_wire.validation import validate


def answer(fields: bodies.Fields, module: str | None, settings: Settings) -> bytes:
    """Answer a request.

    Args:
        fields: of any compute route; which of them is plain from the fields and the module.
        module: the multi-head module of a request that holds tensors.
        settings: which provider, limits and modules.

    Raises:
        ProblemError: what the route would answer; of a module that is not there, with its folder.
        EngineError: the provider is not installed.
    """
    engine = Engine(settings.provider, settings.threads)
    job, tensor_format = _job(fields, module, engine, settings)
    check_limits(job, tensor_format, settings.max_answer_bytes, settings.memory_budget_bytes)
    return bytes(bodies.write(bodies.JSON, job.run(), "response", tensor_format))


def _job(
    fields: bodies.Fields, module: str | None, engine: Engine, settings: Settings
) -> tuple[Job, TensorFormat]:
    if "text" in fields.values:
        text = validate(TextRequest, fields)
        repository = _repository(text.module or settings.text_module, engine, settings)
        return TextJob(repository.text(text.module), text), text.tensor_format
    if module is not None:
        tensors = validate(ModuleRequest, fields)
        repository = _repository(module, engine, settings)
        return MultiHeadJob(repository.multi_head(module), tensors), tensors.tensor_format
    plain = validate(AttentionRequest, fields)
    return AttentionJob.of(plain, engine), plain.tensor_format


def _repository(name: str | None, engine: Engine, settings: Settings) -> Repository:
    """What a call needs of the folder: the module of that name alone, or all to choose from."""
    if name is not None:
        try:
            placing.existing(settings.modules, name)
        except placing.PlacingError as error:
            raise ProblemError(Code.UNKNOWN_MODULE, f"{error}") from None
    folder = ModuleFolder(settings.modules, engine, settings.text_module, only=name)
    return folder.look() if settings.modules.exists() else folder.current
