"""SmolLM2-135M as a Hugging Face folder in float32, of the GGUF file that a package carries.

Writes config.json, model.safetensors and tokenizer.json, which `attention-service export` takes.
Usage: python scripts/smollm2.py GGUF_FOLDER FOLDER, in an environment of
tests/parity/requirements.txt.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
WANTED = ("config.json", "model.safetensors", "tokenizer.json")


def convert(gguf: Path, folder: Path) -> None:
    """Write the folder.

    Args:
        gguf: the folder of the GGUF file.
        folder: what is written; it is made where it is missing.
    """
    read = AutoModelForCausalLM.from_pretrained(gguf, gguf_file=GGUF_FILE, dtype=torch.float32)
    # A model that was read from GGUF keeps what it was packed with, and could not be saved.
    fields = read.config.to_dict()
    fields.pop("quantization_config", None)
    config = AutoConfig.for_model(**fields)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf, gguf_file=GGUF_FILE).save_pretrained(folder)
    for file in folder.iterdir():
        if file.name not in WANTED:
            file.unlink()
    if missing := [name for name in WANTED if not (folder / name).is_file()]:
        sys.exit(f"transformers wrote no {', '.join(missing)} to {folder}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf", type=Path, help="folder of the GGUF file")
    parser.add_argument("folder", type=Path, help="folder to write")
    arguments = parser.parse_args()
    convert(arguments.gguf, arguments.folder)


if __name__ == "__main__":
    main()
