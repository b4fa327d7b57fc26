"""Bodies as HTTP carries them: types, encodings, lengths, and connections that break."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.api.conftest import SMALL_BODY
from tests.api.support import ATTENTION, GOOD, JSON, Caller, check_problem, head, read_answer

BODY = json.dumps(GOOD).encode()
FORM = "application/x-www-form-urlencoded"


# --- Types and encodings ---------------------------------------------------------------


def test_a_body_without_a_type_is_json(caller: Caller) -> None:
    with caller.connection() as connection:
        connection.sendall(head(ATTENTION, Content_Length=len(BODY)) + BODY)
        answer = read_answer(connection)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == JSON


@pytest.mark.parametrize(
    "media_type", [FORM, JSON, "Application/JSON; charset=utf-8", f"{FORM};charset=x"]
)
def test_types_that_are_read_as_json(caller: Caller, media_type: str) -> None:
    answer = caller.post(ATTENTION, BODY, Content_Type=media_type)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "media_type",
    ["", "text/plain", "text/json", "application/json5", "multipart/form-data; boundary=x",
     "application/octet-stream", "application/json, application/x-safetensors", "\xff"],
)  # fmt: skip
def test_another_type_is_a_415(caller: Caller, media_type: str) -> None:
    with caller.connection() as connection:
        raw = head(ATTENTION, Content_Type=media_type, Content_Length=len(BODY))
        connection.sendall(raw.decode().encode("latin-1") + BODY)
        answer = read_answer(connection)
        assert connection.recv(1) == b""
    check_problem(answer, 415, "unsupported_media_type", says=(JSON, "application/x-safetensors"))
    assert answer.headers["Connection"] == "close"


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "gzip, identity", "x-gzip", "*"])
def test_another_encoding_is_a_415(caller: Caller, encoding: str) -> None:
    answer = caller.post(ATTENTION, BODY, Content_Encoding=encoding)
    check_problem(answer, 415, "unsupported_encoding", says=(repr(encoding), "gzip or deflate"))
    assert answer.headers["Connection"] == "close"


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(BODY)),
        ("GZIP", gzip.compress(BODY[:9]) + gzip.compress(b"") + gzip.compress(BODY[9:])),
        ("deflate", zlib.compress(BODY)),
        ("deflate", raw_deflate(BODY)),
        ("identity", BODY),
        ("", BODY),
    ],
    ids=["gzip", "gzip_joined", "deflate", "deflate_raw", "identity", "empty"],
)
def test_encodings_that_are_taken(caller: Caller, encoding: str, body: bytes) -> None:
    answer = caller.post(ATTENTION, body, Content_Encoding=encoding)
    assert answer.status_code == 200, answer.text


GZIP = gzip.compress(BODY)
BROKEN = {
    "junk": ("gzip", b"\x00" * 100, "not valid gzip"),
    "json": ("gzip", BODY, "not valid gzip"),
    "junk_after_the_magic": ("gzip", b"\x1f\x8b\x08" + b"\xff" * 100, "not valid gzip"),
    "empty": ("gzip", b"", "breaks off"),
    "cut_in_its_header": ("gzip", GZIP[:5], "breaks off"),
    "cut_in_its_data": ("gzip", GZIP[:-20], "breaks off"),
    "cut_in_its_checksum": ("gzip", GZIP[:-1], "breaks off"),
    "wrong_checksum": ("gzip", GZIP[:-8] + bytes(8), "not valid gzip"),
    "junk_after_its_end": ("gzip", GZIP + b"junk", "not valid gzip"),
    "second_one_cut": ("gzip", GZIP + GZIP[:-9], "breaks off"),
    "deflate_junk": ("deflate", b"\xff" * 100, "not valid deflate"),
    "deflate_cut": ("deflate", zlib.compress(BODY)[:-5], "breaks off"),
    "deflate_with_a_dictionary": ("deflate", bytes.fromhex("78bb00000000"), "not valid deflate"),
}


@pytest.mark.parametrize(("encoding", "body", "says"), BROKEN.values(), ids=BROKEN)
def test_a_body_that_is_not_in_its_encoding_is_a_400(
    caller: Caller, encoding: str, body: bytes, says: str
) -> None:
    answer = caller.post(ATTENTION, body, Content_Encoding=encoding)
    check_problem(answer, 400, "malformed_body", says=(says,))


# --- Sizes -----------------------------------------------------------------------------


def test_the_largest_body_is_taken_and_one_byte_more_is_not(small: Caller) -> None:
    body = BODY + b" " * (SMALL_BODY - len(BODY))
    assert small.post(ATTENTION, body).status_code == 200
    says = (f"{SMALL_BODY + 1} bytes", f"at most {SMALL_BODY}", "application/x-safetensors")
    check_problem(small.post(ATTENTION, body + b" "), 413, "body_too_large", says=says)


def test_a_body_of_chunks_is_stopped_at_the_limit(small: Caller) -> None:
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        while sent < 100 * SMALL_BODY:
            yield b" " * 2**14
            sent += 2**14

    answer = small.post(ATTENTION, chunks())
    check_problem(answer, 413, "body_too_large", says=(f"at most {SMALL_BODY} bytes",))
    assert answer.headers["Connection"] == "close"


BOMBS = {
    "gzip": ("gzip", gzip.compress(bytes(2**27))),
    "deflate": ("deflate", zlib.compress(bytes(2**27), 9)),
    "gzip_joined": ("gzip", gzip.compress(bytes(2**16)) * 1000),
    "gzip_of_nothing": ("gzip", gzip.compress(b"") * 12_000 + gzip.compress(bytes(2**20))),
}


@pytest.mark.parametrize(("encoding", "body"), BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_refused_in_little_time(small: Caller, encoding: str, body: bytes) -> None:
    assert len(body) <= SMALL_BODY
    begin = time.monotonic()
    answer = small.post(ATTENTION, body, Content_Encoding=encoding)
    says = ("unpacked", f"at most {SMALL_BODY} bytes")
    check_problem(answer, 413, "body_too_large", says=says)
    assert time.monotonic() - begin < 2


TEN_GB = 10 * 2**30


def until_closed(connection: socket.socket) -> Iterator[bytes]:
    while part := connection.recv(2**16):
        yield part


def test_a_body_of_10_gb_is_refused_before_a_byte_of_it(caller: Caller) -> None:
    with caller.connection() as connection:
        connection.sendall(head(ATTENTION, Content_Length=TEN_GB))
        answer = read_answer(connection)
    says = (f"{TEN_GB} bytes", "at most 268435456")
    check_problem(answer, 413, "body_too_large", says=says)
    assert answer.headers["Connection"] == "close"


@pytest.mark.parametrize("seconds", [0, 0.3], ids=["at_once", "after_a_while"])
def test_a_caller_that_sends_10_gb_still_reads_the_answer(caller: Caller, seconds: float) -> None:
    """Most clients send until that fails or is done, and only then look at what came back."""
    with caller.connection() as connection:
        connection.sendall(head(ATTENTION, Content_Length=TEN_GB))
        time.sleep(seconds)
        with contextlib.suppress(ConnectionError):
            for _ in range(16):
                connection.sendall(bytes(2**20))
        check_problem(read_answer(connection), 413, "body_too_large")


def test_a_caller_that_sends_and_reads_at_once_gets_the_answer(caller: Caller) -> None:
    with caller.connection() as connection, ThreadPoolExecutor(1) as threads:
        connection.sendall(head(ATTENTION, Content_Length=TEN_GB))

        def send() -> int:
            sent = 0
            try:
                while sent < 2**28:
                    sent += connection.send(bytes(2**14))
            except ConnectionError:
                pass  # what ends the sending is that the service closes
            return sent

        sent = threads.submit(send)
        check_problem(read_answer(connection), 413, "body_too_large")
        assert sent.result(20) < 2**28


def test_a_caller_that_asks_first_is_refused_without_sending(caller: Caller) -> None:
    seconds = []
    for _ in range(3):  # one of them at least is not held up by something else
        with caller.connection() as connection:
            connection.sendall(head(ATTENTION, Content_Length=TEN_GB, Expect="100-continue"))
            begin = time.monotonic()
            answer = b"".join(until_closed(connection))
            seconds.append(time.monotonic() - begin)
        assert answer.startswith(b"HTTP/1.1 413 ")
    assert min(seconds) < 0.5  # what will never come is not waited for


def test_a_caller_that_asks_first_may_send(caller: Caller) -> None:
    with caller.connection() as connection:
        connection.sendall(head(ATTENTION, Content_Length=len(BODY), Expect="100-continue"))
        assert connection.recv(2**16) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(BODY)
        assert read_answer(connection).status_code == 200


# --- Connections that break, and heads that lie -------------------------------------------


def broken_bodies(caller: Caller) -> float:
    """How many calls the service has counted whose connection closed inside the body."""
    labels = {"route": ATTENTION, "status": "400", "code": "malformed_body"}
    families = text_string_to_metric_families(caller.ask("GET", "/metrics").text)
    samples = [sample for family in families for sample in family.samples]
    return sum(s.value for s in samples if s.name.endswith("_total") and s.labels == labels)


@pytest.mark.parametrize(
    "start",
    [
        head(ATTENTION, Content_Length=len(BODY) + 1) + BODY,
        head(ATTENTION, Content_Length=10**6) + BODY,
        head(ATTENTION, Content_Length=5),
        head(ATTENTION, Transfer_Encoding="chunked") + b"40\r\n" + BODY[:9],
        head(ATTENTION, Transfer_Encoding="chunked") + b"9\r\n" + BODY[:9] + b"\r\n",
    ],
    ids=["a_byte_short", "far_short", "nothing", "inside_a_chunk", "no_last_chunk"],
)
@pytest.mark.parametrize("way", ["close", "shut", "reset"])
def test_a_connection_that_ends_inside_the_body_harms_nobody(
    caller: Caller, start: bytes, way: str
) -> None:
    before = broken_bodies(caller)
    with caller.connection() as connection:
        connection.sendall(start)
        time.sleep(0.05)  # so that the call is under way
        if way == "shut":
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(2**16) == b""
        elif way == "reset":
            linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    deadline = time.monotonic() + 5
    while broken_bodies(caller) == before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert broken_bodies(caller) == before + 1


HEADS = {
    "negative_length": head(ATTENTION, Content_Length=-1),
    "length_of_words": head(ATTENTION, Content_Length="ten"),
    "length_with_a_sign": head(ATTENTION, Content_Length="+2"),
    "length_past_64_bits": head(ATTENTION, Content_Length=10**30),
    "two_lengths": head(ATTENTION, Content_Length="2\r\nContent-Length: 3"),
    "length_and_chunks": head(ATTENTION, Content_Length=2, Transfer_Encoding="chunked"),
    "unknown_transfer_encoding": head(ATTENTION, Transfer_Encoding="gzip"),
    "chunk_of_no_length": head(ATTENTION, Transfer_Encoding="chunked") + b"zz\r\n",
    "no_http": b"hello\r\n\r\n",
    "bytes": bytes(range(256)) + b"\r\n\r\n",
    "unknown_method": b"FETCH / HTTP/1.1\r\nHost: test\r\n\r\n",
}


@pytest.mark.parametrize("raw", HEADS.values(), ids=HEADS)
def test_what_is_no_http_request_is_a_400_in_plain_text(caller: Caller, raw: bytes) -> None:
    with caller.connection() as connection:
        connection.sendall(raw)
        answer = read_answer(connection)
    assert answer.status_code == 400
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert answer.headers["Connection"] == "close"


def test_the_largest_length_that_a_head_can_name_is_a_413(caller: Caller) -> None:
    with caller.connection() as connection:
        connection.sendall(head(ATTENTION, Content_Length=2**64 - 2))
        check_problem(read_answer(connection), 413, "body_too_large")


def test_a_problem_after_the_body_was_read_keeps_the_connection(caller: Caller) -> None:
    with caller.connection() as connection:
        for body, status in ((b"{", 400), (b"{}", 422), (BODY, 200)):
            connection.sendall(head(ATTENTION, Content_Length=len(body)) + body)
            answer = read_answer(connection)
            assert answer.status_code == status
            assert "Connection" not in answer.headers
