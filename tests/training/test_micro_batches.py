"""Micro-batches: every completion once, within the limits, at the lowest cost of any split."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from conftest import essential
from torch import Tensor

from gkd_rl.models.row_layout import LAYER_FLOPS, StackCost
from gkd_rl.training.cost import ModelCost
from gkd_rl.training.micro_batches import WEIGHT_FLOPS, MicroBatcher
from gkd_rl.types import Example, PromptBatch, Rollout, Source

STACK = StackCost(weights=3000, attention=64, cross_weights=500, cross_attention=64, layers=2)
COSTS = {
    "decoder-only": ModelCost(None, STACK, 100),
    "decoder-only without shared rows": ModelCost(None, STACK, 100, masked=False),
    "encoder-decoder": ModelCost(STACK, STACK, 100),
    "encoder-decoder without shared rows": ModelCost(STACK, STACK, 100, masked=False),
}


def rollout_of(prompts: list[int], completions: list[list[int]]) -> Rollout:
    """A rollout of these lengths; the text of a completion is its prompt's index and its own."""
    examples = [Example(f"prompt {i}", "", {}) for i in range(len(prompts))]
    index = [i for i, group in enumerate(completions) for _ in group]
    lengths = torch.tensor([length for group in completions for length in group])
    mask_PS = torch.arange(max(prompts)) < torch.tensor(prompts).unsqueeze(1)
    mask_BT = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
    return Rollout(
        prompts=PromptBatch(examples, mask_PS.long() * (1 + torch.arange(len(prompts)).unsqueeze(1)), mask_PS),
        prompt_index_B=torch.tensor(index),
        ids_BT=mask_BT.long() * (1 + torch.arange(len(index)).unsqueeze(1)),
        mask_BT=mask_BT,
        truncated_B=lengths % 2 == 0,
        texts=[f"{i} {k}" for i, group in enumerate(completions) for k in range(len(group))],
        source=Source.student,
    )


def random_rollout(seed: int, prompts: int = 7, per_prompt: int = 3) -> Rollout:
    draw = np.random.default_rng(seed)
    return rollout_of(draw.integers(1, 60, prompts).tolist(), draw.integers(1, 12, (prompts, per_prompt)).tolist())


@pytest.mark.parametrize("seed", range(5))
def test_every_completion_occurs_once_in_order_of_length(seed: int) -> None:
    rollout = random_rollout(seed)
    micro_batches = MicroBatcher(COSTS["decoder-only"], "cpu", max_completions=6)(rollout)
    order = torch.cat(micro_batches)
    assert order.sort().values.tolist() == list(range(21))
    prompts = rollout.prompt_index_B[order].view(7, 3)  # three completions of one prompt are adjacent
    assert (prompts == prompts[:, :1]).all()
    lengths = rollout.mask_BT.sum(1)[order].view(7, 3)
    assert (lengths.diff(dim=1) >= 0).all()
    total = rollout.prompts.mask_PS.sum(1)[prompts[:, 0]] + lengths.sum(1)
    assert (total.diff() >= 0).all()
    for rows in micro_batches:
        micro = rollout.rows(rows)
        assert list(micro.texts) == [rollout.texts[i] for i in rows.tolist()]
        for row, old in enumerate(rows.tolist()):
            new, before = int(micro.prompt_index_B[row]), int(rollout.prompt_index_B[old])
            assert micro.prompts.examples[new] is rollout.prompts.examples[before]
            assert micro.prompts.ids_PS[new].unique().tolist()[-1] == before + 1
            assert int(micro.mask_BT[row].sum()) == int(rollout.mask_BT[old].sum())
            assert int(micro.ids_BT[row, 0]) == old + 1 and micro.truncated_B[row] == rollout.truncated_B[old]


def price(cost: ModelCost, rollout: Rollout, indices: Tensor) -> tuple[float, float]:
    """Padded tokens and FLOPs of a micro-batch, by a loop over its rows."""
    micro = rollout.rows(indices)
    prompts, completions = micro.prompts.mask_PS.sum(1).tolist(), micro.mask_BT.sum(1).tolist()
    S, T, P, B = max(prompts), max(completions), len(prompts), len(completions)

    def stack(rows: int, width: int) -> float:
        return rows * (2 * STACK.weights * width + 4 * STACK.attention * width * width)

    if cost.encoder is not None:
        together = torch.zeros(P).index_add(0, micro.prompt_index_B, micro.mask_BT.sum(1).float()).max().item()
        forms = [(B, T)] + ([(P, int(together))] if cost.masked else [])
        prices = [
            (
                rows * width,
                stack(rows, width) + rows * S * (2 * STACK.cross_weights + 4 * STACK.cross_attention * width),
            )
            for rows, width in forms
        ]
        tokens, flops = min(prices, key=lambda form: form[1])
        return P * S + tokens, 3 * (stack(P, S) + flops)
    rows = [prompts[i] + length - 1 for i, length in zip(micro.prompt_index_B.tolist(), completions, strict=True)]
    forms = [(B, max(rows))]
    if cost.masked:
        together = list(prompts)
        for i, length in zip(micro.prompt_index_B.tolist(), completions, strict=True):
            together[i] += length - 1
        forms.append((P, max(together)))
    tokens, flops = min(((count * width, stack(count, width)) for count, width in forms), key=lambda form: form[1])
    return tokens, 3 * flops


@pytest.mark.parametrize("kind", COSTS)
@pytest.mark.parametrize(
    "limits", [{}, {"max_completions": 6}, {"max_tokens": 220}, {"max_completions": 9, "max_tokens": 300}], ids=str
)
@pytest.mark.parametrize("overhead", essential([0.0, 1e6, 1e9], 1e6))
def test_no_split_between_prompts_costs_less(
    kind: str, limits: dict[str, int], overhead: float, monkeypatch: Any
) -> None:
    monkeypatch.setitem(LAYER_FLOPS, "cpu", overhead)
    monkeypatch.setitem(WEIGHT_FLOPS, "cpu", overhead / 2)
    cost = COSTS[kind]
    for seed in range(4):
        rollout = random_rollout(seed)
        micro_batches = MicroBatcher(cost, "cpu", trained_weights=2, **limits)(rollout)
        order = torch.cat(micro_batches)
        found = sum(price(cost, rollout, rows)[1] + overhead * (cost.layers + 1) for rows in micro_batches)
        best = float("inf")
        for count in range(7):
            for inner in combinations(range(3, 21, 3), count):
                parts = [order[a:b] for a, b in zip((0, *inner), (*inner, 21), strict=True)]
                prices = [price(cost, rollout, part) for part in parts]
                alone = [len(part) == 3 for part in parts]
                if all(
                    (one or tokens <= limits.get("max_tokens", 1e9)) and len(part) <= limits.get("max_completions", 99)
                    for part, one, (tokens, _) in zip(parts, alone, prices, strict=True)
                ):
                    best = min(best, sum(flops + overhead * (cost.layers + 1) for _, flops in prices))
        assert found == pytest.approx(best)


@pytest.mark.parametrize("kind", COSTS)
def test_a_prompt_with_too_many_completions_is_split(kind: str) -> None:
    rollout = rollout_of([5, 50], [[3, 9, 4, 8, 2, 7], [6, 6, 6, 6, 6, 6]])
    by_number = MicroBatcher(COSTS[kind], "cpu", max_completions=4)(rollout)
    assert [len(rows) for rows in by_number] == [3, 3, 3, 3]
    tokens = MicroBatcher(COSTS[kind], "cpu", max_tokens=90)(rollout)
    assert sum(map(len, tokens)) == 12 and all(price(COSTS[kind], rollout, rows)[0] <= 90 for rows in tokens)
    alone = MicroBatcher(COSTS[kind], "cpu", max_tokens=1)(rollout)
    assert [len(rows) for rows in alone] == [1] * 12


def test_low_overhead_gives_little_padding_and_high_overhead_few_batches() -> None:
    rollout = random_rollout(0, prompts=64, per_prompt=4)
    cost = ModelCost(None, StackCost(weights=7_000_000, attention=1000, layers=2), 100)
    many, few = (MicroBatcher(cost, device)(rollout) for device in ("cpu", "cuda"))
    assert len(few) == 1 < len(many)
    used = padded = 0.0
    for rows in many:
        own, whole = cost.tokens(rollout.rows(rows))
        used, padded = used + own, padded + whole
    assert used / padded > 0.95


@pytest.mark.parametrize("count", [8, 32, 128])
def test_padding_is_under_4_percent_at_the_lengths_of_the_benchmark(count: int) -> None:
    """Prompts of 64 to 384 tokens, one completion each, for SmolLM2-135M's width and ten of its layers; ten steps."""
    layer = 2 * 576 * (576 + 192) + 3 * 576 * 1536
    cost = ModelCost(None, StackCost(weights=10 * layer, attention=10 * 576, layers=10), 49152 * 576)
    batcher = MicroBatcher(cost, "cpu", trained_weights=10 * layer + 49152 * 576, max_tokens=2048)
    draw, used, padded = np.random.default_rng(0), 0.0, 0.0
    for _ in range(10):
        rollout = rollout_of(draw.integers(64, 385, count).tolist(), draw.integers(1, 49, (count, 1)).tolist())
        for rows in batcher(rollout):
            own, whole = cost.tokens(rollout.rows(rows))
            used, padded = used + own, padded + whole
    assert used / padded > 0.96
