"""Prompts read in groups and keys with room for what follows: the same states, fewer tokens, no copy for each token."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeModel, MakePrompts
from transformers import DynamicCache, LlamaConfig, PreTrainedTokenizerFast

from gkd_rl.models import decoding as kv_cache
from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.models.decoding import ROOM, RoomyLayer, can_join, empty_cache
from gkd_rl.models.row_layout import LAYER_FLOPS, StackCost, length_batches
from gkd_rl.types import PromptBatch

KINDS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "num_hidden_layers": 2},
    "qwen3": {"model_type": "qwen3", "head_dim": 8},
    "window": {"model_type": "mistral", "sliding_window": 3, "num_hidden_layers": 2},
    "t5": {"num_layers": 2, "num_decoder_layers": 2},
    "bart": {"model_type": "bart"},
    "longt5": {"model_type": "longt5", "local_radius": 4},
}
PROMPTS = [[3, 4, 5, 6, 7, 3, 3], [5], [7, 7, 3], [4, 4], [6] * 11, [3]]


def states(model: HiddenStateModel, prompts: PromptBatch, tokens: int) -> list[torch.Tensor]:
    """Hidden states of three completions of each prompt, of which some leave on the way."""
    draw = torch.Generator().manual_seed(0)
    state = model.start(prompts, 3)
    found = [state.hidden_BD]
    for position in range(tokens):
        if position == 2:
            state.keep(torch.arange(0, len(state.hidden_BD), 2))
        found.append(state.step(torch.randint(3, 8, (len(state.hidden_BD),), generator=draw)))
    return found


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_groups_of_prompts_give_the_same_states(
    kind: str, make_model: MakeModel, few_words: PreTrainedTokenizerFast, make_prompts: MakePrompts, monkeypatch: Any
) -> None:
    model = make_model(few_words, seed=1, **KINDS[kind]).eval()
    prompts = make_prompts(PROMPTS)
    reader: Any = model.model.get_encoder() if model.model.config.is_encoder_decoder else model.model.get_decoder()
    read: list[int] = []
    reader.register_forward_hook(lambda *call: read.append(call[2].last_hidden_state.shape[:2].numel()))
    monkeypatch.setattr(kv_cache, "ROOM", 4)
    monkeypatch.setitem(LAYER_FLOPS, "cpu", 1e12)
    expected = states(model, prompts, 8)
    whole = read[0]
    read.clear()
    monkeypatch.setitem(LAYER_FLOPS, "cpu", 0.0)
    found = states(model, prompts, 8)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert whole == prompts.ids_PS.numel()
    if kind == "window":
        assert read[0] == whole
    else:
        assert sum(read[:6]) >= int(prompts.mask_PS.sum()) == sum(read[:5])  # two prompts are length_batches


def test_a_token_is_written_where_there_is_room() -> None:
    config = LlamaConfig(num_hidden_layers=1)
    ours, theirs = empty_cache(config), DynamicCache(config=config)
    draw = torch.Generator().manual_seed(0)

    def add(columns: int) -> int:
        new = torch.randn(2, 3, columns, 4, generator=draw)
        for cache in (ours, theirs):
            cache.update(new, -new, 0)
        own: Any = ours.layers[0]
        other: Any = theirs.layers[0]
        assert torch.equal(own.keys, other.keys)
        assert torch.equal(own.values, -own.keys)
        assert ours.get_seq_length() == theirs.get_seq_length()
        return own.keys.data_ptr()

    add(5)
    places = [add(1) for _ in range(2 * (ROOM + 1) + 1)]
    assert sum(one != other for one, other in pairwise(places)) == 2  # memory is taken once for ROOM + 1 tokens
    for cache in (ours, theirs):
        cache.batch_select_indices(torch.tensor([1]))
        cache.batch_repeat_interleave(2)
    add(1)
    add(2)


def test_what_has_a_window_is_not_put_together() -> None:
    layer = empty_cache(LlamaConfig(num_hidden_layers=2)).layers
    assert [type(one) for one in layer] == [RoomyLayer, RoomyLayer]
    assert can_join(empty_cache(LlamaConfig(num_hidden_layers=2)))
    windows: dict[str, Any] = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
    mixed = empty_cache(LlamaConfig(num_hidden_layers=2, **windows))
    assert not can_join(mixed)


@pytest.mark.parametrize("call", [0.0, 40.0, 1e9])
def test_no_grouping_of_neighbours_costs_less(call: float, monkeypatch: Any) -> None:
    cost = StackCost(weights=50, attention=1, layers=2)
    monkeypatch.setitem(LAYER_FLOPS, "cpu", call * 3 * 100 / 2)
    draw = np.random.default_rng(0)
    for _ in range(10):
        lengths = draw.integers(1, 60, 7).tolist()
        groups = length_batches(lengths, cost, "cpu")
        assert sorted(text for group in groups for text in group) == list(range(7))
        found = sum(len(group) * max(lengths[text] for text in group) + call for group in groups)
        ordered, best = sorted(lengths), float("inf")
        for count in range(7):
            for inner in combinations(range(1, 7), count):
                parts = [ordered[a:b] for a, b in zip((0, *inner), (*inner, 7), strict=True)]
                best = min(best, sum(len(part) * part[-1] + call for part in parts))
        assert found == pytest.approx(best)
