"""Triton through PyTriton, in the binary form of its protocol both ways. Usage: ``PORT MODEL``."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from benchmarks.peers import model


def main() -> None:
    port, session = int(sys.argv[1]), model.load(sys.argv[2])

    def infer(requests: list[Any]) -> list[dict[str, Any]]:
        answers = []
        for request in requests:
            found = model.compute(session, request["query"], request["key"], request["value"])
            answers.append(dict(zip(("output", "weights"), found, strict=True)))
        return answers

    def tensors(*names: str) -> list[Tensor]:
        return [Tensor(name=name, dtype=np.float32, shape=(-1, -1, -1, -1)) for name in names]

    config = TritonConfig(
        http_address="127.0.0.1", http_port=port, allow_grpc=False, allow_metrics=False
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="sdpa", infer_func=infer, inputs=tensors("query", "key", "value"),
            outputs=tensors("output", "weights"), config=ModelConfig(batching=False),
        )  # fmt: skip
        triton.serve()


if __name__ == "__main__":
    main()
