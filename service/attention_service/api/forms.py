"""Forms: small calls that differ from an earlier one in their numbers alone.

Most of what a tiny call costs is finding out what it is. All of that follows from the header of
its safetensors body, byte for byte: names, shapes, dtypes and options. So the first call of a
header takes the whole way, and what was found out on it serves the next ones. The smallest of them
are computed at once, on the event loop; the others in a place, by one run in one thread.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from attention_service.attention.compiled import Compiled
from attention_service.attention.engine import Engine
from attention_service.attention.job import Job
from attention_service.attention.sdpa import AttentionJob
from attention_service.attention.values import Doubtful
from attention_wire.bodies import Body
from attention_wire.tensors import Buffer, as_bytes

_MOST_FORMS = 256
# A longer one holds options that few calls share.
_LONGEST_KEY = 4096
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
        head: of the answer, before the bytes of its tensors: one buffer.
        about: the answer's media type and headers.
        results: the answer's tensors in the order of their bytes.
        provider: which runs them.
    """

    start: int
    count: int
    parts: Mapping[str, slice]
    compiled: Compiled
    head: Buffer
    about: tuple[str, tuple[tuple[bytes, bytes], ...]]
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
        if not numbers.flags.aligned:
            numbers = numbers.copy()
        found = self.compiled.run(numbers, self.parts)
        media_type, headers = self.about
        return Body(
            media_type, [self.head, *(as_bytes(found[name]) for name in self.results)], headers
        )


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

    def learn(
        self,
        key: bytes,
        job: Job,
        places_of: Callable[[], Mapping[str, tuple[int, int]]],
        written: Body,
    ) -> None:
        """Remember what a call that took the whole way has shown.

        Args:
            key: as above.
            job: what it became.
            places_of: tells where in its body the bytes of each tensor begin and end; asked
                only of a call that can have a form.
            written: its answer: a head, and the bytes of each tensor.
        """
        if len(key) > _LONGEST_KEY or not isinstance(job, AttentionJob) or not Compiled.takes(job):
            return
        results, places = tuple(job.answer_shapes), places_of()
        if set(places) != _INPUTS or len(written.buffers) != 1 + len(results):
            return
        start = min(begin for begin, _ in places.values())
        count = (max(end for _, end in places.values()) - start) // _FLOAT_BYTES
        self._known[key] = Form(
            start=start,
            count=count,
            parts={
                name: slice((begin - start) // _FLOAT_BYTES, (end - start) // _FLOAT_BYTES)
                for name, (begin, end) in places.items()
            },
            compiled=Compiled(job, self._engine),
            head=written.buffers[0],
            about=(written.media_type, written.headers),
            results=results,
            provider=self._engine.provider,
        )
        if len(self._known) > _MOST_FORMS:
            self._known.popitem(last=False)
