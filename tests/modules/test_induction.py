"""An induction head written by hand, which must be told as one, and no other.

The circuit is that of Olsson et al. 2022 (https://arxiv.org/abs/2209.11895): a head of the first
layer writes beside each token the one before it, and a head of the second looks for its own token
there, and so finds what followed it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from attention_service.modules.exporters import export
from attention_service.settings import Settings
from tests.api.support import TEXT, Caller
from tests.conftest import RunningService

Array = npt.NDArray[Any]
WORDS = [f"w{number}" for number in range(16)]
LONGEST = 48
# The hidden state in three parts: which token it is, where it is, and which one is before it.
TOKEN = slice(0, len(WORDS))
POSITION = slice(TOKEN.stop, TOKEN.stop + LONGEST)
BEFORE = slice(POSITION.stop, POSITION.stop + len(WORDS))
WIDTH = BEFORE.stop
EPSILON = 1e-5
# Of the keys that are meant before the others: e³⁰ times the weight.
LOGIT = 30.0
# The first word comes once: nothing is before it, and its row writes itself down.
REPEATED = "w0 w3 w7 w1 w9 w5 w12 w2 w3 w7 w1 w9 w5 w12 w2 w3 w7 w1 w9"


def read(part: slice, ones: int) -> tuple[Array, Array]:
    """Weight and bias that read a part of a normalized hidden state as the zeros and ones it was.

    Args:
        part: of the hidden state.
        ones: how many of the whole are one, the rest being zero: its mean and spread are then
            known, and what LayerNorm does to it can be undone.
    """
    mean = ones / WIDTH
    spread = np.sqrt(mean - mean**2 + EPSILON)
    size = part.stop - part.start
    weight = np.zeros((WIDTH, WIDTH))
    weight[part, :size] = np.eye(size) * spread
    bias = np.zeros(WIDTH)
    bias[:size] = mean
    return weight, bias


def attention(query: slice, key: slice, ones: int, shift: Array | None = None) -> dict[str, Array]:
    """A layer whose one head looks for `query` in `key`, and writes the tokens to `BEFORE`.

    Args:
        query, key: parts of the hidden state.
        ones: as in `read`.
        shift: ``[part,part]``, applied to the query.
    """
    sharp = LOGIT * np.sqrt(WIDTH)
    (q_weight, q_bias), (k_weight, k_bias) = read(query, ones), read(key, ones)
    if shift is not None:
        size = len(shift)
        q_weight[:, :size], q_bias[:size] = q_weight[:, :size] @ shift, q_bias[:size] @ shift
    v_weight, v_bias = read(TOKEN, ones)
    output = np.zeros((WIDTH, WIDTH))
    output[: len(WORDS), BEFORE] = np.eye(len(WORDS))
    return {
        "attn.c_attn.weight": np.hstack([q_weight * sharp, k_weight, v_weight]),
        "attn.c_attn.bias": np.hstack([q_bias * sharp, k_bias, v_bias]),
        "attn.c_proj.weight": output,
        "attn.c_proj.bias": np.zeros(WIDTH),
    }


def norms(*names: str) -> dict[str, Array]:
    return {
        f"{name}.{part}": value
        for name in names
        for part, value in (("weight", np.ones(WIDTH)), ("bias", np.zeros(WIDTH)))
    }


def by_hand() -> dict[str, Array]:
    """GPT-2's parameters, of a model with a head of each of the two kinds."""
    words, positions = np.zeros((len(WORDS), WIDTH)), np.zeros((LONGEST, WIDTH))
    words[:, TOKEN], positions[:, POSITION] = np.eye(len(WORDS)), np.eye(LONGEST)
    # From each position to the one before it, from the first to itself.
    back = np.eye(LONGEST, k=-1)
    back[0, 0] = 1
    layers = [
        attention(POSITION, POSITION, ones=2, shift=back),
        attention(TOKEN, BEFORE, ones=3),
    ]
    tensors = {"wte.weight": words, "wpe.weight": positions} | norms("ln_f")
    for index, layer in enumerate(layers):
        nothing = {
            "mlp.c_fc.weight": np.zeros((WIDTH, 4)),
            "mlp.c_fc.bias": np.zeros(4),
            "mlp.c_proj.weight": np.zeros((4, WIDTH)),
            "mlp.c_proj.bias": np.zeros(WIDTH),
        }
        for name, tensor in (layer | nothing | norms("ln_1", "ln_2")).items():
            tensors[f"h.{index}.{name}"] = tensor
    return tensors


def at_random(seed: int, spread: float) -> dict[str, Array]:
    """Parameters of the same shapes, those of norms left as they are."""
    random = np.random.default_rng(seed)
    return {
        name: tensor if "ln_" in name else random.normal(0, spread, tensor.shape)
        for name, tensor in by_hand().items()
    }


MODELS = {
    "by-hand": by_hand(),
    **{f"random-{seed}": at_random(seed, spread=0.02) for seed in range(3)},
    **{f"sharp-{seed}": at_random(seed, spread=0.3) for seed in range(3)},
}
RANDOM = [name for name in MODELS if name != "by-hand"]


def write(folder: Path, tensors: dict[str, Array]) -> Path:
    """A directory as transformers would save it."""
    folder.mkdir(parents=True)
    config = {
        "model_type": "gpt2",
        "vocab_size": len(WORDS),
        "n_embd": WIDTH,
        "n_layer": 2,
        "n_head": 1,
        "n_inner": 4,
        "n_positions": LONGEST,
        "layer_norm_epsilon": EPSILON,
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(
        {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()},
        folder / "model.safetensors",
    )
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=WORDS[-1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def caller(
    tmp_path_factory: pytest.TempPathFactory, start_service: Callable[[Settings], RunningService]
) -> Iterator[Caller]:
    folder = tmp_path_factory.mktemp("induction")
    for name, tensors in MODELS.items():
        export(write(folder / "sources" / name, tensors), name, folder / "modules")
    settings = Settings(modules=folder / "modules", provider="cpu", threads=2)
    caller = Caller(start_service(settings).url)
    yield caller
    caller.must_serve()
    caller.close()


def result(caller: Caller, module: str, **fields: Any) -> dict[str, Any]:
    asked = {"text": REPEATED, "module": module, **fields}
    answer = caller.post(TEXT, asked)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["results"][0]
    return found


def test_the_heads_by_hand_do_what_they_are_for(caller: Caller) -> None:
    found = result(caller, "by-hand")
    ids, weights = found["token_ids"], np.array(found["weights"])
    assert ids == [int(word[1:]) for word in REPEATED.split()]
    previous, induction = weights[0, 0], weights[1, 0]
    before = np.maximum(np.arange(len(ids)) - 1, 0)
    np.testing.assert_allclose(previous, np.eye(len(ids))[before], atol=1e-5)
    for row, own in enumerate(ids):
        followers = [key for key in range(1, row + 1) if ids[key - 1] == own]
        if followers:
            np.testing.assert_allclose(induction[row, followers], 1 / len(followers), atol=1e-5)


@pytest.mark.parametrize("unit", ["token", "word"])
def test_an_induction_head_is_told_and_so_is_the_one_it_needs(caller: Caller, unit: str) -> None:
    returns = {"classes": True, "weights": False}
    classes = result(caller, "by-hand", unit=unit, **{"return": returns})["classes"]
    assert classes["labels"] == [["previous"], ["induction"]]
    assert classes["previous"][0][0] > 0.9
    assert classes["induction"][1][0] > 0.9
    assert classes["previous"][1][0] < 0.4
    assert classes["induction"][0][0] < 0.4
    assert max(score for (score,) in classes["duplicate"]) < 0.4


@pytest.mark.parametrize("name", RANDOM)
def test_a_model_that_has_learned_nothing_has_no_such_head(caller: Caller, name: str) -> None:
    classes = result(caller, name, **{"return": {"classes": True}})["classes"]
    assert max(score for (score,) in classes["induction"]) < 0.4
    assert "induction" not in {label for layer in classes["labels"] for label in layer}


def test_without_the_first_head_the_second_finds_nothing(caller: Caller) -> None:
    returns = {"classes": True}
    classes = result(caller, "by-hand", ablate=[[0, 0]], **{"return": returns})["classes"]
    assert classes["labels"][0] == ["previous"]
    assert classes["induction"][1][0] < 0.4
