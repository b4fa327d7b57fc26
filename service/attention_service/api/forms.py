"""Forms: small calls that differ from an earlier one in their numbers alone.

Most of what a tiny call costs is finding out what it is. All of that follows from the header of
its safetensors body, byte for byte: names, shapes, dtypes and options. So the first call of a
header takes the whole way, and what was found out on it serves the next ones. The smallest of them
are computed at once, on the event loop; the others in a place, by one run in one thread.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from attention_service.attention.compiled import Compiled
from attention_service.attention.engine import Engine
from attention_service.attention.job import Job
from attention_service.attention.sdpa import AttentionJob
from attention_service.attention.values import Doubtful
from attention_wire import safetensors
from attention_wire.bodies import SAFETENSORS, Body
from attention_wire.safetensors import LENGTH_BYTES
from attention_wire.tensors import Buffer, as_bytes

_MOST_FORMS = 256
# A longer header holds options that few calls share.
_LONGEST_HEADER = 4096
_FLOAT_BYTES = 4
_INPUTS = {"query", "key", "value"}


@dataclass(frozen=True, slots=True)
class Form:
    """What is known of the calls of one header.

    Attributes:
        start: of the numbers in the body.
        count: of the numbers.
        parts: where among them those of each tensor stand.
        compiled: computes them.
        header: of the answer, as bytes.
        results: the answer's tensors in the order of their bytes.
        provider: which runs them.
    """

    start: int
    count: int
    parts: Mapping[str, slice]
    compiled: Compiled
    header: Buffer
    results: tuple[str, ...]
    provider: str

    def answer(self, body: Buffer) -> Body:
        """What answers a body that has this form's header.

        Raises:
            Doubtful: its numbers need a closer look, or are not as many as the header says.
        """
        if len(body) != self.start + _FLOAT_BYTES * self.count:
            raise Doubtful
        numbers = np.frombuffer(body, np.float32, self.count, self.start)
        found = self.compiled.run(numbers, self.parts)
        return Body(SAFETENSORS, [self.header, *(as_bytes(found[name]) for name in self.results)])


class Forms:
    """The forms of the last calls.

    Args:
        engine: runs them.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: OrderedDict[bytes, Form] = OrderedDict()

    def find(self, body: memoryview) -> tuple[Form | None, bytes]:
        """The form of a body, if it is known, and its header."""
        header = safetensors.header(body)
        form = self._known.get(header)
        if form is not None:
            self._known.move_to_end(header)
        return form, header

    def learn(self, header: bytes, job: Job, written: Body) -> None:
        """Remember what a call that took the whole way has shown.

        Args:
            header: of its body.
            job: what it became.
            written: its answer.
        """
        if not isinstance(job, AttentionJob) or len(header) > _LONGEST_HEADER:
            return
        if not Compiled.takes(job):
            return
        layout = safetensors.layout(header)
        start = LENGTH_BYTES + len(header)
        if set(layout.tensors) != _INPUTS or start % _FLOAT_BYTES:
            return
        answer = safetensors.layout(safetensors.header(memoryview(bytes(written))))
        self._known[header] = Form(
            start=start,
            count=layout.data_bytes // _FLOAT_BYTES,
            parts={
                name: slice(begin // _FLOAT_BYTES, end // _FLOAT_BYTES)
                for name, (_, _, begin, end) in layout.tensors.items()
            },
            compiled=Compiled(job, self._engine),
            header=written.buffers[0],
            results=tuple(answer.tensors),
            provider=self._engine.provider,
        )
        if len(self._known) > _MOST_FORMS:
            self._known.popitem(last=False)
