"""Reading a request's body: its type, its encoding and its size are checked first."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple

from starlette.requests import Request
from starlette.types import Receive

from attention_service.api.answers import SLOW_BYTES
from attention_service.api.scopes import header
from attention_service.serving.lifetime import until
from attention_wire.bodies import JSON, SAFETENSORS
from attention_wire.problems import Code, ProblemError
from attention_wire.tensors import Buffer

# What curl sends when nothing is said: read as JSON, so that the shortest call works.
_CURL_DEFAULT = "application/x-www-form-urlencoded"
_ENCODINGS = ("gzip", "deflate")
_THREAD_BYTES = 64 * 1024
# What may turn out to be a small call is read in any case.
_SMALL_BYTES = 256 * 1024
_SLICE_BYTES = 4096
_ALIGNMENT = 64


class RequestBody(NamedTuple):
    """A body, decompressed, with the form it is in."""

    media_type: str
    content: Buffer


async def read_body(
    request: Request,
    media_type: str,
    start: int,
    max_bytes: int,
    seconds: float,
    most: float,
    check_room: Callable[[], None],
) -> RequestBody:
    """Read a request's whole body.

    Args:
        request: the request.
        media_type: of its body.
        start: where in it tensors begin, as far as is known: they come to lie aligned.
        max_bytes: of the body, unpacked too.
        seconds: that it may take, and one more for every 64 KiB.
        most: seconds that it may take in any case.
        check_room: refuses a large call before its body is read.

    Raises:
        ProblemError: ``unsupported_encoding``, ``body_too_large``
            (before a byte is read, where the length is known), ``body_timeout`` or
            ``malformed_body``; and what ``check_room`` raises.
        TimeoutError: the most seconds are over.
    """
    encoding = _encoding(request)
    length = _content_length(request)
    if length is not None and length > max_bytes:
        raise _too_large(f"{length} bytes", max_bytes)
    if length is None or length > _SMALL_BYTES:
        check_room()
    content = await _read(request.receive, length, start, max_bytes, seconds, most)
    if encoding is None:
        return RequestBody(media_type, content)
    if len(content) < _THREAD_BYTES:
        return RequestBody(media_type, decompress(content, encoding, max_bytes))
    unpacked = await asyncio.to_thread(decompress, content, encoding, max_bytes)
    return RequestBody(media_type, unpacked)


def media_type_of(request: Request) -> str:
    """The form of a request's body, as its `Content-Type` says.

    Raises:
        ProblemError: ``unsupported_media_type``.
    """
    given = header(request.scope, b"content-type")
    if given is None:
        return JSON
    media_type = given.split(";")[0].strip().lower()
    if media_type in (JSON, _CURL_DEFAULT):
        return JSON
    if media_type == SAFETENSORS:
        return SAFETENSORS
    raise ProblemError(
        Code.UNSUPPORTED_MEDIA_TYPE,
        f"Content-Type {given!r:.100} is not taken; send {JSON} or {SAFETENSORS}.",
    )


def _encoding(request: Request) -> str | None:
    given = (header(request.scope, b"content-encoding") or "").strip().lower()
    if given in ("", "identity"):
        return None
    if given in _ENCODINGS:
        return given
    raise ProblemError(
        Code.UNSUPPORTED_ENCODING,
        f"Content-Encoding {given!r:.100} is not taken; send {' or '.join(_ENCODINGS)}, or none.",
    )


def _content_length(request: Request) -> int | None:
    given = header(request.scope, b"content-length")
    if given is None:
        return None
    if not given.isdecimal():
        raise ProblemError(Code.MALFORMED_BODY, f"Content-Length {given!r:.40} is no number.")
    return int(given)


async def _read(
    receive: Receive, length: int | None, start: int, max_bytes: int, seconds: float, most: float
) -> Buffer:
    """The body in one buffer: as it came at once, or made where its length is known."""
    content: bytes | bytearray = b""
    before = -start % _ALIGNMENT
    end = 0
    more = True
    now = monotonic()
    try:
        while more:
            chunk, more = await until(now + min(seconds + end / SLOW_BYTES, most), _chunk(receive))
            begin, end = end, end + len(chunk)
            if end > max_bytes:
                raise _too_large("more", max_bytes)
            if not begin and not more:
                content = chunk
                break
            if not isinstance(content, bytearray):
                content = bytearray(before + (length or 0))
            content[before + begin : before + end] = chunk
    except TimeoutError:
        if seconds + end / SLOW_BYTES >= most:
            raise  # the call's own time is over
        raise ProblemError(
            Code.BODY_TIMEOUT,
            f"The body came too slowly: {end} bytes after {seconds + end / SLOW_BYTES:.1f} s. "
            "Send it again, at once.",
        ) from None
    if length is not None and end != length:
        raise ProblemError(
            Code.MALFORMED_BODY, f"The body has {end} bytes where Content-Length says {length}."
        )
    return memoryview(content)[before:] if isinstance(content, bytearray) else content


async def _chunk(receive: Receive) -> tuple[bytes, bool]:
    """The next bytes of the body, and whether more follow."""
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ProblemError(Code.MALFORMED_BODY, "The connection closed inside the body.")
    return message.get("body", b""), message.get("more_body", False)


def decompress(content: Buffer, encoding: str, max_bytes: int) -> bytes:
    """Undo gzip or deflate, never holding more than the limit.

    Raises:
        ProblemError: ``malformed_body`` for junk or a stream that breaks off,
            ``body_too_large`` for one that grows past the limit.
    """
    window = zlib.MAX_WBITS | 16 if encoding == "gzip" else _deflate_window(content)
    parts: list[bytes] = []
    left = max_bytes
    stream = zlib.decompressobj(window)
    # In slices, since what follows the end of each of many joined gzip files is copied.
    for begin in range(0, len(content), _SLICE_BYTES):
        rest: Buffer = content[begin : begin + _SLICE_BYTES]
        while rest:
            if stream.eof:
                stream = zlib.decompressobj(window)
            try:
                parts.append(stream.decompress(rest, left + 1))
            except zlib.error as error:
                raise ProblemError(
                    Code.MALFORMED_BODY, f"The body is not valid {encoding}: {error}."
                ) from None
            left -= len(parts[-1])
            if left < 0:
                raise _too_large("more, unpacked", max_bytes)
            rest = stream.unused_data
    if not stream.eof:
        raise ProblemError(Code.MALFORMED_BODY, f"The {encoding} body breaks off.")
    return b"".join(parts)


def _deflate_window(content: Buffer) -> int:
    """HTTP's deflate is the zlib format (RFC 9110); some senders leave its header out."""
    has_header = (
        len(content) >= 2 and content[0] & 15 == 8 and ((content[0] << 8 | content[1]) % 31 == 0)
    )
    return zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS


def _too_large(size: str, max_bytes: int) -> ProblemError:
    return ProblemError(
        Code.BODY_TOO_LARGE,
        f"The body has {size}; at most {max_bytes} bytes are taken. Send fewer or shorter "
        f"sequences, a smaller dtype, or {SAFETENSORS}, which is smaller than lists.",
    )
