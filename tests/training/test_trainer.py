"""The step: its gradient and metrics, the number of forward passes, independence of micro-batches and padding."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from conftest import (
    KINDS,
    PER_PROMPT,
    PROMPTS,
    MakeExamples,
    MakePrompts,
    MakeRollout,
    MakeStudent,
    MakeTrainer,
    assert_close,
    codec_of,
    config_of,
    derivative,
    gradient_of,
    letters,
    logits_of,
    models_of,
    padded,
    share_of_a,
)
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from gkd_rl.config.choices import DivergenceReduction, SurrogateReduction
from gkd_rl.data.prompt_order import PromptStream
from gkd_rl.data.prompt_order import choose_source as choose
from gkd_rl.errors import RewardError
from gkd_rl.generation.sampler import Sampler
from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.pipeline.build_trainer import build_evaluator, build_supervised_trainer, build_trainer
from gkd_rl.training.trainer import StepRecord, Trainer, score
from gkd_rl.types import Example, Projection, PromptBatch, Rollout, Source
from reward_models.composite import Composite


class Changed(Sampler):
    """The same rollouts in another layout."""

    def __init__(self, sampler: Sampler, change: Callable[[Rollout], Rollout]) -> None:
        super().__init__(sampler.codec, sampler.sampling)
        self.change = change

    def sample(
        self, model: HiddenStateModel, prompts: PromptBatch, per_prompt: int, generator: torch.Generator | None
    ) -> Rollout:
        return self.change(super().sample(model, prompts, per_prompt, generator))


def wider(left: int, right: int) -> Callable[[Rollout], Rollout]:
    """Columns of padding on both sides of prompts, and three on the right of completions."""
    return lambda rollout: dataclasses.replace(
        rollout,
        prompts=padded(rollout.prompts, left, right),
        ids_BT=torch.nn.functional.pad(rollout.ids_BT, (0, 3)),
        mask_BT=torch.nn.functional.pad(rollout.mask_BT, (0, 3)),
    )


def backwards(rollout: Rollout) -> Rollout:
    """Prompts from the last to the first, and the completions of each."""
    prompts = rollout.prompts
    last = len(prompts.examples) - 1
    reversed_prompts = PromptBatch(prompts.examples[::-1], prompts.ids_PS.flip(0), prompts.mask_PS.flip(0))
    fields = {name: getattr(rollout, name).flip(0) for name in ("ids_BT", "mask_BT", "truncated_B")}
    index_B = last - rollout.prompt_index_B.flip(0)
    return dataclasses.replace(
        rollout, prompts=reversed_prompts, prompt_index_B=index_B, texts=rollout.texts[::-1], **fields
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("divergence", "surrogate"), [*zip(DivergenceReduction, SurrogateReduction, strict=True)], ids=lambda one: one.value
)
def test_the_gradient_is_independent_of_micro_batches_order_and_padding(
    divergence: DivergenceReduction,
    surrogate: SurrogateReduction,
    kind: str,
    make_trainer: MakeTrainer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One step of eight completions as 1 x 8, 2 x 4, 3 + 3 + 2 and 8 x 1; each term with each of its reductions."""

    trainer = make_trainer(
        "alpha=0.5",
        "trainer.max_grad_norm=1e9",
        "trainer.head_chunk_tokens=5",
        f"divergence.reduction={divergence.name}",
        f"policy_gradient.reduction={surrogate.name}",
        reward=letters,
        kind=kind,
    )
    sampler = trainer.sampler

    def split_into(size: int, change: Callable[[Rollout], Rollout] = lambda same: same) -> tuple[Tensor, StepRecord]:
        trainer.micro_batcher = dataclasses.replace(trainer.micro_batcher, max_completions=size)
        trainer.sampler = Changed(sampler, change)
        return gradient_of(trainer)

    whole, record = split_into(8)
    lengths = record.rollout.mask_BT.sum(dim=1).tolist()
    assert len(lengths) == 8
    assert len(set(lengths)) > 2
    assert record.scores is not None
    assert len(set(record.scores.total)) > 2
    for size in (4, 3, 1):
        part, part_record = split_into(size)
        assert part_record.rollout.ids_BT.tolist() == record.rollout.ids_BT.tolist()
        assert_close(part, whole)
        for name in ("loss", "divergence", "policy_gradient", "entropy"):
            assert part_record.metrics[name] == pytest.approx(record.metrics[name], rel=1e-4, abs=1e-6)
    part, part_record = split_into(3, backwards)
    assert part_record.rollout.texts == record.rollout.texts[::-1]
    assert_close(part, whole)
    for size, left, right, trim in ((8, 0, 5, True), (3, 5, 0, True), (8, 2, 3, False), (3, 5, 1, False)):
        if not trim:
            monkeypatch.setattr("gkd_rl.types._used_width", lambda mask: mask.shape[1])
        part, part_record = split_into(size, wider(left, right))
        assert part_record.rollout.ids_BT.shape[1] == record.rollout.ids_BT.shape[1] + 3
        assert_close(part, whole)


@pytest.mark.parametrize("kind", KINDS)
def test_in_bfloat16_the_gradient_keeps_its_direction(kind: str, make_trainer: MakeTrainer) -> None:
    """Rounding weights and states by at most 2^-9 changes the direction by a few hundredths."""
    trainer = make_trainer("alpha=0.5", "trainer.max_grad_norm=1e9", kind=kind)
    expected, record = gradient_of(trainer)
    trainer.sampler = Changed(trainer.sampler, lambda _: record.rollout)
    trainer.student.bfloat16()
    assert trainer.models.teacher is not None
    trainer.models.teacher.bfloat16()
    found, again = gradient_of(trainer)
    assert found.dtype is torch.bfloat16
    assert float(torch.cosine_similarity(found.float(), expected, dim=0)) > 0.99
    assert again.metrics["divergence"] == pytest.approx(record.metrics["divergence"], rel=0.05)


PACKED = ("trainer.micro_batch_size=null", "trainer.tokens_per_micro_batch=70", "trainer.head_chunk_tokens=7")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("per_prompt", "batches"),
    [(PER_PROMPT, ("trainer.micro_batch_size=3",)), (3, PACKED), (5, PACKED), (8, PACKED)],
    ids=["rows", "3", "5", "8"],
)
def test_the_step_takes_the_gradient_of_the_objective(
    kind: str, per_prompt: int, batches: tuple[str, ...], make_trainer: MakeTrainer
) -> None:
    """(1 - alpha) REINFORCE + alpha JSD on transformers' logits, without the package's functions."""
    alpha, beta = 0.3, 0.9
    trainer = make_trainer(
        f"alpha={alpha}",
        f"divergence.beta={beta}",
        f"rollout.per_prompt={per_prompt}",
        *batches,
        "trainer.max_grad_norm=1e9",
        "rollout.temperature=1.2",
        "divergence.temperature=1.5",
        kind=kind,
    )
    assert trainer.models.teacher is not None
    gradient, record = gradient_of(trainer)
    rollout = record.rollout
    rewards = torch.tensor(share_of_a([], list(rollout.texts))).view(PROMPTS, per_prompt)
    others = (rewards.sum(1, keepdim=True) - rewards) / (per_prompt - 1)
    advantages = (rewards - others).flatten()  # leave-one-out
    if batches is PACKED:
        assert len(trainer.micro_batcher(rollout)) > 1
    logits = logits_of(trainer.student, rollout)
    with torch.no_grad():
        p = torch.softmax(logits_of(trainer.models.teacher, rollout) / 1.5, -1)
    q = torch.softmax(logits / 1.5, -1)
    sampled = torch.log_softmax(logits / 1.2, -1)
    logp = sampled.gather(2, rollout.ids_BT.unsqueeze(2)).squeeze(2)
    m = beta * p + (1 - beta) * q
    jsd = (beta * p * (p / m).log() + (1 - beta) * q * (q / m).log()).sum(-1) / (beta * (1 - beta))
    mask = rollout.mask_BT.float()
    surrogate = -((logp * mask).sum(1) * advantages).mean()
    divergence = ((jsd * mask).sum(1) / mask.sum(1)).mean()
    loss = (1 - alpha) * surrogate + alpha * divergence
    assert_close(gradient, derivative(loss, trainer.student))
    metrics = record.metrics
    assert metrics["policy_gradient"] == pytest.approx(surrogate.item(), rel=1e-4)
    assert metrics["divergence"] == pytest.approx(divergence.item(), rel=1e-4)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert metrics["grad_norm"] == pytest.approx(float(gradient.norm()), rel=1e-4)
    entropy = -((sampled.exp() * sampled).sum(-1) * mask).sum() / mask.sum()
    assert metrics["entropy"] == pytest.approx(entropy.item(), rel=1e-4)
    assert metrics["reward/mean"] == pytest.approx(rewards.mean().item())
    assert metrics["reward/stub"] == pytest.approx(rewards.mean().item())
    assert metrics["reward/std"] == pytest.approx(rewards.std(correction=0).item())
    assert metrics["completion_tokens"] == pytest.approx(mask.sum(1).mean().item())
    assert metrics["tokens/student_trained"] == metrics["tokens/teacher_scored"] == mask.sum().item()
    assert metrics["truncated_share"] == pytest.approx(rollout.truncated_B.float().mean().item())


@pytest.mark.parametrize("kind", KINDS)
def test_the_supervised_stage_minimises_transformers_loss(
    kind: str, make_student: MakeStudent, make_examples: MakeExamples, few_words: PreTrainedTokenizerFast
) -> None:
    config = config_of("student.sft.batch_size=6", "student.sft.micro_batch_size=4", "student.sft.max_grad_norm=1e9")
    student, codec = make_student(kind, few_words), codec_of(kind, few_words)
    trainer = build_supervised_trainer(student, config.student, codec, make_examples(12), Accelerator(cpu=True))
    gradient, record = gradient_of(trainer)
    rollout = record.rollout
    assert rollout.source is Source.dataset
    assert list(rollout.texts) == [trainer.stream.examples[row].reference for row in trainer.stream.rows(0)]
    logits = logits_of(student, rollout)[rollout.mask_BT]
    loss = torch.nn.functional.cross_entropy(logits, rollout.ids_BT[rollout.mask_BT])
    assert_close(gradient, derivative(loss, student))
    assert record.metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert not [name for name in record.metrics if name.startswith("reward")]
    assert record.metrics["tokens/student_generated"] == 0


class Calls:
    """Records the forward passes and rollouts of a step."""

    def __init__(self, trainer: Trainer, teacher: HiddenStateModel | None = None) -> None:
        self.student: list[Rollout] = []
        self.teacher: list[Rollout] = []
        self.training: list[bool] = []
        self.encoder_rows: list[int] = []
        self.samples: list[Rollout] = []
        trainer.student.register_forward_hook(lambda model, args, _: self._student(model, args))
        if teacher or trainer.models.teacher:
            (teacher or trainer.models.teacher).register_forward_hook(  # pyright: ignore[reportOptionalMemberAccess]
                lambda _, args, __: self.teacher.append(args[0])
            )
        if not trainer.codec.decoder_only:
            trainer.student.model.get_encoder().register_forward_hook(
                lambda *call: self.encoder_rows.append(call[2].last_hidden_state.shape[0])
            )
        sample = trainer.sampler.sample

        def spy(*args: Any) -> Rollout:
            self.samples.append(sample(*args))
            return self.samples[-1]

        trainer.sampler.sample = spy  # pyright: ignore[reportAttributeAccessIssue]

    def _student(self, model: nn.Module, args: tuple[Rollout]) -> None:
        self.student.append(args[0])
        self.training.append(model.training)


class CountingReward:
    def __init__(self) -> None:
        self.completions: list[list[str]] = []

    def __call__(self, prompts: list[str], completions: list[str], **columns: object) -> list[float]:
        self.completions.append(completions)
        return share_of_a(prompts, completions)


@pytest.mark.parametrize("kind", KINDS)
def test_at_alpha_1_the_reward_is_not_called(kind: str, make_trainer: MakeTrainer) -> None:
    reward = CountingReward()
    trainer = make_trainer("alpha=1", reward=reward, kind=kind)
    calls = Calls(trainer)
    records = [trainer.step(step) for step in range(2)]
    assert trainer.reward is None
    assert reward.completions == []
    assert len(calls.teacher) == len(calls.student) == 2
    for record in records:
        assert record.scores is None
        assert "policy_gradient" not in record.metrics
        assert not [name for name in record.metrics if "reward" in name]
        assert record.metrics["loss"] == pytest.approx(record.metrics["divergence"])


@pytest.mark.parametrize("kind", KINDS)
def test_at_alpha_0_the_teacher_is_not_called(
    kind: str, make_student: MakeStudent, make_examples: MakeExamples, few_words: PreTrainedTokenizerFast
) -> None:
    student, teacher, codec = make_student(kind, few_words), make_student(kind, few_words), codec_of(kind, few_words)
    reward = CountingReward()
    trainer = build_trainer(
        config_of("alpha=0"),
        models_of(student, teacher, codec),
        Composite({"stub": reward}, {"stub": 1.0}),
        PromptStream(make_examples(12), PROMPTS, 0),
        Accelerator(cpu=True),
    )
    calls = Calls(trainer, teacher)
    record = trainer.step(0)
    assert trainer.models.teacher is None
    assert calls.teacher == []
    assert len(calls.student) == len(reward.completions) == 1
    assert "divergence" not in record.metrics
    assert record.metrics["tokens/teacher_scored"] == 0
    assert record.metrics["loss"] == pytest.approx(record.metrics["policy_gradient"])


@pytest.mark.parametrize("kind", KINDS)
def test_one_rollout_and_one_forward_serve_both_terms(kind: str, make_trainer: MakeTrainer) -> None:
    reward = CountingReward()
    trainer = make_trainer("alpha=0.5", "trainer.micro_batch_size=3", reward=reward, kind=kind)
    calls = Calls(trainer)
    record = trainer.step(0)
    assert len(calls.samples) == 1
    assert record.rollout is calls.samples[0]
    assert reward.completions == [list(record.rollout.texts)]
    assert len(calls.student) == len(calls.teacher) == 4  # a prompt has two completions
    assert all(one is other for one, other in zip(calls.student, calls.teacher, strict=True))
    assert sorted(text for part in calls.student for text in part.texts) == sorted(record.rollout.texts)
    if not trainer.codec.decoder_only:
        assert calls.encoder_rows == [PROMPTS, 1, 1, 1, 1]  # sampling, then each micro-batch


@pytest.mark.parametrize("kind", ["t5", "t5 with LoRA"])
def test_the_encoder_computes_each_prompt_once_for_all_its_rollouts(kind: str, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("alpha=0.5", "rollout.per_prompt=5", kind=kind)
    calls = Calls(trainer)
    record = trainer.step(0)
    assert record.rollout.n_sequences == 5 * PROMPTS
    assert calls.encoder_rows == [PROMPTS, PROMPTS]


def test_without_student_data_nothing_is_sampled(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("alpha=1", "lmbda=0")
    calls = Calls(trainer)
    record = trainer.step(0)
    assert calls.samples == []
    assert record.rollout.source is Source.dataset
    assert list(record.rollout.texts) == [trainer.stream.examples[row].reference for row in trainer.stream.rows(0)]
    assert record.metrics["student_data"] == record.metrics["tokens/student_generated"] == 0
    assert "divergence" in record.metrics


def test_a_step_without_student_rollouts_has_no_reward(make_trainer: MakeTrainer) -> None:
    reward = CountingReward()
    trainer = make_trainer("alpha=0.5", "lmbda=0.5", reward=reward)
    records = [trainer.step(step) for step in range(8)]
    sources = [choose(0.5, 0, step) for step in range(8)]
    assert [record.rollout.source for record in records] == sources
    assert set(sources) == {Source.student, Source.dataset}
    for record, source in zip(records, sources, strict=True):
        of_student = source is Source.student
        assert record.metrics["student_data"] == float(of_student)
        assert ("policy_gradient" in record.metrics) is of_student
        assert ("reward/mean" in record.metrics) is of_student
        assert any("reward" in name for name in record.metrics) is of_student
        assert (record.scores is not None) is of_student
    assert len(reward.completions) == sources.count(Source.student)


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_the_metrics(kind: str, make_trainer: MakeTrainer) -> None:
    def metrics_of(seed: int, global_seed: int) -> list[dict[str, float]]:
        torch.manual_seed(global_seed)
        trainer = make_trainer("alpha=0.5", "lmbda=0.7", f"seed={seed}", seed=seed, kind=kind)
        records = [trainer.step(step) for step in range(3)]
        assert {"time/rollout", "time/teacher", "time/student", "time/update"} <= set(records[0].metrics)
        return [
            {name: value for name, value in record.metrics.items() if not name.startswith("time/")}
            for record in records
        ]

    assert metrics_of(3, 0) == metrics_of(3, 1)
    assert metrics_of(3, 0) != metrics_of(4, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_student_is_in_training_mode_also_after_an_evaluation(
    kind: str, make_trainer: MakeTrainer, make_examples: MakeExamples
) -> None:
    trainer = make_trainer("alpha=0.5", dropout=0.5, kind=kind)
    calls = Calls(trainer)
    trainer.step(0)
    assert calls.training == [True]
    config = config_of("evaluation.batch_size=4", "evaluation.rollout_prompts=4", "evaluation.self_bleu_prompts=0")
    models = models_of(trainer.student, trainer.models.teacher, trainer.codec)
    build_evaluator(config, models, trainer.reward, make_examples(4)).evaluate(trainer.student, "student")
    calls.training.clear()
    trainer.step(1)
    assert calls.training == [True], "dropout stays off after an evaluation"


@pytest.mark.parametrize("kind", KINDS)
def test_the_log_probability_is_that_of_the_sampled_distribution(
    kind: str,
    make_student: MakeStudent,
    make_examples: MakeExamples,
    make_prompts: MakePrompts,
    make_rollout: MakeRollout,
    few_words: PreTrainedTokenizerFast,
) -> None:
    """T5 has 32,128 embeddings for 32,100 tokens: ids that are never sampled have no probability."""
    student, codec = make_student(kind, few_words), codec_of(kind, few_words)
    student.model.resize_token_embeddings(len(codec.tokenizer) + 24, mean_resizing=False)
    trainer = build_trainer(
        config_of("alpha=0"),
        models_of(student, None, codec),
        Composite({"stub": share_of_a}, {"stub": 1.0}),
        PromptStream(make_examples(4), PROMPTS, 0),
        Accelerator(cpu=True),
    )
    vocabulary = len(codec.tokenizer)
    every_token = make_rollout(make_prompts([[3, 4]]), [[token] for token in range(vocabulary)], per_prompt=vocabulary)
    own = Projection(student(every_token), student.head())
    terms = trainer.models.head(own, None, every_token.ids_BT, every_token.mask_BT)
    assert terms.logp_BT.exp().sum().item() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_reward_increases_and_the_divergence_decreases(kind: str, make_trainer: MakeTrainer) -> None:
    quick = ("trainer.warmup_steps=0", "trainer.learning_rate=0.02")
    rewards, divergences = (
        [trainer.step(step).metrics[name] for step in range(16)]
        for trainer, name in (
            (make_trainer("alpha=0", "rollout.per_prompt=8", *quick, kind=kind), "reward/mean"),
            (make_trainer("alpha=1", "divergence=reverse_kl", *quick, kind=kind), "divergence"),
        )
    )
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.1
    assert sum(divergences[-5:]) < 0.8 * sum(divergences[:5])


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_clipped_and_its_norm_logged_before(kind: str, make_trainer: MakeTrainer) -> None:
    free, record = gradient_of(make_trainer("trainer.max_grad_norm=1e9", kind=kind))
    clipped, clipped_record = gradient_of(make_trainer("trainer.max_grad_norm=0.01", kind=kind))
    assert float(clipped.norm()) == pytest.approx(0.01, rel=1e-3)
    assert_close(clipped / clipped.norm(), free / free.norm())
    assert record.metrics["grad_norm"] == clipped_record.metrics["grad_norm"] > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_do_not_accumulate_over_steps(kind: str, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("alpha=0.5", "trainer.max_grad_norm=1e9", kind=kind)
    first, _ = gradient_of(trainer)
    again, _ = gradient_of(trainer)
    assert_close(again, first, 1e-6)


def test_run_counts_steps_from_one(make_trainer: MakeTrainer) -> None:
    seen: list[int] = []
    trainer = make_trainer("alpha=1", "trainer.steps=3", "trainer.warmup_steps=2", "trainer.learning_rate=0.01")
    rates: list[float] = []

    def after_step(step: int, record: StepRecord) -> None:
        seen.append(step)
        rates.append(record.metrics["learning_rate"])

    trainer.run(3, after_step)
    assert seen == [1, 2, 3]
    assert rates == pytest.approx([0.0, 0.005, 0.01])


def test_the_reward_gets_each_completion_with_its_own_row(make_prompts: MakePrompts, make_rollout: MakeRollout) -> None:
    seen: list[tuple[str, str, str, str]] = []

    def reward(
        prompts: list[str], completions: list[str], reference: list[str], document: list[str], **_: object
    ) -> list[float]:
        seen.extend(zip(prompts, completions, reference, document, strict=True))
        return [float(i) for i in range(len(completions))]

    examples = [Example(f"prompt {i}", f"reference {i}", {"document": f"document {i}"}) for i in range(2)]
    prompts = dataclasses.replace(make_prompts([[3], [4]]), examples=examples)
    rollout = make_rollout(prompts, [[3, 1], [4, 1], [5, 1], [6, 1]], per_prompt=2)
    scores = score(Composite({"stub": reward}, {"stub": 2.0}), rollout)
    assert scores.total == [0.0, 2.0, 4.0, 6.0]
    assert seen == [
        (f"prompt {i // 2}", rollout.texts[i], f"reference {i // 2}", f"document {i // 2}") for i in range(4)
    ]


def test_an_unusable_reward_is_an_error(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("alpha=0.5", reward=lambda prompts, completions, **_: [float("nan")] * len(completions))
    with pytest.raises(RewardError, match="'stub' returned nan"):
        trainer.step(0)
