"""Batching: what waited while others were computed is computed together, in one place.

Nothing waits for a batch to fill: a call that finds a free place is computed at once, and takes
with it those that wait already and can share its computation.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from attention_service.attention.job import Job
from attention_service.attention.lanes import never
from attention_service.serving.admission import Admission, Place, to_its_end
from attention_service.serving.line import Ride

logger = logging.getLogger(__name__)

Answer: TypeAlias = dict[str, Any]


class Outcome:
    """What computing a call came to: an answer or an error, taken once.

    Who holds this holds no error that was raised: the error holds the frames that it passed, with
    all arrays of the call, and these would hold the error.
    """

    __slots__ = ("_held",)

    def __init__(self, held: Answer | BaseException) -> None:
        self._held = [held]

    def take(self) -> Answer:
        """The answer, or the error raised."""
        held = self._held.pop()
        if not isinstance(held, BaseException):
            return held
        try:
            raise held
        finally:
            del held


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A job, and whether anybody still waits for it."""

    job: Job
    cancelled: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Computed:
    """What a call came to.

    Attributes:
        answer: its fields.
        tensor_bytes: bytes of the answer's arrays.
    """

    answer: Answer
    tensor_bytes: int


def _unheard(_: float) -> None:
    """Nobody asks when a turn came."""


def _unseen(_: Sequence[Job]) -> None:
    """Nobody asks what was computed."""


class Batching:
    """Computes jobs in places of an admission, together where that saves work.

    Args:
        admission: gives the places.
        most_bytes: padded scores that are computed together; 0 for each call by itself.
        computed: is told of the jobs of each computation, once it has ended.
    """

    def __init__(
        self,
        admission: Admission,
        most_bytes: int,
        computed: Callable[[Sequence[Job]], None] = _unseen,
    ) -> None:
        self._admission = admission
        self._most_bytes = most_bytes
        self._computed = computed

    @asynccontextmanager
    async def compute(
        self,
        job: Job,
        caller: str = "",
        cancelled: Callable[[], bool] = never,
        started: Callable[[float], None] = _unheard,
    ) -> AsyncIterator[Computed]:
        """Compute a job in its turn, and hold the memory of its answer while this is entered.

        Args:
            job: what to compute.
            caller: whose call it is.
            cancelled: looked at between the job's tiles.
            started: is told when its turn came, by ``perf_counter``, before it is computed.

        Raises:
            ProblemError: ``queue_full``, or what the numbers show.
            Cancelled: ``cancelled()`` was true.
        """
        ride = self._ride(job, cancelled)
        place_of_job = self._admission.place(
            job.peak_bytes, caller, is_small=job.is_small, count=job.count, ride=ride
        )
        async with place_of_job as place:
            started(place.started)
            if ride is None:
                answer = await self._admission.run(partial(job.run, cancelled))
                self._computed([job])
            else:
                answer = await self._together(ride, place)
            size = _tensor_bytes(answer)
            place.computed(size)
            yield Computed(answer, size)

    def _ride(self, job: Job, cancelled: Callable[[], bool]) -> Ride | None:
        key, size = job.batch_key, job.batch_bytes
        if key is None or size > self._most_bytes:
            return None
        finished: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        return Ride(key, size, Call(job, cancelled), finished)

    async def _together(self, ride: Ride, place: Place) -> Answer:
        """The answer of a call that others may be computed with, by it or by one of them."""
        if not place.is_shared:
            is_small = ride.call.job.is_small
            others = self._admission.companions(place, ride, self._most_bytes, is_small=is_small)
            if not others:
                work: Callable[[], Answer] = partial(ride.call.job.run, ride.call.cancelled)
                answer = await self._admission.run(work)
                self._computed([ride.call.job])
                return answer
            rides = [ride, *others]
            await self._admission.run(partial(_compute, rides, asyncio.get_running_loop()))
            self._computed([one.call.job for one in rides])
        outcome: Outcome = await to_its_end(ride.finished)
        return outcome.take()


def _compute(rides: Sequence[Ride], loop: asyncio.AbstractEventLoop) -> None:
    """Compute calls, and tell each, from here: the task that began it may be cancelled."""
    for ride, outcome in zip(rides, _outcomes([ride.call for ride in rides]), strict=True):
        loop.call_soon_threadsafe(ride.finished.set_result, outcome)


def _outcomes(calls: Sequence[Call]) -> Sequence[Outcome]:
    jobs = [call.job for call in calls]
    if len(jobs) > 1:
        try:
            answers = jobs[0].run_together(jobs, lambda: all(call.cancelled() for call in calls))
        except Exception as error:  # noqa: BLE001  whose it is shows when each runs by itself
            logger.debug("%d calls are computed one by one: %r", len(jobs), type(error))
        else:
            return [Outcome(answer) for answer in answers]
    return [_alone(call) for call in calls]


def _alone(call: Call) -> Outcome:
    try:
        return Outcome(call.job.run(call.cancelled))
    except BaseException as error:  # noqa: BLE001  raised where it is waited for
        return Outcome(error)


def _tensor_bytes(answer: Answer) -> int:
    results = answer.get("results", [answer])
    return sum(getattr(item, "nbytes", 0) for result in results for item in result.values())
