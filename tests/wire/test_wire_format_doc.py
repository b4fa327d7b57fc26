"""docs/wire-format.md is normative: its examples and tables hold for the code and the service.

An example is a code block whose first line says what it is: ``json request PATH`` or
``hexdump request PATH``, and in the block after it what is answered. A table is found by
the names of its columns.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import struct
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
from safetensors.numpy import load

from attention_service.api.answers import SLOW_BYTES, SLOW_SECONDS
from attention_service.api.problems import STATUS
from attention_service.api.server import KEEP_ALIVE_SECONDS
from attention_service.attention.shapes import MOST_BESIDE_ZERO
from attention_service.settings import Settings
from attention_wire import bodies, safetensors, tensors
from attention_wire.documents import MAX_DEPTH
from attention_wire.problems import Code
from tests.conftest import ROOT

DOCUMENT = (ROOT / "docs" / "wire-format.md").read_text(encoding="utf-8")


class Block(NamedTuple):
    """A code block: its language, the other words of its first line, its text."""

    language: str
    kind: str
    word: str
    text: str

    @property
    def content(self) -> bytes:
        """The bytes of the example."""
        if self.language == "json":
            return self.text.encode()
        return b"".join(bytes.fromhex(line[6:53]) for line in self.text.splitlines())


def _blocks() -> list[Block]:
    fence = re.compile(r"^```(\w+) (\w+) ?(\S*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    return [Block(*groups) for groups in fence.findall(DOCUMENT)]


def _table(*columns: str) -> list[list[str]]:
    """The cells of the one table with these columns."""
    head = f"\n| {' | '.join(columns)} |\n"
    assert DOCUMENT.count(head) == 1, head
    lines = DOCUMENT.split(head)[1].split("\n\n")[0].splitlines()[1:]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    assert all(len(row) == len(columns) for row in rows)
    return rows


def _code(cell: str) -> str | None:
    """What a cell shows as code, if it does."""
    found = re.search(r"`(.+?)`", cell)
    return found and found[1]


BLOCKS = _blocks()
DUMP_AT = next(index for index, block in enumerate(BLOCKS) if block.language == "hexdump")
DUMP = BLOCKS[DUMP_AT].content
JSON_EXAMPLE = BLOCKS[DUMP_AT - 2]  # the same request; its answer stands between
FIELDS: dict[str, Any] = json.loads(JSON_EXAMPLE.text)


def _answered(kind: str) -> list[tuple[Block, Block]]:
    """Each request with the block after it, where that is of a kind."""
    return [
        (request, answer)
        for request, answer in pairwise(BLOCKS)
        if request.kind == "request" and answer.kind == kind
    ]


def _post(url: str, request: Block, **headers: str) -> httpx.Response:
    headers["Content-Type"] = bodies.JSON if request.language == "json" else bodies.SAFETENSORS
    return httpx.post(url + request.word, content=request.content, headers=headers)


# --- Examples --------------------------------------------------------------------------


def test_every_block_is_of_a_kind_that_is_checked_below() -> None:
    assert len(BLOCKS) == DOCUMENT.count("\n```") / 2
    assert Counter(block.kind for block in BLOCKS) == {
        "tensor": 3, "request": 6, "answer": 3, "metadata": 1, "header": 1, "problem": 1,
        "write": 1, "send": 1,
    }  # fmt: skip


def test_the_three_tensor_objects_are_one_tensor() -> None:
    for block in BLOCKS:
        if block.kind == "tensor":
            array = tensors.from_json(json.loads(block.text))
            assert array.dtype == np.float32
            assert array.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(("example", "answer"), _answered("answer"))
def test_an_example_is_answered_as_shown(service_url: str, example: Block, answer: Block) -> None:
    given = _post(service_url, example)
    assert given.status_code == 200, given.text
    if answer.language == "hexdump":
        assert given.content == answer.content
    else:
        assert given.json() == json.loads(answer.text)


def test_a_problem_is_answered_as_shown(service_url: str) -> None:
    ((example, problem),) = _answered("problem")
    given = _post(service_url, example, **{"X-Request-ID": problem.word, "Accept": "text/html"})
    assert given.headers["Content-Type"] == "application/problem+json"
    assert given.json() == json.loads(problem.text)
    assert given.status_code == given.json()["status"]


def test_nested_tensors_are_named_as_shown(service_url: str) -> None:
    ((example, metadata),) = _answered("metadata")
    given = _post(service_url, example, Accept=bodies.SAFETENSORS)
    length = int.from_bytes(given.content[:8], "little")
    header = json.loads(given.content[8 : 8 + length])
    assert json.loads(header.pop("__metadata__")["response"]) == json.loads(metadata.text)
    (shown,) = (json.loads(block.text) for block in BLOCKS if block.kind == "header")
    assert header == shown


# --- The worked example of safetensors -------------------------------------------------


def test_the_dumps_show_their_bytes_as_text_too() -> None:
    for block in BLOCKS:
        lines = block.text.splitlines() if block.language == "hexdump" else []
        for index, line in enumerate(lines):
            row = block.content[16 * index :][:16]
            text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
            assert (line[:4], line[55:]) == (f"{16 * index:04x}", f"|{text}|")


def test_the_worked_example_is_what_we_write() -> None:
    arrays = {n: tensors.from_json(v) for n, v in FIELDS.items() if isinstance(v, list)}
    assert bytes(bodies.write(bodies.SAFETENSORS, {**FIELDS, **arrays}, "request")) == DUMP
    assert f"as safetensors, {len(DUMP)} bytes" in DOCUMENT


def test_the_worked_example_is_what_the_safetensors_library_reads() -> None:
    length = int.from_bytes(DUMP[:8], "little")
    others = json.loads(json.loads(DUMP[8 : 8 + length])["__metadata__"]["request"])
    assert others | {name: array.tolist() for name, array in load(DUMP).items()} == FIELDS


def test_the_worked_example_lies_as_its_table_says() -> None:
    rows = _table("offsets", "content")
    header_length, header, *arrays = (content for _, content in rows)
    parts, end = [], 0
    for offsets, _ in rows:
        begin, last = (int(number, 16) for number in re.findall(r"`(\w+)`", offsets))
        assert begin == end
        end = last + 1
        parts.append(DUMP[begin:end])
    assert end == len(DUMP)
    assert header_length == f"N = {struct.unpack('<Q', parts[0])[0]}"
    assert header == "the header, with six spaces at its end"
    assert re.search(rb"} {6}$", parts[1])
    for content, part in zip(arrays, parts[2:], strict=True):
        name, elements = re.findall(r"`(.*?)`", content)
        kind = np.bool_ if name == "attn_mask" else "<f4"
        assert np.array(json.loads(elements), kind).tobytes() == part
        assert json.loads(elements) == FIELDS[name]


def test_the_worked_example_is_written_and_sent_as_shown(service_url: str, tmp_path: Path) -> None:
    write, send = (block for block in BLOCKS if block.kind in ("write", "send"))
    subprocess.run([sys.executable, "-c", write.text], cwd=tmp_path, check=True)
    curl = argparse.ArgumentParser()  # that reads the line as curl does
    curl.add_argument("--data-binary")
    curl.add_argument("-H", action="append")
    curl.add_argument("url")
    line = send.text.replace("\\\n", " ")
    given = curl.parse_args(shlex.split(line)[1:])
    answer = httpx.post(
        given.url.replace("http://127.0.0.1:8080", service_url),
        content=(tmp_path / given.data_binary.removeprefix("@")).read_bytes(),
        headers=dict(header.split(": ") for header in given.H),
    )
    assert answer.json() == json.loads(BLOCKS[DUMP_AT - 1].text)


# --- Tables ----------------------------------------------------------------------------


def test_the_dtypes() -> None:
    rows = _table("dtype", "safetensors", "bytes", "1 as bytes", "layout")
    assert [_code(row[0]) for row in rows] == list(tensors.DTYPES)
    for row in rows:
        name, in_safetensors, one = (_code(row[index]) for index in (0, 1, 3))
        raw = bytes.fromhex(one or "")
        assert len(raw) == int(row[2])
        encoded = {"dtype": name, "shape": [1], "data": [True if name == "bool" else 1]}
        array = tensors.from_json(encoded)
        assert bytes(tensors.as_bytes(array)) == raw
        header = b"".join(safetensors.write({"x": array}, {}))[8 : -len(raw)]
        assert json.loads(header)["x"]["dtype"] == in_safetensors


BASE = json.loads(next(block for block in BLOCKS if block.kind == "request").text)
CASES = [
    (_code(field), _code(value), answer)
    for field, value, answer in _table("field", "value", "answer")
]


@pytest.mark.parametrize(("field", "value", "answer"), CASES)
def test_what_is_taken_and_what_is_refused(
    service_url: str, field: str, value: str, answer: str
) -> None:
    # As text, for JSON's 1.0 and 1e39 to arrive as they stand.
    others = {name: json.dumps(v) for name, v in BASE.items()} | {field: value}
    body = "{" + ", ".join(f'"{name}": {text}' for name, text in others.items()) + "}"
    given = httpx.post(f"{service_url}/v1/attention", content=body)
    code = given.json().get("code", "")
    assert f"{given.status_code} `{code}`".removesuffix(" ``") == answer, given.text
    if code:
        assert [problem["loc"] for problem in given.json()["errors"]] == [[field]]


@pytest.mark.parametrize(
    ("content_type", "reading"), _table("`Content-Type`", "the body is read as")
)
def test_content_types(service_url: str, content_type: str, reading: str) -> None:
    headers = {"Content-Type": _code(content_type) or "text/json"}
    if content_type == "absent":
        headers = {}
    body = DUMP if reading == "safetensors" else JSON_EXAMPLE.content
    given = httpx.post(f"{service_url}/v1/attention", content=body, headers=headers)
    if reading in ("JSON", "safetensors"):
        assert given.status_code == 200, given.text
    else:
        assert f"{given.status_code} `{given.json()['code']}`" == reading


@pytest.mark.parametrize(("sent", "accept", "answer"), _table("request", "`Accept`", "answer"))
def test_accept(service_url: str, sent: str, accept: str, answer: str) -> None:
    is_json = _code(sent) == bodies.JSON
    request = httpx.Request(
        "POST",
        f"{service_url}/v1/attention",
        content=JSON_EXAMPLE.content if is_json else DUMP,
        headers={"Content-Type": _code(sent) or "", "Accept": _code(accept) or ""},
    )
    if accept == "absent":
        del request.headers["Accept"]
    with httpx.Client() as client:
        assert client.send(request).headers["Content-Type"] == _code(answer)


def test_the_codes() -> None:
    rows = _table("code", "status", "meaning")
    assert {_code(row[0]): int(row[1]) for row in rows} == {
        code.value: status.value for code, status in STATUS.items()
    }
    # Beside the two tables of codes something has to name each.
    tables = {"wire/attention_wire/problems.py", "service/attention_service/api/problems.py"}
    sources = [*ROOT.glob("wire/**/*.py"), *ROOT.glob("service/**/*.py")]
    others = (path for path in sources if str(path.relative_to(ROOT)) not in tables)
    used = set(re.findall(r"Code\.([A-Z_]+)", "".join(p.read_text("utf-8") for p in others)))
    # The service's own faults, and what the framework finds, arise beside the table.
    used |= {"INTERNAL", "NOT_FOUND", "METHOD_NOT_ALLOWED"}
    assert {code.name for code in Code} <= used


def test_the_limits(service_url: str) -> None:
    defaults = [row[1] for row in _table("limit", "default", "past it")]
    told = httpx.get(f"{service_url}/v1/info").json()["limits"]
    settings = Settings()
    limits = [row[0] for row in _table("limit", "default", "past it")]
    assert sum(f"one for every {SLOW_BYTES // 1024} KiB" in limit for limit in limits) == 2
    assert defaults == [
        str(told["body_bytes"]),
        str(told["answer_bytes"]),
        "half of what the service may use",
        str(MAX_DEPTH),
        str(safetensors.MAX_HEADER_BYTES),
        str(tensors.MAX_RANK),
        str(tensors.MAX_BYTES),
        str(MOST_BESIDE_ZERO),
        f"{told['timeout_seconds']:g}",
        f"{settings.body_timeout:g}",
        f"{SLOW_SECONDS:g}",
        str(KEEP_ALIVE_SECONDS),
    ]
    assert told["json_depth"] == MAX_DEPTH


def test_the_headers(service_url: str) -> None:
    rows = _table("header", "on", "meaning")
    given = _post(service_url, JSON_EXAMPLE)
    always = [
        str(_code(header))
        for header, where, _ in rows
        if where.startswith(("every answer", "200 of compute routes"))
    ]
    assert len(always) == 3
    assert all(header in given.headers for header in always)
    (phases,) = (row[2] for row in rows if _code(row[0]) == "Server-Timing")
    phase_names = re.findall(r"(\w+);dur=\d", given.headers["Server-Timing"])
    assert phase_names == re.findall(r"`(\w+)`", phases)
    assert re.fullmatch("[0-9a-f]{32}", given.headers["X-Request-ID"])
    unknown = _post(service_url, JSON_EXAMPLE._replace(word="/v1/nothing"))
    assert unknown.headers["Connection"] == "close"
    assert httpx.get(f"{service_url}/v1/attention").headers["Allow"] == "POST"
