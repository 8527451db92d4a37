"""What a teacher said of fixed text: the same numbers with a cold and a warm cache, and one forward to check it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from conftest import (
    MakeExamples,
    MakeModel,
    MakePrompts,
    MakeRollout,
    MakeTrainer,
    codec_of,
    config_of,
    configured,
    models_of,
    padded,
)
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from gkd_rl.architecture import HiddenStateModel
from gkd_rl.build import Models
from gkd_rl.build_teacher import build_outputs
from gkd_rl.build_trainer import build_trainer
from gkd_rl.choices import Quantization
from gkd_rl.errors import ConfigError, ModelError
from gkd_rl.prompt_stream import PromptStream
from gkd_rl.teacher_outputs import TeacherOutputs, completion_keys
from gkd_rl.tensor_shards import TensorShards
from gkd_rl.trainer import Trainer
from gkd_rl.types import Example, PromptBatch, Rollout, Source
from gkd_rl.validation import validate

TOLERANCE, MIB = 1e-3, 2**20
STEPS = 6  # of 4 of 12 prompts: two epochs
SETTINGS = ("alpha=1", "divergence=jsd", "divergence.beta=0.5", "reward=none", "trainer.micro_batch_size=2")
Metrics = list[dict[str, float]]


def outputs_in(folder: Path, limit: int = 64 * MIB) -> TeacherOutputs:
    return TeacherOutputs(TensorShards(folder, limit), TOLERANCE)


def trained(trainer: Trainer) -> tuple[Metrics, list[Rollout]]:
    """The metrics of a run but for its seconds, and what its teacher read."""
    metrics: Metrics = []
    read: list[Rollout] = []
    assert trainer.readers.teacher is not None
    hook = trainer.readers.teacher.register_forward_hook(lambda _, args, __: read.append(args[0]))
    trainer.run(STEPS, lambda _, record: metrics.append(record.metrics))
    hook.remove()
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in metrics], read


def assert_same_run(one: Metrics, other: Metrics) -> None:
    """All numbers but those of the cache."""
    apart = {"flops/teacher", "teacher_cache/hit_share"}
    for row, expected in zip(one, other, strict=True):
        assert row.keys() - apart == expected.keys() - apart
        for name in row.keys() - apart:
            assert row[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("kind", ["t5", "llama with LoRA"])
@pytest.mark.parametrize("lmbda", [0, 0.5])
@pytest.mark.parametrize("source", ["references", "teacher_samples"])
def test_a_cold_and_a_warm_cache_change_no_number(
    kind: str, lmbda: float, source: str, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    samples = [[3 + row % 5, 4, 1][: 1 + row % 3] for row in range(12)] if source == "teacher_samples" else None
    settings = (*SETTINGS, f"lmbda={lmbda}", f"fixed_data={source}")

    def run(outputs: TeacherOutputs | None) -> tuple[Metrics, list[Rollout]]:
        trainer = make_trainer(*settings, kind=kind, samples=samples)
        trainer.readers.outputs = outputs
        return trained(trainer)

    plain, all_read = run(None)
    cold, cold_read = run(outputs_in(tmp_path))
    warm, warm_read = run(outputs_in(tmp_path))
    assert_same_run(cold, plain)
    assert_same_run(warm, plain)

    fixed = [not row["student_data"] for row in plain]
    assert any(fixed) and (all(fixed) is (lmbda == 0))
    of_fixed = [[one for one in read if one.source is not Source.student] for read in (all_read, cold_read, warm_read)]
    of_student = [sum(one.source is Source.student for one in read) for read in (all_read, cold_read, warm_read)]
    assert of_student[0] == of_student[1] == of_student[2] and (of_student[0] > 0) is (lmbda > 0)
    assert len(of_fixed[0]) == 2 * sum(fixed) and len(of_fixed[2]) == 1, "a warm run reads what it checks"
    assert sum(one.n_sequences for one in of_fixed[1]) <= 12 and of_fixed[2][0].n_sequences == 2
    assert len(held(tmp_path)) == len({key for one in of_fixed[0] for key in keys_of(one)})

    for row, is_fixed in zip(plain, fixed, strict=True):
        assert "teacher_cache/hit_share" not in row and row["flops/teacher"] > 0
    for row, expected, is_fixed in zip(cold, plain, fixed, strict=True):
        assert ("teacher_cache/hit_share" in row) is is_fixed
        missed = 1 - row.get("teacher_cache/hit_share", 0.0)
        assert (row["flops/teacher"] > 0) is (missed > 0)
        if missed == 1:
            assert row["flops/teacher"] == pytest.approx(expected["flops/teacher"])
    for number, (row, expected, is_fixed) in enumerate(zip(warm, plain, fixed, strict=True)):
        if is_fixed:
            assert row["teacher_cache/hit_share"] == 1
            checked = number == fixed.index(True)
            assert 0 < row["flops/teacher"] < expected["flops/teacher"] if checked else row["flops/teacher"] == 0
        else:
            assert row["flops/teacher"] == expected["flops/teacher"]


def keys_of(rollout: Rollout) -> list[tuple[int, ...]]:
    """Ids of prompts and completions, without padding."""
    prompts = rollout.prompts
    return [
        (*prompts.ids_PS[p][prompts.mask_PS[p]].tolist(), -1, *ids[mask].tolist())
        for p, ids, mask in zip(rollout.prompt_index_B, rollout.ids_BT, rollout.mask_BT, strict=True)
    ]


def held(folder: Path) -> set[str]:
    return set(TensorShards(folder, MIB)._places)


@pytest.fixture(params=["t5", "llama"])
def teacher(request: pytest.FixtureRequest, make_model: MakeModel, few_words: PreTrainedTokenizerFast) -> Any:
    return make_model(few_words, seed=5, lively=True, model_type=request.param).requires_grad_(False).eval()


@pytest.fixture
def rollout(make_prompts: MakePrompts, make_rollout: MakeRollout) -> Rollout:
    """Three prompts of different lengths with two completions each."""
    prompts = make_prompts([[3, 4, 5, 6], [7], [5, 3]])
    completions = [[3, 4, 1], [5, 1], [6, 7, 3, 4, 5, 1], [4], [5, 3, 7, 1], [3, 1]]
    return replace(make_rollout(prompts, completions, per_prompt=2), source=Source.dataset)


def computing(teacher: HiddenStateModel, read: list[Rollout]) -> Callable[[Rollout], Tensor]:
    def compute(missing: Rollout) -> Tensor:
        read.append(missing)
        return teacher(missing)

    return compute


@pytest.mark.parametrize("known", [[], [0], [3], [1, 2, 4], [0, 1, 2, 3, 4, 5]])
@pytest.mark.parametrize("left", [0, 2])
def test_only_what_is_missing_is_read(
    known: list[int], left: int, teacher: HiddenStateModel, rollout: Rollout, tmp_path: Path
) -> None:
    """Whatever else stands in the micro-batch, and however wide its padding is."""
    if known:
        outputs_in(tmp_path)(teacher, rollout.rows(torch.tensor(known)), teacher.forward)
    outputs, read = outputs_in(tmp_path), []
    if known:
        warm = TeacherOutputs(TensorShards(tmp_path / "kept", MIB), TOLERANCE, checked=True)
        warm(teacher, rollout.rows(torch.tensor(known)), teacher.forward)
        warm.shards.write()
        outputs = TeacherOutputs(TensorShards(tmp_path / "kept", MIB), TOLERANCE, checked=True)
    wide = replace(rollout, prompts=padded(rollout.prompts, left, 1)).rows(torch.arange(6))
    hidden_BTD, hits = outputs(teacher, wide, computing(teacher, read))
    assert hits == len(known)
    assert [keys_of(one) for one in read] == ([[keys_of(rollout)[i] for i in range(6) if i not in known]] if hits < 6 else [])
    expected_BTD = teacher(rollout)
    assert hidden_BTD.shape == expected_BTD.shape and hidden_BTD.dtype == expected_BTD.dtype
    torch.testing.assert_close(hidden_BTD[rollout.mask_BT], expected_BTD[rollout.mask_BT], rtol=1e-5, atol=1e-5)
    assert (hidden_BTD[~rollout.mask_BT] == 0).all()
