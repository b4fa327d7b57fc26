"""PyTorch's side: a process of its own, in an environment of its own, that takes its turns.

Reads one JSON object a line from standard input and answers each with one on standard
output; it ends with its input. ``benchmarks.torch_turns`` starts and drives it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.turns import turn

Work = Callable[[], tuple[torch.Tensor, ...]]
# Rows of the weights that are compared; all of them would be half a gigabyte.
COMPARED_ROWS = 64


def make(kind: str, tensors: list[torch.Tensor], options: dict[str, Any]) -> Work:
    """What is timed: the fused operator, or the weights and the output in plain operations."""
    query, key, value = tensors
    if kind == "sdpa":
        return lambda: (scaled_dot_product_attention(query, key, value, **options),)

    def with_weights() -> tuple[torch.Tensor, ...]:
        # The query is scaled, not the scores: it is the smaller of the two.
        weights = torch.softmax((query * query.shape[-1] ** -0.5) @ key.mT, dim=-1)
        return weights @ value, weights

    return with_weights


def answer(message: dict[str, Any], works: dict[str, Work]) -> dict[str, Any]:
    """Do what one message asks for."""
    name = message["work"]
    if message["do"] == "load":
        arrays = [np.load(path) for path in message["tensors"]]
        tensors = [torch.from_numpy(array) for array in arrays]
        works[name] = make(message["kind"], tensors, message["options"])
        return {}
    if message["do"] == "results":
        output, *weights = works[name]()
        np.save(message["output"], output.numpy())
        if weights:
            np.save(message["weights"], weights[0][:, :, :COMPARED_ROWS].numpy())
        return {}
    return {"ms": turn(works[name], message["seconds"], message["most"])}


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    hello = {
        "torch": str(torch.__version__),
        "torch_numpy": np.__version__,
        "threads": torch.get_num_threads(),
        "parallel": torch.__config__.parallel_info().splitlines(),
    }
    print(json.dumps(hello), flush=True)
    works: dict[str, Work] = {}
    with torch.inference_mode():
        for line in sys.stdin:
            print(json.dumps(answer(json.loads(line), works)), flush=True)


if __name__ == "__main__":
    main()
