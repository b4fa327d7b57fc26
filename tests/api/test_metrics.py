"""Metrics: what docs/metrics.md tells of, of one process and of several."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from attention_service.settings import Settings
from tests.conftest import ROOT, TEXT_MODULE, RunningService
from tests.service.served import TENSORS, serving
from tests.waiting import wait_until

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
        r"^\| `((?:attention|process)_\w+)` \| ([\w, ]*) ?\|",
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
        assert more("attention_phase_seconds_sum", module="sdpa", phase=phase) > 0
    assert more("attention_received_bytes_total") == 3 * len(body)
    assert more("attention_sent_bytes_total") == sent
    assert value(after, "attention_queue_size") == value(after, "attention_running") == 0
    assert value(after, "attention_sessions") >= 1
    assert 2**24 < value(after, "attention_memory_resident_bytes") < 2**34
    assert value(after, "attention_memory_budget_bytes") > 2**24


def test_whole_requests_are_timed(url: str, http: httpx.Client) -> None:
    _, before = read(url)
    begin = time.perf_counter()
    http.post("/v1/attention", json=TENSORS)
    took = time.perf_counter() - begin
    http.post("/v1/attention", content=b"{")
    http.post("/v1/text/attention", json={"text": "a"}, headers={"X-Request-Timeout": "1e-9"})
    _, after = read(url)
    for name, route, status_class, low, high in (
        ("count", "/v1/attention", "2xx", 1, 1),
        ("count", "/v1/attention", "4xx", 1, 1),
        ("count", "/v1/text/attention", "5xx", 1, 1),
        ("sum", "/v1/attention", "2xx", 0, took),
    ):
        labels = {"route": route, "status_class": status_class}
        full = f"attention_request_seconds_{name}"
        assert low <= value(after, full, **labels) - value(before, full, **labels) <= high
    phases = [
        value(after, "attention_phase_seconds_sum", module="sdpa", phase=phase)
        for phase in ("parse", "queue", "compute", "serialize")
    ]
    labels = {"route": "/v1/attention", "status_class": "2xx"}
    assert sum(phases) <= value(after, "attention_request_seconds_sum", **labels)


def test_limits_stand_beside_what_they_limit(
    modules: Path, start_service: Callable[[Settings], RunningService]
) -> None:
    limited = {"max_running": 3, "max_waiting": 7, "memory_budget_bytes": 2**30}
    settings = Settings(modules=modules, provider="cpu", threads=4, **limited)
    _, samples = read(start_service(settings).url)
    # Three large ones, a small one in each of four threads, and two that can be shared.
    assert value(samples, "attention_places") == 3 + 4 + 2
    assert value(samples, "attention_queue_limit") == 7
    assert value(samples, "attention_memory_budget_bytes") == 2**30


def test_what_state_it_is_in(
    tmp_path: Path, start_service: Callable[[Settings], RunningService]
) -> None:
    (tmp_path / "modules" / "broken").mkdir(parents=True)
    keys = tmp_path / "keys"
    good = f"prometheus:{hashlib.sha256(b'secret').hexdigest()}\n"
    keys.write_text(good)
    begin = time.time()
    settings = Settings(modules=tmp_path / "modules", api_keys_file=keys, provider="cpu")
    url = start_service(settings).url

    names = (
        *(f"attention_{name}" for name in ("ready", "modules_serving", "modules_refused")),
        "attention_keys_stale",
        "process_start_time_seconds",
    )

    def states() -> list[float]:
        text = httpx.get(f"{url}/metrics", headers={"Authorization": "Bearer secret"}).text
        return [float(re.findall(rf"^{name} (.*)$", text, re.MULTILINE)[0]) for name in names]

    *first, start = states()
    assert first == [1, 0, 1, 0]
    assert begin <= start <= time.time()
    for content, is_stale in (("nonsense\n", 1), (good + "# again\n", 0)):
        keys.write_text(content)
        end = time.monotonic() + 10
        while states()[3] != is_stale:
            assert time.monotonic() < end
            time.sleep(0.1)


ALERTS = ROOT / "deploy/compose/alerts.yaml"


def test_alerts_ask_for_metrics_and_labels_that_there_are(url: str, http: httpx.Client) -> None:
    http.post("/v1/attention", json=TENSORS)
    _, samples = read(url)
    of_prometheus = {"job", "instance"}  # which it gives to all that it scrapes
    labels_of = {"up": of_prometheus}
    for name, labels in samples:
        labels_of[name] = labels_of.get(name, of_prometheus) | {label for label, _ in labels}
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    told = (ROOT / "docs/metrics.md").read_text()
    for rule in group["rules"]:
        assert rule.keys() == {"alert", "expr", "for", "labels", "annotations"}
        expression = rule["expr"]
        assert f"`{expression}`" in told, expression  # what to do about it
        asked = re.findall(r"\b((?:attention|process)_\w+|up)\b(?:\{([^}]*)\})?", expression)
        assert asked, expression
        for name, selector in asked:
            assert name in labels_of, expression
            assert set(re.findall(r"(\w+)\s*[=!]", selector)) <= labels_of[name]


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


@pytest.mark.slow
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
        wait_until(lambda: value(read(url)[1], "attention_running") == 0)
        assert "attention_memory_resident_bytes" in names
        one = httpx.get(f"{url}/v1/info").json()["limits"]["memory_bytes"]

        def budget() -> float:
            return value(read(url)[1], "attention_memory_budget_bytes")

        assert budget() == 2 * one
        assert value(samples, "attention_ready") == 1
        assert sum(sample == "attention_info" for sample, _ in samples) == 1
