"""Methods are settings: each of them does what its name says, and every experiment really runs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import (
    KINDS,
    MakeTrainer,
    assert_close,
    codec_of,
    config_of,
    derivative,
    essential,
    gradient_of,
    letters,
    logits_of,
)
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from torch.optim import AdamW
from transformers import get_scheduler

from gkd_rl.config import Config
from gkd_rl.config.choices import DivergenceName
from gkd_rl.config.validation import validate
from gkd_rl.data.prompt_order import choose_source as choose
from gkd_rl.errors import ConfigError
from gkd_rl.pipeline import build
from gkd_rl.pipeline.experiment import run_configured
from gkd_rl.run import find_config_dir
from gkd_rl.training.trainer import Trainer
from gkd_rl.types import Rollout, Source
from reward_models.composite import Composite

FREE = ("trainer.max_grad_norm=1e9", "trainer.warmup_steps=0", "trainer.learning_rate=0.02")
NEEDS_TEACHER = [name.value for name in DivergenceName if name is not DivergenceName.cross_entropy]


def parameters_of(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([one.detach().flatten() for one in model.parameters()])


def read_by_teacher(trainer: Trainer) -> list[Rollout]:
    """What the teacher will read."""
    read: list[Rollout] = []
    assert trainer.models.teacher is not None
    trainer.models.teacher.register_forward_hook(lambda _, args, __: read.append(args[0]))
    return read


@pytest.mark.parametrize("lmbda", [0.0, 0.1, 0.25, 0.5, 0.9, 1.0])
def test_lambda_is_the_share_of_steps_on_student_text(lmbda: float) -> None:
    for seed in (0, 1):
        steps = [choose(lmbda, seed, step) for step in range(10_000)]
        assert steps.count(Source.student) / 10_000 == pytest.approx(lmbda, abs=0.015)
        assert steps[:500] == [choose(lmbda, seed, step) for step in range(500)]
        teacher = [choose(lmbda, seed, step, Source.teacher) for step in range(500)]
        assert [one is Source.student for one in teacher] == [one is Source.student for one in steps[:500]]
        if 0 < lmbda < 1:
            assert steps != [choose(lmbda, seed + 2, step) for step in range(10_000)]
        else:
            assert len(set(steps)) == 1


def test_a_larger_lambda_keeps_the_steps_of_a_smaller_one() -> None:
    """One coin per (seed, step): sweeps over lambda are paired."""
    for step in range(300):
        sources = [choose(lmbda, 3, step) is Source.student for lmbda in (0.0, 0.3, 0.6, 1.0)]
        assert sources == sorted(sources)


@pytest.mark.parametrize("kind", KINDS)
def test_supervised_kd_by_hand(kind: str, make_trainer: MakeTrainer) -> None:
    """Five steps of forward KL on the references: transformers' logits, AdamW and schedule; nothing is sampled."""
    rate, steps = 0.01, 5
    settings = ("trainer.warmup_steps=2", f"trainer.steps={steps}", f"trainer.learning_rate={rate}")
    settings += ("trainer.weight_decay=0.1", "trainer.micro_batch_size=3", "trainer.prompts_per_step=4")
    trainer = make_trainer("experiment=supervised_kd", *settings, kind=kind)
    assert (trainer.settings.lmbda, trainer.alpha(0)) == (0, 1)
    trainer.sampler.sample = None  # pyright: ignore[reportAttributeAccessIssue] so that sampling would fail
    teacher = trainer.models.teacher
    student = make_trainer("alpha=1", kind=kind).student
    assert teacher is not None
    assert torch.equal(parameters_of(student), parameters_of(trainer.student))
    trained = [one for one in student.parameters() if one.requires_grad]
    optimizer = AdamW(trained, lr=rate, weight_decay=0.1)
    schedule = get_scheduler("linear", optimizer, num_warmup_steps=2, num_training_steps=steps)
    for step in range(steps):
        rows = [trainer.stream.examples[row] for row in trainer.stream.rows(step)]
        given = codec_of(kind, trainer.codec.tokenizer).references(rows)
        assert list(given.texts) == [row.reference for row in rows]
        with torch.no_grad():
            p = logits_of(teacher, given).log_softmax(-1)
        q = logits_of(student, given).log_softmax(-1)
        kl = (p.exp() * (p - q)).sum(-1) * given.mask_BT
        loss = (kl.sum(1) / given.mask_BT.sum(1)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        record = trainer.step(step)
        assert record.rollout.source is Source.dataset
        assert record.metrics["loss"] == pytest.approx(loss.item(), rel=1e-4)
        torch.testing.assert_close(parameters_of(trainer.student), parameters_of(student), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("divergence", ["tvd", "cross_entropy"])
def test_other_steps_read_the_teachers_samples(kind: str, divergence: str, make_trainer: MakeTrainer) -> None:
    """f-distill and SeqKD: the ids as the teacher wrote them, ended or cut."""
    samples = [[3 + i % 5, 3 + i // 5, 1] if i % 2 else [7, 3 + i % 5] for i in range(12)]
    method = ("alpha=1", "lmbda=0", "fixed_data=teacher_samples", f"divergence={divergence}", *FREE)
    trainer = make_trainer(*method, samples=samples, kind=kind)
    trainer.sampler.sample = None  # pyright: ignore[reportAttributeAccessIssue]
    read = read_by_teacher(trainer) if divergence == "tvd" else []
    for step in range(2):
        gradient, record = gradient_of(trainer, step)
        rollout = record.rollout
        expected = [samples[row] for row in trainer.stream.rows(step)]
        rows = zip(rollout.ids_BT, rollout.mask_BT, strict=True)
        assert [ids[mask].tolist() for ids, mask in rows] == expected
        assert rollout.truncated_B.tolist() == [1 not in one for one in expected]
        assert rollout.source is Source.teacher
        assert record.scores is None
        assert gradient.norm() > 0
        assert record.metrics["tokens/teacher_generated"] == sum(map(len, expected))
        assert record.metrics["tokens/student_generated"] == record.metrics["student_data"] == 0
    assert (trainer.models.teacher is None) is (divergence == "cross_entropy")
    assert len(read) == (2 if divergence == "tvd" else 0)


def test_teacher_samples_mix_with_rollouts_at_lambda(make_trainer: MakeTrainer) -> None:
    method = ("experiment=f_distill", "trainer.prompts_per_step=4", "rollout.per_prompt=2")
    trainer = make_trainer(*method, samples=[[3, 1]] * 12)
    sources = [trainer.step(step).rollout.source for step in range(8)]
    assert sources == [choose(0.5, 0, step, Source.teacher) for step in range(8)]
    assert set(sources) == {Source.student, Source.teacher}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("divergence", NEEDS_TEACHER)
def test_a_teacher_that_is_the_student_has_nothing_to_teach(
    kind: str, divergence: str, make_trainer: MakeTrainer
) -> None:
    method = ("alpha=1", f"divergence={divergence}", *FREE)
    gradient, record = gradient_of(make_trainer(*method, same=True, kind=kind))
    assert record.metrics["divergence"] == pytest.approx(0, abs=1e-6)
    if divergence != "tvd":  # whose gradient is the sign of the last bit's difference
        assert gradient.norm() < 1e-5
    other, record = gradient_of(make_trainer(*method, kind=kind))
    assert record.metrics["divergence"] > 0.01
    assert other.norm() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [64, 3])
def test_a_shuffled_teacher_reads_another_prompt(kind: str, size: int, make_trainer: MakeTrainer) -> None:
    sizes = (f"trainer.micro_batch_size={size}", "trainer.prompts_per_step=4", "rollout.per_prompt=2")
    trainer = make_trainer("experiment=shuffled_teacher", *sizes, *FREE, kind=kind)
    read = read_by_teacher(trainer)
    gradient, record = gradient_of(trainer)
    rollout = record.rollout
    prompts = [(prompt, text) for part in read for prompt, text in prompts_and_texts(part)]
    assert len({row.prompt for row in rollout.prompts.examples}) == 4
    own = list(prompts_and_texts(rollout))
    assert sorted(text for _, text in prompts) == sorted(text for _, text in own)
    following = {one: own[(2 * i + 2) % 8][0] for i, one in enumerate(prompt for prompt, _ in own[::2])}
    assert sorted(prompts) == sorted((following[prompt], text) for prompt, text in own)
    straight, plain = gradient_of(make_trainer("experiment=gkd", *sizes, *FREE, kind=kind))
    assert plain.rollout.texts == rollout.texts
    assert abs(plain.metrics["divergence"] - record.metrics["divergence"]) > 1e-3
    assert (straight - gradient).norm() > 1e-2 * straight.norm()


def prompts_and_texts(rollout: Rollout) -> list[tuple[tuple[int, ...], str]]:
    """The words that a model reads before each completion, and the completion."""
    prompts = rollout.prompts
    ids = [tuple(row[mask].tolist()) for row, mask in zip(prompts.ids_PS, prompts.mask_PS, strict=True)]
    return [(ids[i], text) for i, text in zip(rollout.prompt_index_B.tolist(), rollout.texts, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_fixed_advantage_ignores_the_reward(kind: str, make_trainer: MakeTrainer) -> None:
    """REINFORCE with -1 for every completion: the gradient of the mean log-probability."""

    def other(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
        return [-5.0 + len(text) for text in completions]

    method = ("experiment=fixed_negative_advantage", *FREE)
    gradient, record = gradient_of(make_trainer(*method, kind=kind))
    again, again_record = gradient_of(make_trainer(*method, reward=other, kind=kind))
    assert torch.equal(gradient, again)
    assert record.metrics["reward/mean"] != again_record.metrics["reward/mean"]
    doubled, _ = gradient_of(make_trainer(*method, "policy_gradient.fixed_advantage=2", kind=kind))
    assert_close(doubled, -2 * gradient)
    rewarded, _ = gradient_of(make_trainer("experiment=rl", *FREE, kind=kind))
    assert (rewarded - gradient).norm() > 0.1 * gradient.norm()


@pytest.mark.parametrize("kind", ["t5", "llama"])  # of an adapter: tests/models/test_adapter.py
def test_the_initial_student_as_a_teacher(kind: str, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("experiment=rlef", *FREE, kind=kind, reward=letters)
    teacher = trainer.models.teacher
    assert teacher is trainer.models.initial and teacher is not trainer.student and teacher is not None
    start = parameters_of(trainer.student)
    divergences = [trainer.step(step).metrics["divergence"] for step in range(3)]
    assert divergences[0] == pytest.approx(0, abs=1e-6)
    assert min(divergences[1:]) > 1e-4
    assert torch.equal(parameters_of(teacher), start)
    assert not any(one.requires_grad for one in teacher.parameters())
    assert not torch.equal(parameters_of(trainer.student), start)


@pytest.mark.parametrize("place", ["reward", "loss"])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_sampled_kl_is_taken_where_it_follows_the_kl(
    kind: str, estimator: str, place: str, make_trainer: MakeTrainer
) -> None:
    key = "policy_gradient.sampled_kl"
    setting = ("alpha=0", f"{key}.estimator={estimator}", f"{key}.place={place}")
    config = config_of(*setting, f"{key}.coefficient=0.5")
    follows = {
        ("k1", "loss"): "expected gradient is 0",
        ("k3", "loss"): "forward KL",
        ("k2", "reward"): "of no KL",
        ("k3", "reward"): "minus KL(initial || student)",
    }.get((estimator, place))
    validate(config_of(*setting))  # off
    if follows is not None:
        with pytest.raises(ConfigError) as caught:
            validate(config)
        (problem,) = caught.value.problems
        assert follows in problem and f"{key}.estimator={estimator}" in problem
        return
    validate(config)

    def equal(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
        return [1.0] * len(completions)

    def step(*overrides: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The gradient of the step, and that of the full KL at every token of its samples."""
        trainer = make_trainer(*setting, *FREE, *overrides, "rollout.per_prompt=64", reward=equal, kind=kind)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(0)
            for one in trainer.student.parameters():  # away from the initial student
                one.add_(0.15 * torch.randn(one.shape, generator=generator) * one.requires_grad)
        found, record = gradient_of(trainer)
        rollout, initial = record.rollout, trainer.models.initial
        assert initial is not None
        own, other = ((one(rollout) @ one.head().weight_VD.T).log_softmax(-1) for one in (trainer.student, initial))
        kl = (own.exp() * (own - other.detach())).sum(-1)[rollout.mask_BT].sum() / rollout.n_sequences
        return found, derivative(kl, trainer.student)

    free, _ = step()
    assert free.norm() == 0  # equal rewards alone move nothing
    held, kl = step(f"{key}.coefficient=0.5")
    assert torch.cosine_similarity(held, kl, dim=0) > 0.3
    twice, _ = step(f"{key}.coefficient=1")
    assert_close(twice, 2 * held)


TINY = [
    *("task.train_size=40", "task.test_size=6", "task.max_completion_tokens=6", "scale.threads=1", "tracking=none"),
    *("trainer.steps=2", "trainer.diagnose_every=1", "trainer.prompts_per_step=4", "trainer.warmup_steps=0"),
    *("trainer.log_every=1", "save_model=false"),
    *("evaluation.rollout_prompts=6", "evaluation.self_bleu_prompts=0", "evaluation.bootstrap_samples=100"),
]
SMALL_TEACHER = ["teacher.sft.steps=2", "teacher.sft.batch_size=8"]
EXPERIMENTS = sorted(path.stem for path in (find_config_dir() / "experiment").glob("*.yaml"))
Run = Callable[..., tuple[Config, float, Path]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`run("alpha=0")`: a whole run at tiny sizes; all of them share one cache.

    Where there is a reward, `letters` is added to it: two supervised steps write nothing that is supported.
    """
    folder = tmp_path_factory.mktemp("methods")
    build_reward = build.build_reward

    def with_letters(config: Config) -> Composite | None:
        reward = build_reward(config)
        if reward is None:
            return None
        components = {name: guarded.reward for name, guarded in reward.components.items()}
        return Composite({**components, "letters": letters}, {**reward.weights, "letters": 1.0}, reward.guard)

    def start(*overrides: str, teacher: bool = True, student: bool = True) -> tuple[Config, float, Path]:
        small = [*TINY, f"cache_dir={folder / 'cache'}"]
        small += ["student.sft.steps=2", "student.sft.batch_size=8"] if student else []
        small += SMALL_TEACHER if teacher else []
        with initialize_config_dir(str(find_config_dir()), version_base="1.3"):
            composed = compose("config", [*small, *overrides])
            if "entailment" in composed.reward.components:  # it would train a model of its own first
                composed = compose("config", [*small, *overrides, "reward=faithfulness"])
        assert isinstance(composed, DictConfig)
        config = OmegaConf.to_object(composed)
        assert isinstance(config, Config)
        validate(config)
        output = folder / str(len(list(folder.iterdir())))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gkd_rl.pipeline.experiment.build_reward", with_letters)
            return config, run_configured(config, composed, output).objective(config.alpha), output

    return start


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("experiment", essential(EXPERIMENTS, "xsum_rl", "supervised_kd", "ppo", "rlef", "wmt_sft"))
def test_every_experiment_runs(experiment: str, run: Run) -> None:
    config, objective, folder = run(f"experiment={experiment}")
    assert math.isfinite(objective)
    results = json.loads((folder / "eval.json").read_text(encoding="utf-8"))
    models = {"teacher", "student before", "student after", "after - before"}
    assert results.keys() - {"signatures"} == {
        *("settings", "notice", "cost", "memory", "data", "objective", "by_position"),
        *models,
    }
    for model in models:
        for metric, estimate in results[model].items():
            for value in estimate.values():
                assert isinstance(value, int | float) and math.isfinite(value), (model, metric, estimate)
    assert results["student before"]["sampled/kl_to_initial"]["mean"] == pytest.approx(0, abs=1e-6)
    assert results["student after"]["sampled/kl_to_initial"]["mean"] > 0
    metrics = lines(folder / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2]
    assert all(math.isfinite(value) for row in metrics for value in row.values())
    check_cost(results["cost"], metrics, config)
    assert {row["source"] for row in lines(folder / "samples.jsonl")} <= {"student", config.fixed_data.source.value}


@pytest.mark.exhaustive
def test_a_second_run_finds_what_the_teacher_said_to_the_first(run: Run) -> None:
    """Supervised KD with the cache of the teacher's outputs: the numbers of a run without one."""
    runs = [run("experiment=supervised_kd", *cache)[2] for cache in ([], *[["teacher.output_cache_gib=0.01"]] * 2)]
    plain, cold, warm = (lines(folder / "metrics.jsonl") for folder in runs)
    for number, row in enumerate(plain):
        for other in (cold[number], warm[number]):
            assert other["divergence"] == pytest.approx(row["divergence"], rel=1e-5)
        assert cold[number]["teacher_cache/hit_share"] == 0 and warm[number]["teacher_cache/hit_share"] == 1
        assert cold[number]["flops/teacher"] == row["flops/teacher"] > 0
    assert warm[0]["flops/teacher"] > 0 and warm[1]["flops/teacher"] == 0


@pytest.mark.exhaustive
def test_a_run_reads_the_first_train_rows_that_it_is_given(run: Run) -> None:
    config, _, folder = run("experiment=gkd", "trainer.train_rows=4", "trainer.samples_per_log=4")
    prompts = [row.prompt for row in build.build_task(config).examples("train")]
    read = {row["prompt"] for row in lines(folder / "samples.jsonl")}
    assert len(prompts) > 4 and len(read) > 1 and read <= set(prompts[:4])


def check_cost(cost: dict[str, float], metrics: list[dict[str, Any]], config: Config) -> None:
    """Totals over the run's steps; what a method does not do costs nothing."""
    for name, value in cost.items():
        if not name.startswith("time/"):
            assert value == pytest.approx(sum(row.get(name, 0.0) for row in metrics)), name
    assert {"tokens/student_trained", "flops/student", "time/student", "time/update", "time/total"} <= cost.keys()
    assert cost["tokens/student_trained"] > 0 and cost["flops/student"] > 0 and cost["time/total"] > 0
    on_policy = any(row["student_data"] for row in metrics)
    assert (cost["tokens/student_generated"] > 0) is ("flops/rollout" in cost) is on_policy
    taught = any(row["tokens/teacher_scored"] for row in metrics)
    assert ("flops/teacher" in cost) is taught
    assert taught is (config.divergence.name is not DivergenceName.cross_entropy and any(r["alpha"] for r in metrics))
    rewarded = any(row["alpha"] < 1 and row["student_data"] for row in metrics)
    assert ("time/reward" in cost) is any("reward/mean" in row for row in metrics) is rewarded


@pytest.mark.parametrize("method", [["alpha=0", "teacher=none"], ["alpha=1", "reward=none", "policy_gradient=ppo"]])
def test_what_a_method_does_not_need_may_be_absent(method: list[str], run: Run) -> None:
    _, objective, folder = run(*method, teacher="teacher=none" not in method)
    assert math.isfinite(objective)
    results = json.loads((folder / "eval.json").read_text(encoding="utf-8"))
    assert ("teacher" in results) is ("teacher=none" not in method)
    assert ("reward" in results["student after"]) is ("reward=none" not in method)
    assert results["student after"]["sampled/kl_to_initial"]["mean"] > 0


@pytest.mark.exhaustive
def test_a_ppo_run_goes_on_from_its_folder(run: Run) -> None:
    """Student and value head of one run are the start of the next."""
    _, _, folder = run("experiment=ppo", "save_model=true")
    assert (folder / "model" / "value_head.safetensors").is_file()
    start = (f"student.path={folder / 'model'}", "student.architecture=null", "student.sft=null")
    _, _, second = run("experiment=ppo", *start, student=False)
    first, later = (json.loads((one / "eval.json").read_text(encoding="utf-8")) for one in (folder, second))
    for metric, estimate in first["student after"].items():
        if metric != "sampled/kl_to_initial":
            assert later["student before"][metric] == pytest.approx(estimate), metric
    assert lines(second / "metrics.jsonl")[0]["value_loss"] > 0
