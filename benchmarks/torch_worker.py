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

Tensors = tuple[torch.Tensor, ...]
Work = Callable[[], Tensors]
# Rows of the weights that are compared; all of them would be half a gigabyte.
COMPARED_ROWS = 64


def make(kind: str, tensors: list[torch.Tensor], options: dict[str, Any], device: str) -> Work:
    """What is timed: the fused operator, or the weights and the output in plain operations.

    The tensors come from the host's memory and what is computed goes there, as it is with us.
    """

    def sdpa(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Tensors:
        return (scaled_dot_product_attention(query, key, value, **options),)

    def with_weights(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Tensors:
        # The query is scaled, not the scores: it is the smaller of the two.
        weights = torch.softmax((query * query.shape[-1] ** -0.5) @ key.mT, dim=-1)
        return weights @ value, weights

    compute = sdpa if kind == "sdpa" else with_weights
    return lambda: tuple(found.cpu() for found in compute(*(t.to(device) for t in tensors)))


def answer(message: dict[str, Any], works: dict[str, Work], device: str) -> dict[str, Any]:
    """Do what one message asks for."""
    name = message["work"]
    if message["do"] == "load":
        arrays = [np.load(path) for path in message["tensors"]]
        tensors = [torch.from_numpy(array) for array in arrays]
        works[name] = make(message["kind"], tensors, message["options"], device)
        return {}
    if message["do"] == "results":
        output, *weights = works[name]()
        np.save(message["output"], output.numpy())
        if weights:
            np.save(message["weights"], weights[0][:, :, :COMPARED_ROWS].numpy())
        return {}
    return {"ms": turn(works[name], message["seconds"], message["most"])}


def main() -> None:
    threads, device = sys.argv[1:]
    torch.set_num_threads(int(threads))
    hello = {
        "torch": str(torch.__version__),
        "torch_numpy": np.__version__,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "parallel": torch.__config__.parallel_info().splitlines(),
    }
    print(json.dumps(hello), flush=True)
    works: dict[str, Work] = {}
    with torch.inference_mode():
        for line in sys.stdin:
            print(json.dumps(answer(json.loads(line), works, device)), flush=True)


if __name__ == "__main__":
    main()
