"""Gradient checkpointing: the same gradient, layers that run twice, and a model whose setting is restored."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from conftest import KINDS, MakeTrainer, assert_close, config_of, gradient_of
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from gkd_rl.pipeline.build_trainer import build_supervised_trainer
from gkd_rl.training.trainer import Trainer

ON = "trainer.gradient_checkpointing=true"


def count_layer_calls(trainer: Trainer) -> list[int]:
    """A list that gets one element for each call of a layer with gradients enabled."""
    calls: list[int] = []

    def count(*_: object) -> None:
        if torch.is_grad_enabled():
            calls.append(1)

    for module in trainer.student.modules():
        if isinstance(
            module, GradientCheckpointingLayer
        ):  # hooks of the layer itself are not called in the recomputation
            next(one for one in module.modules() if isinstance(one, nn.Linear)).register_forward_pre_hook(count)
    return calls


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "extra",
    [
        [],
        ["trainer.diagnose_every=1", "trainer.micro_batch_size=3"],  # two backward passes through one graph
        ["policy_gradient=ppo"],
        ["divergence.kd_credit=reward_to_go", "trainer.head_chunk_tokens=5"],
    ],
    ids=["both terms", "separate terms", "ppo", "credit"],
)
def test_the_gradient_is_the_same_and_layers_run_again(kind: str, extra: list[str], make_trainer: MakeTrainer) -> None:
    """With an adapter the inputs of the layers have no gradient; reentrant checkpointing would compute none."""
    plain, saving = (make_trainer("alpha=0.5", *extra, *more, kind=kind) for more in ([], [ON]))
    plain_calls, calls = count_layer_calls(plain), count_layer_calls(saving)
    expected, _ = gradient_of(plain)
    found, record = gradient_of(saving)
    assert_close(found, expected)
    assert len(calls) > len(plain_calls) > 0
    assert all(one.grad is None for one in saving.student.parameters() if not one.requires_grad)
    assert not saving.student.model.is_activation_checkpointing, "the setting is not restored"
    assert record.metrics["grad_norm"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_the_same_when_a_layer_runs_again(kind: str, make_trainer: MakeTrainer) -> None:
    def gradient(*overrides: str) -> torch.Tensor:
        trainer = make_trainer("alpha=0.5", *overrides, dropout=0.5, kind=kind)
        torch.manual_seed(0)
        return gradient_of(trainer)[0]

    assert_close(gradient(ON), gradient())


@pytest.mark.parametrize(("value", "times"), [("true", 2), ("false", 1)])
def test_the_supervised_stage_has_its_own_setting(value: str, times: int, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("alpha=0.5")
    config = config_of(f"student.sft.gradient_checkpointing={value}", "student.sft.batch_size=2")
    rows = list(trainer.stream.examples)
    supervised = build_supervised_trainer(trainer.student, config.student, trainer.codec, rows, Accelerator(cpu=True))
    calls = count_layer_calls(supervised)
    supervised.step(0)
    layers = sum(isinstance(one, GradientCheckpointingLayer) for one in trainer.student.modules())
    assert len(calls) == times * layers
