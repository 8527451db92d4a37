"""The teacher output cache: the same metrics without, with a new and with a filled cache, and one verifying pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
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

from gkd_rl.config.validation import validate
from gkd_rl.data.prompt_order import PromptStream
from gkd_rl.errors import ConfigError, ModelError
from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.pipeline.build import Models
from gkd_rl.pipeline.build_trainer import build_trainer
from gkd_rl.pipeline.models import build_teacher_output_cache
from gkd_rl.training.teacher_data import TeacherOutputCache, TensorShards, completion_keys
from gkd_rl.training.trainer import Trainer
from gkd_rl.types import Example, PromptBatch, Rollout, Source

TOLERANCE, MIB = 1e-3, 2**20
STEPS = 6  # of 4 of 12 prompts: two epochs
SETTINGS = ("alpha=1", "divergence=jsd", "divergence.beta=0.5", "reward=none", "trainer.micro_batch_size=2")
Metrics = list[dict[str, float]]


def cache_in(folder: Path, limit: int = 64 * MIB) -> TeacherOutputCache:
    return TeacherOutputCache(TensorShards(folder, limit), TOLERANCE)


def train(trainer: Trainer) -> tuple[Metrics, list[Rollout]]:
    """The metrics of a run without its seconds, and the rollouts that its teacher computed."""
    metrics: Metrics = []
    computed: list[Rollout] = []
    assert trainer.models.teacher is not None
    hook = trainer.models.teacher.register_forward_hook(lambda _, args, __: computed.append(args[0]))
    trainer.run(STEPS, lambda _, record: metrics.append(record.metrics))
    hook.remove()
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in metrics], computed


def assert_same_run(one: Metrics, other: Metrics) -> None:
    """All metrics except those of the cache."""
    own = {"flops/teacher", "teacher_cache/hit_share"}
    for row, expected in zip(one, other, strict=True):
        assert row.keys() - own == expected.keys() - own
        for name in row.keys() - own:
            assert row[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize(
    ("kind", "lmbda", "source"),
    [
        pytest.param("t5", 0, "references", marks=pytest.mark.exhaustive),
        ("t5", 0.5, "teacher_samples"),
        ("llama", 0, "teacher_samples"),
        pytest.param("llama with LoRA", 0.5, "references", marks=pytest.mark.exhaustive),
    ],
)
def test_a_new_and_a_filled_cache_change_no_metric(
    kind: str, lmbda: float, source: str, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    samples = [[3 + row % 5, 4, 1][: 1 + row % 3] for row in range(12)] if source == "teacher_samples" else None
    settings = (*SETTINGS, f"lmbda={lmbda}", f"fixed_data={source}")

    def run(outputs: TeacherOutputCache | None) -> tuple[Metrics, list[Rollout]]:
        trainer = make_trainer(*settings, kind=kind, samples=samples)
        trainer.models.output_cache = outputs
        return train(trainer)

    plain, plain_computed = run(None)
    cold, cold_computed = run(cache_in(tmp_path))
    warm, warm_computed = run(cache_in(tmp_path))
    assert_same_run(cold, plain)
    assert_same_run(warm, plain)

    fixed = [not row["student_data"] for row in plain]
    assert any(fixed) and (all(fixed) is (lmbda == 0))
    runs = (plain_computed, cold_computed, warm_computed)
    of_fixed = [[one for one in computed if one.source is not Source.student] for computed in runs]
    of_student = [sum(one.source is Source.student for one in computed) for computed in runs]
    assert of_student[0] == of_student[1] == of_student[2] and (of_student[0] > 0) is (lmbda > 0)
    assert len(of_fixed[0]) == 2 * sum(fixed) and len(of_fixed[2]) == 1, (
        "a run with a filled cache computes only what it verifies"
    )
    assert sum(one.n_sequences for one in of_fixed[1]) <= 12 and of_fixed[2][0].n_sequences == 2
    assert len(stored_keys(tmp_path)) == len({key for one in of_fixed[0] for key in keys_of(one)})

    for row in plain:
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


def stored_keys(folder: Path) -> set[str]:
    return set(TensorShards(folder, MIB)._shard_of)


@pytest.fixture(params=["t5", "llama"])
def teacher(
    request: pytest.FixtureRequest, make_model: MakeModel, few_words: PreTrainedTokenizerFast
) -> HiddenStateModel:
    return make_model(few_words, seed=5, lively=True, model_type=request.param).requires_grad_(False).eval()


@pytest.fixture
def rollout(make_prompts: MakePrompts, make_rollout: MakeRollout) -> Rollout:
    """Three prompts of different lengths with two completions each."""
    prompts = make_prompts([[3, 4, 5, 6], [7], [5, 3]])
    completions = [[3, 4, 1], [5, 1], [6, 7, 3, 4, 5, 1], [4], [5, 3, 7, 1], [3, 1]]
    return replace(make_rollout(prompts, completions, per_prompt=2), source=Source.dataset)


def computing(teacher: HiddenStateModel, computed: list[Rollout]) -> Callable[[Rollout], Tensor]:
    def compute(missing: Rollout) -> Tensor:
        computed.append(missing)
        return teacher(missing)

    return compute


def filled_cache(folder: Path, teacher: HiddenStateModel, text: Rollout, checked: bool = False) -> TeacherOutputCache:
    """A new instance, with the teacher's outputs on a rollout on disk."""
    first = cache_in(folder)
    first(teacher, text, teacher.forward)
    first.shards.write()
    return replace(cache_in(folder), checked=checked)


@pytest.mark.parametrize("known", [[], [0], [3], [1, 2, 4], [0, 1, 2, 3, 4, 5]])
@pytest.mark.parametrize("left", [0, 2])
def test_only_missing_completions_are_computed(
    known: list[int], left: int, teacher: HiddenStateModel, rollout: Rollout, tmp_path: Path
) -> None:
    """Independent of the rest of the micro-batch and of its padding."""
    outputs, computed = cache_in(tmp_path), []
    if known:
        outputs = filled_cache(tmp_path, teacher, rollout.rows(torch.tensor(known)), checked=True)
    wide = replace(rollout, prompts=padded(rollout.prompts, left, 1)).rows(torch.arange(6))
    hidden_BTD, hits = outputs(teacher, wide, computing(teacher, computed))
    assert hits == len(known)
    missing = [key for row, key in enumerate(keys_of(rollout)) if row not in known]
    assert [keys_of(one) for one in computed] == ([missing] if missing else [])
    expected_BTD = teacher(rollout)
    assert hidden_BTD.shape == expected_BTD.shape and hidden_BTD.dtype == expected_BTD.dtype
    mask_BT = rollout.mask_BT
    torch.testing.assert_close(hidden_BTD[mask_BT], expected_BTD[mask_BT], rtol=1e-5, atol=1e-5)
    assert (hidden_BTD[~mask_BT] == 0).all()


def test_the_first_stored_states_are_computed_again(
    teacher: HiddenStateModel, rollout: Rollout, tmp_path: Path
) -> None:
    """Once, and not states that this run has just computed."""
    outputs, computed = filled_cache(tmp_path, teacher, rollout.rows(torch.tensor([0, 1]))), []
    compute = computing(teacher, computed)
    last, first, whole = (rollout.rows(torch.tensor(rows)) for rows in ([4, 5], [0], range(6)))
    for micro, count, hits in ((last, 2, 0), (last, 0, 2), (whole, 6, 4), (first, 0, 1), (whole, 0, 6)):
        computed.clear()
        assert outputs(teacher, micro, compute)[1] == hits
        assert sum(one.n_sequences for one in computed) == count


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("noise", "accepted"), [(0.0, True), (0.3, True), (3.0, False), (float("nan"), False)])
def test_states_that_differ_by_more_than_rounding_are_refused(
    noise: float, accepted: bool, dtype: torch.dtype, teacher: HiddenStateModel, rollout: Rollout, tmp_path: Path
) -> None:
    """One completion of six gets noise, in units of the tolerance."""
    tolerance = 1e-3 if dtype is torch.float32 else 5e-2
    hidden_BTD = teacher.to(dtype)(rollout)
    other_BTD = hidden_BTD.clone()
    direction_TD = torch.randn(other_BTD[4].shape, generator=torch.Generator().manual_seed(0))
    length = int(rollout.mask_BT[4].sum())
    scale = hidden_BTD[4, :length].float().norm() / direction_TD[:length].norm()
    other_BTD[4] += (direction_TD * scale * noise * tolerance).to(dtype)
    stored = cache_in(tmp_path)
    stored(teacher, rollout, lambda _: other_BTD)
    stored.shards.write()
    outputs = TeacherOutputCache(TensorShards(tmp_path, MIB), tolerance)
    if accepted:
        assert torch.equal(
            outputs(teacher, rollout, lambda _: hidden_BTD)[0][rollout.mask_BT], hidden_BTD[rollout.mask_BT]
        )
        return
    with pytest.raises(ModelError, match=r"Delete that folder, or set teacher.output_cache_gib=null") as caught:
        outputs(teacher, rollout, lambda _: hidden_BTD)
    assert str(tmp_path) in str(caught.value) and f"explains {tolerance:g}" in str(caught.value)


def test_another_teacher_of_the_same_folder_is_refused(
    make_trainer: MakeTrainer, make_model: MakeModel, few_words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    def trainer_with_cache() -> Trainer:
        trainer = make_trainer(*SETTINGS, "lmbda=0")
        trainer.models.output_cache = cache_in(tmp_path)
        return trainer

    train(trainer_with_cache())
    trainer = trainer_with_cache()
    for width, text in (
        (24, r"states of a completion differ by \S+ of their norm"),
        (16, "differ by inf of their norm"),
    ):
        trainer.models.teacher = make_model(few_words, seed=29, lively=True, d_model=width).eval()
        with pytest.raises(ModelError, match=text) as caught:
            train(trainer)
        assert str(tmp_path) in str(caught.value)


def test_a_failing_run_keeps_its_outputs(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(*SETTINGS, "lmbda=0")
    trainer.models.output_cache = cache_in(tmp_path)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.run(STEPS, fail)
    assert len(stored_keys(tmp_path)) == 4


def test_a_small_or_damaged_cache_changes_no_metric(
    make_trainer: MakeTrainer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def run(limit: int | None) -> tuple[Metrics, list[Rollout]]:
        trainer = make_trainer(*SETTINGS, "lmbda=0")
        trainer.models.output_cache = None if limit is None else cache_in(tmp_path, limit)
        return train(trainer)

    plain, _ = run(None)
    small, computed = run(3000)
    assert_same_run(small, plain)
    kept = len(stored_keys(tmp_path))
    assert 0 < kept < 12 and 0 <= sum(one.n_sequences for one in computed) - 24 + kept <= 2  # those verified
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 3000
    (record,) = caplog.records
    assert "nothing more is added" in record.message
    (shard,) = tmp_path.iterdir()
    shard.write_bytes(shard.read_bytes()[:-5])
    caplog.clear()
    assert_same_run(run(64 * MIB)[0], plain)
    (record,) = caplog.records
    assert str(shard) in record.message
    _, computed = run(64 * MIB)
    assert len(computed) == 1, "the damaged outputs are stored again"


def test_keys_are_hashes_of_the_teachers_inputs(
    teacher: HiddenStateModel, rollout: Rollout, make_prompts: MakePrompts
) -> None:
    keys = completion_keys(teacher, rollout)
    assert len(set(keys)) == 6
    assert completion_keys(teacher, replace(rollout, prompts=padded(rollout.prompts, 3, 2)).extended()) == keys
    assert completion_keys(teacher, rollout.rows(torch.tensor([2, 5]))) == [keys[2], keys[5]]
    others = replace(rollout, prompts=make_prompts([[3, 4, 4, 6], [6], [3, 3]]))  # of the same lengths
    assert set(completion_keys(teacher, others)).isdisjoint(keys)
    moved = make_prompts([[3, 4, 5, 6, 1], [7], [5, 3]])
    moved.ids_PS[0, -1] = 3  # the completion's first token moves to the prompt: the same ids together
    shifted = replace(rollout, prompts=moved, ids_BT=rollout.ids_BT.clone(), mask_BT=rollout.mask_BT.clone())
    shifted.ids_BT[0, :3] = torch.tensor([4, 1, 0])
    shifted.mask_BT[0, 2] = False
    assert completion_keys(teacher, shifted)[0] not in keys and completion_keys(teacher, shifted)[2:] == keys[2:]

    class Own:
        def prompts(self, examples: list[Example]) -> PromptBatch:
            return make_prompts([[4], [4, 5], [4, 5, 6]])

    teacher.codec = Own()  # pyright: ignore[reportAttributeAccessIssue]
    assert set(completion_keys(teacher, rollout)).isdisjoint(keys)


def test_the_builder_uses_one_folder_for_each_teacher(
    make_model: MakeModel,
    make_examples: MakeExamples,
    few_words: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    codec, rows = codec_of("t5", few_words), make_examples(6)
    student, teacher = (make_model(few_words, seed=seed) for seed in (0, 1))
    resolved: Any = SimpleNamespace(codec_of_teacher=codec)
    base = ("alpha=1", "lmbda=0", f"cache_dir={tmp_path}", "teacher.output_cache_gib=0.5", "teacher.path=null")

    def built(*overrides: str, rows: list[Example] = rows) -> tuple[TeacherOutputCache, Models]:
        models = models_of(student, teacher, codec)
        outputs = build_teacher_output_cache(config_of(*base, *overrides), resolved, models, rows)
        assert outputs is not None
        return outputs, replace(models, outputs=outputs)

    outputs, models = built()
    folder = outputs.shards.folder
    assert folder.parent == tmp_path / "teacher_outputs" and outputs.shards._limit == 2**29
    assert outputs.tolerance == 1e-3
    trainer = build_trainer(config_of(*base), models, None, PromptStream(rows, 4, 0), Accelerator(cpu=True))
    assert trainer.models.output_cache is outputs
    same = ("alpha=0.5", "lmbda=0.5", "divergence=reverse_kl", "seed=3", "divergence.temperature=2", "student.seed=9")
    for one in (*same, "teacher.output_cache_gib=7", "teacher.audit_prompts=3"):
        assert built(one)[0].shards.folder == folder, one
    others = ("teacher.quantization=int8", "teacher.dtype=bfloat16", "teacher.seed=7", "teacher.sft.steps=3")
    found = {built(one)[0].shards.folder for one in (*others, "teacher.device=cpu", "teacher.keep_layers=[0]")}
    found |= {built(rows=rows[:5])[0].shards.folder, folder}
    monkeypatch.setattr("gkd_rl.pipeline.cache.version", lambda _: "0")
    assert len(found | {built()[0].shards.folder}) == 9
    assert [built(one)[0].tolerance for one in others[:2]] == [0.1, 0.05]
    assert build_teacher_output_cache(config_of("teacher.output_cache_gib=null"), resolved, models, rows) is None
    assert built("teacher.quantization=nf4")[0].tolerance == 0.1


CACHE = "teacher.output_cache_gib=2"
ENDPOINT = ["teacher=endpoint", "teacher.endpoint.model=m"]


@pytest.mark.parametrize(
    ("overrides", "instead"),
    [
        (["lmbda=1"], "lmbda below 1"),
        (["lmbda=1", "alpha=0"], "lmbda below 1"),
        (["lmbda=0", "divergence=cross_entropy"], "divergence=jsd"),
        (["lmbda=0", *ENDPOINT], "teacher.endpoint=null"),
        (["lmbda=1", *ENDPOINT], "teacher.endpoint=null"),
        (["lmbda=0.5", "teacher=initial_student"], "teacher.initial_student=false"),
        (["lmbda=0.5", "teacher.initial_student=true"], "teacher.initial_student=false"),
        (["lmbda=0", "teacher.prompts=shuffled"], "teacher.prompts=own"),
    ],
)
def test_a_cache_without_use_is_refused(overrides: list[str], instead: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(configured("alpha=1", *overrides, CACHE))
    (problem,) = [one for one in caught.value.problems if "output_cache_gib" in one]
    assert problem.startswith("teacher.output_cache_gib=2.0 ")
    assert problem.endswith(f"{instead}.") and "set teacher.output_cache_gib=null" in problem


def test_without_a_divergence_there_is_one_error() -> None:
    """alpha = 0 with fixed data is refused anyway."""
    for lmbda in (0, 0.5):
        with pytest.raises(ConfigError, match="alpha=0"):
            validate(configured("alpha=0", f"lmbda={lmbda}", CACHE))


def test_the_size_is_positive() -> None:
    with pytest.raises(ConfigError, match=r"teacher.output_cache_gib=0.* is out of range"):
        validate(configured("alpha=1", "lmbda=0", "teacher.output_cache_gib=0"))
    validate(configured("alpha=1", "lmbda=0", CACHE))
    validate(configured("alpha=0.5", "lmbda=0.5", CACHE, "fixed_data=teacher_samples"))
