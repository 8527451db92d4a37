"""PPO's learned baseline, ratio and clip against plain loops; group-relative advantages against trl."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import KINDS, MakeTrainer, assert_close, config_of, gradient_of, letters
from torch import Tensor, nn

from gkd_rl.config import Config
from gkd_rl.config.choices import Baseline
from gkd_rl.errors import ModelError
from gkd_rl.losses import objective as objective_module
from gkd_rl.losses.policy_gradient import (
    CreditSettings,
    advantages,
    gae,
    is_clipped,
    moments,
    surrogate,
    token_advantages,
    whiten,
)
from gkd_rl.models.adapter import AdaptedModel
from gkd_rl.models.loading import save_model
from gkd_rl.models.value_head import Critic, value_loss
from gkd_rl.pipeline.build import build_critic
from gkd_rl.training.trainer import Trainer
from gkd_rl.types import PreUpdateTerms, PromptBatch, Rollout, Source

PPO = ("alpha=0", "policy_gradient=ppo", "trainer.max_grad_norm=1e9", "trainer.warmup_steps=0")
SIZES = (8, 3)  # completions per micro-batch: all 8, or 3 + 3 + 2


def ragged(rows: int = 7, width: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mask, truncation, rewards and values (T + 1) of completions of every length, with random values where masked."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, width + 1, (rows,), generator=generator)
    lengths[:2] = torch.tensor([1, width])
    mask = torch.arange(width) < lengths.unsqueeze(1)
    truncated = torch.rand(rows, generator=generator) < 0.5
    rewards, values = (torch.randn(rows, n, generator=generator, dtype=torch.float64) for n in (width, width + 1))
    return mask, truncated, rewards, values


def gae_by_loops(
    rewards: list[float], values: list[float], truncated: bool, discount: float, gae_lambda: float
) -> list[float]:
    """Schulman et al. 2016, Eq. 16: all sums as loops; `values` has one more element than `rewards`."""
    length = len(rewards)
    state = [*values[:length], values[length] if truncated else 0.0]
    delta = [rewards[t] + discount * state[t + 1] - state[t] for t in range(length)]
    return [sum((discount * gae_lambda) ** (s - t) * delta[s] for s in range(t, length)) for t in range(length)]


@pytest.mark.parametrize("discount", [1.0, 0.9, 0.0])
@pytest.mark.parametrize("gae_lambda", [1.0, 0.95, 0.0])
def test_gae(discount: float, gae_lambda: float) -> None:
    for seed in range(4):
        mask, truncated, rewards, values = ragged(seed=seed)
        found = gae(rewards, values, mask, truncated, discount, gae_lambda)
        assert (found[~mask] == 0).all()
        for row in range(len(mask)):
            length = int(mask[row].sum())
            expected = gae_by_loops(
                rewards[row, :length].tolist(),
                values[row, : length + 1].tolist(),
                bool(truncated[row]),
                discount,
                gae_lambda,
            )
            assert found[row, :length].tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_only_truncated_completions_are_bootstrapped() -> None:
    mask, _, rewards, values = ragged()
    ends = torch.zeros_like(values, dtype=torch.bool)
    ends[torch.arange(len(mask)), mask.sum(1)] = True  # the state after the last token
    other = torch.where(ends, values + 100.0, values)
    for truncated in (False, True):
        flags = torch.full((len(mask),), truncated)
        one, two = (gae(rewards, which, mask, flags, 0.9, 0.8) for which in (values, other))
        moved = (one != two) & mask
        assert torch.equal(moved, mask if truncated else torch.zeros_like(mask))


def test_with_both_factors_1_the_advantage_is_the_return_minus_the_value() -> None:
    mask, _, rewards, values = ragged()
    found = gae(rewards, values, mask, torch.zeros(len(mask), dtype=torch.bool), 1.0, 1.0)
    for row, t in mask.nonzero().tolist():
        assert found[row, t].item() == pytest.approx(float((rewards * mask)[row, t:].sum() - values[row, t]))


@pytest.mark.parametrize("clip", [None, 0.2])
def test_value_loss(clip: float | None) -> None:
    for seed in range(4):
        mask, _, returns, old = ragged(seed=seed)
        _, _, values, _ = ragged(seed=seed + 100)
        values.requires_grad_()
        loss = value_loss(values, old[:, :-1], returns, mask, clip)
        expected, slopes = 0.0, torch.zeros_like(values)
        for row, t in mask.nonzero().tolist():
            v, v_old, target = values[row, t].item(), old[row, t].item(), returns[row, t].item()
            plain, slope = (v - target) ** 2, v - target
            if clip is not None:
                clamped = min(max(v, v_old - clip), v_old + clip)
                if (clamped - target) ** 2 > plain:
                    plain, slope = (clamped - target) ** 2, v - target if clamped == v else 0.0
            expected += plain / 2
            slopes[row, t] = slope
        assert loss.item() == pytest.approx(expected)
        torch.testing.assert_close(torch.autograd.grad(loss, values)[0], slopes)


@pytest.mark.parametrize("clip", [(0.2, 0.5), (0.5, 0.2), (0.1, 3.0)])
def test_the_clip_removes_the_gradient_of_tokens_beyond_it(clip: tuple[float, float]) -> None:
    low, high = clip
    ratios = torch.tensor([0.3, 1 - low - 1e-6, 1 - low + 1e-6, 1.0, 1 + high - 1e-6, 1 + high + 1e-6, 9.0]).double()
    weights = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64)
    old = torch.full((3, 7), -2.0, dtype=torch.float64)
    logp = (old + ratios.log()).requires_grad_()
    weights_BT = weights.unsqueeze(1).expand(3, 7)
    loss = surrogate(logp, old, weights_BT, clip)
    gradient = torch.autograd.grad(loss.sum(), logp)[0]
    for row, weight in enumerate(weights.tolist()):
        for t, ratio in enumerate(ratios.tolist()):
            without_gradient = ratio > 1 + high if weight > 0 else ratio < 1 - low if weight < 0 else False
            assert bool(is_clipped(logp, old, weights_BT, clip)[row, t]) is without_gradient
            clamped = min(max(ratio, 1 - low), 1 + high)
            assert loss[row, t].item() == pytest.approx(-min(ratio * weight, clamped * weight))
            assert gradient[row, t].item() == pytest.approx(
                0.0 if without_gradient else -ratio * weight, rel=1e-12, abs=0
            )


def test_whitening() -> None:
    mask, _, weights, _ = ragged(rows=40)
    weights = 5 + 3 * weights
    found = whiten(weights, mask, moments(weights, mask))
    valid = found[mask]
    assert valid.mean().item() == pytest.approx(0, abs=1e-9)
    assert valid.std(correction=0).item() == pytest.approx(1, rel=1e-6)
    assert (found[~mask] == 0).all()
    parts = [moments(weights[rows], mask[rows]) for rows in (slice(0, 11), slice(11, 40))]  # two ranks
    torch.testing.assert_close(whiten(weights, mask, parts[0] + parts[1]), found)
    same = torch.full_like(weights, 2.0)
    torch.testing.assert_close(whiten(same, mask, moments(same, mask)), torch.zeros_like(same))


class SurrogateCalls:
    """Arguments and results of `surrogate`, for the valid tokens of each update."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[Tensor, Tensor | None, Tensor, Tensor]] = []

        def spy(logp: Tensor, old: Tensor | None, weights: Tensor, clip: tuple[float, float] | None) -> Tensor:
            loss = surrogate(logp, old, weights, clip)
            if logp.requires_grad:  # not the second call, for the metrics
                self.calls.append((logp.detach(), old, weights, loss.detach()))
            return loss

        monkeypatch.setattr(objective_module, "surrogate", spy)


def random_critic(trainer: Trainer) -> Critic:
    """A value head with random weights: a new one is 0 everywhere."""
    assert trainer.critic is not None
    nn.init.normal_(trainer.critic.head.outer.weight, generator=torch.Generator().manual_seed(0))
    return trainer.critic


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", ["policy_gradient=ppo", "policy_gradient=dapo policy_gradient.epochs=3"])
def test_the_ratio_is_one_until_the_first_update(
    kind: str, settings: str, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(*PPO, *settings.split(), "trainer.learning_rate=0.02", reward=letters, kind=kind)
    recorded = SurrogateCalls(monkeypatch)
    metrics = trainer.step(0).metrics
    (first, none, weights, loss), *later = recorded.calls
    assert len(later) == trainer.settings.epochs - 1
    assert none is None
    assert torch.equal(loss, -weights)  # the ratio is exactly 1
    for logp, old, again, _ in later:
        assert old is not None and torch.equal(old, first)
        assert torch.equal(again, weights)
        assert ((logp - old).abs() > 1e-3).any()
    assert metrics["clipped_share"] > 0  # of the last epoch
    assert trainer.objective.clip is not None
    logp, old, weights, _ = later[-1]
    assert old is not None
    share = is_clipped(logp, old, weights, trainer.objective.clip).sum() / metrics["tokens/student_trained"]
    assert metrics["clipped_share"] == pytest.approx(share.item())


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_change_neither_gradient_nor_advantages(
    kind: str, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the student and of the value head, with whitening over the step and a divergence beside the reward."""
    trainer = make_trainer(
        *PPO, "alpha=0.4", "policy_gradient.epochs=1", "policy_gradient.value.clip=0.1", reward=letters, kind=kind
    )
    critic = random_critic(trainer)
    recorded, found = SurrogateCalls(monkeypatch), []
    for size in SIZES:
        recorded.calls.clear()
        trainer.micro_batcher = dataclasses.replace(trainer.micro_batcher, max_completions=size)
        both, record = gradient_of(trainer, model=nn.ModuleList([trainer.student, critic.head]))
        students = sum(one.numel() for one in trainer.student.parameters())
        weights = [part[part != 0] for _, _, part, _ in recorded.calls]
        found.append((both[:students], both[students:], torch.cat(weights), record.metrics))
        assert len({*record.rollout.truncated_B.tolist()}) == 2
    (student, head, weights, metrics), (student_split, head_split, weights_split, metrics_split) = found
    assert_close(student_split, student)
    assert_close(head_split, head)
    assert_close(weights_split, weights)
    assert metrics_split["value_loss"] == pytest.approx(metrics["value_loss"], rel=1e-5)
    assert len(weights) == metrics["tokens/student_trained"]
    assert weights.mean().item() == pytest.approx(0, abs=1e-5)
    assert weights.std(correction=0).item() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_the_states_before_and_after_each_token(kind: str, make_trainer: MakeTrainer) -> None:
    """From transformers' own hidden states, one completion at a time without padding."""
    trainer = make_trainer(*PPO, kind=kind)
    critic, rollout = random_critic(trainer), trainer.step(0).rollout
    for size in SIZES:
        micro_batches = list(torch.arange(rollout.n_sequences).split(size))
        pre_update, _ = trainer.models.pre_update_pass(rollout, micro_batches, rewarded=True, alpha=0.0, critic=critic)
        assert pre_update.values_BT1 is not None
        for row in range(rollout.n_sequences):
            prompt = int(rollout.prompt_index_B[row])
            ids = rollout.prompts.ids_PS[prompt][rollout.prompts.mask_PS[prompt]].unsqueeze(0)
            completion = rollout.ids_BT[row][rollout.mask_BT[row]].unsqueeze(0)
            model: Any = trainer.student.model
            with torch.no_grad():
                if trainer.codec.decoder_only:
                    states = model.model(torch.cat([ids, completion], 1)).last_hidden_state[
                        0, -completion.shape[1] - 1 :
                    ]
                else:
                    start = torch.zeros(1, 1, dtype=torch.long)
                    out = model(
                        input_ids=ids, decoder_input_ids=torch.cat([start, completion], 1), output_hidden_states=True
                    )
                    states = out.decoder_hidden_states[-1][0]
                expected = critic.head(states)
            torch.testing.assert_close(pre_update.values_BT1[row, : len(expected)], expected, rtol=1e-4, atol=1e-5)


def rollout_of(mask: Tensor, truncated: Tensor) -> Rollout:
    rows = len(mask)
    prompts = PromptBatch([], torch.zeros(rows, 1), torch.ones(rows, 1, dtype=torch.bool))
    return Rollout(prompts, torch.arange(rows), mask.long(), mask, truncated, [""] * rows, Source.student)


def test_the_reward_is_at_the_last_token_minus_the_sampled_kl() -> None:
    """PPO's token rewards: -c (log p - log p0) at each, the reward at the last."""
    mask, truncated, logp, values = ragged()
    initial, rewards = logp + 0.1 * values[:, 1:], values[:, 0] * 2
    settings = CreditSettings(1, Baseline.learned, kl_in_reward=0.3, discount=0.9, gae_lambda=0.8)
    found = token_advantages(
        settings, rewards, rollout_of(mask, truncated), PreUpdateTerms(logp, None, initial, values)
    )
    for row in range(len(mask)):
        length = int(mask[row].sum())
        given = [-0.3 * (logp[row, t] - initial[row, t]).item() for t in range(length)]
        given[-1] += rewards[row].item()
        expected = gae_by_loops(given, values[row, : length + 1].tolist(), bool(truncated[row]), 0.9, 0.8)
        assert found[row, :length].tolist() == pytest.approx(expected)
    with pytest.raises(ValueError, match="value head"):
        token_advantages(settings, rewards, rollout_of(mask, truncated), PreUpdateTerms(logp, None, initial, None))


def test_without_bootstrap_truncated_completions_count_as_finished() -> None:
    mask, truncated, logp, values = ragged()
    pre_update, rewards = PreUpdateTerms(logp, None, None, values), values[:, 0] * 2
    settings = CreditSettings(1, Baseline.learned, bootstrap=False)
    found = token_advantages(settings, rewards, rollout_of(mask, truncated), pre_update)
    finished = torch.zeros_like(truncated)
    with_bootstrap = dataclasses.replace(settings, bootstrap=True)
    assert torch.equal(found, token_advantages(with_bootstrap, rewards, rollout_of(mask, finished), pre_update))
    assert not torch.equal(found, token_advantages(with_bootstrap, rewards, rollout_of(mask, truncated), pre_update))


@pytest.mark.parametrize("kind", KINDS)
def test_the_value_loss_has_no_gradient_to_the_student(kind: str, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(*PPO, "policy_gradient.whiten=false", "policy_gradient.epochs=1", reward=letters, kind=kind)
    critic = random_critic(trainer)
    with_head, record = gradient_of(trainer)
    assert record.metrics["value_loss"] > 0
    assert critic.head.outer.weight.grad is not None
    seen: list[Any] = []
    trainer.student.register_forward_hook(lambda _, __, hidden: seen.append(hidden))
    trainer.critic = dataclasses.replace(critic, head=Scaled(critic.head))  # pyright: ignore[reportArgumentType]
    again, record = gradient_of(trainer)
    assert record.metrics["value_loss"] > 0
    assert torch.equal(with_head, again)
    hidden = seen[-1]
    assert hidden.requires_grad
    loss = critic.head(hidden).square().sum()
    trained = [one for one in trainer.student.parameters() if one.requires_grad]
    assert all(g is None for g in torch.autograd.grad(loss, trained, allow_unused=True))


class Scaled(nn.Module):
    """The same values, with another gradient of the value loss."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, hidden: Tensor) -> Tensor:
        values = self.head(hidden)
        return values + 100 * (values - values.detach())


@pytest.mark.parametrize("kind", KINDS)
def test_the_value_head_learns_a_fixed_reward(kind: str, make_trainer: MakeTrainer) -> None:
    def fixed(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
        return [2.0] * len(completions)

    settings = ("trainer.learning_rate=1e-6", "policy_gradient.value.learning_rate=0.05", "trainer.decay=constant")
    trainer = make_trainer(*PPO, *settings, "policy_gradient.value.gae_lambda=1", reward=fixed, kind=kind)
    sample = trainer.sampler.sample

    def finished(*args: Any) -> Rollout:  # the target of a truncated one would include its last value
        rollout = sample(*args)
        return dataclasses.replace(rollout, truncated_B=torch.zeros_like(rollout.truncated_B))

    trainer.sampler.sample = finished  # pyright: ignore[reportAttributeAccessIssue]
    losses = [trainer.step(step).metrics["value_loss"] for step in range(14)]
    assert losses[0] == pytest.approx(0.5 * 2.0**2)  # a new head predicts 0
    assert sum(losses[-3:]) / 3 < 0.2 * losses[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_the_value_head_is_clipped_separately(kind: str, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(*PPO, "policy_gradient.epochs=1", "trainer.max_grad_norm=0.01", kind=kind)
    critic = random_critic(trainer)
    both, _ = gradient_of(trainer, model=nn.ModuleList([trainer.student, critic.head]))
    students = sum(one.numel() for one in trainer.student.parameters())
    assert [float(part.norm()) for part in (both[:students], both[students:])] == pytest.approx([0.01] * 2, rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("credit", ["none", "reward_to_go"])
def test_the_teacher_computes_a_rollout_once_for_all_epochs(kind: str, credit: str, make_trainer: MakeTrainer) -> None:
    settings = ("alpha=0.5", "policy_gradient.epochs=3", f"divergence.kd_credit={credit}", "trainer.micro_batch_size=3")
    trainer = make_trainer(*PPO, *settings, kind=kind)
    computed: list[Rollout] = []
    assert trainer.models.teacher is not None
    trainer.models.teacher.register_forward_hook(lambda _, args, __: computed.append(args[0]))
    record = trainer.step(0)
    assert sorted(text for part in computed for text in part.texts) == sorted(record.rollout.texts)
    assert len(computed) == 4  # each prompt with its two completions


def test_a_step_without_a_reward_is_one_update(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(*PPO, "alpha=0.5", "lmbda=0.5", "policy_gradient.epochs=2")
    updates: list[int] = []
    step_of = trainer.optimizer.step
    trainer.optimizer.step = lambda *args: updates.append(step) or step_of(*args)  # pyright: ignore
    sources = []
    for step in range(6):
        record = trainer.step(step)
        sources.append(record.rollout.source)
        assert ("value_loss" in record.metrics) is (record.scores is not None)
    assert set(sources) == {Source.student, Source.dataset}
    assert [updates.count(step) for step in range(6)] == [2 if one is Source.student else 1 for one in sources]


def saved(trainer: Trainer, folder: Path) -> Callable[..., Config]:
    """Save student and value head; returns a function that configures runs starting from them."""
    assert trainer.critic is not None
    student = trainer.student if isinstance(trainer.student, AdaptedModel) else trainer.student.model
    save_model(folder, student, trainer.codec.tokenizer, "card", trainer.critic.head)
    start = (f"student.path={folder}", "student.architecture=null", "student.sft=null")
    return lambda *overrides: config_of(*PPO, *start, *overrides)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_value_head_is_loaded_with_its_student(kind: str, make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(*PPO, reward=letters, kind=kind)
    rollout = [trainer.step(step) for step in range(2)][-1].rollout
    config = saved(trainer, tmp_path / "model")
    loaded = build_critic(config("seed=5"), trainer.student)
    fresh = build_critic(config_of(*PPO, "seed=5"), trainer.student)
    assert trainer.critic is not None and loaded is not None and fresh is not None
    hidden = trainer.student(rollout)
    assert torch.equal(loaded.values(hidden), trainer.critic.values(hidden))
    assert loaded.values(hidden).abs().max() > 0
    assert fresh.values(hidden).abs().max() == 0
    assert build_critic(config("policy_gradient=reinforce"), trainer.student) is None


def test_a_value_head_of_another_size_is_refused(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(*PPO)
    config = saved(trainer, tmp_path / "model")
    with pytest.raises(ModelError, match=r"policy_gradient\.value\.hidden_size"):
        build_critic(config("policy_gradient.value.hidden_size=7"), trainer.student)
    (tmp_path / "model" / "value_head.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError, match="value_head"):
        build_critic(config(), trainer.student)


def test_group_relative_advantages_against_hand_computed_values() -> None:
    rewards = torch.tensor([[1.0, 0.0, 2.0], [5.0, 5.0, 5.0]], dtype=torch.float64)
    found = advantages(rewards, Baseline.group_mean, divide_by_std=True)
    expected = [[0.0, -1 / (1 + 1e-4), 1 / (1 + 1e-4)], [0.0, 0.0, 0.0]]  # the std of 1, 0, 2 over n - 1 is 1
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    centred = advantages(rewards, Baseline.group_mean)
    torch.testing.assert_close(centred, torch.tensor([[0.0, -1.0, 1.0], [0.0, 0.0, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(centred * 3 / 2, advantages(rewards, Baseline.leave_one_out))


@pytest.mark.parametrize("divide", [True, False])
def test_group_relative_advantages_are_trls(divide: bool) -> None:
    """trl's code, with its nanstd, for scale_rewards = group and none."""
    from trl.trainer.utils import nanstd

    per_prompt = 4
    rewards = torch.randn(6 * per_prompt, generator=torch.Generator().manual_seed(0))
    mean = torch.nanmean(rewards.view(-1, per_prompt), dim=1).repeat_interleave(per_prompt, dim=0)
    expected = rewards - mean
    if divide:
        expected = expected / (nanstd(rewards.view(-1, per_prompt), dim=1).repeat_interleave(per_prompt, dim=0) + 1e-4)
    found = advantages(rewards.view(-1, per_prompt), Baseline.group_mean, divide_by_std=divide)
    torch.testing.assert_close(found.flatten(), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", ["grpo", "dapo"])
def test_every_token_of_a_completion_has_its_advantage(
    settings: str, kind: str, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(*PPO, f"policy_gradient={settings}", "rollout.per_prompt=4", kind=kind)
    recorded = SurrogateCalls(monkeypatch)
    record = trainer.step(0)
    assert record.scores is not None
    ((_, _, weights, _),) = recorded.calls
    rewards = torch.tensor(record.scores.total).view(-1, 4)
    expected = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    rows = torch.cat(trainer.micro_batcher(record.rollout))
    mask_BT = record.rollout.mask_BT[rows]
    torch.testing.assert_close(weights, expected.view(-1, 1)[rows].expand(mask_BT.shape)[mask_BT])
