"""A safetensors file as a source of parameters: shapes checked, values as float32."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from attention_service.modules.exporters.errors import ExportError
from attention_wire import safetensors
from attention_wire.problems import ProblemError
from attention_wire.tensors import FLOAT_DTYPES

Parameter = npt.NDArray[np.float32]


class Weights:
    """The tensors of a checkpoint, mapped from the file and converted as they are taken.

    Args:
        path: a ``.safetensors`` file.

    Raises:
        ExportError: the file cannot be read as safetensors.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.name
        try:
            # Mapped, so that only the tensors that are taken are ever read.
            self._tensors, _ = safetensors.read(np.memmap(path, np.uint8, mode="r").data)
        except ProblemError as error:
            raise ExportError(f"{path} is no readable safetensors file: {error.detail}") from None
        except ValueError:  # what mapping an empty file raises
            raise ExportError(f"{path} is empty") from None

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
            raise ExportError(f"{self._file} holds no tensor {name!r}")
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
                f"{self._file} holds no tensor {name!r} (expected with the shape {list(shape)})"
            )
        tensor = self._tensors[name]
        if tensor.shape != shape:
            raise ExportError(
                f"tensor {name!r} of {self._file}: expected the shape {list(shape)}, "
                f"found {list(tensor.shape)}"
            )
        if tensor.dtype.name not in FLOAT_DTYPES:
            raise ExportError(
                f"tensor {name!r} of {self._file}: expected one of {', '.join(FLOAT_DTYPES)}, "
                f"found {tensor.dtype.name}; quantized weights are not supported"
            )
        return tensor.astype(np.float32, copy=False)
