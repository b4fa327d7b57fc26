"""Questions about texts that are refused: what does not exist, what is not given, what is large."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from attention_service.modules.analyses.flow import MOST_UNITS
from attention_service.settings import Settings
from tests.api.support import TEXT, Caller, Case, check_problem, fitting_return
from tests.api.text_models import ASKED, SENTENCE, flat, make_models, result, without_layers
from tests.conftest import RunningService

ANSWER = 2**17
MEMORY = 2**20
LONG = "The cat sat on the mat. " * 4
GOOD = {"text": "cat", "module": "bert"}
# What is 0 or null for a text of no tokens, whatever is asked.
EMPTY = {"weights": {"top_k": 3}, "entropy": True, "statistics": True, "classes": True}
ANALYSES: dict[str, dict[str, Any]] = {
    "plain": {},
    "top_k": {"weights": {"top_k": 20}},
    "weighted": {"weights": {"value_weighted": True}},
    "inputs": {"inputs": True, "weights": False},
    "mixed": {"rollout": True, "flow": True, "weights": False},
    "numbers": {"entropy": True, "statistics": True, "classes": True},
}


@pytest.fixture(scope="module")
def folder(modules: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_models(tmp_path_factory.mktemp("refused"), modules)
    without_layers(folder / "llama", "llama-whole")
    return folder


@pytest.fixture(scope="module")
def call(
    folder: Path, start_service: Callable[[Settings], RunningService]
) -> Iterator[Callable[..., Caller]]:
    """Callers of services with these models, by their settings."""
    callers: dict[str, Caller] = {}

    def of(**settings: Any) -> Caller:
        name = json.dumps(settings)
        if name not in callers:
            made = Settings(modules=folder, provider="cpu", threads=2, **settings)
            callers[name] = Caller(start_service(made).url)
        return callers[name]

    yield of
    for caller in callers.values():
        caller.close()


@pytest.fixture
def caller(call: Callable[..., Caller]) -> Iterator[Caller]:
    yield call()
    call().must_serve()


def case(name: str, change: dict[str, Any], field: str, *says: str) -> Any:
    code = "unknown_field" if says and says[0] == "unknown field" else "invalid_field"
    return pytest.param(Case(name, change, 422, code, field, says), id=name)


def weights(**selection: Any) -> dict[str, Any]:
    return {"return": {"weights": selection}}


QUERIES = "return.weights.queries"


@pytest.mark.parametrize(
    "wrong",
    [
        case("layer", {"layers": [0, 3]}, "layers", "no layer 3: bert has 3, 0 to 2"),
        case("no_layer", {"layers": []}, "layers", "return.weights = false"),
        case("head", {"heads": [3]}, "heads", "no head 3: bert has 3, 0 to 2"),
        case("ablated_layer", {"ablate": [[0, 0], [3, 0]]}, "ablate.1", "no layer 3", "0 to 2"),
        case("ablated_head", {"ablate": [[0, 3]]}, "ablate.0", "no head 3", "0 to 2"),
        case("ablate_nothing", {"ablate": []}, "ablate", "at least 1"),
        case("ablate_half", {"ablate": [[0]]}, "ablate.0", "at least 2"),
        case("ablate_more", {"ablate": [[0, 0, 0]]}, "ablate.0", "at most 2"),
        case("ablate_below", {"ablate": [[0, -1]]}, "ablate.0.1", "at least 0"),
        case("heads_inside", weights(heads=[0]), "return.weights", '"heads": [...]', '"text"'),
        case("row", weights(queries=[0, 5]), QUERIES, "no token 5: a text has 5"),
        case("rows", weights(queries={"start": 1, "stop": 6}), QUERIES, "no token 5"),
        case("word", {"unit": "word", **weights(queries=[3])}, QUERIES, "no word 3", "has 3, 0"),
        case("row_of_one", {"text": ["cat " * 9, "cat"], **weights(queries=[6])}, QUERIES, "has 5"),
        case("no_rows", weights(queries={"start": 3, "stop": 3}), QUERIES, "holds no row"),
        case("row_twice", weights(queries=[1, 1]), QUERIES, "once"),
        case("a_row", weights(queries=3), QUERIES, "list of integers"),
        case("top_0", weights(top_k=0), "return.weights.top_k", "at least 1"),
        case("top_half", weights(top_k=1.5), "return.weights.top_k", "integer"),
        case("sum", weights(reduce="sum"), "return.weights.reduce", "'mean' or 'max'"),
        case("selection", weights(k=1), "return.weights.k", "unknown field", "top_k"),
        case("blocks", {"return": {"blocks": True}}, "return.blocks", "text_pair"),
        case("unit", {"unit": "letter"}, "unit", "'token' or 'word'"),
        case("name", {"return": {"rolout": True}}, "return.rolout", "unknown field", "'rollout'"),
        case("number", {"return": {"entropy": 1}}, "return.entropy", "true or false"),
    ],
)
def test_what_is_wrong_is_named(caller: Caller, wrong: Case) -> None:
    answer = caller.post(TEXT, wrong.fields(GOOD))
    check_problem(answer, wrong.status, wrong.code, wrong.field, says=wrong.says)


@pytest.mark.parametrize("unit", ["token", "word"])
def test_flow_is_of_so_many_units_and_no_more(caller: Caller, unit: str) -> None:
    # A full stop is a word of one token; [CLS] and [SEP] are units, too.
    asked = ASKED["bert"]._replace(text="." * (MOST_UNITS - 2), text_pair=None)
    found = result(caller, asked, unit=unit, layers=[0], return_={"flow": True, "weights": False})
    assert found["flow"].shape == (1, MOST_UNITS, MOST_UNITS)
    more = {**asked.fields, "text": asked.text + ".", "unit": unit, "return": {"flow": True}}
    says = (f"{MOST_UNITS} {unit}s at most", f"has {MOST_UNITS + 1}", "rollout")
    check_problem(caller.post(TEXT, more), 422, "invalid_field", "return.flow", says=says)
    assert caller.post(TEXT, {**more, "return": {"rollout": True}}).status_code == 200


@pytest.mark.parametrize("name", ["llama", "mistral", "llama-whole"])
@pytest.mark.parametrize("unit", ["token", "word"])
def test_a_text_of_no_tokens_has_empty_analyses(caller: Caller, name: str, unit: str) -> None:
    asked = ASKED["llama"]._replace(text="", module=name)
    found = result(caller, asked, unit=unit, return_=EMPTY | {"rollout": True, "flow": True})
    assert found["tokens"] == []
    assert found["output"].shape == (0, 24)
    assert found["weights"]["values"].shape == (3, 4, 0, 0)
    assert found["entropy"].shape == (3, 4, 0)
    assert found["rollout"].shape == found["flow"].shape == (3, 0, 0)
    assert found["classes"].pop("labels") == [[None] * 4] * 3
    for numbers in (*found["statistics"].values(), *found["classes"].values()):
        assert numbers.tolist() == [[0] * 4] * 3


# --- What is too large -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize("returns", ANALYSES.values(), ids=ANALYSES)
@pytest.mark.parametrize("unit", ["token", "word"])
def test_an_answer_is_no_larger_than_was_told(
    call: Callable[..., Caller], name: str, returns: dict[str, Any], unit: str
) -> None:
    asked = {"text": SENTENCE, "module": name, "unit": unit, "return": returns}
    refused = call(max_answer_bytes=2**10).post(TEXT, asked)
    problem = check_problem(refused, 413, "answer_too_large", says=("at most 1024",))
    told = int(re.findall(r"could take (\d+) bytes", problem["detail"])[0])
    size = len(call().post(TEXT, asked).content)
    assert told / 6 < size <= told


@pytest.mark.parametrize("name", ["plain", "weighted", "numbers"])
def test_an_answer_that_is_too_large_says_what_would_fit(
    call: Callable[..., Caller], name: str
) -> None:
    caller = call(max_answer_bytes=ANSWER)
    asked = {"text": LONG, "module": "llama", "return": ANALYSES[name]}
    says = ('"layers" or "heads"', "would fit")
    problem = check_problem(caller.post(TEXT, asked), 413, "answer_too_large", says=says)
    fits = fitting_return(problem["detail"])
    assert caller.post(TEXT, asked | fits).status_code == 200
    # Without the weights the rest is still the same.
    rest = ANALYSES[name] | {"weights": False}
    (part,) = caller.post(TEXT, asked | {"return": rest}).json()["results"]
    assert {path.split(".")[1] for path in flat(part)} >= {"output", *rest} - {"weights"}


@pytest.mark.parametrize(
    ("name", "fits"), [("weighted", True), ("mixed", False), ("numbers", False)]
)
def test_memory_that_is_too_much_is_refused(
    call: Callable[..., Caller], name: str, fits: bool
) -> None:
    caller = call(memory_budget_bytes=MEMORY)
    asked = {"module": "llama", "return": ANALYSES[name], "text": LONG}
    says = (f"at most {MEMORY}", "fewer")
    if name == "mixed":
        asked["return"] = {"rollout": True, "weights": False}
    problem = check_problem(caller.post(TEXT, asked), 413, "memory_too_large", says=says)
    assert ("would fit" in problem["detail"]) == fits
    if fits:
        smaller = asked | fitting_return(problem["detail"])
        assert caller.post(TEXT, smaller).status_code == 200
    assert caller.post(TEXT, asked | {"text": "A cat."}).status_code == 200
