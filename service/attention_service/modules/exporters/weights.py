"""Safetensors files as a source of parameters: shapes checked, values as float32."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from attention_service.modules.exporters.errors import ExportError
from attention_wire import safetensors
from attention_wire.problems import ProblemError
from attention_wire.tensors import FLOAT_DTYPES, Array

Parameter = npt.NDArray[np.float32]


class Weights:
    """The tensors of a checkpoint, mapped from its files and converted as they are taken.

    Args:
        paths: ``.safetensors`` files; each tensor is in one of them.

    Raises:
        ExportError: a file cannot be read as safetensors, or two hold a tensor of one name.
    """

    def __init__(self, *paths: Path) -> None:
        names = ", ".join(path.name for path in paths)
        self._files = f"{names} hold{'s' if len(paths) == 1 else ''}"
        self._tensors: dict[str, Array] = {}
        self._taken: set[str] = set()
        for path in paths:
            found = _mapped(path)
            if twice := self._tensors.keys() & found.keys():
                raise ExportError(f"{path.name} holds {min(twice)!r}, as another file does")
            self._tensors |= found

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor.

        Raises:
            ExportError: there is no such tensor.
        """
        if name not in self._tensors:
            raise ExportError(f"{self._files} no tensor {name!r}")
        return self._tensors[name].shape

    def take(self, name: str, shape: tuple[int, ...]) -> Parameter:
        """A parameter as float32: a view of the file where it is float32 there.

        Args:
            name: the tensor's name in the file.
            shape: the shape that it must have.

        Raises:
            ExportError: it is missing, or has another shape or no floating-point dtype.
        """
        if name not in self._tensors:
            raise ExportError(
                f"{self._files} no tensor {name!r} (expected with the shape {list(shape)})"
            )
        tensor = self._tensors[name]
        if tensor.shape != shape:
            raise ExportError(
                f"tensor {name!r}: expected the shape {list(shape)}, found {list(tensor.shape)}"
            )
        if tensor.dtype.name not in FLOAT_DTYPES:
            raise ExportError(
                f"tensor {name!r}: expected one of {', '.join(FLOAT_DTYPES)}, "
                f"found {tensor.dtype.name}; quantized weights are not supported"
            )
        self._taken.add(name)
        return tensor.astype(np.float32, copy=False)

    def left(self) -> list[str]:
        """The tensors that were never taken, by name."""
        return sorted(self._tensors.keys() - self._taken)


def _mapped(path: Path) -> dict[str, Array]:
    try:
        # Mapped, so that only the tensors that are taken are ever read.
        tensors, _ = safetensors.read(np.memmap(path, np.uint8, mode="r").data)
    except ProblemError as error:
        raise ExportError(f"{path} is no readable safetensors file: {error.detail}") from None
    except ValueError:  # what mapping an empty file raises
        raise ExportError(f"{path} is empty") from None
    return tensors
