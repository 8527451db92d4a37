"""The audit of a quantised teacher: 0 for the same model, else the KL on all logits, and where it is reported."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import MakeExamples, MakeModel, config_of, models_of
from transformers import PreTrainedTokenizerFast

from gkd_rl.config.choices import Dtype, Quantization
from gkd_rl.evaluation.evaluator import Evaluation, TeacherAudit, kl_between, student_rollouts
from gkd_rl.generation.codec import TextCodec
from gkd_rl.generation.sampler import Sampler, Sampling
from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.models.placement import quantized
from gkd_rl.outputs.tables import Estimate
from gkd_rl.pipeline.models import audit_teacher, placed_teacher
from gkd_rl.pipeline.results import Results, model_card_of, write_results
from gkd_rl.types import Rollout

CPU = torch.device("cpu")
AUDIT = TeacherAudit(Dtype.float32, Quantization.int8, Estimate(0.000412, 0.00035, 0.00049, 64))
REPORT = "KL(float32 || int8) = 0.00041 [0.00035, 0.00049] nats per token on 64 student rollouts"


@pytest.fixture
def teacher(make_model: MakeModel, few_words: PreTrainedTokenizerFast) -> HiddenStateModel:
    return make_model(few_words, seed=28, lively=True, d_model=64, d_ff=64).eval()


@pytest.fixture
def student(make_model: MakeModel, few_words: PreTrainedTokenizerFast) -> HiddenStateModel:
    return make_model(few_words, seed=8, lively=True).eval()


@pytest.fixture
def rollouts(student: HiddenStateModel, codec: TextCodec, make_examples: MakeExamples) -> list[Rollout]:
    found = student_rollouts(student, Sampler(codec, Sampling()), make_examples(20), 8, seed=0)
    assert [rollout.n_sequences for rollout in found] == [8, 8, 4]
    return found


def quantised(teacher: HiddenStateModel, bits: Quantization) -> HiddenStateModel:
    return HiddenStateModel(quantized(copy.deepcopy(teacher.model), bits, CPU)).eval()


@torch.no_grad()
def test_it_is_the_kl_on_all_logits(teacher: HiddenStateModel, rollouts: list[Rollout], codec: TextCodec) -> None:
    """Of the full model from the quantised one, in this order, averaged over each completion's tokens."""
    other = quantised(teacher, Quantization.nf4)
    expected = []
    for rollout in rollouts:
        p, q = (model.head().logits(model(rollout), codec.vocabulary).softmax(-1) for model in (teacher, other))
        kl_BT = (p * (p / q).log()).sum(-1) * rollout.mask_BT
        expected += (kl_BT.sum(1) / rollout.mask_BT.sum(1)).tolist()
    found = kl_between(teacher, other, rollouts, 5, codec.vocabulary)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


def test_it_is_0_for_the_same_model_and_grows_with_fewer_bits(
    teacher: HiddenStateModel, rollouts: list[Rollout], codec: TextCodec
) -> None:
    means = [
        kl_between(teacher, other, rollouts, 100, codec.vocabulary).mean()
        for other in (
            copy.deepcopy(teacher),
            quantised(teacher, Quantization.int8),
            quantised(teacher, Quantization.nf4),
        )
    ]
    assert means[0] == 0
    assert 0 < 10 * means[1] < means[2]


@pytest.mark.parametrize(
    ("overrides", "audits"),
    [
        (["teacher.quantization=int8", "teacher.audit_prompts=6"], True),
        (["teacher.quantization=int8", "teacher.audit_prompts=0"], False),
        (["teacher.audit_prompts=6"], False),
    ],
)
def test_only_a_quantised_teacher_is_audited(
    overrides: list[str],
    audits: bool,
    student: HiddenStateModel,
    teacher: HiddenStateModel,
    codec: TextCodec,
    make_examples: MakeExamples,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = config_of(*overrides)
    assert config.teacher is not None
    loads: list[HiddenStateModel] = []

    def prepare_teacher(*_: Any) -> HiddenStateModel:
        loads.append(copy.deepcopy(teacher))
        return loads[-1]

    monkeypatch.setattr("gkd_rl.pipeline.models._prepare_teacher", prepare_teacher)
    models = models_of(student, placed_teacher(copy.deepcopy(teacher), config.teacher, CPU), codec)
    resolved: Any = None  # used to load the full-precision teacher only
    audit = audit_teacher(config, resolved, models, [], make_examples(20), Accelerator(cpu=True))
    assert len(loads) == audits
    assert (audit is not None) == audits
    if audit is not None:
        assert audit.kl.n == 6
        assert 0 < audit.kl.low < audit.kl.mean < audit.kl.high


def test_it_stands_in_the_results_the_caption_and_the_card(tmp_path: Path) -> None:
    assert str(AUDIT) == REPORT
    metrics = {name: np.array([1.0, 2.0]) for name in ("rouge2", "sampled/rouge2")}
    evaluations = {name: Evaluation(metrics, ["a", "b"]) for name in ("student before", "student after")}
    config = config_of("teacher.quantization=int8")
    results = Results(evaluations, ["a", "b"], 100, {}, {}, {}, AUDIT)
    table = " ".join(write_results(tmp_path, results, config).split())
    assert f"teacher audit {REPORT}" in table
    assert "imitates the teacher in int8" in table
    written = json.loads((tmp_path / "eval.json").read_text())["teacher_audit"]
    assert written["mean"] == AUDIT.kl.mean
    assert (written["dtype"], written["quantization"], written["n"]) == ("float32", "int8", 64)
    assert "teacher audit | KL(float32" in model_card_of(results, config, "AutoModelForSeq2SeqLM")
    write_results(tmp_path, Results(evaluations, ["a", "b"], 100, {}, {}), config_of())
    assert "teacher_audit" not in json.loads((tmp_path / "eval.json").read_text())
