"""Loading: a module folder, checked against its manifest, as a module that serves."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

from pydantic import ValidationError

from attention_service.attention.engine import Engine, EngineError, Session
from attention_service.modules import placing
from attention_service.modules.cutting import CutError
from attention_service.modules.layered import LayeredModel
from attention_service.modules.manifest import (
    MANIFEST_FILE,
    MODEL_FILE,
    RESERVED_NAME,
    Manifest,
    sha256,
)
from attention_service.modules.multi_head import INPUTS as MULTI_HEAD_INPUTS
from attention_service.modules.multi_head import MultiHeadModule
from attention_service.modules.text import INPUTS as TEXT_INPUTS
from attention_service.modules.text import TextModule
from attention_service.modules.tokens import Tokenizer, TokenizerError
from attention_service.modules.whole import WholeModel
from attention_wire.answers import ModuleInfo

Module: TypeAlias = MultiHeadModule | TextModule


class ModuleError(Exception):
    """A module folder cannot be loaded; the message says why."""


def load(folder: Path, engine: Engine) -> Module:
    """Check and load one module folder.

    Raises:
        ModuleError: a file is missing or was changed, or ONNX Runtime refuses the graph.
    """
    if not folder.name.isprintable():
        raise ModuleError("the name of its folder is not printable text")
    if folder.name == RESERVED_NAME:
        raise ModuleError(
            f"{RESERVED_NAME!r} is what /v2 calls plain attention; give its folder another name"
        )
    manifest = read_manifest(folder)
    _check_files(folder, manifest)
    info = ModuleInfo(
        name=folder.name,
        sha256=manifest.files[MODEL_FILE],
        **manifest.model_dump(include=set(ModuleInfo.model_fields)),
    )
    module: Module
    try:
        if manifest.kind == "text":
            model = _text_model(folder, manifest, engine)
            module = TextModule(info, model, Tokenizer.open(folder))
        else:
            session = engine.load(folder / MODEL_FILE)
            _check_names(manifest, session, MULTI_HEAD_INPUTS)
            module = MultiHeadModule(info, session, manifest.outputs)
    except (EngineError, CutError) as error:
        why = str(error).replace(str(folder / MODEL_FILE), MODEL_FILE)  # it may be told to anyone
        raise ModuleError(f"{MODEL_FILE} cannot be loaded: {why}") from error
    except TokenizerError as error:
        raise ModuleError(str(error)) from error
    _check_run(module)
    return module


def _text_model(folder: Path, manifest: Manifest, engine: Engine) -> LayeredModel | WholeModel:
    """A text graph in layers, if its manifest says where they begin."""
    path, layers = folder / MODEL_FILE, manifest.layers
    if layers is None:
        session = engine.load(path)
        _check_names(manifest, session, TEXT_INPUTS)
        return WholeModel(session, manifest.outputs, manifest.num_heads)
    if len(layers) != manifest.num_layers:
        raise ModuleError(
            f"{MANIFEST_FILE} says of {len(layers)} layers how they attend, and that there are "
            f"{manifest.num_layers}"
        )
    return LayeredModel.load(path, layers, manifest, engine)


def _check_run(module: Module) -> None:
    """Run a module once, so that what its files do not agree on shows now, not in calls."""
    try:
        shapes = module.probe()
    except Exception as error:  # any file that somebody else made stands behind it
        raise ModuleError(
            f"{MODEL_FILE} does not run with what the other files say: {error}"
        ) from error
    for name, (given, expected) in shapes.items():
        if given != expected:
            raise ModuleError(
                f"{MODEL_FILE} gives {name} of the shape {list(given)} where {MANIFEST_FILE} says "
                f"{list(expected)}"
            )


def read_manifest(folder: Path) -> Manifest:
    """What a module says of itself.

    Raises:
        ModuleError: there is no manifest, or it is not valid.
    """
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


def text_modules(modules: Path) -> list[str]:
    """The names of a folder's text modules, by what their manifests say; none is loaded.

    Raises:
        PlacingError: the folder cannot be listed.
    """
    found = []
    for name in placing.names(modules):
        with suppress(ModuleError):
            if read_manifest(modules / name).kind == "text":
                found.append(name)
    return found


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
