"""Where weights come from: a folder, a file, or a Hugging Face id → files on this machine.

Only what an export needs is downloaded. Token, proxy, cache and offline mode are those of
huggingface_hub (https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    GatedRepoError,
    HFValidationError,
    HTTPError,  # the base of its HTTP library's errors; which library depends on its version
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from attention_service.modules.exporters.errors import ExportError
from attention_service.modules.manifest import TOKENIZER_FILE

CONFIG_FILE = "config.json"
README_FILE = "README.md"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"  # of weights in several files
LICENSE_PATTERN = "LICENSE*"

_WANTED = [CONFIG_FILE, "*.safetensors", INDEX_FILE, TOKENIZER_FILE, LICENSE_PATTERN, README_FILE]
_IN_FOLDERS = ["*/*"]  # exports of the same weights to other formats, not needed
_HUB_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?(?:@[^@\s]+)?")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True, slots=True)
class Source:
    """The files of one model on this machine.

    Attributes:
        label: what the manifest says the weights come from.
        weights_files: the safetensors files, by name.
        config: what ``config.json`` holds, or None where there is none.
        tokenizer_file: ``tokenizer.json``, or None.
        license: the SPDX identifier that the model card gives, or None.
        license_files: the files whose name begins with LICENSE.
    """

    label: str
    weights_files: tuple[Path, ...]
    config: dict[str, Any] | None = None
    tokenizer_file: Path | None = None
    license: str | None = None
    license_files: tuple[Path, ...] = ()


def is_local(source: str | Path) -> bool:
    """Whether a source is a path; what exists as a path is never looked up elsewhere.

    Raises:
        ExportError: it is neither a path nor an id on the Hugging Face Hub.
    """
    if isinstance(source, Path) or Path(source).expanduser().exists():
        return True
    if not _HUB_ID.fullmatch(source) or source.endswith(".safetensors"):
        raise ExportError(
            f"{source!r} is neither a file or folder nor a Hugging Face id (owner/name)"
        )
    return False


def locate(source: str | Path) -> tuple[Path, str]:
    """The folder or file of a source, downloaded where it has to be, and its label.

    Args:
        source: a path, or ``owner/name`` or ``owner/name@revision`` on the Hugging Face Hub.

    Returns:
        The path, and a label for the manifest: for a path its last part (folders of this
        machine are nobody's business), for the Hub the id with the commit.

    Raises:
        ExportError: it is neither, or the download failed; the message says what to do.
    """
    if is_local(source):
        path = Path(source).expanduser().resolve()
        if not path.exists():
            raise ExportError(f"there is no file or folder {path}")
        return path, path.name
    repository, _, revision = str(source).partition("@")
    path = _download(repository, revision or None)
    return path, f"{repository}@{path.name}"


def read(path: Path, label: str) -> Source:
    """The files of a model in a folder, or of a weights file alone.

    Raises:
        ExportError: the weights are not safetensors, or not whole, or ``config.json`` is no
            JSON object.
    """
    if not path.is_dir():
        if not path.exists():  # a snapshot of the Hub of which no file was wanted
            raise ExportError(f"{label} holds no safetensors file")
        if path.suffix in _PICKLED:
            raise ExportError(_not_safetensors(path.name))
        return Source(label, (path,))
    tokenizer, config = path / TOKENIZER_FILE, path / CONFIG_FILE
    return Source(
        label=label,
        weights_files=_weights_files(path),
        config=_object(config) if config.is_file() else None,
        tokenizer_file=tokenizer if tokenizer.is_file() else None,
        license=_license(path / README_FILE),
        license_files=tuple(sorted(f for f in path.glob(LICENSE_PATTERN) if f.is_file())),
    )


# --- Files ---------------------------------------------------------------------------------


def _weights_files(folder: Path) -> tuple[Path, ...]:
    files = sorted(folder.glob("*.safetensors"))
    if folder / WEIGHTS_FILE in files:
        return (folder / WEIGHTS_FILE,)
    if (folder / INDEX_FILE).is_file():
        return _parts(folder / INDEX_FILE)
    if len(files) == 1:
        return (files[0],)
    if files:
        is_model = (folder / CONFIG_FILE).is_file()
        cure = "leave one of them there" if is_model else "name the file itself"
        raise ExportError(
            f"{folder} holds {len(files)} safetensors files, none is named {WEIGHTS_FILE}, and "
            f"no {INDEX_FILE} says that they belong together: add it, or {cure}"
        )
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLED)
    if pickled:
        raise ExportError(_not_safetensors(pickled[0]))
    raise ExportError(f"{folder} holds no safetensors file")


def _parts(index: Path) -> tuple[Path, ...]:
    """The files that an index names, as transformers writes it for weights in several files."""
    names = _object(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ExportError(f'{index} has no "weight_map" from tensors to files')
    parts = []
    for name in sorted(set(map(str, names.values()))):
        if Path(name).name != name:
            raise ExportError(f"{index} names {name!r}, which is no file beside it")
        parts.append(index.with_name(name))
        if not parts[-1].is_file():
            raise ExportError(f"{name}, which {index.name} names, is missing: copy it too")
    return tuple(parts)


def _not_safetensors(name: str) -> str:
    return (
        f"{name} is a pickle, which can run code when it is read; save the weights as "
        "safetensors: safetensors.torch.save_file(module.state_dict(), …), or "
        "model.save_pretrained(…) in transformers"
    )


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise ExportError(f"{path} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise ExportError(f"{path} must hold a JSON object")
    return value


# --- Licence -------------------------------------------------------------------------------

# What model cards write, where lower case is not the only difference from SPDX
# (https://huggingface.co/docs/hub/repositories-licenses).
_SPDX = {
    "afl-3.0": "AFL-3.0",
    "agpl-3.0": "AGPL-3.0-only",
    "apache-2.0": "Apache-2.0",
    "artistic-2.0": "Artistic-2.0",
    "bsd-2-clause": "BSD-2-Clause",
    "bsd-3-clause": "BSD-3-Clause",
    "bsd-3-clause-clear": "BSD-3-Clause-Clear",
    "bsl-1.0": "BSL-1.0",
    "cc-by-2.0": "CC-BY-2.0",
    "cc-by-3.0": "CC-BY-3.0",
    "cc-by-4.0": "CC-BY-4.0",
    "cc-by-nc-4.0": "CC-BY-NC-4.0",
    "cc-by-nc-nd-4.0": "CC-BY-NC-ND-4.0",
    "cc-by-nc-sa-4.0": "CC-BY-NC-SA-4.0",
    "cc-by-nd-4.0": "CC-BY-ND-4.0",
    "cc-by-sa-3.0": "CC-BY-SA-3.0",
    "cc-by-sa-4.0": "CC-BY-SA-4.0",
    "cc0-1.0": "CC0-1.0",
    "ecl-2.0": "ECL-2.0",
    "epl-2.0": "EPL-2.0",
    "eupl-1.1": "EUPL-1.1",
    "eupl-1.2": "EUPL-1.2",
    "gpl-2.0": "GPL-2.0-only",
    "gpl-3.0": "GPL-3.0-only",
    "isc": "ISC",
    "lgpl-2.1": "LGPL-2.1-only",
    "lgpl-3.0": "LGPL-3.0-only",
    "mit": "MIT",
    "mpl-2.0": "MPL-2.0",
    "ms-pl": "MS-PL",
    "ncsa": "NCSA",
    "odbl": "ODbL-1.0",
    "unlicense": "Unlicense",
    "wtfpl": "WTFPL",
    "zlib": "Zlib",
}
_NO_LICENSE = {"other", "unknown"}


def _license(readme: Path) -> str | None:
    """The licence in the front matter of a model card, as an SPDX identifier.

    One that SPDX does not list becomes a ``LicenseRef-``, as SPDX asks.
    """
    if not readme.is_file():
        return None
    text = readme.read_text("utf-8", errors="replace")
    front_matter = re.match(r"\s*---\s*\n(.*?)\n---\s*(?:\n|$)", text, re.DOTALL)
    line = front_matter and re.search(
        r"""^license:[ ]*["']?([\w.+-]+)["']?[ ]*(?:\#.*)?$""", front_matter[1], re.MULTILINE
    )
    if not line or line[1].lower() in _NO_LICENSE:
        return None
    name = line[1].lower()
    return _SPDX.get(name, "LicenseRef-" + re.sub(r"[^a-z0-9.-]", "-", name))


# --- The Hugging Face Hub ------------------------------------------------------------------


def _download(repository: str, revision: str | None) -> Path:
    try:
        folder = snapshot_download(
            repository, revision=revision, allow_patterns=_WANTED, ignore_patterns=_IN_FOLDERS
        )
    except (OSError, HTTPError, HFValidationError) as error:
        raise ExportError(_advice(repository, revision, error)) from error
    return Path(folder)


def _advice(repository: str, revision: str | None, error: Exception) -> str:
    """What to do about a failed download. The order matters: gated is a kind of not found."""
    match error:
        case GatedRepoError():
            return (
                f"access to {repository} has to be granted: accept its terms at "
                f"https://huggingface.co/{repository}, then set HF_TOKEN to your token"
            )
        case RevisionNotFoundError():
            return f"{repository} has no revision {revision!r}"
        case RepositoryNotFoundError():
            return (
                f"{repository} is no folder here and no model on the Hugging Face Hub; if it is "
                "private, set HF_TOKEN to a token that may read it"
            )
        case HFValidationError():
            return f"{repository!r} is neither a file or folder nor a Hugging Face id (owner/name)"
        case LocalEntryNotFoundError() | OfflineModeIsEnabled():
            return (
                f"{repository} is no folder here, not in the Hugging Face cache, and the Hub "
                "cannot be reached: check the network, HTTPS_PROXY and HF_HUB_OFFLINE, or "
                "download the model elsewhere and name its folder"
            )
        case _:
            return (
                f"downloading {repository} failed ({type(error).__name__}: {error}); what has "
                "arrived is kept, so try again"
            )
