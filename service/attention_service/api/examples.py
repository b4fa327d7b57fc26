"""Worked examples of the compute routes, as the documentation shows them.

A test sends each one to a running service, so none can go stale.
"""

from __future__ import annotations

from typing import Any, TypeAlias

Examples: TypeAlias = dict[str, dict[str, Any]]


def _example(summary: str, **value: object) -> dict[str, Any]:
    return {"summary": summary, "value": value}


ATTENTION: Examples = {
    "smallest": _example(
        "One head: two queries, two keys, two values",
        query=[[1, 0], [0, 1]],
        key=[[1, 0], [0, 1]],
        value=[[1, 2], [3, 4]],
    ),
    "causal": _example(
        "A causal call: query i sees the keys up to i",
        query=[[1, 0], [0, 1], [1, 1]],
        key=[[1, 0], [0, 1], [1, 1]],
        value=[[1], [2], [3]],
        is_causal=True,
    ),
    "masked": _example(
        "A mask: true where a query may attend a key; the second row may attend none",
        query=[[1, 0], [0, 1]],
        key=[[1, 0], [0, 1]],
        value=[[1, 2], [3, 4]],
        attn_mask=[[True, False], [False, False]],
    ),
    "grouped_query": _example(
        "Grouped-query attention in rank 3: two query heads read one key head",
        query=[[[1, 0, 0, 1], [0, 1, 1, 0]]],
        key=[[[1, 0], [0, 1]]],
        value=[[[1, 2], [3, 4]]],
        q_num_heads=2,
        kv_num_heads=1,
    ),
    "base64": _example(
        "Tensors as base64 of little-endian float32, in the answer too",
        query={"dtype": "float32", "shape": [1, 2], "data": "AACAPwAAAAA="},
        key={"dtype": "float32", "shape": [1, 2], "data": "AACAPwAAAAA="},
        value={"dtype": "float32", "shape": [1, 2], "data": "AACAPwAAAEA="},
        tensor_format="base64",
    ),
    "weights_only": _example(
        "The weights alone, in float64",
        query={"dtype": "float64", "shape": [1, 2], "data": [1, 0]},
        key={"dtype": "float64", "shape": [2, 2], "data": [1, 0, 0, 1]},
        value={"dtype": "float64", "shape": [2, 1], "data": [1, 2]},
        **{"return": {"output": False, "weights": True}},
    ),
    "top_k": _example(
        "Of two chosen rows the two keys that matter most, the mean over the heads",
        query=[[[[1, 0], [0, 1], [1, 1]], [[0, 1], [1, 0], [0, 0]]]],
        key=[[[[1, 0], [0, 1], [1, 1]], [[0, 2], [2, 0], [1, 0]]]],
        value=[[[[1], [2], [3]], [[4], [5], [6]]]],
        **{
            "return": {
                "output": False,
                "weights": {"queries": [0, 2], "reduce": "mean", "top_k": 2},
            }
        },
    ),
    "shard": _example(
        "A shard of a longer sequence, to be merged: output and log-sum-exp of keys 4 and 5",
        query=[[1, 0], [0, 1]],
        key=[[1, 0], [0, 1]],
        value=[[1, 2], [3, 4]],
        is_causal=True,
        query_offset=4,
        key_offset=4,
        **{"return": {"weights": False, "lse": True}},
    ),
    "cache": _example(
        "One step of a decoder: a past of two keys, a window of two, a sink and a softcap",
        query=[[[[1, 0]]]],
        key=[[[[0, 1]]]],
        value=[[[[3]]]],
        past_key=[[[[1, 0], [1, 1]]]],
        past_value=[[[[1], [2]]]],
        is_causal=True,
        left_window_size=1,
        sinks=[0.5],
        softcap=30,
        **{"return": {"weights": True, "entropy": True}},
    ),
}

MODULE_ATTENTION: Examples = {
    "self_attention": _example(
        "Self attention: key and value default to the query (this module takes rows of 8)",
        query=[[[1, 0, 0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0]]],
    ),
    "causal": _example(
        "The same with a causal mask, and the weights alone",
        query=[[[1, 0, 0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0]]],
        is_causal=True,
        **{"return": {"output": False, "weights": True}},
    ),
}

TEXT_ATTENTION: Examples = {
    "sentence": _example("Every head's weights over a sentence", text="The cat sat on the mat."),
    "one_head": _example(
        "One layer and one head, and the weights alone",
        text="The animal didn't cross the street because it was too tired.",
        layers=[3],
        heads=[5],
        **{"return": {"output": False, "weights": True}},
    ),
    "analyses": _example(
        "Of words: the three that each attends to most, the mean over the heads, and what kind of "
        "head each is",
        text="The cat sat on the mat. The cat sat again.",
        unit="word",
        layers=[2, 3],
        **{
            "return": {
                "output": False,
                "weights": {"reduce": "mean", "top_k": 3},
                "statistics": True,
                "classes": True,
            }
        },
    ),
    "ablation": _example(
        "What the model gives without two of its heads, and how that differs",
        text="The cat sat on the mat.",
        ablate=[[2, 1], [3, 1]],
        layers=[5],
        heads=[0],
    ),
    "pairs": _example(
        "Two pairs of texts in one call",
        text=["Where is the cat?", "Who sat?"],
        text_pair=["The cat sat on the mat.", "The cat."],
        layers=[0],
        heads=[0],
    ),
}

_TWO_BY_TWO: dict[str, Any] = {"shape": [2, 2], "datatype": "FP32"}

INFER: Examples = {
    "attention": _example(
        "Plain attention, the model sdpa: causal, its weights and its log-sum-exp",
        id="42",
        parameters={"is_causal": True},
        inputs=[
            {"name": "query", **_TWO_BY_TWO, "data": [1, 0, 0, 1]},
            {"name": "key", **_TWO_BY_TWO, "data": [[1, 0], [0, 1]]},
            {"name": "value", **_TWO_BY_TWO, "data": [1, 2, 3, 4]},
        ],
        outputs=[{"name": "weights"}, {"name": "lse"}],
    ),
}
