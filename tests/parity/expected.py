"""What transformers and PyTorch compute, written for the comparison with the service.

Runs in the environment of requirements.txt, from the root of the checkout, and knows nothing of
the service. Usage: python -m tests.parity.expected FOLDER [NAME ...]. Writes FOLDER/NAME.npz with
`<index>.token_ids` [L], `<index>.output` [L,E] and `<index>.weights` [layers,H,L,L] of each text
of a model, float32; without names of all models, and in FOLDER/multi_head what
tests/goldens/record_multi_head.py records.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModel, PreTrainedModel
from transformers.utils import logging

from tests.goldens import record_multi_head
from tests.parity.models import Model, models

MULTI_HEAD = "multi_head"


def load(folder: Path) -> PreTrainedModel:
    """A whole model in float32, with the attention that returns its weights."""
    model, loading = AutoModel.from_pretrained(
        folder,
        attn_implementation="eager",
        dtype=torch.float32,
        local_files_only=True,
        output_loading_info=True,
    )
    if loading["missing_keys"] or loading["mismatched_keys"]:
        raise SystemExit(f"{folder} was not loaded whole: {loading}")
    evaluated: PreTrainedModel = model.eval()
    return evaluated


def arrays_of(model: Model) -> dict[str, np.ndarray]:
    """Each text of a model, run alone and without padding."""
    tokenizer = Tokenizer.from_file(str(model.folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    network = load(model.folder)
    # Others take no segments, or have one only.
    has_segments = getattr(network.config, "type_vocab_size", 0) > 1
    arrays = {}
    for index, (text, pair) in enumerate(model.texts):
        encoding = tokenizer.encode(text, pair)
        given = {"input_ids": torch.tensor([encoding.ids])}
        given["attention_mask"] = torch.ones_like(given["input_ids"])
        if has_segments:
            given["token_type_ids"] = torch.tensor([encoding.type_ids])
        with torch.no_grad():
            found = network(**given, output_attentions=True)
        arrays[f"{index}.token_ids"] = np.array(encoding.ids)
        arrays[f"{index}.output"] = found.last_hidden_state[0].numpy()
        arrays[f"{index}.weights"] = torch.cat(found.attentions).numpy()
    return arrays


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    names: list[str] = arguments.names
    for model in models():
        if not names or model.name in names:
            np.savez(arguments.folder / f"{model.name}.npz", **arrays_of(model))
            print(f"transformers: {model.name}, {len(model.texts)} texts", flush=True)
    if not names or MULTI_HEAD in names:
        folder = arguments.folder / MULTI_HEAD
        folder.mkdir()
        record_multi_head.record(folder)
        print("PyTorch: nn.MultiheadAttention", flush=True)


if __name__ == "__main__":
    main()
