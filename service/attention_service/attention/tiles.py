"""A plan's tiles: each feeds its part of the tensors to a session and puts away what comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np

from attention_service.attention.answer import OF_ALL_ROWS, Answer
from attention_service.attention.call import AttentionCall
from attention_service.attention.feeds import Biased, Feeds
from attention_service.attention.graphs import BiasKind, FlashSpec, Spec, TileSpec, TopKSpec
from attention_service.attention.kernels import Step
from attention_service.attention.lanes import Tile
from attention_service.attention.patterns import Patterns
from attention_service.attention.planner import Block, Plan, blocks
from attention_service.attention.values import Doubtful, bound
from attention_wire.tensors import Array

_LARGEST = ["values", "indices"]


class Session(Protocol):
    """What runs a graph."""

    def run(
        self, outputs: Sequence[str], feeds: Mapping[str, Array], into: Mapping[str, Array]
    ) -> dict[str, Array]:
        """The named outputs; those of ``into`` are written there."""
        ...


def tiles(
    call: AttentionCall,
    plan: Plan,
    answer: Answer,
    session: Callable[[Spec], Session],
    patterns: Patterns,
) -> Iterator[Tile]:
    """The tiles of a plan. Those of a call that is trusted may raise ``values.Doubtful``.

    Args:
        call: a prepared call.
        plan: its plan.
        answer: what the tiles fill.
        session: gives the session of a spec.
        patterns: the biases that calls share.
    """
    for step in plan.steps:
        feeds = Feeds(call, patterns)
        kernel = (
            _Flash(call, feeds, answer, session)
            if step.kernel == "flash"
            else _Composed(call, step, feeds, answer, session)
        )
        for block in blocks(call, step):
            yield partial(kernel.run, block)


class _Flash:
    """Tiles of the fused kernel: the output alone, of calls where nothing is masked."""

    def __init__(
        self,
        call: AttentionCall,
        feeds: Feeds,
        answer: Answer,
        session: Callable[[Spec], Session],
    ) -> None:
        self._is_trusted = call.is_trusted
        self._keys = slice(0, call.sizes.kv_length)
        self._answer = answer
        self._feeds = feeds
        self._session = session(FlashSpec())

    def run(self, block: Block) -> None:
        feeds = self._feeds.tensors(block, self._keys)
        output = self._session.run(["output"], feeds, {})["output"]
        if self._is_trusted:
            _check(output)
        self._answer.put("output", block, self._keys, output)


class _Graph(NamedTuple):
    """A composed graph of a step, and the names that are asked of it."""

    spec: TileSpec
    session: Session
    names: list[str]


class _Composed:
    """Tiles of the composed graph, which gives everything that a call can ask for."""

    def __init__(
        self,
        call: AttentionCall,
        step: Step,
        feeds: Feeds,
        answer: Answer,
        session: Callable[[Spec], Session],
    ) -> None:
        wants = call.wants
        self._call = call
        self._answer = answer
        self._session = session
        self._feeds = feeds
        self._graphs: dict[BiasKind, _Graph] = {}
        self._mode = wants.scores if "scores" in step.outputs else None
        self._reduces = wants.reduce is not None and "weights" in step.outputs
        self._finds_largest = wants.top_k is not None and "weights" in step.outputs
        # What is put where it belongs as it comes, and where.
        self._own = {name: name for name in OF_ALL_ROWS & step.outputs}
        if "weights" in step.outputs and not self._reduces and not self._finds_largest:
            self._own["weights"] = "weights"
        if self._mode is not None:
            self._own[self._mode] = "scores"
        self._outputs = set(self._own)
        if self._reduces:
            self._outputs.add("weights")
        elif self._finds_largest:
            self._outputs.add("top_k")
        # What shows that the tensors are finite. A value that is not makes the output NaN or
        # infinite, whatever its weight; a key its score.
        self._shown: list[str] = []
        if call.is_trusted and "output" in step.outputs:
            self._shown = ["output", "raw"] if call.shows_keys else ["output"]
            self._outputs.update(self._shown)
        # Scores have no sinks.
        self._has_sink = call.sinks is not None and self._outputs != {self._mode}
        if self._has_sink and self._outputs & {"top_k", "entropy"}:
            self._outputs.add("lse")
        # Weights are rounded as they are answered before the largest of them are found.
        narrow = call.dtype.itemsize < call.compute_dtype.itemsize
        self._rounding = call.dtype if narrow and self._finds_largest else None

    def run(self, block: Block) -> None:
        # A call that is trusted may turn out to hold infinity after this tile.
        with np.errstate(over="ignore", invalid="ignore"):
            if self._reduces:
                self._run_reduced(block)
                return
            biased, found = self._attend(block)
            if "values" in found:
                self._answer.put_top_k(block, biased.keys, found)

    def _run_reduced(self, block: Block) -> None:
        """All heads of some rows, one after the other, and their weights made one."""
        call, total = self._call, None
        combine = np.add if call.wants.reduce == "mean" else np.maximum
        for place, head in enumerate(block.heads):
            one = Block(block.batch, (head,), block.rows, block.head_place + place, block.row_place)
            biased, found = self._attend(one)
            if not found:
                return  # no row sees a key, and that is so for every head
            weights = found["weights"]
            total = weights.copy() if total is None else combine(total, weights, out=total)
        if total is None:
            return
        if call.wants.reduce == "mean":
            total /= len(block.heads)
        first = Block(block.batch, block.heads[:1], block.rows, 0, block.row_place)
        if self._finds_largest:
            self._answer.put_top_k(first, biased.keys, self._largest(total[0], biased.keys))
        else:
            self._answer.put("weights", first, biased.keys, total)

    def _largest(self, weights: Array, keys: slice) -> dict[str, Array]:
        """The largest of each row of ``weights [M,T]``, and what all of the row is."""
        mass = weights.sum(axis=-1, dtype=np.float64)
        if self._rounding:
            weights = weights.astype(self._rounding).astype(self._call.compute_dtype)
        session = self._session(TopKSpec(weights.dtype.name))
        found = session.run(_LARGEST, {"weights": weights, "k": self._k(keys)}, {})
        return {name: array[None] for name, array in {**found, "mass": mass}.items()}

    # --- One run of the graph ---

    def _attend(self, block: Block) -> tuple[Biased, dict[str, Array]]:
        """Run a block, and put away what belongs to it alone.

        Returns:
            The keys that it looked at, and name → result; nothing if it saw no key.
        """
        biased = self._feeds.biased(
            block,
            every_key=self._mode in ("raw", "softcap"),
            in_parts="raw" not in self._outputs and self._mode is None,
        )
        if biased.keys.start == biased.keys.stop:
            return biased, {}
        graph = self._graphs.get(biased.kind) or self._made(biased.kind)
        sink = self._feeds.sink(block) if self._has_sink else None
        inputs = self._inputs(graph.spec, block, biased, sink)
        into = self._into(block, biased.keys, inputs["query"].shape[1])
        found = graph.session.run(graph.names, inputs, into)
        for name in self._shown:
            _check(found[name])
        if biased.dead is not None:
            _bury(found, biased.dead)
        if sink is not None and "lse" in found:
            found |= _with_sink(found["lse"], sink, found.get("entropy"))
        elif "values" in found:
            found["mass"] = _mass(found["values"].shape, biased.dead)
        for name, place in self._own.items():
            if name not in into:
                self._answer.put(place, block, biased.keys, found[name])
        return biased, found

    def _made(self, kind: BiasKind) -> _Graph:
        spec = TileSpec(
            dtype=self._call.compute_dtype.name,
            outputs=tuple(sorted(self._outputs)),
            bias=kind,
            softcap=bool(self._call.softcap),
            sink=self._has_sink,
            rounding=self._rounding.name if self._rounding and not self._reduces else None,
        )
        names = [name for name in spec.outputs if name != "top_k"]
        if "top_k" in spec.outputs:
            names += _LARGEST
        graph = self._graphs[kind] = _Graph(spec, self._session(spec), names)
        return graph

    def _inputs(
        self, spec: TileSpec, block: Block, biased: Biased, sink: Array | None
    ) -> dict[str, Array]:
        inputs = self._feeds.tensors(block, biased.keys)
        if "output" not in spec.outputs:
            del inputs["value"]
        if biased.bias is not None:
            inputs["bias"] = biased.bias
        if biased.places is not None:
            inputs["places"] = biased.places
        if spec.softcap:
            inputs["cap"] = self._feeds.cap
        if sink is not None:
            inputs["sink"] = sink.astype(self._call.compute_dtype)
        if "top_k" in spec.outputs:
            inputs["k"] = self._k(biased.keys)
        return inputs

    def _k(self, keys: slice) -> Array:
        return np.array([min(self._call.wants.top_k or 1, keys.stop - keys.start)])

    def _into(self, block: Block, keys: slice, rows: int) -> dict[str, Array]:
        """Where large matrices go without a copy."""
        into = {}
        for name, place in self._own.items():
            if name not in OF_ALL_ROWS:
                view = self._answer.place(place, block, keys, rows)
                if view is not None:
                    into[name] = view
        return into


def _check(result: Array) -> None:
    if not np.isfinite(bound(result)):
        raise Doubtful


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


def _with_sink(lse: Array, sink: Array, entropy: Array | None) -> dict[str, Array]:
    """LSE and entropy once the sink has its share, and the mass that is left to the keys.

    With a share f of the keys, −Σ f·w·ln(f·w) = f·(entropy − ln f). All are ``[N,M,1]``, but
    ``mass [N,M]``.
    """
    has_keys = ~np.isneginf(lse)
    lse = lse.astype(np.float64)
    total = np.logaddexp(lse, sink)
    log_mass = np.subtract(lse, total, where=has_keys, out=np.zeros_like(lse))
    mass = np.where(has_keys, np.exp(log_mass), 0)
    found = {"lse": total, "mass": mass[..., 0]}
    return found if entropy is None else {**found, "entropy": mass * (entropy - log_mass)}
