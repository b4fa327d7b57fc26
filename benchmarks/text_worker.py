"""Transformers' side: a process of its own, in an environment of its own, that takes its turns.

Speaks as ``benchmarks.torch_worker`` does: one JSON object a line from standard input, one to
standard output. ``benchmarks.text_run`` starts and drives it. Usage: ``THREADS FOLDER``, where
FOLDER is a model's Hugging Face folder.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModel, PreTrainedModel
from transformers.utils import logging

from benchmarks.turns import turn

Work = Callable[[], Any]


def loaded(folder: str, attention: str) -> PreTrainedModel:
    """The model in float32 with one of transformers' attentions: ``eager`` or ``sdpa``.

    Without BERT's pooler, since nothing of it is asked for.
    """
    options = {"attn_implementation": attention, "dtype": torch.float32, "local_files_only": True}
    model: PreTrainedModel = AutoModel.from_pretrained(folder, add_pooling_layer=False, **options)
    return model.eval()


def make(model: PreTrainedModel, tensors: dict[str, torch.Tensor], *, with_weights: bool) -> Work:
    """What is timed: one call of the model over tokens that are tensors already."""
    # Only where it is asked for: as an argument it makes a layer look at it.
    wanted = {"output_attentions": True} if with_weights else {}
    return lambda: model(**tensors, **wanted)


def answer(
    message: dict[str, Any], works: dict[str, Work], models: dict[str, PreTrainedModel]
) -> dict[str, Any]:
    """Do what one message asks for."""
    name = message["work"]
    if message["do"] == "load":
        tensors = [torch.from_numpy(np.load(path)) for path in message["tensors"]]
        named = dict(zip(message["options"]["names"], tensors, strict=True))
        kind = message["kind"]
        works[name] = make(models[kind], named, with_weights=kind == "eager")
        return {}
    if message["do"] == "results":
        found = works[name]()
        np.save(message["output"], found.last_hidden_state[0].numpy())
        if found.attentions:
            np.save(message["weights"], torch.cat(found.attentions).numpy())
        return {}
    return {"ms": turn(works[name], message["seconds"], message["most"])}


def main() -> None:
    threads, folder = sys.argv[1:]
    torch.set_num_threads(int(threads))
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # it would tell that the pooler's parameters are not used
    models = {attention: loaded(folder, attention) for attention in ("eager", "sdpa")}
    hello = {
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "torch_numpy": np.__version__,
        "threads": torch.get_num_threads(),
        "parallel": torch.__config__.parallel_info().splitlines(),
    }
    print(json.dumps(hello), flush=True)
    works: dict[str, Work] = {}
    with torch.inference_mode():
        for line in sys.stdin:
            print(json.dumps(answer(json.loads(line), works, models)), flush=True)


if __name__ == "__main__":
    main()
