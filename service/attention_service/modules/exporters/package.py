"""From a source to a finished module folder: build, write aside, verify, put in place."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import onnx
from pydantic import ValidationError

from attention_service.modules import placing
from attention_service.modules.exporters import (
    bert,
    distilbert,
    gpt2,
    llama,
    modernbert,
    multi_head,
    roberta,
    storage,
)
from attention_service.modules.exporters.errors import ExportError
from attention_service.modules.exporters.family import Built, Family
from attention_service.modules.exporters.source import (
    CONFIG_FILE,
    Source,
    is_local,
    locate,
    read,
)
from attention_service.modules.exporters.weights import Weights
from attention_service.modules.manifest import (
    MANIFEST_FILE,
    MODEL_FILE,
    TOKENIZER_FILE,
    Manifest,
    sha256,
)

Progress: TypeAlias = Callable[[str, float], None]

# A new family is a file beside bert.py and an entry here; the first that matches is taken.
FAMILIES: tuple[Family, ...] = (
    bert.FAMILY,
    roberta.FAMILY,
    distilbert.FAMILY,
    gpt2.FAMILY,
    llama.FAMILY,
    modernbert.FAMILY,
    multi_head.FAMILY,
)

LICENSE_FILE = "LICENSE"


def _silent(stage: str, fraction: float) -> None:
    """The progress of who does not ask for it."""


def export(
    source: str | Path,
    name: str,
    modules: Path,
    *,
    num_heads: int | None = None,
    license: str | None = None,  # noqa: A002 - the manifest's field of that name
    origin: str | None = None,
    expected_sha256: str | None = None,
    force: bool = False,
    dtype: storage.StorageDtype = "float32",
    progress: Progress = _silent,
) -> Path:
    """Make a module of published weights.

    Args:
        source: a folder or a ``.safetensors`` file; or, where no such path exists, an id on the
            Hugging Face Hub (``owner/name``, or ``owner/name@revision``).
        name: the name of the module and its folder: letters, digits, ``.``, ``_``, ``-``.
        modules: the folder of modules; it is made if missing.
        num_heads: for the state dict of ``torch.nn.MultiheadAttention``, which lacks it.
        license: SPDX identifier, where the source does not say or says it wrongly.
        origin: what the manifest gives as the source, where the path alone tells little.
        expected_sha256: the checksum that the weights' file must have; of several files that
            of the lines that ``sha256sum`` writes of them, by name.
        force: replace a module of that name.
        dtype: what parameters are stored as; the module computes in float32 either way. What
            ``float16`` changes of a short text's values is told with the last stage.
        progress: called with a stage in words and the fraction that is done, 0 to 1.

    Returns:
        The module's folder, ``modules/name``.

    Raises:
        ExportError: nothing was exported, and nothing of it is left in ``modules``.
    """
    storage.check(dtype)
    expected_sha256 = expected_sha256 and expected_sha256.strip().lower()
    done = "done"
    try:
        target = placing.target(modules, name, force=force)
        progress("reading the source" if is_local(source) else "downloading the weights", 0.0)
        files = read(*locate(source))
        if expected_sha256 is not None:  # what is to be checked is not opened before
            progress("checking the weights' checksum", 0.1)
            _check_sum(files, expected_sha256)
        progress("building the graph", 0.3)
        built = _build(files, num_heads)
        progress("taking the weights' checksum", 0.5)
        facts = {
            "license": license or files.license,
            "source": origin or files.label,
            "source_sha256": expected_sha256 or _checksum(files.weights_files),
        }
        built = Built(built.model, built.manifest.model_copy(update=facts))
        stored = (
            Built(storage.as_float16(built.model), built.manifest) if dtype == "float16" else built
        )
        with placing.aside(target) as folder:
            progress("writing the module", 0.6)
            _write(folder, stored, files)
            progress("verifying what was written", 0.8)
            _verify(folder)
            if stored is not built:
                progress("measuring what float16 changes", 0.9)
                done = f"done: {_change(folder, built)}"
            placing.put(folder, target, force=force)
    except placing.PlacingError as error:
        raise ExportError(str(error)) from error
    except OSError as error:
        raise ExportError(f"reading or writing failed: {error}") from error
    progress(done, 1.0)
    return target


def _checksum(files: tuple[Path, ...]) -> str:
    if len(files) == 1:
        return sha256(files[0])
    lines = "".join(f"{sha256(file)}  {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _check_sum(source: Source, expected: str) -> None:
    found = _checksum(source.weights_files)
    if found != expected:
        raise ExportError(
            f"{source.label} is not the expected file: its SHA-256 is {found}, expected was "
            f"{expected}"
        )


def _build(source: Source, num_heads: int | None) -> Built:
    weights = Weights(*source.weights_files)
    for family in FAMILIES:
        if family.matches(source, weights):
            return family.build(source, weights, num_heads)
    known = "; ".join(family.name for family in FAMILIES)
    folder = source.weights_files[0].parent
    if source.config is None and (folder / CONFIG_FILE).is_file():
        raise ExportError(
            f"{source.label} is a part of a model, whose {CONFIG_FILE} lies beside it: export the "
            f"folder, {folder}"
        )
    if inside := multi_head.prefixes(weights):
        raise ExportError(
            f"{source.label} holds torch.nn.MultiheadAttention inside of other modules, under "
            f"{', '.join(inside[:3])}{', …' if len(inside) > 3 else ''}: save one alone, as in "
            f"safetensors.torch.save_file(model.get_submodule({inside[0]!r}).state_dict(), …)"
        )
    if source.config is None:
        found = "has no config.json and is not the state dict of a torch.nn.MultiheadAttention"
    else:
        found = f"has the model_type {source.config.get('model_type')!r}"
    raise ExportError(
        f"{source.label} {found}; what can be exported: {known}; any other model: export it to "
        "ONNX yourself and write module.json, see docs/models.md"
    )


# --- Files ---------------------------------------------------------------------------------


def _write_model(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / MODEL_FILE
    # Deterministic, so that the same weights give the same checksum.
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def _change(folder: Path, built: Built) -> storage.Change:
    """What a module in a folder gives differently than the graph it was stored from."""
    with placing.aside(folder) as beside:
        return storage.measure(_write_model(beside, built.model), folder, built.manifest)


def _write(folder: Path, built: Built, source: Source) -> None:
    _write_model(folder, built.model)
    if built.manifest.kind == "text" and source.tokenizer_file is not None:
        shutil.copyfile(source.tokenizer_file, folder / TOKENIZER_FILE)
    for file in source.license_files:
        shutil.copyfile(file, folder / file.name)
    if not source.license_files and built.manifest.license is not None:
        notice = _license_notice(built.manifest.license, str(built.manifest.source))
        (folder / LICENSE_FILE).write_text(notice, "utf-8")
    files = {file.name: sha256(file) for file in sorted(folder.iterdir())}
    manifest = built.manifest.model_copy(update={"files": files})
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2) + "\n", "utf-8")


def _license_notice(license_id: str, source: str) -> str:
    """What stands in for a licence file that the source has not: a copy has to name its terms."""
    text = f"Source: {source}\nSPDX-License-Identifier: {license_id}\n"
    if not license_id.startswith("LicenseRef-"):
        text += f"License text: https://spdx.org/licenses/{license_id}.html\n"
    return text + (
        "\nThe weights in this folder are those of the source, changed in form only: they were\n"
        "converted to an ONNX graph. The source carries no licence file; the identifier is the\n"
        "one that its model card or its exporter gives.\n"
    )


def _verify(folder: Path) -> None:
    """Read everything back.

    Raises:
        ExportError: the graph is not valid, or a file is not what the manifest says.
    """
    try:
        onnx.checker.check_model(str(folder / MODEL_FILE), full_check=True)
        manifest = Manifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the graph that was written is not valid: {error}") from error
    except ValidationError as error:
        raise ExportError(f"the manifest that was written is not valid: {error}") from error
    for name, checksum in manifest.files.items():
        if sha256(folder / name) != checksum:
            raise ExportError(f"{name} was not written as intended: is the disk sound?")
