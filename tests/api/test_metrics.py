"""Metrics: what docs/metrics.md tells of, of one process and of several."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from attention_service.settings import Settings
from tests.conftest import ROOT, TEXT_MODULE, RunningService
from tests.service.served import TENSORS, serving

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(url: str) -> tuple[set[str], Samples]:
    """The names of the metrics, and each sample by its name and labels."""
    answer = httpx.get(f"{url}/metrics")
    assert answer.status_code == 200
    families = list(text_string_to_metric_families(answer.text))
    samples: Samples = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }
    return {_full_name(family.name, family.type) for family in families}, samples


def _full_name(name: str, kind: str) -> str:
    return f"{name}_total" if kind == "counter" else name


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, frozenset(labels.items())), 0.0)


@pytest.fixture(scope="module")
def url(modules: Path, start_service: Callable[[Settings], RunningService]) -> str:
    """A service of its own: nobody else calls it."""
    return start_service(Settings(modules=modules, provider="cpu", threads=1)).url


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


def test_the_document_names_every_metric_and_its_labels(url: str, http: httpx.Client) -> None:
    http.post("/v1/attention", json=TENSORS)
    names, samples = read(url)
    told = re.findall(
        r"^\| `(attention_\w+)` \| ([\w, ]*) ?\|",
        (ROOT / "docs/metrics.md").read_text(),
        re.MULTILINE,
    )
    assert {name for name, _ in told} == names
    for name, labels in told:
        expected = {label.strip() for label in labels.split(",") if label.strip()}
        for sample, found in samples:
            if sample.startswith(name):
                assert {label for label, _ in found} - {"le"} == expected, sample


def test_calls_are_counted(url: str, http: httpx.Client) -> None:
    _, before = read(url)
    body = b'{"query": [[1, 0]], "key": [[1, 0]], "value": [[1, 2]]}'
    sent = sum(len(http.post("/v1/attention", content=body).content) for _ in range(3))
    http.post("/v1/attention", content=b"{")
    _, after = read(url)

    def more(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    route = "/v1/attention"
    assert more("attention_requests_total", route=route, status="200", code="") == 3
    assert more("attention_requests_total", route=route, status="400", code="malformed_json") == 1
    for phase in ("parse", "queue", "compute", "serialize"):
        assert more("attention_phase_seconds_count", module="sdpa", phase=phase) == 3
    assert more("attention_received_bytes_total") == 3 * len(body)
    assert more("attention_sent_bytes_total") == sent
    assert value(after, "attention_queue_size") == value(after, "attention_running") == 0
    assert value(after, "attention_sessions") >= 1
    assert 2**24 < value(after, "attention_memory_resident_bytes") < 2**34
    assert value(after, "attention_memory_budget_bytes") > 2**24


def test_modules_have_series_of_their_own_and_made_up_names_none(
    url: str, http: httpx.Client
) -> None:
    _, before = read(url)
    # Eight tokens and twelve, run together: 64 and 144 of twice 144 scores.
    texts = ["the cat sat on the mat", "one two three four five six seven eight nine ten"]
    assert http.post("/v1/text/attention", json={"text": texts}).status_code == 200
    assert http.post("/v1/text/attention", json={"text": "a", "module": "bogus"}).status_code == 404
    assert http.post("/v1/modules/bogus/attention", json={"query": [[[1]]]}).status_code == 404
    _, after = read(url)
    for name, more in (
        ("attention_batch_size_count", 1),
        ("attention_batch_size_sum", 2),
        ("attention_batch_fill_ratio_sum", (64 + 144) / (2 * 144)),
    ):
        found = value(after, name, module=TEXT_MODULE) - value(before, name, module=TEXT_MODULE)
        assert found == pytest.approx(more)
    assert not any("bogus" in str(labels) for _, labels in after)


def test_those_of_several_workers_add_up(environment: dict[str, str], tmp_path: Path) -> None:
    words = ("--workers", "2", "--drain-delay", "0", "--threads", "2")
    with serving(environment, tmp_path, *words) as served:
        served.logged(r"(?s)(worker \d+ serves.*){2}")
        url = served.url()
        # New connections, so that both workers get some.
        for _ in range(40):
            assert httpx.post(f"{url}/v1/attention", json=TENSORS).status_code == 200
        httpx.post(f"{url}/v1/attention", content=b"{")
        for _ in range(6):  # whichever answers
            names, samples = read(url)
            route = "/v1/attention"
            done = value(samples, "attention_requests_total", route=route, status="200", code="")
            assert done == 40
            parts = {"module": "sdpa", "phase": "compute"}
            assert value(samples, "attention_phase_seconds_count", **parts) == 40
        # What another worker watches is a second old at most, and may be of the midst of a call.
        end = time.monotonic() + 10
        while value(read(url)[1], "attention_running") > 0:
            assert time.monotonic() < end
            time.sleep(0.1)
        assert "attention_memory_resident_bytes" in names
        one = httpx.get(f"{url}/v1/info").json()["limits"]["memory_bytes"]

        def budget() -> float:
            return value(read(url)[1], "attention_memory_budget_bytes")

        assert budget() == 2 * one
        assert sum(sample == "attention_info" for sample, _ in samples) == 1
