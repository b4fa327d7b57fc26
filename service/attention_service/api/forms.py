"""Forms: small calls that differ from an earlier one in their numbers alone.

Most of what a tiny call costs is finding out what it is. All of that follows from the header of
its safetensors body, byte for byte: names, shapes, dtypes and options. So the first call of a
header takes the whole way, and what was found out on it serves the next ones, which are computed
at once, on the event loop.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from attention_service.attention.compiled import Compiled
from attention_service.attention.engine import Engine
from attention_service.attention.job import Job
from attention_service.attention.sdpa import AttentionJob
from attention_service.attention.values import Doubtful
from attention_wire import safetensors
from attention_wire.bodies import SAFETENSORS, Body
from attention_wire.safetensors import LENGTH_BYTES, Layout
from attention_wire.tensors import Array, Buffer, as_bytes

_MOST_FORMS = 256
# A longer header holds options that few calls share.
_LONGEST_HEADER = 4096
_INPUTS = {"query", "key", "value"}


@dataclass(frozen=True, slots=True)
class Form:
    """What is known of the calls of one header.

    Attributes:
        layout: of the request's tensors.
        start: of their bytes.
        compiled: computes them.
        header: of the answer, as bytes.
        results: the answer's tensors in the order of their bytes.
        provider: which runs them.
    """

    layout: Layout
    start: int
    compiled: Compiled
    header: Buffer
    results: tuple[str, ...]
    provider: str

    def tensors(self, body: memoryview) -> dict[str, Array]:
        """The query, the key and the value of a body that has this form's header.

        Raises:
            Doubtful: its bytes are not as many as the header says.
        """
        data = body[self.start :]
        if len(data) != self.layout.data_bytes:
            raise Doubtful
        return safetensors.tensors(self.layout, data)

    def written(self, arrays: dict[str, Array]) -> Body:
        """The answer as it is sent."""
        buffers = [self.header, *(as_bytes(arrays[name]) for name in self.results)]
        return Body(SAFETENSORS, buffers)


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
        if not Compiled.takes(job.call, job.plan):
            return
        layout = safetensors.layout(header)
        answer = safetensors.layout(safetensors.header(memoryview(bytes(written))))
        if set(layout.tensors) != _INPUTS:
            return
        self._known[header] = Form(
            layout,
            LENGTH_BYTES + len(header),
            Compiled(job.call, self._engine),
            written.buffers[0],
            tuple(answer.tensors),
            self._engine.provider,
        )
        if len(self._known) > _MOST_FORMS:
            self._known.popitem(last=False)
