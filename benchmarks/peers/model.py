"""What every peer runs: one ONNX file, in one session, and a body of nothing but numbers.

It needs numpy and ONNX Runtime alone, since it is imported in every peer's environment.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.peers import HEAD

Array = np.ndarray[Any, Any]
_HEAD_BYTES = 4 * HEAD.itemsize


def load(path: str) -> onnxruntime.InferenceSession:
    """The session, in as many threads as there are cores, which sleep when they have no work."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def compute(
    session: onnxruntime.InferenceSession, query: Array, key: Array, value: Array
) -> tuple[Array, Array]:
    """Output and weights, in rank 4 as the tensors."""
    feeds = {"query": query, "key": key, "value": value}
    feeds = {name: array.reshape(-1, *array.shape[2:]) for name, array in feeds.items()}
    feeds["scale"] = np.array(query.shape[-1] ** -0.5, np.float32)
    output, weights = session.run(["output", "weights"], feeds)
    return output.reshape(query.shape), weights.reshape(*query.shape[:3], -1)


def of_bytes(body: bytes) -> tuple[Array, Array, Array]:
    """Query, key and value, of equal shapes."""
    shape = np.frombuffer(body, HEAD, 4)
    query, key, value = np.frombuffer(body, np.float32, offset=_HEAD_BYTES).reshape(3, *shape)
    return query, key, value


def to_bytes(output: Array, weights: Array) -> bytes:
    """The numbers of both."""
    return b"".join((output.data, weights.data))
