"""Keys and values divided among several services: the merged result is that of the whole.

First without a service, against attention in float64 numpy over random calls; then with two
real services.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_client import (
    AsyncAttentionClient,
    AttentionClient,
    AttentionResult,
    BadRequestError,
    ConnectionFailedError,
    InvalidRequestError,
    Return,
    ServerError,
    UnavailableError,
)
from attention_client._fields import of_attention
from attention_client._shards import divide
from attention_service.settings import Settings
from tests import reference
from tests.client.conftest import Ask
from tests.client.contract import attend
from tests.client.scripted import Reply, ScriptedServer, attention_reply
from tests.conftest import RunningService

Array = np.ndarray
RNG = np.random.default_rng(5)
ONE = [[1.0]], [[1.0]], [[5.0]]


# --- Which calls are made --------------------------------------------------------------


def sharded(fields: Mapping[str, Any], services: int) -> AttentionResult:
    work = divide(fields, services)
    return work.merged([[attend(each) for each in calls] for calls in work.fields])


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    """A call of any options that go together."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rank = draw(st.sampled_from([2, 3, 4]))
    batch = 1 if rank == 2 else draw(st.integers(1, 4))
    kv_heads, groups = (1, 1) if rank == 2 else (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    heads = kv_heads * groups
    length, keys = draw(st.integers(1, 5)), draw(st.integers(0, 9))
    past = draw(st.sampled_from([None, None, 0, 3]))
    total = keys + (past or 0)

    def tensor(heads: int, rows: int, size: int) -> Array:
        array = rng.standard_normal((batch, heads, rows, size))
        if rank == 3:
            return array.swapaxes(1, 2).reshape(batch, rows, heads * size)
        return array if rank == 4 else array[0, 0]

    fields: dict[str, Any] = {
        "query": tensor(heads, length, 4),
        "key": tensor(kv_heads, keys, 4),
        "value": tensor(kv_heads, keys, 3),
    }
    if rank == 3:
        fields |= {"q_num_heads": heads, "kv_num_heads": kv_heads}
    if past is not None:
        fields["past_key"] = rng.standard_normal((batch, kv_heads, past, 4))
        fields["past_value"] = rng.standard_normal((batch, kv_heads, past, 3))
    elif draw(st.booleans()):
        fields["nonpad_kv_seqlen"] = rng.integers(0, keys + 1, batch)
    options: dict[str, Callable[[], Any]] = {
        "is_causal": lambda: True,
        "scale": lambda: 0.3,
        "softcap": lambda: 1.5,
        "left_window_size": lambda: int(rng.integers(0, 5)),
        "right_window_size": lambda: int(rng.integers(0, 5)),
        "sinks": lambda: rng.standard_normal(heads),
        "alibi_slopes": lambda: rng.random(heads),
        "query_offset": lambda: int(rng.integers(-4, 9)),
        "key_offset": lambda: int(rng.integers(-4, 9)),
    }
    fields |= {name: make() for name, make in options.items() if draw(st.booleans())}
    if draw(st.booleans()):
        fields["query_document_ids"] = rng.integers(0, 2, (batch, length))
        fields["key_document_ids"] = rng.integers(0, 2, (batch, total))
    if draw(st.booleans()):
        shape = (*rng.choice([1, 0], 2), length, int(rng.integers(0, total + 1)))
        shape = (shape[0] or batch, shape[1] or heads, *shape[2:])[int(rng.integers(0, 4)) :]
        mask = rng.standard_normal(shape)
        fields["attn_mask"] = mask > 0 if draw(st.booleans()) else mask
    return fields


@given(calls(), st.integers(1, 12))
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
def test_parts_merge_to_the_whole(fields: dict[str, Any], services: int) -> None:
    fields["return"] = {"entropy": True}
    whole, merged = attend(fields), sharded(fields, services)
    reference.assert_close(merged.output, whole.output, 1e-12)
    np.testing.assert_allclose(merged.lse, whole.lse, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(merged.entropy, whole.entropy, rtol=1e-11, atol=1e-11)
    assert not merged.entropy.flags.writeable


@pytest.mark.parametrize(
    "option",
    [
        {"is_causal": True},
        {"left_window_size": 2},
        {"right_window_size": 2},
        {"alibi_slopes": [0.5]},
    ],
)
def test_positions_that_follow_from_the_padding(option: dict[str, Any]) -> None:
    tensors = [RNG.standard_normal((4, 1, rows, 4)) for rows in (3, 9, 9)]
    mask = RNG.standard_normal((4, 1, 3, 9))
    query, key, value = tensors
    options: Any = {"nonpad_kv_seqlen": [7, 3, 9, 3], "attn_mask": mask, **option}
    fields = of_attention(query, key, value, options)
    whole, merged = attend(fields), sharded(fields, 3)
    reference.assert_close(merged.output, whole.output, 1e-12)
    np.testing.assert_allclose(merged.lse, whole.lse, rtol=1e-12)


def lengths(fields: Mapping[str, Any], services: int) -> list[int]:
    return [calls[0]["key"].shape[-2] for calls in divide(fields, services).fields]


def plain(keys: int, **options: Any) -> dict[str, Any]:
    tensors = [RNG.standard_normal((2, 1, rows, 4)) for rows in (3, keys, keys)]
    return of_attention(*tensors, options)  # type: ignore[arg-type]


def test_parts_are_as_even_as_can_be() -> None:
    assert lengths(plain(10), 3) == [3, 3, 4]
    assert lengths(plain(2), 5) == [1, 1]
    assert lengths(plain(0), 5) == [0]


def test_the_sinks_go_to_one_service() -> None:
    work = divide(plain(10, sinks=[1.0]), 4)
    assert ["sinks" in calls[0] for calls in work.fields] == [True, False, False, False]


def test_each_service_is_called_once_where_one_offset_serves_all() -> None:
    ragged, causal = {"nonpad_kv_seqlen": [4, 7]}, {"is_causal": True}
    assert [len(calls) for calls in divide(plain(9, **ragged), 2).fields] == [1, 1]
    assert [len(calls) for calls in divide(plain(9, **ragged, **causal), 2).fields] == [2, 2]
    even = divide(plain(9, nonpad_kv_seqlen=[7, 7], **causal), 2)
    assert [[call["query_offset"] for call in calls] for calls in even.fields] == [[4], [4]]


def test_a_past_s_present_is_joined_here() -> None:
    past = {"past_key": RNG.random((2, 1, 5, 4)), "past_value": RNG.random((2, 1, 5, 4))}
    fields = plain(3, **past)
    merged = sharded(fields, 2)
    assert set(merged.arrays) == {"output", "lse", "present_key", "present_value"}
    expected = np.concatenate([past["past_key"], fields["key"]], axis=2)
    np.testing.assert_array_equal(merged.present_key, expected)
    asked = sharded(plain(3, return_={"present": True}), 2)
    assert asked.present_value.shape == (2, 1, 3, 4)
    flat = {
        "query": RNG.random((2, 3, 8)),
        "key": RNG.random((2, 4, 4)),
        "value": RNG.random((2, 4, 6)),
        "q_num_heads": 4,
        "kv_num_heads": 2,
        "return": {"present": True},
    }
    assert sharded(flat, 3).present_value.shape == (2, 2, 4, 3)


def test_only_the_lse() -> None:
    merged = sharded(plain(7, return_=Return(output=False)), 3)
    assert set(merged.arrays) == {"lse"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"return_": {"weights": True}}, "weights of shards is not merged, only output, lse and"),
        ({"return_": {"weights": {"top_k": 2}}}, "weights of shards is not merged"),
        ({"return_": {"scores": "raw"}}, "scores of shards is not merged"),
        ({"return_": {"plan": True}}, "plan of shards is not merged"),
        ({"return_": {"wieghts": False}}, "no 'wieghts'"),
        ({"return_": "output"}, "mapping"),
        ({"attn_mask": np.ones((3, 10), bool)}, r"attn_mask has shape \[3, 10\].* the 9 keys"),
        ({"attn_mask": np.ones(())}, r"attn_mask has shape \[\]"),
        ({"key_document_ids": np.ones((2, 8), int)}, r"key_document_ids has shape \[2, 8\]"),
        ({"nonpad_kv_seqlen": [3, 10]}, "nonpad_kv_seqlen: each is from 0 to 9"),
        ({"nonpad_kv_seqlen": [3, -1]}, "nonpad_kv_seqlen: each is from 0 to 9"),
        (
            {"nonpad_kv_seqlen": [3, 4, 5], "is_causal": True},
            r"has shape .* where nonpad_kv_seqlen has \[3\]: they have one batch size",
        ),
        ({"past_key": np.ones((2, 1, 1, 4))}, "past_key and past_value go together"),
        (
            {"past_key": np.ones((2, 1, 1, 4)), "past_value": np.ones((2, 1, 1, 3))},
            r"past_value is float64\[2, 1, 1, 3\], which does not fit the value's",
        ),
        (
            {"past_key": np.ones((2, 1, 1, 4), "f4"), "past_value": np.ones((2, 1, 1, 4))},
            r"past_key is float32\[2, 1, 1, 4\], which does not fit the key's float64",
        ),
        (
            {"nonpad_kv_seqlen": [3, 4], "return_": {"present": True}},
            "nonpad_kv_seqlen goes without",
        ),
    ],
)
def test_what_cannot_be_divided(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        divide(plain(9, **options), 2)


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        ([(3, 4), (5, 4), (6, 4)], {}, "value has 6 rows where key has 5"),
        ([(3, 4), (1, 5, 4), (5, 4)], {}, "have one rank"),
        ([(4,), (4,), (4,)], {}, "rank, 2, 3 or 4"),
        ([(1, 3, 4)] * 3, {"return_": {"present": True}}, "kv_num_heads=None does not divide"),
        (
            [(1, 3, 4)] * 3,
            {"kv_num_heads": 3, "past_key": np.ones((1, 3, 2, 1)), "past_value": [[[[1.0]]]]},
            "key has 4 columns",
        ),
    ],
)
def test_tensors_that_cannot_be_divided(shapes: Any, options: Any, message: str) -> None:
    tensors = [np.ones(shape) for shape in shapes]
    with pytest.raises(ValueError, match=message):
        divide(of_attention(*tensors, options), 2)


# --- Two real services -----------------------------------------------------------------


@pytest.fixture(scope="module")
def urls(service_url: str, start_service: Callable[[Settings], RunningService]) -> list[str]:
    return [service_url, start_service(Settings(provider="cpu")).url]


def ask_shards(
    kind: type, urls: list[str], *args: Any, retries: int = 0, **options: Any
) -> AttentionResult:
    """One call over the shards at these addresses."""
    if kind is AttentionClient:
        clients = [AttentionClient(url, max_retries=retries) for url in urls]
        try:
            return clients[0].attention(*args, shards=clients, **options)
        finally:
            for client in clients:
                client.close()

    async def main() -> AttentionResult:
        clients = [AsyncAttentionClient(url, max_retries=retries) for url in urls]
        try:
            return await clients[0].attention(*args, shards=clients, **options)
        finally:
            for client in clients:
                await client.aclose()

    return asyncio.run(main())


BOTH = pytest.mark.parametrize(
    "kind", [AttentionClient, AsyncAttentionClient], ids=["sync", "async"]
)
ASKED = {"weights": False, "lse": True}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "window": {"left_window_size": 20, "right_window_size": 3},
    "causal-window": {"is_causal": True, "left_window_size": 20},
    "alibi": {"alibi_slopes": [0.5, 0.25, 0.125, 0.0625]},
    "causal-alibi": {"is_causal": True, "alibi_slopes": [0.5, 0.25, 0.125, 0.0625]},
    "sinks": {"sinks": [0.5, -1.0, 2.0, 3.0]},
    "causal-sinks": {"is_causal": True, "sinks": [0.5, -1.0, 2.0, 3.0]},
    "softcap": {"softcap": 2.0, "scale": 1.0},
    "mask": {"attn_mask": RNG.random((64, 90)) < 0.2},
    "bias": {"attn_mask": RNG.standard_normal((2, 1, 64, 97)).astype(np.float32)},
    "nonpad": {"nonpad_kv_seqlen": [97, 40]},
    "causal-nonpad": {"is_causal": True, "nonpad_kv_seqlen": [97, 70]},
    "documents": {
        "query_document_ids": np.arange(64)[None] // 16 + np.zeros((2, 1), int),
        "key_document_ids": np.arange(97)[None] // 24 + np.zeros((2, 1), int),
    },
    "offsets": {"is_causal": True, "query_offset": 40, "key_offset": 7},
    "past": {
        "is_causal": True,
        "past_key": RNG.standard_normal((2, 2, 31, 16)).astype(np.float32),
        "past_value": RNG.standard_normal((2, 2, 31, 8)).astype(np.float32),
    },
}


def tensors(dtype: Any = np.float32) -> list[Array]:
    """Grouped heads, four of the query's to two of the keys."""
    shapes = (2, 4, 64, 16), (2, 2, 97, 16), (2, 2, 97, 8)
    return [RNG.standard_normal(shape).astype(dtype) for shape in shapes]


@BOTH
@pytest.mark.parametrize("case", CASES)
def test_halves_merge_to_the_whole(
    kind: type, urls: list[str], client: AttentionClient, case: str
) -> None:
    arrays = tensors()
    whole = client.attention(*arrays, return_=ASKED, **CASES[case])
    merged = ask_shards(kind, urls, *arrays, **CASES[case])
    assert set(merged.arrays) == set(whole.arrays)
    for name, array in whole.arrays.items():
        assert merged.arrays[name].dtype == array.dtype
    reference.assert_close(merged.output, whole.output, 1e-6)
    seen = np.isfinite(whole.lse)
    np.testing.assert_array_equal(np.isfinite(merged.lse), seen)
    reference.assert_close(merged.lse[seen], whole.lse[seen], 1e-6)


@BOTH
@pytest.mark.parametrize("case", ["causal-nonpad", "causal-sinks"])
def test_entropies_merge(kind: type, urls: list[str], client: AttentionClient, case: str) -> None:
    asked = Return(output=False, weights=False, entropy=True)
    arrays = tensors()
    whole = client.attention(*arrays, return_=asked, **CASES[case])
    merged = ask_shards(kind, urls, *arrays, return_=asked, **CASES[case])
    assert set(merged.arrays) == {"lse", "entropy"}
    assert merged.entropy.dtype == whole.entropy.dtype
    reference.assert_close(merged.entropy, whole.entropy, 2e-6)


@BOTH
@pytest.mark.parametrize("rank", [2, 3])
def test_other_ranks(kind: type, urls: list[str], client: AttentionClient, rank: int) -> None:
    query, key, value = tensors()
    arrays, heads = [query[0, 0], key[0, 0], value[0, 0]], {}
    if rank == 3:
        arrays = [each.swapaxes(1, 2).reshape(2, each.shape[2], -1) for each in (query, key, value)]
        heads = {"q_num_heads": 4, "kv_num_heads": 2}
    whole = client.attention(*arrays, return_=ASKED, is_causal=True, **heads)
    merged = ask_shards(kind, urls, *arrays, is_causal=True, **heads)
    reference.assert_close(merged.output, whole.output, 1e-6)
    reference.assert_close(merged.lse, whole.lse, 1e-6)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(np.float64, 1e-14), (np.float16, 2**-11), (ml_dtypes.bfloat16, 2**-8)],
)
def test_other_dtypes_at_their_own_rounding(
    urls: list[str], client: AttentionClient, dtype: Any, tolerance: float
) -> None:
    arrays = tensors(dtype)
    exact = client.attention(*(each.astype(np.float64) for each in arrays), return_=ASKED)
    merged = ask_shards(AttentionClient, urls, *arrays)
    assert merged.output.dtype == dtype
    reference.assert_close(merged.output, exact.output, tolerance)
    reference.assert_close(merged.lse, exact.lse, 1e-14 if dtype is np.float64 else 1e-6)


@BOTH
def test_more_services_than_keys(kind: type, urls: list[str]) -> None:
    arrays = [[1.0], [2.0]], [[1.0]], [[5.0]]
    merged = ask_shards(kind, urls * 3, *arrays, sinks=[0.0])
    expected = [[5 / (1 + np.exp(-1))], [5 / (1 + np.exp(-2))]]
    np.testing.assert_allclose(merged.output, expected, rtol=1e-6)
    none = ask_shards(kind, urls, np.ones((2, 4)), np.ones((0, 4)), np.ones((0, 3)))
    assert (none.output.tolist(), none.lse.tolist()) == ([[0.0] * 3] * 2, [-np.inf] * 2)


# --- Shards that fail ------------------------------------------------------------------


@BOTH
def test_a_shard_s_failure_says_where(kind: type, server: ScriptedServer, service_url: str) -> None:
    server.script = [Reply(500)]
    two = [[1.0], [2.0]]
    with pytest.raises(ServerError, match="500") as caught:
        ask_shards(kind, [service_url, server.url], [[1.0]], two, two)
    assert caught.value.__notes__ == [
        f"(from the shard {kind.__name__}({server.url!r}), which has a part of the keys)"
    ]


@BOTH
def test_shards_are_called_at_the_same_time(kind: type, server: ScriptedServer) -> None:
    server.script = [Reply(fault="stall"), Reply(fault="stall")]
    errors: list[Exception] = []

    def work() -> None:
        try:
            ask_shards(kind, [server.url] * 2, [[1.0]], [[1.0]] * 2, [[1.0]] * 2)
        except ConnectionFailedError as error:
            errors.append(error)

    call = threading.Thread(target=work)
    call.start()
    deadline = time.monotonic() + 15
    while len(server.received) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(server.received) == 2  # and none has been answered
    server.release()
    call.join(15)
    assert len(errors) == 1


@BOTH
def test_all_of_a_shard_s_calls_have_one_deadline(kind: type, server: ScriptedServer) -> None:
    slow = Reply(503, headers={"Retry-After": "1"})
    server.script = [slow, attention_reply(), Reply(400)]
    ragged = {"is_causal": True, "nonpad_kv_seqlen": [2, 3]}  # two calls
    arrays = [np.ones((2, 1, rows, 4)) for rows in (1, 3, 3)]
    with pytest.raises(BadRequestError):
        ask_shards(kind, [server.url], *arrays, timeout=20, retries=1, **ragged)
    told = [float(each.headers["X-Request-Timeout"]) for each in server.received]
    assert len(told) == 3
    assert told[0] <= 20
    assert told[2] <= told[1] <= told[0] - 0.99  # they are rounded


def test_a_failure_cancels_the_other_shards(server: ScriptedServer) -> None:
    server.script = [Reply(fault="stall"), Reply(503)]

    async def main() -> None:
        async with AsyncAttentionClient(server.url, max_retries=0) as client:
            call = client.attention([[1.0]], [[1.0]] * 2, [[1.0]] * 2, shards=[client, client])
            with pytest.raises(UnavailableError):
                await call
            assert len(asyncio.all_tasks()) == 1

    start = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - start < 15  # the stall is longer


def test_no_shards(ask: Ask, service_url: str) -> None:
    with pytest.raises(ValueError, match="at least one client"):
        ask(service_url, "attention", *ONE, shards=[])


@BOTH
@pytest.mark.parametrize("other", ["http://127.0.0.1:1", None])
def test_shards_are_clients(kind: type, service_url: str, other: str | None) -> None:
    shard = other or (AsyncAttentionClient if kind is AttentionClient else AttentionClient)()

    async def ask() -> None:
        answer = kind(service_url).attention(*ONE, shards=[shard])
        await answer

    with pytest.raises(TypeError, match=f"takes clients of services, not .*{kind.__name__}\\("):
        asyncio.run(ask())


def test_a_service_s_refusal(urls: list[str]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        ask_shards(AttentionClient, urls, [[1.0]], [[1.0, 2.0]] * 2, [[1.0]] * 2)
    assert caught.value.errors[0].loc == ("key",)
