"""The calls that the loads are made of, as bytes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from attention_wire import bodies
from benchmarks.load_generator import request

JSON = "application/json"
WORDS_OF_6 = "the cat sat on the mat"  # eight tokens, with the two special ones


def tensors(
    length: int, heads: int = 8, head_size: int = 64, *, seed: int = 0, **fields: Any
) -> bytes:
    """A plain call over query, key and value of one shape, as safetensors."""
    rng = np.random.default_rng(seed)
    shape = (1, heads, length, head_size)
    given = {n: rng.standard_normal(shape, np.float32) for n in ("query", "key", "value")}
    body = bodies.write(bodies.SAFETENSORS, given | fields, "request")
    return request("/v1/attention", bytes(body), body.media_type)


def text(content: str | list[str], **fields: Any) -> bytes:
    """A call of the text module; the answer is safetensors."""
    body = json.dumps({"text": content, **fields}).encode()
    return request("/v1/text/attention", body, JSON, Accept=bodies.SAFETENSORS)
