"""A module that PyTorch's own exporter made: the graph is foreign, the manifest by hand.

Runs in the environment of requirements.txt, from the root of the checkout, and knows nothing of
the service: it does what docs/models.md tells people to do for a model of no known family.
Usage: python -m tests.parity.torch_export SOURCE FOLDER, a Hugging Face folder of a BERT and the
module's new folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.parity.expected import load

INPUTS = ["input_ids", "attention_mask", "token_type_ids"]


class WithWeights(nn.Module):
    """A model as a function of tensors: the last hidden state, and each layer's weights."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor) -> tuple[Tensor, ...]:
        """Compute both of ``[B,L]`` tokens."""
        given = dict(zip(INPUTS, (ids, mask, types), strict=True))
        found = self.model(**given, output_attentions=True)
        return (found.last_hidden_state, *found.attentions)


def make(source: Path, folder: Path) -> None:
    """Write the module."""
    model = load(source)
    folder.mkdir(parents=True)
    config = model.config
    weights = [f"weights.{layer}" for layer in range(config.num_hidden_layers)]
    rows = {0: "batch", 1: "length"}
    axes = dict.fromkeys([*INPUTS, "output"], rows)
    matrix = {0: "batch", 2: "length", 3: "keys"}
    axes |= dict.fromkeys(weights, matrix)
    ids = torch.ones((2, 7), dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that traced sizes are constants: the axes say which not
        torch.onnx.export(
            WithWeights(model),
            (ids, ids, torch.zeros_like(ids)),
            str(folder / "model.onnx"),
            input_names=INPUTS,
            output_names=["output", *weights],
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )
    shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")
    manifest = {
        "kind": "text",
        "num_heads": config.num_attention_heads,
        "num_layers": config.num_hidden_layers,
        "embed_dim": config.hidden_size,
        "key_dim": config.hidden_size,
        "value_dim": config.hidden_size,
        "head_dim": config.hidden_size // config.num_attention_heads,
        "max_length": config.max_position_embeddings,
        "outputs": {"output": "output", "weights": weights},
        "files": {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(folder.iterdir())
        },
    }
    (folder / "module.json").write_text(json.dumps(manifest))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    make(arguments.source, arguments.folder)


if __name__ == "__main__":
    main()
