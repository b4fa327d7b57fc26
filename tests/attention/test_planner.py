"""Plans: kernels, tiles and costs follow from what is asked for, and are known beforehand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attention_service.attention.engine import Engine
from attention_service.attention.kernels import TILE_BYTES
from attention_service.attention.planner import blocks
from attention_service.attention.sdpa import AttentionJob
from attention_wire.schemas import AttentionRequest

MEBIBYTE = 2**20


def job(
    engine: Engine, rows: int, keys: int, *, heads: int = 8, kv_heads: int = 8, **fields: Any
) -> AttentionJob:
    query = np.empty((1, heads, rows, 64), np.float32)
    key = np.empty((1, kv_heads, keys, 64), np.float32)
    request = {"query": query, "key": key, "value": key, **fields}
    return AttentionJob.of(AttentionRequest.model_validate(request), engine)


def returns(**asked: Any) -> dict[str, Any]:
    return {"return": asked}


def kernels(planned: AttentionJob) -> list[str]:
    return [step.kernel for step in planned.plan.steps]


def test_the_fused_kernel_runs_where_nothing_needs_the_scores(engine: Engine) -> None:
    assert kernels(job(engine, 512, 512, **returns(weights=False))) == ["flash"]
    needs: list[dict[str, Any]] = [
        returns(),
        returns(weights=False, lse=True),
        {**returns(weights=False), "is_causal": True},
        {**returns(weights=False), "softcap": 5.0},
        {**returns(weights=False), "sinks": np.zeros(8, np.float32)},
        {**returns(weights=False), "attn_mask": np.ones(512, bool)},
        {**returns(weights=False), "softmax_precision": "float64"},
    ]
    for fields in needs:
        assert kernels(job(engine, 512, 512, **fields)) == ["composed"]


def test_a_part_of_the_weights_is_a_step_of_its_own(engine: Engine) -> None:
    planned = job(engine, 4096, 4096, **returns(weights={"queries": [5, 9], "heads": [3]}))
    whole, part = planned.plan.steps
    assert (whole.kernel, whole.outputs, len(whole.rows)) == ("flash", {"output"}, 4096)
    assert (part.outputs, part.heads, part.rows) == ({"weights"}, (3,), (5, 9))
    assert planned.plan.costs[1].flops * 4096 < planned.plan.costs[0].flops


def test_heads_that_give_weights_give_their_output_with_them(engine: Engine) -> None:
    planned = job(engine, 1024, 1024, **returns(weights={"heads": [3]}))
    first, second = planned.plan.steps
    assert (first.outputs, first.heads) == ({"output", "weights"}, (3,))
    assert (second.outputs, second.heads) == ({"output"}, (0, 1, 2, 4, 5, 6, 7))


@pytest.mark.parametrize("rows", [1, 2, 300, 5000])
def test_tiles_cover_every_head_and_row_once(engine: Engine, rows: int) -> None:
    planned = job(engine, rows, 3000, heads=12, kv_heads=4, is_causal=True, **returns(lse=True))
    covered = np.zeros((12, rows), int)
    for step in planned.plan.steps:
        for block in blocks(planned.call, step):
            covered[np.ix_(block.heads, np.arange(rows)[block.rows])] += 1
    assert (covered == 1).all()


def test_what_is_masked_is_not_computed(engine: Engine) -> None:
    everything = job(engine, 4096, 4096, **returns(weights=False)).explain().flops
    causal = job(engine, 4096, 4096, is_causal=True, **returns(weights=False))
    assert 0.5 < causal.explain().flops / everything < 0.55
    window = job(engine, 4096, 4096, is_causal=True, left_window_size=255, **returns(weights=False))
    assert window.explain().flops / everything < 0.1
    padded = job(engine, 64, 4096, nonpad_kv_seqlen=np.array([10]), **returns(weights=False))
    assert padded.explain().flops / job(engine, 64, 4096).explain().flops < 0.01


@pytest.mark.parametrize(
    "asked",
    [
        {"weights": False},
        {"weights": {"top_k": 8}},
        {"weights": False, "lse": True, "entropy": True},
        {"weights": {"heads": [1], "queries": {"start": 0, "stop": 64}}},
        {"weights": {"reduce": "max", "top_k": 3}},
    ],
    ids=str,
)
def test_no_matrix_of_every_score_is_formed_unless_it_is_asked_for(
    engine: Engine, asked: dict[str, Any]
) -> None:
    length = 32768
    planned = job(engine, length, length, **returns(**asked))
    assert planned.peak_bytes < 300 * MEBIBYTE < 8 * length * length * 4
    for step, cost in zip(planned.plan.steps, planned.plan.costs, strict=True):
        if step.kernel == "composed":
            assert step.tile_heads * step.tile_rows * cost.keys * 4 <= 8 * TILE_BYTES


def test_a_plan_is_told_when_it_is_asked_for(engine: Engine) -> None:
    query = np.ones((1, 2, 3, 4), np.float32)
    fields = {"query": query, "key": query, "value": query, **returns(plan=True)}
    answer = AttentionJob.of(AttentionRequest.model_validate(fields), engine).run()
    (step,) = answer["plan"]["steps"]
    assert step["kernel"] == "composed"
    assert step["computes"] == ["output", "weights"]
    assert step["tile_shape"] == [2, 3, 3]
    assert step["flops"] == 2 * 3 * 3 * (2 * (4 + 4) + 5)
    assert answer["plan"]["predicted_ms"] > 0


def test_the_smaller_call_that_is_proposed_fits(engine: Engine) -> None:
    planned = job(engine, 4096, 4096)
    assert planned.smaller(lambda _, peak: peak < 200 * MEBIBYTE) == (
        '{"return": {"weights": {"heads": [0]}}} would fit.'
    )
    assert planned.smaller(lambda _, peak: peak < 60 * MEBIBYTE) == (
        '{"return": {"weights": {"top_k": 8}}} would fit.'
    )
    assert planned.smaller(lambda *_: False) == "Send fewer heads or shorter sequences."


def test_fewer_heads_than_a_group_can_be_reduced_under_a_bias(engine: Engine) -> None:
    rng = np.random.default_rng(0)
    key = rng.standard_normal((1, 1, 6, 4)).astype(np.float32)
    mask = rng.random((5, 6)) < 0.7
    mask[:, 0] = True
    query = rng.standard_normal((1, 4, 5, 4)).astype(np.float32)
    wanted = {"output": False, "weights": {"heads": [0, 2], "reduce": "mean"}}
    fields = {"query": query, "key": key, "value": key, "attn_mask": mask, "return": wanted}
    answer = AttentionJob.of(AttentionRequest.model_validate(fields), engine).run()
    scores = np.where(mask, query.astype(np.float64) @ key[0, 0].T / 2, -np.inf)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    np.testing.assert_allclose(answer["weights"][0, 0], weights[0, [0, 2]].mean(0), atol=1e-6)
