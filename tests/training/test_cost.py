"""Estimated FLOPs against those that torch counts in forward, backward and decoding; totals of a run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import MakePrompts, MakeRollout, essential
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedTokenizerFast

from gkd_rl.errors import ModelError
from gkd_rl.generation.codec import TextCodec
from gkd_rl.generation.sampler import GREEDY, Sampler
from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.models.loading import build_model
from gkd_rl.models.row_layout import StackCost
from gkd_rl.training.cost import CostTotals, ModelCost
from gkd_rl.types import Rollout

TOLERANCE = 0.01
NEVER = 10**6  # an end-of-sequence id that no model generates
LENGTHS = [(1, 7, 5), (3, 11, 1), (2, 1, 9), (2, 20, 12)]  # rollouts of a prompt, prompt tokens, completion tokens
T5 = {"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
LLAMA = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
BART = {
    "model_type": "bart", "d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 40, "decoder_ffn_dim": 24, "dropout": 0.0,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "t5 relu": T5 | {"feed_forward_proj": "relu"},
    "t5 gated": T5 | {"feed_forward_proj": "gated-gelu", "num_layers": 3, "num_decoder_layers": 2},
    "t5 wide heads": T5 | {"feed_forward_proj": "relu", "d_kv": 24, "num_heads": 3, "num_decoder_layers": 2},
    "bart": BART,
    "llama": LLAMA,
    "llama wide heads": LLAMA | {"head_dim": 12, "num_hidden_layers": 1},
    "qwen3": LLAMA | {"model_type": "qwen3", "head_dim": 8},
    "phi3": LLAMA | {"model_type": "phi3"},
}


@pytest.fixture
def model(request: pytest.FixtureRequest, few_words: PreTrainedTokenizerFast) -> HiddenStateModel:
    return model_of(request.param, few_words)


def model_of(kind: str, tokenizer: PreTrainedTokenizerFast) -> HiddenStateModel:
    model = build_model(SHAPES[kind], tokenizer, 0, torch.float32, "student")
    model.set_attn_implementation("eager")  # the counter does not support fused attention on the CPU
    return HiddenStateModel(model)


@pytest.fixture
def make(make_prompts: MakePrompts, make_rollout: MakeRollout):
    """`make(prompts, per_prompt, S, T)`: a rollout without padding."""

    def make(prompts: int, per_prompt: int, prompt_tokens: int, completion_tokens: int) -> Rollout:
        batch = make_prompts([[3] * (prompt_tokens - 1)] * prompts)
        return make_rollout(batch, [[4] * (completion_tokens - 1) + [1]] * (prompts * per_prompt), per_prompt)

    return make


def counted_forward(model: HiddenStateModel, rollout: Rollout, backward: bool = False) -> float:
    """FLOPs that torch counts in a forward pass, and in its backward pass."""
    with FlopCounterMode(display=False) as counter:
        logits = model.head().logits(model(rollout)[rollout.mask_BT], 8)
        if backward:
            logits.sum().backward()
    return counter.get_total_flops()


every_model = pytest.mark.parametrize("model", SHAPES, indirect=True)
every_length = pytest.mark.parametrize(
    ("per_prompt", "prompt_tokens", "completion_tokens"), essential(LENGTHS, (3, 11, 1), (2, 1, 9))
)


@every_model
@every_length
def test_forward_flops_are_those_that_torch_counts(
    model: HiddenStateModel, make: Any, per_prompt: int, prompt_tokens: int, completion_tokens: int
) -> None:
    rollout = make(3, per_prompt, prompt_tokens, completion_tokens)
    expected = counted_forward(model, rollout)
    assert ModelCost.of(model).forward(rollout) == pytest.approx(expected, rel=TOLERANCE)


@every_model
def test_training_flops_are_those_that_torch_counts(model: HiddenStateModel, make: Any) -> None:
    rollout = make(2, 2, 9, 7)
    expected = counted_forward(model, rollout, backward=True)
    assert ModelCost.of(model).training(rollout) == pytest.approx(expected, rel=TOLERANCE)


@every_model
@every_length
def test_generation_flops_are_those_that_torch_counts(
    model: HiddenStateModel,
    make: Any,
    few_words: PreTrainedTokenizerFast,
    per_prompt: int,
    prompt_tokens: int,
    completion_tokens: int,
) -> None:
    codec = TextCodec(few_words, 20, completion_tokens, torch.device("cpu"))
    codec.eos_ids = (NEVER,)
    prompts = make(3, 1, prompt_tokens, 1).prompts
    with FlopCounterMode(display=False) as counter:
        rollout = Sampler(codec, GREEDY).sample(model, prompts, per_prompt, None)
    assert rollout.mask_BT.all()
    assert rollout.ids_BT.shape == (3 * per_prompt, completion_tokens)
    assert ModelCost.of(model).generation(rollout) == pytest.approx(counter.get_total_flops(), rel=TOLERANCE)


@pytest.mark.parametrize("kind", ["t5 gated", "llama"])
def test_adapters_are_counted(kind: str, few_words: PreTrainedTokenizerFast, make: Any) -> None:
    model, rollout = model_of(kind, few_words), make(2, 2, 9, 7)
    bare = ModelCost.of(model).forward(rollout)
    targets = ["q", "v", "wo"] if kind.startswith("t5") else ["q_proj", "v_proj", "down_proj"]
    inject_adapter_in_model(LoraConfig(r=4, target_modules=targets), model.model)
    cost = ModelCost.of(model)
    assert cost.forward(rollout) > 1.05 * bare
    assert cost.forward(rollout) == pytest.approx(counted_forward(model, rollout), rel=TOLERANCE)
    assert cost.decoder.attention == ModelCost.of(model_of(kind, few_words)).decoder.attention


def test_shapes_against_hand_computed_values(few_words: PreTrainedTokenizerFast) -> None:
    square, wide = 16 * 16, 16 * 32
    assert ModelCost.of(model_of("t5 relu", few_words)) == ModelCost(
        encoder=StackCost(weights=4 * square + 2 * wide, attention=16, layers=1),
        decoder=StackCost(
            weights=6 * square + 2 * wide, attention=16, cross_weights=2 * square, cross_attention=16, layers=1
        ),
        head=16 * 8,
    )
    narrow = 16 * 8  # keys and values have half the heads
    assert ModelCost.of(model_of("llama", few_words)) == ModelCost(
        encoder=None,
        decoder=StackCost(weights=2 * (2 * square + 2 * narrow + 3 * 16 * 40), attention=32, layers=2),
        head=16 * 8,
    )


def test_flops_against_hand_computed_values(make: Any) -> None:
    rollout = make(1, 2, 5, 3)  # one prompt of 5 tokens, two completions of 3
    stack = StackCost(weights=100, attention=10, cross_weights=1000, cross_attention=7)
    cost = ModelCost(StackCost(weights=50, attention=6), stack, head=10_000)
    encoder = 2 * 50 * 5 + 4 * 6 * 5 * 5
    cross, head = 2 * (2 * 1000 * 5 + 4 * 7 * 5 * 3), 2 * 2 * 10_000 * 3
    separate = replace(cost, masked=False)
    assert separate.forward(rollout) == encoder + cross + head + 2 * (2 * 100 * 3 + 4 * 10 * 9)
    assert cost.forward(rollout) == encoder + cross - 2 * 1000 * 5 + head + 2 * 100 * 6 + 4 * 10 * 36  # in a shared row
    assert separate.tokens(rollout) == cost.tokens(rollout) == (11, 11)
    # the start token, with the prompt's keys and values, is computed once per prompt
    decoded, cross = 2 * 100 * (1 + 4) + 4 * 10 * (1 + 2 * (2 + 3)), 2 * 1000 * 5 + 4 * 7 * 5 * (1 + 4)
    assert cost.generation(rollout) == encoder + cross + head + decoded
    assert cost.training(rollout) == 3 * cost.forward(rollout)
    alone = ModelCost(None, StackCost(weights=100, attention=10), head=10_000)
    separate, shared = 2 * (2 * 100 * 7 + 4 * 10 * 7 * 7), 2 * 100 * 9 + 4 * 10 * 9 * 9  # 5 + 2 twice, 5 + 2 + 2
    assert alone.forward(rollout) == head + min(separate, shared) == head + shared
    assert replace(alone, masked=False).forward(rollout) == head + separate
    assert alone.generation(rollout) == head + 2 * 100 * 5 + 4 * 10 * 25 + 2 * (2 * 100 * 2 + 4 * 10 * (6 + 7))


@pytest.mark.parametrize("kind", ["t5 gated", "llama"])
def test_padding_is_not_counted(
    kind: str, few_words: PreTrainedTokenizerFast, make_prompts: MakePrompts, make_rollout: MakeRollout
) -> None:
    cost = ModelCost.of(model_of(kind, few_words))
    prompt_ids, completions = [[3, 4, 5], [6]], [[3, 1], [4, 4, 4, 1], [1], [5, 5]]
    tight = make_rollout(make_prompts(prompt_ids), completions, per_prompt=2)
    loose = make_rollout(make_prompts(prompt_ids, extra=6), completions, per_prompt=2, extra=5)
    for count in (cost.forward, cost.training, cost.generation):
        halves = [
            tight.rows(torch.arange(first, first + 2)) for first in (0, 2)
        ]  # each prompt with its own completions
        assert count(loose) == count(tight) == sum(map(count, halves))
        assert isinstance(count(tight), float)


def test_completions_of_a_prompt_share_its_cost(few_words: PreTrainedTokenizerFast, make: Any) -> None:
    once, four = make(1, 1, 15, 3), make(1, 4, 15, 3)
    for cost in (ModelCost.of(model_of(kind, few_words)) for kind in ("t5 gated", "llama")):
        assert cost.forward(four) < 3 * cost.forward(once)
        assert cost.generation(four) < 2 * cost.generation(once)
    once, four = make(1, 1, 1, 90), make(1, 4, 1, 90)  # long completions have separate rows
    llama = ModelCost.of(model_of("llama", few_words))
    assert llama.forward(four) == 4 * llama.forward(once)


def test_an_unknown_attention_is_refused() -> None:
    with pytest.raises(ModelError, match=r"Sequential cannot be estimated.*o or o_proj"):
        StackCost.of(nn.Sequential(nn.Linear(3, 3)))


def test_totals_are_sums_of_counted_metrics() -> None:
    totals = CostTotals()
    assert totals.as_dict() == {"time/total": 0.0}
    totals.add({"tokens/student_generated": 10.0, "time/rollout": 1.0, "flops/student": 5.0, "loss": 9.0})
    totals.add({"tokens/student_generated": 4.0, "time/rollout": 0.5, "time/teacher": 2.0, "reward/mean": 1.0})
    assert totals.as_dict() == {
        "tokens/student_generated": 14.0,
        "time/rollout": 1.5,
        "flops/student": 5.0,
        "time/teacher": 2.0,
        "time/total": 3.5,
    }


def test_totals_continue_from_saved_ones() -> None:
    steps = [{"time/rollout": 1.0, "tokens/a": 2.0}, {"time/reward": 4.0, "tokens/a": 3.0}]
    whole, first, rest = CostTotals(), CostTotals(), CostTotals()
    for step in steps:
        whole.add(step)
    first.add(steps[0])
    rest.add(first.as_dict())
    rest.add(steps[1])
    assert rest.as_dict() == whole.as_dict()
    assert rest.as_dict()["time/total"] == 5.0
