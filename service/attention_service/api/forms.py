"""Forms: small calls that differ from an earlier one in their numbers alone.

Most of what a tiny call costs is finding out what it is. All of that follows from what its body
holds beside its numbers, byte for byte: names, shapes, dtypes and options. So the first call of
such a body takes the whole way, and what was found out on it serves the next ones. The smallest
of them are computed at once, on the event loop; the others in a place, by one run in one thread.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from attention_service.api.layouts import Layout
from attention_service.attention.compiled import Compiled
from attention_service.attention.engine import Engine
from attention_service.attention.job import Job
from attention_service.attention.sdpa import AttentionJob
from attention_wire.bodies import Body
from attention_wire.tensors import Buffer

_MOST_FORMS = 256
# A longer one holds options that few calls share.
_LONGEST_KEY = 4096
_INPUTS = {"query", "key", "value"}


@dataclass(frozen=True, slots=True)
class Form:
    """What is known of the calls of one key.

    Attributes:
        layout: of their bodies and answers.
        compiled: computes them.
        provider: which runs them.
        peak_bytes: that one takes, as it was planned.
        kernels: that it was planned for.
    """

    layout: Layout
    compiled: Compiled
    provider: str
    peak_bytes: int
    kernels: tuple[str, ...]

    def answer(self, body: Buffer) -> Body:
        """What answers a body that has this form's key.

        Raises:
            Doubtful: it needs a closer look.
        """
        written = self.layout.write(self.compiled.run(self.layout.numbers.read(body)))
        if not self.compiled.keeps:
            return written
        # What it stands in now, the next call will write over.
        return Body(written.media_type, [bytes(written)], written.headers)


class Forms:
    """The forms of the last calls.

    Args:
        engine: runs them.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: OrderedDict[bytes, Form] = OrderedDict()

    def find(self, key: bytes) -> Form | None:
        """The form of a call, if it is known.

        Args:
            key: all of the call's body but its numbers.
        """
        form = self._known.get(key)
        if form is not None:
            self._known.move_to_end(key)
        return form

    def learn(self, key: bytes, job: Job, layout_of: Callable[[], Layout | None]) -> None:
        """Remember what a call that took the whole way has shown.

        Args:
            key: as above.
            job: what it became.
            layout_of: tells the layout of its body and answer, if they have one; asked only of
                a call that can have a form.
        """
        if len(key) > _LONGEST_KEY or not isinstance(job, AttentionJob) or not Compiled.takes(job):
            return
        layout = layout_of()
        if layout is None or set(layout.numbers.parts) != _INPUTS:
            return
        self._known[key] = Form(
            layout,
            Compiled(job, self._engine, layout.numbers.parts),
            self._engine.provider,
            job.peak_bytes,
            job.kernels,
        )
        if len(self._known) > _MOST_FORMS:
            self._known.popitem(last=False)
