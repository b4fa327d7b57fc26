"""The module repository: a folder of module folders, checked and loaded at start.

A folder that is damaged is refused by name with the reason, and the others serve.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from attention_service.attention.engine import Engine, EngineError, Session
from attention_service.modules.manifest import MANIFEST_FILE, MODEL_FILE, Manifest, sha256
from attention_service.modules.multi_head import INPUTS as MULTI_HEAD_INPUTS
from attention_service.modules.multi_head import MultiHeadModule
from attention_service.modules.text import INPUTS as TEXT_INPUTS
from attention_service.modules.text import TextModule
from attention_service.modules.tokens import Tokenizer, TokenizerError
from attention_wire.problems import Code, FieldProblem, Loc, ProblemError
from attention_wire.schemas import ModuleInfo, RefusedModule

logger = logging.getLogger(__name__)

Module = MultiHeadModule | TextModule


class ModuleError(Exception):
    """A module folder cannot be loaded; the message says why."""


class Repository:
    """The modules that serve.

    Args:
        modules: by name.
        refused: the folders that were not loaded, with the reason.
        default_text_module: the text module of calls that name none.
        folder: where they came from, for messages.
    """

    def __init__(
        self,
        modules: Mapping[str, Module],
        refused: Mapping[str, str],
        default_text_module: str | None,
        folder: Path,
    ) -> None:
        self._modules = dict(modules)
        self.refused = [RefusedModule(name=name, reason=why) for name, why in refused.items()]
        self._default_text_module = default_text_module
        self._folder = folder

    @classmethod
    def open(
        cls, folder: Path, engine: Engine, default_text_module: str | None = None
    ) -> Repository:
        """Load every module of a folder; a missing or empty folder gives no modules."""
        modules: dict[str, Module] = {}
        refused: dict[str, str] = {}
        names = (
            sorted(path for path in folder.iterdir() if path.is_dir()) if _is_there(folder) else []
        )
        for path in names:
            if path.name.startswith("."):
                continue  # an exporter's unfinished work
            name = path.name
            if not name.isprintable():  # refused, by a name that a log and JSON can hold
                name = name.encode("unicode_escape").decode()
            try:
                modules[name] = load(path, engine)
            except ModuleError as error:
                refused[name] = str(error)
                logger.error("module %s refused: %s", name, error)
        return cls(modules, refused, default_text_module, folder)

    def infos(self) -> list[ModuleInfo]:
        """What each module is, by name."""
        return [module.info for module in self._modules.values()]

    def get(self, name: str, loc: Loc = ()) -> Module:
        """The module of that name.

        Raises:
            ProblemError: ``unknown_module``, with the names there are.
        """
        try:
            return self._modules[name]
        except KeyError:
            raise self._unknown(name, loc) from None

    def multi_head(self, name: str) -> MultiHeadModule:
        """The multi-head module of that name.

        Raises:
            ProblemError: ``unknown_module``, or ``module_kind`` for a text module.
        """
        module = self.get(name)
        if isinstance(module, MultiHeadModule):
            return module
        raise ProblemError(
            Code.MODULE_KIND,
            f"{name!r} is a text module, which takes no tensors: post text to /v1/text/attention "
            f'with "module": "{name}".',
        )

    def text(self, name: str | None) -> TextModule:
        """The text module of that name, or the one that calls without a name mean.

        Raises:
            ProblemError: ``unknown_module``, ``module_kind`` or ``module_not_chosen``.
        """
        loc: Loc = ("module",)
        if name is None:
            name, loc = self._text_module_of_none(), ()
        module = self.get(name, loc)
        if isinstance(module, TextModule):
            return module
        message = f"{name!r} is a multi-head module, which takes no text; name a text module"
        raise ProblemError.of_field("module", message, Code.MODULE_KIND)

    def _text_module_of_none(self) -> str:
        if self._default_text_module is not None:
            return self._default_text_module
        names = [name for name, m in self._modules.items() if isinstance(m, TextModule)]
        if len(names) == 1:
            return names[0]
        if not names:
            raise ProblemError(
                Code.UNKNOWN_MODULE,
                f"No text module is loaded. Add one to the module folder, for example with "
                f"`attention-service export sentence-transformers/all-MiniLM-L6-v2 "
                f"--name all-MiniLM-L6-v2 --modules {self._folder}`, and restart the service.",
            )
        message = f"is needed, since there are several text modules: {', '.join(names)}"
        raise ProblemError.of_field("module", message, Code.MODULE_NOT_CHOSEN)

    def _unknown(self, name: str, loc: Loc) -> ProblemError:
        for module in self.refused:
            if module.name == name:
                why = f"The module {name!r} was refused when the service started: {module.reason}"
                break
        else:
            loaded = ", ".join(self._modules) or "none"
            why = f"There is no module {name!r:.100}; loaded are: {loaded}."
        errors = [FieldProblem(loc=loc, msg=why)] if loc else []
        return ProblemError(Code.UNKNOWN_MODULE, why, errors)


def _is_there(folder: Path) -> bool:
    if not folder.exists():
        logger.info("module folder %s does not exist: tensors are served, no modules", folder)
        return False
    return True


def load(folder: Path, engine: Engine) -> Module:
    """Check and load one module folder.

    Raises:
        ModuleError: a file is missing or was changed, or ONNX Runtime refuses the graph.
    """
    if not folder.name.isprintable():
        raise ModuleError("the name of its folder is not printable text")
    manifest = _manifest(folder)
    _check_files(folder, manifest)
    try:
        session = engine.load(folder / MODEL_FILE)
    except EngineError as error:
        why = str(error).replace(str(folder / MODEL_FILE), MODEL_FILE)  # it may be told to anyone
        raise ModuleError(f"{MODEL_FILE} cannot be loaded: {why}") from error
    is_text = manifest.kind == "text"
    _check_names(manifest, session, TEXT_INPUTS if is_text else MULTI_HEAD_INPUTS)
    info = ModuleInfo(
        name=folder.name,
        sha256=manifest.files[MODEL_FILE],
        **manifest.model_dump(include=set(ModuleInfo.model_fields)),
    )
    module: Module
    if is_text:
        try:
            module = TextModule(info, session, manifest.outputs, Tokenizer.open(folder))
        except TokenizerError as error:
            raise ModuleError(str(error)) from error
    else:
        module = MultiHeadModule(info, session, manifest.outputs)
    _check_run(module)
    return module


def _check_run(module: Module) -> None:
    """Run a module once, so that what its files do not agree on shows now, not in calls."""
    try:
        shapes = module.probe()
    except Exception as error:  # ONNX Runtime's errors have no other base
        raise ModuleError(
            f"{MODEL_FILE} does not run with what the other files say: {error}"
        ) from error
    for name, (given, expected) in shapes.items():
        if given != expected:
            raise ModuleError(
                f"{MODEL_FILE} gives {name} of the shape {list(given)} where {MANIFEST_FILE} says "
                f"{list(expected)}"
            )


def _manifest(folder: Path) -> Manifest:
    try:
        text = (folder / MANIFEST_FILE).read_bytes()
    except OSError as error:
        raise ModuleError(f"{MANIFEST_FILE} cannot be read: {error.strerror}") from error
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or MANIFEST_FILE
        raise ModuleError(f"{MANIFEST_FILE} is not valid: {where}: {first['msg']}") from error


def _check_files(folder: Path, manifest: Manifest) -> None:
    needed = {MODEL_FILE} | ({Tokenizer.FILE} if manifest.kind == "text" else set())
    for name in sorted(needed - set(manifest.files)):
        raise ModuleError(f"{MANIFEST_FILE} holds no checksum for {name}")
    for name, expected in manifest.files.items():
        try:
            _check_file(folder, name, expected)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            why = getattr(error, "strerror", None) or error
            raise ModuleError(f"{name!r:.100} cannot be read: {why}") from error
        except RuntimeError as error:  # before Python 3.13
            raise ModuleError(f"{name!r:.100} cannot be read: it links to itself") from error


def _check_file(folder: Path, name: str, expected: str) -> None:
    path = folder / name
    if path.resolve().parent != folder.resolve():
        raise ModuleError(f"{MANIFEST_FILE} names {name!r:.100}, which is not in this folder")
    if not path.is_file():
        raise ModuleError(f"{name} is missing")
    if sha256(path) != expected:
        raise ModuleError(
            f"{name} does not have the checksum that {MANIFEST_FILE} says: it was damaged or "
            "changed; export the module again"
        )


def _check_names(manifest: Manifest, session: Session, inputs: frozenset[str]) -> None:
    outputs = {manifest.outputs.output, *manifest.outputs.weights}
    if missing := sorted(inputs - session.inputs):
        raise ModuleError(f"{MODEL_FILE} has no input {', '.join(missing)}")
    if missing := sorted(outputs - session.outputs):
        raise ModuleError(f"{MODEL_FILE} has no output {', '.join(missing)}")
    if len(manifest.outputs.weights) != manifest.num_layers:
        raise ModuleError(
            f"{MANIFEST_FILE} names {len(manifest.outputs.weights)} weights outputs for "
            f"{manifest.num_layers} layers"
        )
