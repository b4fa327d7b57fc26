"""Record what transformers computes for the default text model, as text.json and text.npz.

Use: python record_text.py MODEL_DIR, where MODEL_DIR is the Hugging Face directory of
sentence-transformers/all-MiniLM-L6-v2 (config.json, model.safetensors, tokenizer.json).
"""

import argparse
import hashlib
import json
import platform
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer
from transformers import AutoModel, PreTrainedModel

NAME = "sentence-transformers/all-MiniLM-L6-v2"
REVISION = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

SEED = 20
WHOLE = 64  # up to this many tokens every row is kept; a longer case keeps ROWS of them
ROWS = 4
TOLERANCE = 1e-5

# Escapes, because these texts hold characters which editors hide, reorder or normalise.
SCRIPTS = (
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 "  # a family: three emoji and two joiners
    "cafe\u0301 "  # a combining acute accent
    "\u2764\ufe0f \U0001f44d\U0001f3fd "  # a variation selector, a skin tone
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645 "  # Arabic
    "\u0645\u064f\u062d\u064e\u0645\u0651\u064e\u062f\u200d! "  # Arabic with vowel signs
    "zero\u200dwidth "  # a joiner inside a Latin word
    "\u0130stanbul"  # a capital whose lower case is two characters
)
CHINESE = "\u6ce8\u610f\u529b\u662f\u4f60\u6240\u9700\u8981\u7684\u4e00\u5207\u3002BERT\u6a21\u578b"


@dataclass(frozen=True)
class Case:
    """A text, or a pair of texts, and the number of tokens it is made to have."""

    id: str
    text: str
    text_pair: str | None = None
    length: int | None = None


@dataclass(frozen=True)
class Result:
    """The whole output [L, E] and attention weights [layers, heads, L, L] of one case."""

    output: NDArray[np.float32]
    weights: NDArray[np.float32]


BATCHES = [
    ["empty", "words-512", "cat", "animal"],
    ["scripts", "words-65", "pair", "chinese"],
    ["words-128", "pair-empty", "words-200", "words-64", "empty"],
    ["pair-512", "words-511", "cat"],
]


def load_tokenizer(directory: Path) -> Tokenizer:
    """Read tokenizer.json without the truncation and padding it asks for."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def load_model(directory: Path) -> PreTrainedModel:
    """Load the one known model in float32, with the attention that returns its weights."""
    digest = hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()
    if digest != SHA256:
        raise SystemExit(f"model.safetensors is not that of {NAME} {REVISION}: sha256 {digest}")
    model, loading = AutoModel.from_pretrained(
        directory,
        attn_implementation="eager",
        dtype=torch.float32,
        local_files_only=True,
        output_loading_info=True,
    )
    if loading["missing_keys"] or loading["mismatched_keys"]:
        raise SystemExit(f"the model was not loaded whole: {loading}")
    evaluated: PreTrainedModel = model.eval()
    return evaluated


def make_cases(tokenizer: Tokenizer) -> list[Case]:
    """List the cases; those of a set length are seeded words of one token each."""
    vocabulary = sorted(
        word
        for word in tokenizer.get_vocab()
        if word.isascii() and word.isalpha() and len(word) > 2
    )
    chance = random.Random(SEED)

    def words(count: int) -> str:
        return " ".join(chance.sample(vocabulary, count))

    return [
        Case("empty", ""),
        Case("cat", "cat"),
        Case("animal", "The animal didn't cross the street because it was too tired."),
        Case("pair", "Why did it not cross the street?", "The animal was too tired."),
        Case("pair-empty", "Why did it not cross the street?", ""),
        Case("scripts", SCRIPTS),
        Case("chinese", CHINESE),
        # [CLS] and [SEP] take two of the tokens, a pair has one [SEP] more.
        *(Case(f"words-{n}", words(n - 2), length=n) for n in (64, 65, 128, 200, 511, 512)),
        Case("pair-512", words(200), words(309), length=512),
    ]


def encode(tokenizer: Tokenizer, case: Case) -> Encoding:
    """Tokenize a case and check its length."""
    # An empty second text is still a pair, and gets a [SEP] of its own.
    encoding = tokenizer.encode(case.text, case.text_pair)
    if case.length is not None and len(encoding.ids) != case.length:
        raise SystemExit(f"{case.id} has {len(encoding.ids)} tokens, not {case.length}")
    return encoding


def run(model: PreTrainedModel, encodings: Sequence[Encoding], pad_id: int = 0) -> list[Result]:
    """Run a batch, padded on the right to its longest, and cut the padding off again."""
    longest = max(len(encoding.ids) for encoding in encodings)
    input_ids = torch.full((len(encodings), longest), pad_id)
    type_ids = torch.zeros_like(input_ids)
    mask = torch.zeros_like(input_ids)
    for row, encoding in enumerate(encodings):
        length = len(encoding.ids)
        input_ids[row, :length] = torch.tensor(encoding.ids)
        type_ids[row, :length] = torch.tensor(encoding.type_ids)
        mask[row, :length] = 1
    with torch.no_grad():
        outputs = model(
            input_ids=input_ids,
            token_type_ids=type_ids,
            attention_mask=mask,
            output_attentions=True,
        )
    weights = torch.stack(outputs.attentions, dim=1).numpy()
    results = []
    for row, encoding in enumerate(encodings):
        n = len(encoding.ids)
        output = outputs.last_hidden_state[row, :n].numpy()
        results.append(Result(output, weights[row, :, :, :n, :n]))
    return results


def check_batches(
    model: PreTrainedModel, encodings: dict[str, Encoding], results: dict[str, Result]
) -> None:
    """Refuse to record if a padded batch gives real tokens other values than single runs do."""
    for batch in BATCHES:
        padded = run(model, [encodings[name] for name in batch])
        for name, result in zip(batch, padded, strict=True):
            single = results[name]
            apart = max(
                float(np.abs(result.output - single.output).max()),
                float(np.abs(result.weights - single.weights).max()),
            )
            print(f"{name} among {len(batch)}: padded and single runs are {apart:.1e} apart")
            if apart > TOLERANCE:
                raise SystemExit(f"{name} differs by {apart} in the batch {batch}")


def rows_of(length: int, chance: random.Random) -> list[int] | None:
    """Choose the rows of a long case that are kept: the first, the last and seeded ones."""
    if length <= WHOLE:
        return None
    return [0, *sorted(chance.sample(range(1, length - 1), ROWS - 2)), length - 1]


def describe(case: Case, encoding: Encoding, rows: list[int] | None) -> dict[str, object]:
    """Give the entry of a case in text.json."""
    return {
        "id": case.id,
        "text": case.text,
        "text_pair": case.text_pair,
        "tokens": encoding.tokens,
        "token_ids": encoding.ids,
        "type_ids": encoding.type_ids,
        "offsets": encoding.offsets,
        "rows": rows,
    }


def write_json(path: Path, cases: list[dict[str, object]]) -> None:
    """Write text.json with a line for each case and batch, so that a change shows as one."""
    head = {
        "model": {"name": NAME, "revision": REVISION, "sha256": SHA256},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
            "numpy": np.__version__,
        },
    }
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    for key, entries in (("cases", cases), ("batches", BATCHES)):
        lines.append(f'"{key}": [\n' + ",\n".join(map(json.dumps, entries)) + "\n]")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="ascii")


def record(model_directory: Path, directory: Path) -> None:
    """Run every case, check the padded batches and write both files."""
    torch.manual_seed(SEED)
    tokenizer = load_tokenizer(model_directory)
    model = load_model(model_directory)
    cases = make_cases(tokenizer)
    encodings = {case.id: encode(tokenizer, case) for case in cases}
    results = {name: run(model, [encoding])[0] for name, encoding in encodings.items()}
    check_batches(model, encodings, results)

    chance = random.Random(SEED)
    entries: list[dict[str, object]] = []
    arrays: dict[str, NDArray[np.float32]] = {}
    for case in cases:
        rows = rows_of(len(encodings[case.id].ids), chance)
        kept = slice(None) if rows is None else rows
        entries.append(describe(case, encodings[case.id], rows))
        arrays[f"{case.id}.output"] = results[case.id].output[kept]
        arrays[f"{case.id}.weights"] = results[case.id].weights[:, :, kept]
    write_json(directory / "text.json", entries)
    np.savez_compressed(directory / "text.npz", allow_pickle=False, **arrays)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model_directory", type=Path, metavar="MODEL_DIR")
    record(parser.parse_args().model_directory, Path(__file__).parent)


if __name__ == "__main__":
    main()
