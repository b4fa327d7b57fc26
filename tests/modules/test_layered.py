"""Text models run layer by layer, in every way there is, against their graphs run as a whole."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file

from attention_service.attention.engine import Engine
from attention_service.modules import analysis, forward, layered, text_costs
from attention_service.modules.exporters import export
from attention_service.modules.layered import LayeredModel
from attention_service.modules.loading import load
from attention_service.modules.text import TextModule
from attention_service.modules.text_job import TextJob
from attention_service.modules.tokens import Tokens
from attention_service.settings import Settings
from attention_wire.schemas import TextRequest
from tests.api.support import TEXT, Caller, check_problem, quiet
from tests.api.text_models import assert_same, without_layers
from tests.conftest import RunningService
from tests.modules.families import changed

Array = npt.NDArray[Any]
# Of outputs up to 4; that of float32 alone is 2e-5 after some layers.
TOLERANCE = 5e-5
LONGEST = 1536
# An encoder, grouped heads that look back, and windows with and without what comes later.
MODELS = ("bert", "llama", "mistral", "modernbert")
SAID = "the animal did not cross street because it was too tired say which where were"


class Pair(NamedTuple):
    """One model, in layers and as a whole."""

    layers: TextModule
    whole: TextModule


def longer(folder: Path, name: str) -> Path:
    """A golden model that takes long texts; where it has a table of positions, they repeat."""
    made = changed(folder, name, max_position_embeddings=LONGEST)
    tensors = load_file(made / "model.safetensors")
    for tensor in [one for one in tensors if "position_embeddings" in one]:
        tensors[tensor] = np.resize(tensors[tensor], (LONGEST, tensors[tensor].shape[1]))
    save_file(tensors, made / "model.safetensors")
    return made


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> dict[str, Pair]:
    folder = tmp_path_factory.mktemp("layered")
    pairs = {}
    for name in MODELS:
        made = export(longer(folder / "sources", name), name, folder / "modules")
        both = (load(made, engine), load(without_layers(made, f"{name}-whole"), engine))
        one, other = (module for module in both if isinstance(module, TextModule))
        pairs[name] = Pair(one, other)
    return pairs


@pytest.fixture(params=["at_once", "tiles"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How attention is computed between the segments, whatever the length."""
    most = 2**40 if request.param == "at_once" else 0
    for name in ("SMALL_BYTES", "WHOLE_BYTES"):
        monkeypatch.setattr(forward, name, most)
    monkeypatch.setattr(layered, "SMALL_BYTES", 0)  # no run of all layers


def text_of(words: int) -> str:
    return " ".join(np.random.default_rng(words).choice(SAID.split(), words).tolist()) + "."


def tokens_of(module: TextModule, words: int) -> Tokens:
    (tokens,) = module.tokens(TextRequest(text=text_of(words)))
    return tokens


def answer(module: TextModule, **fields: Any) -> Any:
    named = {name.rstrip("_"): value for name, value in fields.items()}
    return TextJob(module, TextRequest.model_validate(named)).run()["results"]


def check_run(pair: Pair, words: tuple[int, ...], layers: list[int], heads: list[int]) -> None:
    """That texts run together in layers give what each gives alone as a whole."""
    texts = [tokens_of(pair.layers, count) for count in words]
    found = pair.layers.run(texts, layers, [heads] * len(texts), output=True)
    for own, tokens in zip(found, texts, strict=True):
        (expected,) = pair.whole.run([tokens], layers, [heads], output=True)
        assert expected["weights"].shape == (len(layers), len(heads), len(tokens), len(tokens))
        assert_same(own, expected, TOLERANCE)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("words", [(150,), (170, 120, 9)], ids=["alone", "padded"])
@pytest.mark.parametrize("name", MODELS)
def test_layers_give_what_the_graph_gives(
    models: dict[str, Pair], name: str, words: tuple[int, ...]
) -> None:
    pair = models[name]
    every = list(range(pair.layers.info.num_heads))
    check_run(pair, words, [0, 1, 2], every)
    check_run(pair, words, [2, 0], [2, 0])
    check_run(pair, words[:1], [1], [1])


@pytest.mark.parametrize("name", MODELS)
def test_long_texts_are_tiled_and_give_the_same(models: dict[str, Pair], name: str) -> None:
    pair = models[name]
    tokens, info = tokens_of(pair.layers, 500), pair.layers.info
    assert isinstance(pair.layers.model, LayeredModel)
    assert 4 * info.num_heads * len(tokens) ** 2 > forward.SMALL_BYTES
    check_run(pair, (500,), [1, 2], [2, 0])


ANALYSES: dict[str, dict[str, Any]] = {
    "numbers": {"entropy": True, "statistics": True, "classes": True, "weights": False},
    "mixed": {"rollout": True, "weights": {"reduce": "mean", "queries": [70, 3, 41]}},
    "rows": {"weights": {"queries": {"start": 30, "stop": 75}}, "entropy": True},
    "top_k": {"weights": {"top_k": 4, "reduce": "max"}, "output": False},
}


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("unit", ["token", "word"])
@pytest.mark.parametrize("returns", ANALYSES.values(), ids=ANALYSES)
@pytest.mark.parametrize("name", MODELS)
def test_analyses_by_blocks_of_rows_are_those_of_the_graph(
    models: dict[str, Pair],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    returns: dict[str, Any],
    unit: str,
) -> None:
    fields = {"text": text_of(80), "unit": unit, "heads": [2, 0], "return": returns}
    (expected,) = answer(models[name].whole, **fields)
    # A few rows at a time: the first of a block is not the first of the text.
    monkeypatch.setattr(analysis, "_BLOCK_ELEMENTS", 2**12)
    (found,) = answer(models[name].layers, **fields)
    for result in (found, expected):
        if isinstance(result.get("weights"), dict):
            # Weights that are equal but for rounding may stand in another order.
            del result["weights"]["indices"]
    assert_same(found, expected, TOLERANCE)


@pytest.mark.parametrize(
    ("unit", "text"),
    [("token", text_of(60)), ("word", text_of(60)), ("word", "a" * 1400), ("token", "cat")],
    ids=["tokens", "words", "one_word", "short"],
)
def test_memory_is_no_more_than_was_told(
    models: dict[str, Pair], monkeypatch: pytest.MonkeyPatch, unit: str, text: str
) -> None:
    # So that blocks are small beside a word of many tokens.
    monkeypatch.setattr(analysis, "_BLOCK_ELEMENTS", 2**12)
    monkeypatch.setattr(text_costs, "BLOCK_BYTES", 2**14)
    returns = {"statistics": True, "classes": True, "rollout": True, "weights": False}
    request = TextRequest.model_validate({"text": text, "unit": unit, "return": returns})
    job = TextJob(models["llama"].layers, request)
    job.run()  # what is kept for good is there
    tracemalloc.start()
    job.run()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= job.peak_bytes + 2**16  # Python's own objects


# --- Calls that are over -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def impatient(
    tmp_path_factory: pytest.TempPathFactory, start_service: Callable[[Settings], RunningService]
) -> Iterator[Caller]:
    """Calls a service with one place for calls that are large."""
    folder = tmp_path_factory.mktemp("impatient")
    source = changed(folder / "sources", "llama", max_position_embeddings=2**15)
    export(source, "llama", folder / "modules")
    settings = Settings(modules=folder / "modules", provider="cpu", threads=2, max_running=1)
    caller = Caller(start_service(settings).url)
    yield caller
    caller.must_serve()
    caller.close()


@pytest.mark.parametrize(
    "returns",
    [
        {"classes": True, "weights": False, "output": False},
        {"entropy": True, "weights": False},
        {"weights": {"value_weighted": True, "reduce": "mean", "queries": [0]}},
        {"weights": False},
    ],
    ids=["classes", "entropy", "weighted", "output"],
)
def test_an_analysis_past_its_deadline_ends_and_frees_its_place(
    impatient: Caller, returns: dict[str, Any]
) -> None:
    asked = {"text": text_of(13000), "return": returns, "layers": [0], "heads": [0]}
    started = time.monotonic()
    answer = impatient.post(TEXT, asked, X_Request_Timeout="0.3")
    took = time.monotonic() - started
    check_problem(answer, 504, "deadline", says=("after 0.3 s",))
    assert 0.3 < took < 1.2
    assert quiet(impatient)
    # The one place is free for a large call.
    large = asked | {"text": text_of(300)}
    assert impatient.post(TEXT, large).status_code == 200
