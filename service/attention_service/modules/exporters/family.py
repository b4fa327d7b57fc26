"""What the file of a family of models offers to the table in ``package``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from onnx import ModelProto

from attention_service.modules.exporters.source import Source
from attention_service.modules.exporters.weights import Weights
from attention_service.modules.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Built:
    """A module that is built and not yet written.

    Attributes:
        model: the whole ONNX model, with the names that ``manifest`` gives.
        manifest: what the family knows; the packager adds licence, source and checksums.
    """

    model: ModelProto
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Family:
    """One row of the table of families.

    Attributes:
        name: for people, where a source belongs to no family.
        matches: whether a source belongs to it.
        build: makes the module from a source, its weights, and the ``num_heads`` that was
            asked for or None. Raises :class:`ExportError` for what it cannot build.
    """

    name: str
    matches: Callable[[Source, Weights], bool]
    build: Callable[[Source, Weights, int | None], Built]
