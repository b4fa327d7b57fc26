"""Random calls over the whole option space of attention.

A case holds what is drawn, and makes its arrays from a seed: printed, it is its own
reproduction.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

from tests import reference
from tests.attention.forms import DTYPES, FORMS
from tests.reference import Array

FLOATS = ("float16", "bfloat16", "float32", "float64")
# A list of more weights than this takes longer to write than to compute.
_LONG = 20_000


class Sizes(NamedTuple):
    """Sizes of the tensors; `past` is None for no past at all."""

    batch: int
    kv_heads: int
    groups: int
    q_length: int
    past: int | None
    kv_length: int
    head_size: int
    v_head_size: int

    @property
    def q_heads(self) -> int:
        return self.kv_heads * self.groups

    @property
    def total(self) -> int:
        return (self.past or 0) + self.kv_length

    @property
    def full(self) -> tuple[int, int, int, int]:
        return (self.batch, self.q_heads, self.q_length, self.total)


class Mask(NamedTuple):
    """A mask: what it holds, how much of it hides, its shape and dtype."""

    kind: str
    hidden: float
    shape: tuple[int, ...]
    dtype: str

    def array(self, rng: np.random.Generator) -> Array:
        hidden = rng.random(self.shape) < self.hidden
        if self.kind == "rows":
            hidden[...] = rng.random((*self.shape[:-1], 1)) < self.hidden
        if self.dtype == "bool":
            return ~hidden
        dtype = DTYPES[self.dtype]
        mask = rng.standard_normal(self.shape).astype(dtype)
        # float64 has room that the float32 of most calls has not.
        widest = np.dtype(np.float32) if self.dtype == "float64" else dtype
        low = {"large": -3e4, "lowest": float(ml_dtypes.finfo(widest).min)}
        mask[hidden] = low.get(self.kind, -np.inf)
        return mask


@dataclass(frozen=True)
class Case:
    """One call; `rank` and `form` say how it is sent."""

    seed: int
    sizes: Sizes
    rank: int
    dtype: str
    form: str
    spread: float
    mask: Mask | None
    options: dict[str, Any]
    """Scalar options, by their names in the contract, as far as they are sent."""
    nonpad: tuple[int, ...] | None
    sinks: str | None
    alibi: str | None
    documents: str | None
    poison: bool
    asked: dict[str, Any]
    """The field `return`."""

    @cached_property
    def tensors(self) -> dict[str, Array]:
        """Query, key and value in rank 4, and the tensors among the options."""
        sizes, dtype = self.sizes, DTYPES[self.dtype]
        rng = np.random.default_rng(self.seed)

        def normal(*shape: int, spread: float = 1) -> Array:
            return (spread * rng.standard_normal(shape)).astype(dtype)

        kv = (sizes.batch, sizes.kv_heads)
        query = (sizes.batch, sizes.q_heads, sizes.q_length, sizes.head_size)
        made = {
            "query": normal(*query, spread=self.spread),
            "key": normal(*kv, sizes.kv_length, sizes.head_size, spread=self.spread),
            "value": normal(*kv, sizes.kv_length, sizes.v_head_size),
        }
        if sizes.past is not None:
            made["past_key"] = normal(*kv, sizes.past, sizes.head_size, spread=self.spread)
            made["past_value"] = normal(*kv, sizes.past, sizes.v_head_size)
        if self.mask is not None:
            made["attn_mask"] = self.mask.array(rng)
        if self.nonpad is not None:
            made["nonpad_kv_seqlen"] = np.array(self.nonpad, rng.choice([np.int32, np.int64]))
        if self.sinks is not None:
            made["sinks"] = self._sinks(rng)
        if self.alibi is not None:
            slopes = 0.5 * rng.standard_normal(sizes.q_heads)
            signed = slopes if self.alibi == "signed" else np.abs(slopes)
            made["alibi_slopes"] = signed.astype(DTYPES[rng.choice(FLOATS)])
        if self.documents is not None:
            names = ("query_document_ids", "key_document_ids")
            for name, length in zip(names, (sizes.q_length, sizes.total), strict=True):
                ids = rng.integers(-1, 2, (sizes.batch, length), rng.choice([np.int32, np.int64]))
                made[name] = np.sort(ids) if self.documents == "packed" else ids
        if self.poison:
            self._poison(made, rng)
        return made

    def _sinks(self, rng: np.random.Generator) -> Array:
        spread = {"large": 20.0, "small": 2.0, "missing": 2.0}[self.sinks or ""]
        sinks = spread * rng.standard_normal(self.sizes.q_heads)
        if self.sinks == "missing":
            sinks[rng.random(len(sinks)) < 0.5] = -np.inf
        return sinks.astype(DTYPES[rng.choice(FLOATS)])

    def _poison(self, tensors: dict[str, Array], rng: np.random.Generator) -> None:
        """Break some of the rows of key and value that no query attends."""
        sizes = self.sizes
        geometry = {n: self.options[n] for n in ("query_offset", "key_offset") if n in self.options}
        nonpad = tensors.get("nonpad_kv_seqlen")
        distance = reference.ahead(
            sizes.batch,
            sizes.q_length,
            sizes.total,
            past_length=sizes.past or 0,
            nonpad_kv_seqlen=nonpad,
            **geometry,
        )
        windows = ("is_causal", "left_window_size", "right_window_size")
        documents = ("query_document_ids", "key_document_ids")
        seen = reference.visible(
            distance,
            nonpad_kv_seqlen=nonpad,
            **{n: self.options[n] for n in windows if n in self.options},
            **{n: tensors[n] for n in documents if n in tensors},
        )
        added = reference.bias(distance, sizes.full, attn_mask=tensors.get("attn_mask"))
        added[~np.broadcast_to(seen[:, None], added.shape)] = -np.inf
        unattended = ~reference.attended(added, sizes.groups)
        for name in ("key", "value"):
            parts = [tensors[n] for n in (f"past_{name}", name) if n in tensors]
            start = 0
            for part in parts:
                here = unattended[:, :, start : start + part.shape[2]]
                start += part.shape[2]
                broken = here[..., None] & (rng.random(part.shape) < 0.3)
                part[broken] = rng.choice([np.nan, np.inf, -np.inf], part.shape)[broken]

    def fields(self) -> dict[str, Any]:
        """The fields of the request, in its rank."""
        fields = dict(self.tensors) | self.options
        for name in ("query", "key", "value"):
            fields[name] = self._in_rank(self.tensors[name])
        if self.rank == 3:
            fields |= {"q_num_heads": self.sizes.q_heads, "kv_num_heads": self.sizes.kv_heads}
        if self.asked:
            fields["return"] = self.asked
        return fields

    def _in_rank(self, tensor: Array) -> Array:
        if self.rank == 2:
            return tensor[0, 0]
        return merged_heads(tensor) if self.rank == 3 else tensor

    def expected(self) -> reference.Expected:
        """What the call must give, all heads and rows of it, in rank 4."""
        options = {n: v for n, v in self.options.items() if n != "softmax_precision"}
        return reference.attention(**self.tensors, **options)


def merged_heads(tensor: Array) -> Array:
    """``[B,H,L,D]`` as ``[B,L,H·D]``."""
    batch, heads, length, size = tensor.shape
    return tensor.transpose(0, 2, 1, 3).reshape(batch, length, heads * size)


# --- Strategies ----------------------------------------------------------------------------


def _one_in(n: int) -> st.SearchStrategy[bool]:
    return st.sampled_from([True, *[False] * (n - 1)])


@st.composite
def cases(draw: st.DrawFn, *, long: int = 6, longest: int = 24) -> Case:
    """Any call.

    One in `long` has tens of keys, which small tiles cut into many and some of which lie well
    inside the band that is seen; one in `longest` has hundreds, enough for several of the
    usual tiles.
    """
    rank = draw(st.sampled_from([2, 3, 4, 4]))
    memory = draw(st.sampled_from(["none", "none", "past", "nonpad"]))
    lengths = (1, 9)
    if draw(_one_in(longest)):
        lengths = (100, 300)
    elif draw(_one_in(long)):
        lengths = (30, 80)
    sizes = draw(_sizes(rank, lengths, has_past=memory == "past"))
    seed = draw(st.integers(0, 2**32))
    nonpad = None
    if memory == "nonpad":
        nonpad = tuple(draw(st.integers(0, sizes.total)) for _ in range(sizes.batch))
    is_long = sizes.batch * sizes.q_heads * sizes.q_length * sizes.total > _LONG
    by_position_alone = draw(_one_in(3))
    return Case(
        seed=seed,
        sizes=sizes,
        rank=rank,
        dtype=draw(st.sampled_from([*FLOATS, "float32", "float32"])),
        form=draw(st.sampled_from(FORMS[1:] if is_long else FORMS)),
        spread=draw(st.sampled_from([1.0, 1.0, 3.0, 0.1, 10.0, 0.0])),
        mask=None if by_position_alone else draw(_masks(sizes.full)),
        options=draw(_options(sizes.total)),
        nonpad=nonpad,
        sinks=draw(st.sampled_from([None, None, None, "small", "large", "missing"])),
        alibi=None if by_position_alone else draw(st.sampled_from([None, "usual", "signed"])),
        documents=None if by_position_alone else draw(st.sampled_from([None, "packed", "mixed"])),
        poison=draw(_one_in(3)),
        asked=draw(_returns(sizes, may_present=memory != "nonpad")),
    )


@st.composite
def _sizes(draw: st.DrawFn, rank: int, lengths: tuple[int, int], *, has_past: bool) -> Sizes:
    length = st.integers(*lengths)
    count = st.integers(1, 3 if lengths[1] < 100 else 2)
    empty = draw(st.sampled_from([None] * 27 + ["B", "L", "S"]))
    is_decoding = draw(_one_in(6))
    return Sizes(
        batch=0 if empty == "B" and rank > 2 else 1 if rank == 2 else draw(count),
        kv_heads=1 if rank == 2 else draw(count),
        groups=1 if rank == 2 else draw(count),
        q_length=0 if empty == "L" else 1 if is_decoding else draw(length),
        past=draw(length) * (not draw(_one_in(10))) if has_past else None,
        kv_length=0 if empty == "S" else draw(length),
        head_size=draw(st.integers(1, 9)),
        v_head_size=draw(st.integers(1, 9)),
    )


@st.composite
def _masks(draw: st.DrawFn, full: tuple[int, ...]) -> Mask | None:
    if draw(st.booleans()):
        return None
    rank = draw(st.integers(1, 4))
    shape = [1 if draw(st.booleans()) else size for size in full[-rank:-1]]
    is_short = draw(_one_in(4))
    shape.append(draw(st.integers(0, full[-1])) if is_short else full[-1])
    return Mask(
        kind=draw(st.sampled_from(["keys", "keys", "rows", "large", "lowest"])),
        hidden=draw(st.sampled_from([0.2, 0.2, 0.4, 0.8, 0.0, 1.0])),
        shape=tuple(shape),
        dtype=draw(st.sampled_from(["bool", "bool", *FLOATS])),
    )


@st.composite
def _options(draw: st.DrawFn, total: int) -> dict[str, Any]:
    windows = st.sampled_from([-1, 1, 2, 5, total // 2, 0, 10**6])
    # Far from 0 and near to each other, as the shards of a long sequence are; or one alone.
    far = draw(st.sampled_from([*[0] * 8, 10**6, 2**31 - 1000, -(10**9)]))
    near = st.integers(-(total // 2) - 1, total // 2 + 1)
    strategies: dict[str, st.SearchStrategy[Any]] = {
        "scale": st.sampled_from([0.5, 1.0, -0.25, 0.0]),
        "softcap": st.sampled_from([0.5, 2.0, 30.0, 0.0]),
        "left_window_size": windows,
        "right_window_size": windows,
        "softmax_precision": st.sampled_from(
            [1, 10, 11, 16, "float32", "float16", "float64", "bfloat16"]
        ),
    }
    options = {name: draw(values) for name, values in strategies.items() if draw(_one_in(4))}
    if draw(st.booleans()):
        options["is_causal"] = draw(st.sampled_from([True, True, False]))
    if far or draw(_one_in(5)):
        options["query_offset"] = far + draw(near)
    if options.get("query_offset") and draw(st.sampled_from([True, True, True, False])):
        options["key_offset"] = far + draw(near)
    return options


@st.composite
def _returns(draw: st.DrawFn, sizes: Sizes, *, may_present: bool) -> dict[str, Any]:
    asked: dict[str, Any] = {}
    for name, chance in {"output": 5, "lse": 2, "entropy": 3, "plan": 12, "present": 6}.items():
        if draw(_one_in(chance)) and (may_present or name != "present"):
            asked[name] = name != "output"
    if draw(_one_in(4)):
        asked["scores"] = draw(st.sampled_from(["raw", "softcap", "masked"]))
    weights = draw(st.sampled_from(["part", "part", "part", "all", "none"]))
    if weights != "all":
        asked["weights"] = False if weights == "none" else draw(_selections(sizes))
    return asked


@st.composite
def _selections(draw: st.DrawFn, sizes: Sizes) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    some = np.random.default_rng(draw(st.integers(0, 2**16)))
    if draw(st.booleans()):
        count = draw(st.integers(1, sizes.q_heads))
        chosen["heads"] = some.permutation(sizes.q_heads)[:count].tolist()
    queries = draw(st.sampled_from(["all", "all", "list", "range"]))
    if sizes.q_length and queries == "list":
        count = draw(st.integers(1, sizes.q_length))
        chosen["queries"] = some.permutation(sizes.q_length)[:count].tolist()
    elif sizes.q_length and queries == "range":
        start = draw(st.integers(0, sizes.q_length - 1))
        chosen["queries"] = {"start": start, "stop": draw(st.integers(start + 1, sizes.q_length))}
    if draw(_one_in(3)):
        chosen["reduce"] = draw(st.sampled_from(["mean", "max"]))
    if draw(st.sampled_from([True, True, False])):
        chosen["top_k"] = draw(st.integers(1, sizes.total + 2))
    return chosen
