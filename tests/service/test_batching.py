"""Batching: who is computed with whom, and that nobody's answer shows it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from typing_extensions import override

from attention_service.attention.engine import Engine
from attention_service.attention.job import Fits, Job, Shapes
from attention_service.attention.lanes import Cancelled, never
from attention_service.attention.sdpa import AttentionJob
from attention_service.modules.folder import ModuleFolder
from attention_service.modules.multi_head import MultiHeadJob, MultiHeadModule
from attention_service.modules.repository import Repository
from attention_service.modules.text import TextModule
from attention_service.modules.text_job import TextJob
from attention_service.serving.admission import Admission
from attention_service.serving.batching import Batching
from attention_wire.problems import Code, ProblemError
from attention_wire.schemas import AttentionRequest, ModuleRequest, TextRequest
from tests.conftest import TEXT_MODULE
from tests.reference import attention
from tests.service.test_admission import on_a_loop, settle
from tests.service.test_repository import make

BUDGET = 2**40


class Recorded(Job):
    """A job that tells with whom it was computed, and ends when it may."""

    def __init__(
        self, name: str, log: list[list[str]], key: Hashable = "key", **options: Any
    ) -> None:
        self.name, self._log, self._key = name, log, key
        self._size, self._count = options.get("size", 1), options.get("count", 1)
        self.began: threading.Event | None = options.get("began")
        self.may_end: threading.Event | None = options.get("may_end")
        self.spoils: bool = options.get("spoils", False)
        self._is_small: bool = options.get("is_small", False)

    @property
    @override
    def peak_bytes(self) -> int:
        return 10

    @property
    @override
    def answer_shapes(self) -> Shapes:
        return {}

    @property
    @override
    def is_small(self) -> bool:
        return self._is_small

    @property
    @override
    def count(self) -> int:
        return int(self._count)

    @property
    @override
    def batch_key(self) -> Hashable | None:
        return self._key

    @property
    @override
    def batch_bytes(self) -> int:
        return int(self._size)

    @override
    def smaller(self, fits: Fits) -> str:
        return ""

    @override
    def run(self, cancelled: Callable[[], bool] = never) -> dict[str, Any]:
        return self.run_together([self], cancelled)[0]

    @classmethod
    @override
    def run_together(
        cls, jobs: Sequence[Self], cancelled: Callable[[], bool] = never
    ) -> list[dict[str, Any]]:
        jobs[0]._log.append([job.name for job in jobs])
        for job in jobs:
            if job.began is not None:
                job.began.set()
            if job.may_end is not None:
                assert job.may_end.wait(20)
        if cancelled():
            raise Cancelled
        if any(job.spoils for job in jobs):
            raise ProblemError(Code.OVERFLOW, "too large")
        return [{"name": job.name, "array": np.zeros(3)} for job in jobs]


class Calls:
    """Calls of one service, the first of which holds the only place until it may end."""

    def __init__(self, most_bytes: int = 1000, max_waiting: int = 50) -> None:
        self.admission = Admission(1, max_waiting, BUDGET)
        self.sizes: list[int] = []
        self.batching = Batching(
            self.admission, most_bytes, lambda jobs: self.sizes.append(len(jobs))
        )
        self.log: list[list[str]] = []
        self.first_may_end = threading.Event()
        self.tasks: dict[str, asyncio.Task[dict[str, Any]]] = {}

    async def start(self, name: str, caller: str = "", **options: Any) -> None:
        self.begin(Recorded(name, self.log, **options), name, caller)
        await settle()

    async def start_first(self) -> None:
        await self.start("first", key="of the first", may_end=self.first_may_end)

    def begin(self, job: Job, name: str, caller: str = "", cancelled: Any = never) -> None:
        async def call() -> dict[str, Any]:
            async with self.batching.compute(job, caller, cancelled) as computed:
                return computed.answer

        self.tasks[name] = asyncio.create_task(call())

    async def end(self) -> dict[str, Any]:
        """What each call came to, once all of them have ended; nothing is left behind."""
        self.first_may_end.set()
        outcomes = await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        await settle()
        assert (self.admission.running, self.admission.waiting) == (0, 0)
        assert self.admission.used_bytes == 0
        self.admission.close()
        return dict(zip(self.tasks, outcomes, strict=True))


def test_what_waited_is_computed_together() -> None:
    @on_a_loop
    async def scenario() -> None:
        calls = Calls()
        await calls.start_first()
        for name in "abcd":
            await calls.start(name)
        outcomes = await calls.end()
        assert calls.log == [["first"], ["a", "b", "c", "d"]]
        assert [outcomes[name]["name"] for name in "abcd"] == list("abcd")

    scenario()


def test_a_call_that_finds_a_free_place_waits_for_nobody() -> None:
    @on_a_loop
    async def scenario() -> None:
        calls = Calls()
        await calls.start("a")
        await calls.tasks["a"]
        await calls.start("b")
        await calls.end()
        assert calls.log == [["a"], ["b"]]

    scenario()


def test_small_calls_gather_while_a_batch_runs_and_hold_up_no_others() -> None:
    @on_a_loop
    async def scenario() -> None:
        calls = Calls()
        await calls.start("first", may_end=calls.first_may_end, is_small=True)
        for name in "ab":
            await calls.start(name, is_small=True)
        await calls.start("of no batch", key=None, is_small=True)
        await calls.tasks["of no batch"]
        await calls.end()
        assert calls.log == [["first"], ["of no batch"], ["a", "b"]]

    scenario()


def test_only_those_that_can_share_a_computation() -> None:
    @on_a_loop
    async def scenario() -> None:
        calls = Calls()
        await calls.start_first()
        for name, key in (("a1", "a"), ("b1", "b"), ("none", None), ("a2", "a"), ("b2", "b")):
            await calls.start(name, key=key)
        await calls.end()
        assert calls.log == [["first"], ["a1", "a2"], ["b1", "b2"], ["none"]]

    scenario()


@pytest.mark.parametrize(
    ("most", "batches"),
    [
        (0, [["a"], ["b"], ["c"], ["d"]]),
        (9, [["a"], ["b"], ["c"], ["d"]]),
        (10, [["a"], ["b"], ["c"], ["d"]]),
        (25, [["a", "b"], ["c", "d"]]),
        (30, [["a", "b", "c"], ["d"]]),
    ],
)
def test_no_more_bytes_than_may_be_computed_together(most: int, batches: list[list[str]]) -> None:
    @on_a_loop
    async def scenario() -> None:
        calls = Calls(most)
        await calls.start_first()
        for name in "abcd":
            await calls.start(name, size=10)
        await calls.end()
        assert calls.log == [["first"], *batches]

    scenario()


def test_no_more_memory_than_the_budget() -> None:
    @on_a_loop
    async def scenario() -> None:
        calls = Calls()
        calls.admission.budget_bytes = 25
        await calls.start_first()
        for name in "abc":
            await calls.start(name)
        await calls.end()
        assert calls.log == [["first"], ["a", "b"], ["c"]]

    scenario()


def test_callers_are_taken_in_turn() -> None:
    @on_a_loop
    async def scenario() -> None:
        calls = Calls(3)
        await calls.start_first()
        for name in ("a1", "a2", "a3", "b1", "c1"):
            await calls.start(name, caller=name[0])
        await calls.end()
        assert calls.log == [["first"], ["a1", "b1", "c1"], ["a2", "a3"]]

    scenario()


def test_a_call_counts_as_its_texts() -> None:
    @on_a_loop
    async def scenario() -> None:
        calls = Calls(max_waiting=8)
        await calls.start_first()
        await calls.start("many", count=100)  # nothing waits yet, so it may
        await calls.start("one")
        assert calls.admission.waiting == 100
        outcomes = await calls.end()
        assert isinstance(outcomes["one"], ProblemError)
        assert outcomes["one"].code is Code.QUEUE_FULL
        assert outcomes["many"]["name"] == "many"
        calls = Calls(max_waiting=8)
        await calls.start_first()
        await calls.start("one")
        await calls.start("some", count=7)
        await calls.start("two", count=2)
        outcomes = await calls.end()
        assert isinstance(outcomes["two"], ProblemError)
        assert outcomes["some"]["name"] == "some"

    scenario()


def test_one_that_fails_does_not_spoil_the_others() -> None:
    @on_a_loop
    async def scenario() -> None:
        calls = Calls()
        await calls.start_first()
        for name in "abc":
            await calls.start(name, spoils=name == "b")
        outcomes = await calls.end()
        assert calls.log == [["first"], ["a", "b", "c"], ["a"], ["b"], ["c"]]
        assert isinstance(outcomes["b"], ProblemError)
        assert [outcomes[name]["name"] for name in "ac"] == ["a", "c"]

    scenario()


@pytest.mark.parametrize("gone", ["a", "b"])
def test_a_caller_who_goes_takes_nothing_from_the_others(gone: str) -> None:
    @on_a_loop
    async def scenario() -> None:
        calls = Calls()
        await calls.start_first()
        began, held = threading.Event(), threading.Event()
        for name in "abc":
            await calls.start(name, began=began, may_end=held)
        calls.first_may_end.set()
        await asyncio.to_thread(began.wait)
        calls.tasks[gone].cancel()
        await settle()
        assert not calls.tasks[gone].done()  # its memory is in use until the thread has ended
        assert calls.admission.used_bytes == 30
        held.set()
        outcomes = await calls.end()
        assert isinstance(outcomes.pop(gone), asyncio.CancelledError)
        assert {outcomes[name]["name"] for name in "abc" if name != gone} == set("abc") - {gone}

    scenario()


@pytest.mark.parametrize("ticks", range(6))
def test_a_caller_who_goes_as_its_turn_comes(ticks: int) -> None:
    @on_a_loop
    async def scenario() -> None:
        calls = Calls()
        await calls.start_first()
        for name in "abc":
            await calls.start(name)
        calls.first_may_end.set()
        await calls.tasks["first"]
        for _ in range(ticks):
            await asyncio.sleep(0)
        calls.tasks["b"].cancel()
        outcomes = await calls.end()
        assert outcomes["a"]["name"] == "a"
        assert outcomes["c"]["name"] == "c"

    scenario()


def test_a_batch_goes_on_while_anybody_waits_for_it() -> None:
    @on_a_loop
    async def scenario() -> None:
        calls = Calls()
        await calls.start_first()
        for name, is_gone in (("a", True), ("b", False)):
            calls.begin(Recorded(name, calls.log), name, cancelled=lambda gone=is_gone: gone)
        await settle()
        outcomes = await calls.end()
        assert outcomes["b"]["name"] == "b"
        calls = Calls()
        await calls.start_first()
        for name in "ab":
            calls.begin(Recorded(name, calls.log), name, cancelled=lambda: True)
        await settle()
        outcomes = await calls.end()
        assert all(isinstance(outcomes[name], Cancelled) for name in "ab")

    scenario()


# --- Real jobs, together and alone ------------------------------------------------------------


@pytest.fixture(scope="module")
def repository(modules: Path, engine: Engine) -> Repository:
    return ModuleFolder(modules, engine).look()


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_calls_of_equal_shapes(engine: Engine) -> None:
    rng = np.random.default_rng(1)
    options: list[dict[str, Any]] = [
        {},
        {"is_causal": True},
        {"softcap": 2.0, "scale": 0.3, "left_window_size": 2},
        {"return": {"lse": True, "weights": {"top_k": 3}}},
    ]
    for extra in options:
        jobs, expected = [], []
        for _ in range(4):
            query, key, value = (
                rng.standard_normal(shape).astype(np.float32)
                for shape in ((2, 4, 5, 8), (2, 2, 7, 8), (2, 2, 7, 3))
            )
            fields = {"query": query, "key": key, "value": value, **extra}
            jobs.append(AttentionJob.of(AttentionRequest.model_validate(fields), engine))
            plain = {name: given for name, given in extra.items() if name != "return"}
            expected.append(attention(query, key, value, **plain))
        (key,) = {job.batch_key for job in jobs}
        assert key is not None
        for answer, right in zip(AttentionJob.run_together(jobs), expected, strict=True):
            close(answer["output"], right.output)
            if "return" in extra:
                close(answer["lse"], right.lse)
                close(answer["weights"]["values"][..., 0], right.weights.max(axis=-1))
            else:
                close(answer["weights"], right.weights)


@pytest.mark.parametrize(
    "other",
    [
        {"scale": 0.3},
        {"is_causal": True},
        {"query": np.ones((1, 1, 3, 4), np.float32)},
        {"query": np.ones((1, 1, 2, 4), np.float16)},
        {"return": {"lse": True}},
        {"query": np.ones((2, 4), np.float32), "rank": 2},
    ],
)
def test_calls_that_differ_are_not_computed_together(engine: Engine, other: dict[str, Any]) -> None:
    def key(**given: Any) -> Hashable:
        tensor = np.ones((1, 1, 2, 4), np.float32)
        fields: dict[str, Any] = {"query": tensor, "key": tensor, "value": tensor, **given}
        dtype, rank = fields["query"].dtype, fields.pop("rank", 4)
        for name in ("key", "value"):
            fields[name] = fields[name].astype(dtype).reshape(fields[name].shape[4 - rank :])
        return AttentionJob.of(AttentionRequest.model_validate(fields), engine).batch_key

    assert key() == key() is not None
    assert key() != key(**other)


@pytest.mark.parametrize(
    "extra",
    [
        {"attn_mask": np.ones((2, 2), bool)},
        {"sinks": np.ones(1, np.float32)},
        {"alibi_slopes": np.ones(1, np.float32)},
        {"nonpad_kv_seqlen": np.array([1, 2])},
        {"return": {"plan": True}},
    ],
)
def test_calls_with_more_than_their_tensors_run_alone(
    engine: Engine, extra: dict[str, Any]
) -> None:
    tensor = np.ones((2, 1, 2, 4), np.float32)
    fields = {"query": tensor, "key": tensor, "value": tensor, **extra}
    assert AttentionJob.of(AttentionRequest.model_validate(fields), engine).batch_key is None


def test_numbers_of_one_call_do_not_spoil_the_others(engine: Engine) -> None:
    rng = np.random.default_rng(2)
    tensors = [rng.standard_normal((1, 2, 3, 4)).astype(np.float32) for _ in range(4)]
    tensors[2][0, 0, 0, 0] = np.nan
    requests = [AttentionRequest(query=t, key=t, value=t) for t in tensors]

    @on_a_loop
    async def scenario() -> None:
        calls = Calls(2**20)
        await calls.start_first()
        for index, request in enumerate(requests):
            calls.begin(AttentionJob.of(request, engine), str(index))
        await settle()
        outcomes = await calls.end()
        assert sorted(calls.sizes) == [1, 1, 3]
        problem = outcomes["2"]
        assert isinstance(problem, ProblemError)
        assert problem.code is Code.NON_FINITE
        for index in (0, 1, 3):
            tensor = tensors[index]
            close(outcomes[str(index)]["output"], attention(tensor, tensor, tensor).output)

    scenario()


TEXTS = (
    "The cat sat on the mat.",
    "",
    "Attention.",
    "A somewhat longer text, of two sentences. Here is the second one, and it goes on for a while.",
    "words " * 70,
    "The dog sat on the cat.",
)


def test_texts(repository: Repository) -> None:
    module = repository.get(TEXT_MODULE)
    assert isinstance(module, TextModule)
    assert module.takes_padding
    together = TextJob(module, TextRequest(text=list(TEXTS))).run()["results"]
    for text, result in zip(TEXTS, together, strict=True):
        (alone,) = TextJob(module, TextRequest(text=text)).run()["results"]
        assert result["tokens"] == alone["tokens"]
        assert result["weights"].shape == alone["weights"].shape
        close(result["weights"], alone["weights"])
        close(result["output"], alone["output"])


def test_texts_of_several_calls(repository: Repository) -> None:
    module = repository.get(TEXT_MODULE)
    assert isinstance(module, TextModule)
    requests = [
        TextRequest(text=TEXTS[0], heads=[3, 1]),
        TextRequest(text=[TEXTS[5], TEXTS[2]], text_pair=["One.", "Two."]),
        TextRequest(text=TEXTS[2]),
    ]
    jobs = [TextJob(module, request) for request in requests]
    (key,) = {job.batch_key for job in jobs}
    assert key is not None
    for job, answer in zip(jobs, type(jobs[0]).run_together(jobs), strict=True):
        alone = job.run()
        assert len(answer["results"]) == len(alone["results"]) == job.count
        for found, expected in zip(answer["results"], alone["results"], strict=True):
            assert found["tokens"] == expected["tokens"]
            close(found["weights"], expected["weights"])
            close(found["output"], expected["output"])


@pytest.mark.parametrize(
    "other",
    [
        {"text": "words " * 70},
        {"text": TEXTS[0], "layers": [1]},
        {"text": TEXTS[0], "return": {"output": False}},
    ],
)
def test_texts_that_do_not_run_together(repository: Repository, other: dict[str, Any]) -> None:
    module = repository.get(TEXT_MODULE)
    assert isinstance(module, TextModule)
    key = TextJob(module, TextRequest(text=TEXTS[0])).batch_key
    assert key is not None
    assert key != TextJob(module, TextRequest.model_validate(other)).batch_key


def test_a_graph_that_looks_at_padding_runs_each_text_alone(tmp_path: Path, engine: Engine) -> None:
    make(tmp_path / "unmasked")
    module = ModuleFolder(tmp_path, engine).look().get("unmasked")
    assert isinstance(module, TextModule)
    assert not module.takes_padding
    texts = ["the cat", "cat", "the cat sat"]
    job = TextJob(module, TextRequest(text=list(texts)))
    assert job.batch_key is None
    for text, result in zip(texts, job.run()["results"], strict=True):
        (alone,) = TextJob(module, TextRequest(text=text)).run()["results"]
        np.testing.assert_array_equal(result["weights"], alone["weights"])


def test_calls_of_a_learned_module(repository: Repository) -> None:
    module = repository.get("example")
    assert isinstance(module, MultiHeadModule)
    rng = np.random.default_rng(3)
    tensors = [rng.standard_normal((2, 3, 8)).astype(np.float32) for _ in range(3)]
    jobs = [MultiHeadJob(module, ModuleRequest(query=tensor, is_causal=True)) for tensor in tensors]
    (key,) = {job.batch_key for job in jobs}
    assert key is not None
    assert jobs[0].batch_key != MultiHeadJob(module, ModuleRequest(query=tensors[0])).batch_key
    for job, answer in zip(jobs, type(jobs[0]).run_together(jobs), strict=True):
        alone = job.run()
        close(answer["output"], alone["output"])
        close(answer["weights"], alone["weights"])
