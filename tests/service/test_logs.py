"""The log: what each request leaves there in either form, and what never gets there."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import signal
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from attention_wire import bodies
from tests.service.served import Served, serving

# Numbers and words that nothing else of the log looks like.
NUMBER, WORD = 0.7853981633, "xylophonequartz"
SECRET = "att_verysecretindeed"


def calls(url: str) -> None:
    """Good, wrong and failing calls, all of which hold what the log must not."""
    tensor = [[NUMBER, NUMBER]]
    good = {"query": tensor, "key": tensor, "value": tensor}
    binary = bodies.write(
        bodies.SAFETENSORS,
        {name: np.full((2, 2), NUMBER, np.float32) for name in good},
        "request",
    )
    wrong: list[dict[str, Any]] = [
        {"query": tensor, "key": tensor},
        {**good, WORD: NUMBER},
        {**good, "query": [[NUMBER], [NUMBER, NUMBER]]},
        {**good, "query": [["NaN", NUMBER]]},
        {**good, "scale": WORD},
        {**good, "query": [[1e30, NUMBER]], "key": [[1e300, NUMBER]]},
    ]
    headers = {"Authorization": f"Bearer {SECRET}"}
    with httpx.Client(base_url=url, timeout=60, headers=headers) as http:
        assert http.post("/v1/attention", json=good).status_code == 200
        assert http.post(
            "/v1/attention", content=bytes(binary), headers={"Content-Type": binary.media_type}
        ).is_success
        for fields in wrong:
            assert http.post("/v1/attention", json=fields).is_client_error
        assert http.post("/v1/attention", content=f'{{"{WORD}": {NUMBER}').is_client_error
        assert http.post("/v1/text/attention", json={"text": WORD}).is_success
        assert http.post("/v1/text/attention", json={"text": [WORD, WORD * 99]}).is_success
        assert http.post("/v1/text/attention", json={"text": f"{WORD} " * 600}).is_client_error


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_line_holds_what_was_sent(
    environment: dict[str, str], text_module: Path, form: str
) -> None:
    words = ("--log-level", "debug", "--log-format", form, "--drain-delay", "0")
    with serving(environment, text_module, *words) as served:
        calls(served.url())
        served.signal(signal.SIGTERM)
        assert served.wait() == 0
        assert served.log.count("/v1/attention") >= 9
        for content in (str(NUMBER)[:8], WORD, SECRET):
            assert content not in served.log


def objects(served: Served) -> list[dict[str, Any]]:
    return [json.loads(line) for line in served.log.splitlines()]


def test_each_line_is_an_object(environment: dict[str, str], tmp_path: Path) -> None:
    words = ("--log-level", "debug", "--log-format", "json", "--drain-delay", "0")
    with serving(environment, tmp_path, *words) as served:
        url = json.loads(served.logged(r".*running on http.*")[0])["message"].split()[3]
        httpx.get(f"{url}/v1/info", headers={"X-Request-ID": "mine"})
        httpx.get(f"{url}/healthz")
        served.signal(signal.SIGTERM)
        assert served.wait() == 0
    lines = objects(served)
    assert {"timestamp", "level", "logger", "message"} <= set.intersection(*map(set, lines))
    for line in lines:
        age = datetime.now(UTC) - datetime.fromisoformat(line["timestamp"])
        assert timedelta(0) <= age < timedelta(minutes=2)
    (info,) = (line for line in lines if line.get("path") == "/v1/info")
    assert info["level"] == "INFO"
    assert (info["method"], info["status"], info["request_id"]) == ("GET", 200, "mine")
    assert info["caller"] == "127.0.0.1"
    assert 0 < info["duration_ms"] < 60_000
    (probe,) = (line for line in lines if line.get("path") == "/healthz")
    assert probe["level"] == "DEBUG"
    assert any(line["logger"].startswith("uvicorn") for line in lines)


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_line_can_be_forged(environment: dict[str, str], tmp_path: Path, form: str) -> None:
    with serving(environment, tmp_path, "--log-format", form, "--drain-delay", "0") as served:
        url = served.logged(r"running on (http://[\d.:]+)")[1]
        host, port = url.removeprefix("http://").split(":")
        for path in ("/v1/%0AINFO%20forged", '/"},{"forged":1', "/\x1b[31mred"):
            with socket.create_connection((host, int(port)), 5) as connection:
                connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode("latin-1"))
                assert connection.recv(4096).startswith(b"HTTP/1.1 40")
        bad_id = httpx.get(f"{url}/v1/info", headers={"X-Request-ID": "a b"})
        assert re.fullmatch("[0-9a-f]{32}", bad_id.headers["X-Request-ID"])
        served.signal(signal.SIGTERM)
        assert served.wait() == 0
    assert "\x1b" not in served.log
    if form == "json":
        assert not any("forged" in line for line in objects(served))
    else:
        assert not re.search(r"(?m)^(INFO|forged)", served.log)


@pytest.mark.slow
def test_the_caller_is_the_name_of_its_key(environment: dict[str, str], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    digest = hashlib.sha256(SECRET.encode()).hexdigest()
    keys.write_text(f"someone:{digest}\n")
    variables = environment | {"ATTENTION_API_KEYS_FILE": str(keys)}
    words = ("--log-format", "json", "--drain-delay", "0")
    with serving(variables, tmp_path / "none", *words) as served:
        url = served.logged(r"running on (http://[\d.:]+)")[1]
        for key in (SECRET, f"{SECRET}x"):
            httpx.get(f"{url}/v1/info", headers={"Authorization": f"Bearer {key}"})
        served.signal(signal.SIGTERM)
        assert served.wait() == 0
    told = [(line["status"], line["caller"]) for line in objects(served) if "path" in line]
    assert told == [(200, "someone"), (401, "127.0.0.1")]
    assert SECRET not in served.log
    assert digest not in served.log


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trusted", "caller"),
    [
        ("", "127.0.0.1"),
        ("10.0.0.0/8", "127.0.0.1"),  # the one that connects is none of them
        ("10.0.0.0/8, 127.0.0.1", "198.51.100.7"),
    ],
)
def test_the_caller_behind_a_proxy_is_named_by_one_that_is_trusted(
    environment: dict[str, str], tmp_path: Path, trusted: str, caller: str
) -> None:
    variables = environment | {"ATTENTION_TRUSTED_PROXIES": trusted, "FORWARDED_ALLOW_IPS": "*"}
    words = ("--log-format", "json", "--drain-delay", "0")
    with serving(variables, tmp_path, *words) as served:
        url = served.logged(r"running on (http://[\d.:]+)")[1]
        # What the caller made up, then what its own proxy and ours saw.
        forwarded = "203.0.113.9, 198.51.100.7, 10.0.0.3"
        httpx.get(f"{url}/v1/info", headers={"X-Forwarded-For": forwarded})
        served.signal(signal.SIGTERM)
        assert served.wait() == 0
    assert [line["caller"] for line in objects(served) if "path" in line] == [caller]


PHASES = {"parse_ms", "queue_ms", "compute_ms", "serialize_ms"}


@pytest.mark.slow
def test_a_line_says_where_the_time_went_and_how_much_was_sent(
    environment: dict[str, str], text_module: Path
) -> None:
    words = ("--log-format", "json", "--drain-delay", "0")
    body = b'{"query": [[1, 0]], "key": [[1, 0]], "value": [[1, 2]]}'
    slow = json.dumps({"text": ["a " * 400] * 28, "return": {"weights": False}}).encode()
    with serving(environment, text_module, *words) as served:
        url = served.logged(r"running on (http://[\d.:]+)")[1]
        with httpx.Client(base_url=url, timeout=60) as http:
            # The first in full, and those after the second by its form.
            answers = [http.post("/v1/attention", content=body) for _ in range(4)]
            answers.append(http.post("/v1/text/attention", json={"text": "a cat"}))
            http.post("/v1/attention", content=b"{")
            late = http.post(
                "/v1/text/attention", content=slow, headers={"X-Request-Timeout": "0.2"}
            )
            http.get("/nothing")
            http.get("/v1/info")
        served.signal(signal.SIGTERM)
        assert served.wait() == 0
    lines = [line for line in objects(served) if "path" in line]
    for line, answer in zip(lines, answers, strict=False):
        timing = dict(re.findall(r"(\w+);dur=([\d.]+)", answer.headers["Server-Timing"]))
        assert {name: line[name] for name in PHASES} == {
            f"{phase}_ms": float(milliseconds) for phase, milliseconds in timing.items()
        }
        assert sum(line[name] for name in PHASES) <= line["duration_ms"]
        assert line["request_bytes"] == len(answer.request.content)
        assert line["answer_bytes"] == len(answer.content)
        assert "code" not in line
    named = [line["attention_module"] for line in lines[:5]]
    assert named == ["sdpa"] * 4 + ["all-MiniLM-L6-v2"]
    wrong, ended, nothing, info = lines[5:]
    assert (wrong["code"], wrong["request_bytes"]) == ("malformed_json", 1)
    assert late.json()["code"] == ended["code"] == "deadline"
    assert ended["attention_module"] == "all-MiniLM-L6-v2"
    assert "compute_ms" not in ended  # a phase that did not end
    assert nothing["code"] == "not_found"
    assert not {"code", "request_bytes", *PHASES} & info.keys()


@pytest.mark.slow
def test_a_line_for_people_says_the_same_in_short(
    environment: dict[str, str], tmp_path: Path
) -> None:
    with serving(environment, tmp_path, "--drain-delay", "0") as served:
        headers = {"X-Request-ID": "mine"}
        good = {name: [[1.0, 0.0]] for name in ("query", "key", "value")}
        answer = httpx.post(f"{served.url()}/v1/attention", json=good, headers=headers)
        httpx.post(f"{served.url()}/v1/attention", content=b"{", headers=headers)
        httpx.get(f"{served.url()}/v1/info", headers=headers)
        served.signal(signal.SIGTERM)
        assert served.wait() == 0
    told = re.findall(r"INFO \S+envelope: (.*)", served.log)
    sizes = f"in {len(answer.request.content)} B out {len(answer.content)} B"
    ms = r"\d+\.\d ms"
    expected = [
        rf"POST /v1/attention 200 {ms} mine sdpa queue {ms} compute {ms} {sizes}",
        rf"POST /v1/attention 400 {ms} mine malformed_json in 1 B",
        rf"GET /v1/info 200 {ms} mine",
    ]
    assert len(told) == len(expected)
    for line, form in zip(told, expected, strict=True):
        assert re.fullmatch(form, line)


TOGETHER = """
import io, logging, sys, threading
from attention_service import logs

class Pieces(io.StringIO):
    written = []
    def write(self, text):
        self.written.append(text)

sys.stderr = Pieces()
logs.configure("info", "text")
logger = logging.getLogger("a")
other = threading.Thread(target=logger.info, args=("of another thread",))
with logs.together():
    logger.info("one")
    other.start()
    other.join(0.2)
    logger.warning("two")
    assert not Pieces.written, Pieces.written
other.join()
logger.info("three")
print([[line.split(": ")[1] for line in piece.splitlines()] for piece in Pieces.written])
"""


def test_lines_that_are_held_are_written_in_one_piece() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TOGETHER], capture_output=True, text=True, check=True
    )
    pieces = [piece for piece in ast.literal_eval(done.stdout) if piece]
    assert pieces == [["one", "two"], ["of another thread"], ["three"]]
