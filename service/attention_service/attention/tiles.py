"""A plan's tiles: each feeds its part of the tensors to a session and puts away what comes.

The arrays of the answer are made once, in the answer's dtype; tiles write into them, where
it can be without a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np

from attention_service.attention.call import AttentionCall
from attention_service.attention.feeds import Biased, Feeds
from attention_service.attention.graphs import FlashSpec, Spec, TileSpec, TopKSpec
from attention_service.attention.lanes import Tile
from attention_service.attention.planner import Block, Plan, Step, answer_arrays, blocks
from attention_service.attention.top_k import largest_of_all
from attention_wire.tensors import Array, dtype_name

# A smaller array is copied sooner than it is bound.
_BOUND_BYTES = 2**18
_OF_ALL_ROWS = frozenset({"output", "lse", "entropy"})


class Session(Protocol):
    """What runs a graph."""

    def run(
        self, outputs: Sequence[str], feeds: Mapping[str, Array], into: Mapping[str, Array]
    ) -> dict[str, Array]:
        """The named outputs; those of ``into`` are written there."""
        ...


class Computation:
    """One call on its way: its answer's arrays, and the tiles that fill them.

    Args:
        call: a prepared call.
        plan: its plan.
        session: gives the session of a spec.

    Attributes:
        arrays: name → array, in rank 4; complete once every tile has run.
    """

    def __init__(self, call: AttentionCall, plan: Plan, session: Callable[[Spec], Session]) -> None:
        self._call = call
        self._plan = plan
        self._session = session
        # Weights are rounded as they are answered before the largest of them are found.
        narrow = call.dtype.itemsize < call.compute_dtype.itemsize
        self._rounding = call.dtype.name if narrow else None
        self.arrays = {
            name: _blank(call, name, *like)
            for name, like in answer_arrays(call).items()
            if not name.startswith("present_")
        }

    def tiles(self) -> Iterator[Tile]:
        """The tiles of all steps."""
        for step in self._plan.steps:
            run, feeds = self._kernel(step), Feeds(self._call)
            for block in blocks(self._call, step):
                yield partial(run, step, feeds, block)

    def _kernel(self, step: Step) -> Callable[[Step, Feeds, Block], None]:
        if step.kernel == "flash":
            return self._flash
        if self._call.wants.reduce is not None and "weights" in step.outputs:
            return self._reduced
        return self._composed

    # --- Kernels ---

    def _flash(self, _: Step, feeds: Feeds, block: Block) -> None:
        keys = slice(0, self._call.sizes.kv_length)
        found = self._run(FlashSpec(), ["output"], feeds.tensors(block, keys))
        self._put("output", block, keys, found["output"])

    def _composed(self, step: Step, feeds: Feeds, block: Block) -> None:
        outputs = set(step.outputs)
        if self._call.wants.top_k is not None and "weights" in outputs:
            outputs = outputs - {"weights"} | {"top_k"}
        biased, found = self._attend(feeds, block, outputs)
        if "values" in found:
            self._put_top_k(block, biased.keys, found)

    def _reduced(self, step: Step, feeds: Feeds, block: Block) -> None:
        """All heads of some rows, one after the other, and their weights made one."""
        call, total = self._call, None
        combine = np.add if call.wants.reduce == "mean" else np.maximum
        for place, head in enumerate(block.heads):
            one = Block(block.batch, (head,), block.rows, block.head_place + place, block.row_place)
            biased, found = self._attend(feeds, one, set(step.outputs), keep_weights=True)
            if not found:
                return  # no row sees a key, and that is so for every head
            weights = found["weights"]
            total = weights.copy() if total is None else combine(total, weights, out=total)
        if total is None:
            return
        if call.wants.reduce == "mean":
            total /= len(block.heads)
        first = Block(block.batch, block.heads[:1], block.rows, 0, block.row_place)
        if call.wants.top_k is None:
            self._put("weights", first, biased.keys, total)
            return
        # The array of the weights is done with, so that the largest are found in it.
        mass = total.sum(axis=-1, dtype=np.float64)
        if self._rounding:
            total = total.astype(call.dtype).astype(call.compute_dtype)
        rows = {"weights": total[0], "k": self._k(biased.keys)}
        found = self._run(TopKSpec(dtype_name(total)), ["values", "indices"], rows)
        found = {name: array[None] for name, array in found.items()}
        self._put_top_k(first, biased.keys, {**found, "mass": mass})

    # --- One run of the composed graph ---

    def _attend(
        self, feeds: Feeds, block: Block, outputs: set[str], *, keep_weights: bool = False
    ) -> tuple[Biased, dict[str, Array]]:
        """Run a block, put away what belongs to it alone, and give back all that it gave.

        Args:
            feeds: the step's inputs.
            block: the block.
            outputs: of a step's outputs and ``top_k``.
            keep_weights: whether the caller puts the weights away.

        Returns:
            The keys that it looked at, and name → result; nothing if it saw no key.
        """
        call, mode = self._call, self._call.wants.scores
        wants_scores = "scores" in outputs and mode is not None
        biased = feeds.biased(
            block, every_key=wants_scores and mode != "masked", in_parts=not wants_scores
        )
        if biased.keys.start == biased.keys.stop:
            return biased, {}
        names = outputs - {"scores"} | ({mode} if wants_scores and mode else set())
        # Scores have no sinks.
        sink = feeds.sink(block) if names - {mode} else None
        if sink is not None and names & {"top_k", "entropy"}:
            names = names | {"lse"}
        spec = TileSpec(
            dtype=call.compute_dtype.name,
            outputs=tuple(sorted(names)),
            bias=biased.kind,
            softcap=bool(call.softcap),
            sink=sink is not None,
            rounding=self._rounding if "top_k" in names else None,
        )
        inputs = self._inputs(spec, feeds, block, biased, sink)
        graph_names = [name for name in spec.outputs if name != "top_k"]
        graph_names += ["values", "indices"] if "top_k" in names else []
        places = {} if keep_weights else {"weights": "weights"}
        places |= {mode: "scores"} if wants_scores and mode else {}
        into = self._places(places, names, block, biased.keys, inputs["query"].shape)
        found = self._run(spec, graph_names, inputs, into)
        if biased.dead is not None:
            _bury(found, biased.dead)
        if "lse" in found:
            found |= _with_sink(found["lse"], sink, found.get("entropy"))
        elif "values" in found:
            found["mass"] = _mass(found["values"].shape, biased.dead)
        for name in (_OF_ALL_ROWS & outputs) | (
            {"weights"} & names - set(keep_weights * ["weights"])
        ):
            self._put(name, block, biased.keys, found[name])
        if wants_scores and mode:
            self._put("scores", block, biased.keys, found[mode])
        return biased, found

    def _inputs(
        self, spec: TileSpec, feeds: Feeds, block: Block, biased: Biased, sink: Array | None
    ) -> dict[str, Array]:
        """The inputs of a composed graph."""
        inputs = feeds.tensors(block, biased.keys)
        if "output" not in spec.outputs:
            del inputs["value"]
        if biased.bias is not None:
            inputs["bias"] = biased.bias
        if spec.bias == "end":
            inside = biased.start - biased.keys.start
            inputs["key_end"] = np.ascontiguousarray(inputs["key"][:, inside:])
            inputs["key"] = np.ascontiguousarray(inputs["key"][:, :inside])
        if spec.softcap:
            inputs["cap"] = feeds.cap()
        if sink is not None:
            inputs["sink"] = sink.astype(self._call.compute_dtype)
        if "top_k" in spec.outputs:
            inputs["k"] = self._k(biased.keys)
        return inputs

    def _k(self, keys: slice) -> Array:
        return np.array([min(self._call.wants.top_k or 1, keys.stop - keys.start)])

    def _run(
        self,
        spec: Spec,
        names: list[str],
        feeds: Mapping[str, Array],
        into: Mapping[str, Array] | None = None,
    ) -> dict[str, Array]:
        return self._session(spec).run(names, feeds, into or {})

    # --- What comes out ---

    def _places(
        self,
        wanted: Mapping[str, str],
        names: set[str],
        block: Block,
        keys: slice,
        query_shape: tuple[int, ...],
    ) -> dict[str, Array]:
        """Where large results can be written to by the graph itself."""
        places = {}
        for name, array in wanted.items():
            if name not in names:
                continue
            view = self._view(array, block, keys)
            fits = view.flags.c_contiguous and view.dtype == self._call.compute_dtype
            if fits and view.nbytes >= _BOUND_BYTES:
                places[name] = view.reshape(*query_shape[:2], -1)
        return places

    def _view(self, name: str, block: Block, keys: slice) -> Array:
        """The place of a block in an array of the answer."""
        array = self.arrays[name]
        if name in _OF_ALL_ROWS:
            return array[block.batch, block.heads[0] : block.heads[-1] + 1, block.rows]
        heads = slice(block.head_place, block.head_place + len(block.heads))
        rows = slice(block.row_place, block.row_place + block.num_rows)
        if name in ("weights", "scores"):
            return array[block.batch, heads, rows, keys]
        return array[block.batch, heads, rows]

    def _put(self, name: str, block: Block, keys: slice, result: Array) -> None:
        view = self._view(name, block, keys)
        if result.size and np.may_share_memory(view, result):
            return  # it was written there
        with np.errstate(over="ignore"):  # a score past the range of a half is infinite
            view[...] = result.reshape(view.shape)

    def _put_top_k(self, block: Block, keys: slice, found: Mapping[str, Array]) -> None:
        """The largest weights of each row, those outside of the tile's keys zero."""
        k, total = self._call.wants.top_k or 1, self._call.sizes.kv_length
        values, indices = largest_of_all(
            found["values"], found["indices"] + keys.start, k, keys, total
        )
        rest = np.maximum(found["mass"] - values.sum(axis=-1, dtype=np.float64), 0)
        for name, array in (("values", values), ("indices", indices), ("rest", rest)):
            self._put(f"weights.{name}", block, keys, array)


def _blank(call: AttentionCall, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An array of the answer, with what a row has that sees no key."""
    if name == "lse":
        blank = np.full(shape, -np.inf, dtype)
        if call.sinks is not None:
            blank[...] = call.sinks[:, None]
        return blank
    if name == "scores" and call.wants.scores == "masked":
        return np.full(shape, -np.inf, dtype)
    if name == "weights.indices":
        return np.broadcast_to(np.arange(shape[-1], dtype=dtype), shape).copy()
    if name == "output" and call.rank == 3:
        # As the answer will be shaped: heads inside rows.
        batch, heads, length, size = shape
        return np.zeros((batch, length, heads, size), dtype).transpose(0, 2, 1, 3)
    return np.zeros(shape, dtype)


def _bury(found: dict[str, Array], dead: Array) -> None:
    """Give the rows that see no key what such rows have."""
    for name, array in found.items():
        place = np.broadcast_to(dead, array.shape[:2])
        if name == "indices":
            array[place] = np.arange(array.shape[-1])  # of equal weights the lowest keys
        elif name not in ("raw", "softcap"):
            array[place] = -np.inf if name in ("lse", "masked") else 0


def _mass(shape: tuple[int, ...], dead: Array | None) -> Array:
    mass = np.ones(shape[:2])
    if dead is not None:
        mass[np.broadcast_to(dead, mass.shape)] = 0
    return mass


def _with_sink(lse: Array, sink: Array | None, entropy: Array | None) -> dict[str, Array]:
    """LSE and entropy once the sink has its share, and the mass that is left to the keys.

    With a share f of the keys, −Σ f·w·ln(f·w) = f·(entropy − ln f). All are ``[N,M,1]``, but
    ``mass [N,M]``.
    """
    has_keys = ~np.isneginf(lse)
    if sink is None:
        return {"mass": has_keys[..., 0].astype(np.float64)}
    lse = lse.astype(np.float64)
    total = np.logaddexp(lse, sink)
    log_mass = np.subtract(lse, total, where=has_keys, out=np.zeros_like(lse))
    mass = np.where(has_keys, np.exp(log_mass), 0)
    found = {"lse": total, "mass": mass[..., 0]}
    return found if entropy is None else {**found, "entropy": mass * (entropy - log_mass)}
