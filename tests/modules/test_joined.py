"""Short texts in one run of all layers, against the same model layer by layer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attention_service.attention.engine import Engine
from attention_service.modules import layered, segments
from attention_service.modules.exporters import export
from attention_service.modules.layered import LayeredModel
from attention_service.modules.loading import load
from attention_service.modules.manifest import MANIFEST_FILE
from attention_service.modules.text import TextModule
from attention_service.modules.text_job import TextJob
from attention_wire.schemas import TextRequest
from tests.api.text_models import assert_same
from tests.modules.families import FAMILIES, GOLDENS

ENCODERS = ("distilbert", "roberta", "xlm-roberta", "bert")
TEXT = "the animal did not cross the street because it was too tired"


def module_of(folder: Path, engine: Engine) -> tuple[TextModule, LayeredModel]:
    module = load(folder, engine)
    assert isinstance(module, TextModule)
    assert isinstance(module.model, LayeredModel)
    return module, module.model


def results(module: TextModule, **fields: Any) -> list[dict[str, Any]]:
    named = {name.rstrip("_"): value for name, value in fields.items()}
    found: list[dict[str, Any]] = TextJob(module, TextRequest.model_validate(named)).run()[
        "results"
    ]
    return found


@pytest.fixture
def segments_run(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The segments that are run, one after the other."""
    seen: list[int] = []
    run = layered.Forward._run

    def counted(forward: layered.Forward, values: Any) -> None:
        run(forward, values)
        seen.append(forward.layer)

    monkeypatch.setattr(layered.Forward, "_run", counted)
    return seen


@pytest.mark.parametrize("name", ENCODERS)
def test_short_texts_take_one_run_and_give_the_same(
    tmp_path: Path, engine: Engine, segments_run: list[int], name: str
) -> None:
    module, model = module_of(export(GOLDENS / name, name, tmp_path), engine)
    assert model.joined is not None
    apart = TextModule(module.info, replace(model, joined=None), module.tokenizer)
    for fields in (
        {},
        {"layers": [2, 0]},
        {"return": {"weights": False}},
    ):
        segments_run.clear()
        (found,) = results(module, text=TEXT, **fields)
        assert segments_run == [0]
        (expected,) = results(apart, text=TEXT, **fields)
        assert segments_run == [0, 0, *range(1, module.info.num_layers + 1)]
        assert found.keys() == expected.keys()
        assert_same(found, expected, 1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {"text": [TEXT, TEXT]},
        {"heads": [1, 0]},
        {"return": {"output": False}, "layers": [0]},
        {"return": {"entropy": True}},
    ],
    ids=["texts", "heads", "no_output", "analysis"],
)
def test_what_one_run_does_not_give_goes_by_layers(
    tmp_path: Path, engine: Engine, segments_run: list[int], fields: dict[str, Any]
) -> None:
    module, model = module_of(export(GOLDENS / "bert", "bert", tmp_path), engine)
    assert model.joined is not None
    apart = TextModule(module.info, replace(model, joined=None), module.tokenizer)
    apart.takes_padding = module.takes_padding
    segments_run.clear()
    found = results(module, **{"text": TEXT} | fields)
    ran = segments_run.copy()
    segments_run.clear()
    expected = results(apart, **{"text": TEXT} | fields)
    assert ran == segments_run
    for own, other in zip(found, expected, strict=True):
        assert_same(own, other, 1e-5)


def test_long_texts_go_by_layers(
    tmp_path: Path, engine: Engine, segments_run: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _ = module_of(export(GOLDENS / "bert", "bert", tmp_path), engine)
    (tokens,) = module.tokens(TextRequest(text=TEXT))
    scores = 4 * module.info.num_heads * len(tokens) ** 2
    for most, last in ((scores, 0), (scores - 1, module.info.num_layers)):
        monkeypatch.setattr(layered, "SMALL_BYTES", most)
        results(module, text=TEXT)
        assert segments_run[-1] == last


def test_the_memory_of_weights_that_nobody_asks_for_is_told(tmp_path: Path, engine: Engine) -> None:
    module, model = module_of(export(GOLDENS / "bert", "bert", tmp_path), engine)
    apart = TextModule(module.info, replace(model, joined=None), module.tokenizer)
    (tokens,) = module.tokens(TextRequest(text=TEXT))
    scores = 4 * module.info.num_heads * len(tokens) ** 2
    for fields, unasked in (({}, 0), ({"layers": [1]}, 2), ({"return": {"weights": False}}, 3)):
        request = TextRequest.model_validate({"text": TEXT} | fields)
        told, before = (TextJob(one, request).peak_bytes for one in (module, apart))
        assert told == before + unasked * scores


# --- Models that have none ---------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - set(ENCODERS)))
def test_layers_that_see_a_part_are_not_joined(tmp_path: Path, engine: Engine, name: str) -> None:
    _, model = module_of(export(GOLDENS / name, name, tmp_path), engine)
    assert model.joined is None


def test_heads_that_share_keys_are_not_joined(tmp_path: Path, engine: Engine) -> None:
    folder = export(GOLDENS / "llama", "llama", tmp_path)
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    for layer in manifest["layers"]:
        layer["is_causal"] = False
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    module, model = module_of(folder, engine)
    assert model.sees_all
    assert model.joined is None
    assert np.isfinite(results(module, text=TEXT)[0]["output"]).all()


def test_a_large_model_is_not_joined(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "_JOINED_BYTES", 2**10)
    _, model = module_of(export(GOLDENS / "bert", "bert", tmp_path), engine)
    assert model.joined is None
