"""The state dict of ``torch.nn.MultiheadAttention`` → a ``multi_head`` module.

A safetensors file with its parameters is enough; how many heads they are for it does not hold
(https://docs.pytorch.org/docs/stable/generated/torch.nn.MultiheadAttention.html). Nor does it
hold ``add_zero_attn`` and ``dropout``: the module computes what PyTorch does in ``eval`` mode
without ``add_zero_attn``. Tensors always have the batch first.
"""

from __future__ import annotations

import re

import numpy as np

from attention_service.modules.exporters import blocks
from attention_service.modules.exporters.attention import (
    Attended,
    attention,
    merge_heads,
    split_heads,
)
from attention_service.modules.exporters.blocks import FLOAT, Graph, Linear
from attention_service.modules.exporters.errors import ExportError
from attention_service.modules.exporters.family import Built, Family
from attention_service.modules.exporters.source import Source
from attention_service.modules.exporters.weights import Parameter, Weights
from attention_service.modules.manifest import Manifest, Outputs

_PARTS = ("query", "key", "value")
_SEPARATE = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
_PARAMETERS = {
    "in_proj_weight",
    "in_proj_bias",
    "out_proj.weight",
    "out_proj.bias",
    *_SEPARATE,
}
_EXTRA_KEY = {"bias_k", "bias_v"}


def _matches(source: Source, weights: Weights) -> bool:
    return source.config is None and any(
        name in weights for name in ("in_proj_weight", *_SEPARATE, "out_proj.weight")
    )


def prefixes(weights: Weights) -> list[str]:
    """Where in a larger state dict such modules stand, as ``layers.0.self_attn``."""
    found = (re.fullmatch(r"(.+)\.(?:in_proj|q_proj)_weight", name) for name in weights)
    return sorted(match[1] for match in found if match)


def _build(_source: Source, weights: Weights, num_heads: int | None) -> Built:
    _check_names(weights)
    inputs = _input_projections(weights)
    embed_dim = inputs[0].weight.shape[0]
    num_heads = _check_heads(num_heads, embed_dim)
    _, key_dim, value_dim = (projection.weight.shape[1] for projection in inputs)
    manifest = Manifest(
        kind="multi_head",
        num_heads=num_heads,
        num_layers=1,
        embed_dim=embed_dim,
        key_dim=key_dim,
        value_dim=value_dim,
        head_dim=embed_dim // num_heads,
        outputs=Outputs(output="output", weights=["weights.0"]),
        files={},
    )
    out = Linear(
        weights.take("out_proj.weight", (embed_dim, embed_dim)),
        _bias(weights, "out_proj.bias", embed_dim),
    )
    return Built(_graph(manifest, inputs, out).model(), manifest)


FAMILY = Family("torch.nn.MultiheadAttention (its state dict, no config.json)", _matches, _build)


# --- Parameters ----------------------------------------------------------------------------


def _check_names(weights: Weights) -> None:
    names = set(weights)
    if extra_key := names & _EXTRA_KEY:
        raise ExportError(
            f"{' and '.join(sorted(extra_key))}: add_bias_kv is not supported. It appends a "
            "learned key and value to every sequence, so the weights would have a column that "
            "belongs to no key of the caller"
        )
    if unknown := names - _PARAMETERS:
        raise ExportError(
            f"{', '.join(sorted(unknown))}: not a parameter of torch.nn.MultiheadAttention; "
            "save the state dict of that module alone"
        )


def _check_heads(num_heads: int | None, embed_dim: int) -> int:
    if num_heads is None:
        raise ExportError(
            "a state dict does not hold num_heads: say how many heads the module has (--num-heads)"
        )
    if num_heads < 1 or embed_dim % num_heads:
        raise ExportError(
            f"num_heads {num_heads} does not divide embed_dim {embed_dim}, the width of "
            "the projections"
        )
    return num_heads


def _input_projections(weights: Weights) -> list[Linear]:
    """The projections of query, key and value: ``[E,E]``, ``[E,key_dim]``, ``[E,value_dim]``."""
    matrices = _joined(weights) if "in_proj_weight" in weights else _separate(weights)
    embed_dim = matrices[0].shape[0]
    bias = _bias(weights, "in_proj_bias", 3 * embed_dim)
    biases = [None] * 3 if bias is None else np.split(bias, 3)
    return [Linear(matrix, b) for matrix, b in zip(matrices, biases, strict=True)]


def _joined(weights: Weights) -> list[Parameter]:
    embed_dim = _width(weights, "in_proj_weight", "[3·embed_dim, embed_dim]")
    return np.split(weights.take("in_proj_weight", (3 * embed_dim, embed_dim)), 3)


def _separate(weights: Weights) -> list[Parameter]:
    """What PyTorch stores where ``kdim`` or ``vdim`` differs from ``embed_dim``."""
    query, key, value = _SEPARATE
    embed_dim = _width(weights, query, "[embed_dim, embed_dim]")
    key_dim = _width(weights, key, "[embed_dim, kdim]")
    value_dim = _width(weights, value, "[embed_dim, vdim]")
    return [
        weights.take(query, (embed_dim, embed_dim)),
        weights.take(key, (embed_dim, key_dim)),
        weights.take(value, (embed_dim, value_dim)),
    ]


def _width(weights: Weights, name: str, expected: str) -> int:
    shape = weights.shape(name)
    if len(shape) != 2 or 0 in shape:
        raise ExportError(f"tensor {name!r}: expected the shape {expected}, found {list(shape)}")
    return shape[1]


def _bias(weights: Weights, name: str, size: int) -> Parameter | None:
    """A bias, or None where the module has none; PyTorch has both of them or neither."""
    if "in_proj_bias" in weights or "out_proj.bias" in weights:
        return weights.take(name, (size,))
    return None


# --- The graph -----------------------------------------------------------------------------


def _graph(manifest: Manifest, inputs: list[Linear], out: Linear) -> Graph:
    """Projections, attention, output projection.

    ``query_heads``, ``key_heads``, ``value_heads`` (projected, not scaled) and ``context``
    are ``[B,H,·,D]``; the graph can be cut at them.
    """
    graph = Graph("multi_head")
    lengths = ("length", "keys", "keys")
    sizes = (manifest.embed_dim, manifest.key_dim, manifest.value_dim)
    for part, length, size in zip(_PARTS, lengths, sizes, strict=True):
        graph.input(part, FLOAT, ["batch", length, size])
    bias = graph.input("attn_bias", FLOAT, [f"attn_bias_{axis}" for axis in range(4)])
    scale = graph.input("scale", FLOAT, [])
    query, key, value = (
        split_heads(
            graph,
            blocks.linear(graph, part, projection, f"{part}_projection"),
            manifest.num_heads,
            manifest.head_dim,
            f"{part}_heads",
        )
        for part, projection in zip(_PARTS, inputs, strict=True)
    )
    attended = attention(
        graph,
        (query, key, value),
        scale=scale,
        bias=bias,
        name="",
        names=Attended("context", "weights.0"),
        rows_may_be_empty=True,
    )
    merged = merge_heads(graph, attended.context, manifest.embed_dim, "merged_context")
    blocks.linear(graph, merged, out, "output")
    graph.output("output", FLOAT, ["batch", "length", manifest.embed_dim])
    graph.output("weights.0", FLOAT, ["batch", manifest.num_heads, "length", "weights_keys"])
    return graph
