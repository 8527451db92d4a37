"""The training step: Algorithm 1 of the GKD paper (arXiv 2306.13649) with the RL + GKD objective of its Eq. 5.

    paper                                                             here
    Algorithm 1, in the order of its lines                            `Trainer.step`
      u ~ U(0, 1); if u <= lambda                                     `choose_source`
        then x ~ X, y ~ p_S(.|x)                                      `_rollout`, source student
        else (x, y) ~ (X, Y), also samples of the teacher             `_rollout`, source dataset or teacher
      gradient of the objective, averaged over the batch              `_accumulate_gradients`
      theta <- theta - eta * gradient                                 `_optimizer_update`
    Eq. 5: E[(1 - alpha) r(y) - alpha D(p_T || p_S)(y|x)], y ~ p_S    `_backward`, from
      E[r(y)], by a policy gradient                                   `_scores`, `_advantages`, `Objective` (L_r)
      D(p_T || p_S)(y|x), Eq. 2, no gradient through sampling         `teacher_forward`, `Objective` (L_D)

The code minimises minus Eq. 5, (1 - alpha) L_r + alpha L_D. A step whose completions are not the student's has no
reward term. Departures from the paper, all optional: alpha can change over the run; PPO makes several updates on one
rollout (`epochs`) and has a value head; `kd_credit` adds the gradient through sampling. They are parts of the objects
that the trainer is given (objective, alpha schedule, credit, critic); the step is the same for all methods.

`accelerate` runs it on several processes. The step is split into micro-batches of completions; every divisor counts the
whole step, so the split does not change the gradient.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from gkd_rl.config.alpha_schedule import Schedule
from gkd_rl.data.prompt_order import PromptStream, choose_source
from gkd_rl.errors import RewardError
from gkd_rl.generation.codec import TextCodec
from gkd_rl.generation.sampler import Sampler
from gkd_rl.losses.objective import Objective, StepTotals
from gkd_rl.losses.policy_gradient import CreditSettings, moments, token_advantages, token_divergence_credit, whiten
from gkd_rl.models.value_head import Critic, Targets
from gkd_rl.training.cost import PassKind
from gkd_rl.training.micro_batches import MicroBatcher
from gkd_rl.training.optimization import TermGradients, recomputed_layers
from gkd_rl.training.processes import reduce_metrics
from gkd_rl.training.step_metrics import Guard, all_finite, guard_metrics, loss_metrics, ratio_error, rollout_metrics
from gkd_rl.training.step_models import StepModels, TeacherOutputs
from gkd_rl.training.teacher_data import TeacherSamples
from gkd_rl.types import Credits, PreUpdateTerms, Rollout, Source, TeacherOutput, TokenTerms
from reward_models.composite import Composite, Scores


@dataclass(frozen=True)
class StepSettings:
    """Settings of the step itself.

    Attributes:
        lmbda: lambda, the probability of a step on student rollouts.
        seed: of the choice of the source and of the rollouts.
        per_prompt: K, rollouts per prompt.
        max_grad_norm: gradients of the student are clipped to this norm, and so are those of the value head.
        fixed_source: where the completions of all other steps come from.
        epochs: optimiser updates per rollout with a reward; above 1 with a clipped surrogate (PPO).
        diagnose_every: steps between two measurements of both gradients and of the KLs; 0: never.
        gradient_checkpointing: recompute the layers in the backward pass.
    """

    lmbda: float
    seed: int
    per_prompt: int
    max_grad_norm: float
    fixed_source: Source = Source.dataset
    epochs: int = 1
    diagnose_every: int = 0
    gradient_checkpointing: bool = False


@dataclass
class StepRecord:
    """One step's metrics (metrics.jsonl), rollout and rewards (samples.jsonl)."""

    metrics: dict[str, float]
    rollout: Rollout
    scores: Scores | None


@dataclass
class _StepBatch:
    """One step's completions and all that is computed about them before the first update.

    Attributes:
        rollout: the completions of this rank.
        micro_batches: indices of the completions of each micro-batch.
        alpha: of the step.
        totals: sequences and tokens of the whole step, over all ranks.
        credits: advantages and credits, the weights of the score function.
        targets: of the value head, or None.
        teacher_outputs: those computed so far, by index of the micro-batch.
        diagnose: the first update measures both gradients and the KLs.
    """

    rollout: Rollout
    micro_batches: list[Tensor]
    alpha: float
    totals: StepTotals
    credits: Credits
    targets: Targets | None
    teacher_outputs: TeacherOutputs
    diagnose: bool


@dataclass
class Trainer:
    """The step and the objects that it needs; `reward`, `critic` and `teacher_samples` may be None."""

    accelerator: Accelerator
    models: StepModels
    objective: Objective
    alpha: Schedule
    credit: CreditSettings
    critic: Critic | None
    sampler: Sampler
    codec: TextCodec
    reward: Composite | None
    stream: PromptStream
    teacher_samples: TeacherSamples | None
    micro_batcher: MicroBatcher
    optimizer: Optimizer
    schedule: LRScheduler
    settings: StepSettings
    guard: Guard = field(default_factory=Guard)

    def __post_init__(self) -> None:
        self.student = self.models.student
        self._cost_meter = self.models.cost_meter
        self._phase = self._cost_meter.phase
        self._wrapped = self.accelerator.prepare_model(self.student)

    def run(self, steps: int, after_step: Callable[[int, StepRecord], None], taken: int = 0) -> None:
        """Train.

        Args:
            steps: of the whole run.
            after_step: called with the number of the step, from 1, and its record.
            taken: steps of an earlier process, which are not repeated.
        """
        with closing(self.models):
            for step in range(taken, steps):
                after_step(step + 1, self.step(step))

    def step(self, step: int) -> StepRecord:
        """One iteration of Algorithm 1, counted from 0: one batch of completions and its optimiser updates."""
        self._wrapped.train()
        settings, alpha = self.settings, self.alpha(step)
        source = choose_source(settings.lmbda, settings.seed, step, settings.fixed_source)  # u <= lambda
        rollout = self._rollout(step, source)  # y ~ p_S(.|x), or (x, y) ~ (X, Y)
        scores = self._scores(rollout, alpha)  # r(y)
        batch = self._pre_update_pass(step, rollout, alpha, scores)
        epochs = settings.epochs if scores is not None else 1  # above 1 with a clipped surrogate
        metrics: dict[str, float] = {}
        for epoch in range(epochs):
            with recomputed_layers(self.student, settings.gradient_checkpointing):
                logp_BT, sums = self._accumulate_gradients(batch, keep_teacher=epochs > 1)  # of minus Eq. 5
            if batch.diagnose and scores is not None:
                sums |= ratio_error(
                    self.models.sampling_log_probs(rollout, batch.micro_batches), logp_BT, rollout.mask_BT
                )
            batch.diagnose = False  # only the first update is measured
            metrics |= sums if epoch == 0 else {"clipped_share": sums["clipped_share"]}
            skipped = metrics.get("guard/skipped", 0.0)
            metrics |= self._optimizer_update(sums["loss"])  # theta <- theta - eta * gradient
            metrics["guard/skipped"] += skipped
            if epoch == 0:  # the denominator of PPO's ratio in later epochs
                batch.credits = replace(batch.credits, old_logp_BT=logp_BT)
        metrics |= self._step_metrics(batch, scores)
        return StepRecord(metrics | self.guard.check(step + 1, metrics), rollout, scores)

    # --- completions and rewards -------------------------------------------------------------------------------------

    def _rollout(self, step: int, source: Source) -> Rollout:
        """The completions of this rank; random numbers depend on (seed, step, rank) only."""
        with self._phase("rollout"):
            rank, world = self.accelerator.process_index, self.accelerator.num_processes
            rows = self.stream.rows(step, rank, world)
            examples = [self.stream.examples[row] for row in rows]
            if source is Source.dataset:
                return self.codec.references(examples)
            if source is Source.teacher:
                if self.teacher_samples is None:
                    raise ValueError("a step on teacher samples needs `teacher_samples`.")
                ids = [self.teacher_samples.ids[row] for row in rows]
                rollout = self.codec.completions(examples, ids, source)
                teacher = self.teacher_samples.teacher
                self._cost_meter.add_flops("teacher_samples", teacher, PassKind.generation, rollout)
                return rollout
            generator = torch.Generator(self.student.device)
            generator.manual_seed(random.Random(f"rollout {self.settings.seed} {step} {rank}").getrandbits(63))
            prompts = self.codec.prompts(examples)
            rollout = self.sampler.sample(self.student, prompts, self.settings.per_prompt, generator)
            self._cost_meter.add_flops("rollout", self.student, PassKind.generation, rollout)
            return rollout

    def _scores(self, rollout: Rollout, alpha: float) -> Scores | None:
        """Rewards r(y); None at alpha = 1 and for completions that are not the student's."""
        if self.reward is None or rollout.source is not Source.student or alpha >= 1:
            return None
        with self._phase("reward"):
            return score(self.reward, rollout)

    # --- before the first update -------------------------------------------------------------------------------------

    def _pre_update_pass(self, step: int, rollout: Rollout, alpha: float, scores: Scores | None) -> _StepBatch:
        """Split the step into micro-batches, and compute its totals, advantages and credits."""
        counts = torch.stack([torch.tensor(rollout.n_sequences, device=self.student.device), rollout.mask_BT.sum()])
        totals = StepTotals(*(int(count) for count in self._sum(counts).tolist()))
        micro_batches = self.micro_batcher(rollout)
        with self._phase("pre_update"):
            pre_update, teacher_outputs = self.models.pre_update_pass(
                rollout, micro_batches, rewarded=scores is not None, alpha=alpha, critic=self.critic
            )
        every = self.settings.diagnose_every
        diagnose = every > 0 and (step % every == 0 or step == self.alpha.steps - 1)
        advantages_BT, targets = self._advantages(rollout, scores, pre_update)
        credit_BT = None
        if pre_update.divergence_BT is not None:
            total = float(self._sum(pre_update.divergence_BT.sum()))
            credit_BT = token_divergence_credit(self.credit, rollout, pre_update, (total, totals.tokens))
        credits = Credits(advantages_BT, credit_BT, None, pre_update.initial_logp_BT)
        return _StepBatch(rollout, micro_batches, alpha, totals, credits, targets, teacher_outputs, diagnose)

    def _advantages(
        self, rollout: Rollout, scores: Scores | None, pre_update: PreUpdateTerms
    ) -> tuple[Tensor | None, Targets | None]:
        """Advantages (B, T) of this rank, and the value head's targets; None without a reward."""
        if scores is None:
            return None, None
        rewards_B = self.accelerator.gather(torch.tensor(scores.total, device=rollout.ids_BT.device))
        first = self.accelerator.process_index * rollout.n_sequences
        advantages_BT = token_advantages(self.credit, rewards_B, rollout, pre_update, first)  # pyright: ignore[reportArgumentType]
        targets = None if pre_update.values_BT1 is None else Targets.of(pre_update.values_BT1, advantages_BT)
        if self.credit.whiten:
            sums = self._sum(moments(advantages_BT, rollout.mask_BT))
            advantages_BT = whiten(advantages_BT, rollout.mask_BT, sums)
        return advantages_BT, targets

    # --- one update --------------------------------------------------------------------------------------------------

    def _accumulate_gradients(self, batch: _StepBatch, keep_teacher: bool) -> tuple[Tensor, dict[str, float]]:
        """Forward and backward passes of all micro-batches: the gradient of minus Eq. 5, summed over the step.

        Args:
            batch: the step.
            keep_teacher: keep the teacher's outputs for the next epoch.

        Returns:
            Log-probabilities (B, T), and the loss metrics summed over micro-batches and ranks.
        """
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.student.device))
        logp_BT = torch.zeros(batch.rollout.ids_BT.shape, device=self.student.device)
        term_gradients = None
        if batch.diagnose or self.alpha.balanced:
            term_gradients = TermGradients(self.student.parameters(), self.accelerator)
        for number, rows in enumerate(batch.micro_batches):
            micro = batch.rollout.rows(rows)
            teacher = self._teacher_output(batch, number, micro, keep_teacher)
            hidden_BTD, terms, metrics = self._backward(batch, number, micro, teacher, term_gradients)
            logp_BT[rows, : micro.ids_BT.shape[1]] = terms.logp_BT.detach()
            for name, value in metrics.items():
                sums[name] += value
            if batch.diagnose and batch.rollout.source is Source.student:
                with self._phase("initial"):
                    for name, value in self.models.kl_to_others(hidden_BTD, teacher, micro).items():
                        sums[name] += value.sum() / batch.totals.tokens
        reduced = {name: float(self._sum(value)) for name, value in sums.items()}
        if term_gradients is not None:
            reduced |= term_gradients.set_gradients(batch.alpha, self.alpha.balanced)
        return logp_BT, reduced

    def _teacher_output(self, batch: _StepBatch, number: int, micro: Rollout, keep: bool) -> TeacherOutput | None:
        """The teacher forward pass of a micro-batch, computed once per step."""
        if number not in batch.teacher_outputs:
            with self._phase("teacher"):
                rows = batch.micro_batches[number]
                batch.teacher_outputs[number] = self.models.teacher_forward(batch.rollout, rows, micro, batch.alpha)
        return batch.teacher_outputs[number] if keep else batch.teacher_outputs.pop(number)

    def _backward(
        self,
        batch: _StepBatch,
        number: int,
        micro: Rollout,
        teacher: TeacherOutput | None,
        term_gradients: TermGradients | None,
    ) -> tuple[Tensor, TokenTerms, dict[str, Tensor]]:
        """Student forward pass, loss (1 - alpha) L_r + alpha L_D and backward pass of a micro-batch.

        Returns:
            The student's hidden states, the per-token terms, and the micro-batch's share of the loss metrics.
        """
        rows, alpha, totals = batch.micro_batches[number], batch.alpha, batch.totals
        credits, metrics = batch.credits.rows(rows, micro.ids_BT.shape[1]), {}
        last = number == len(batch.micro_batches) - 1  # gradients are synchronised over ranks once per step
        with self._phase("student"), nullcontext() if last else self.accelerator.no_sync(self._wrapped):
            if term_gradients is not None:  # sums over ranks itself, so the student runs without its wrapper
                hidden_BTD = self.student(micro)
                terms = self.models.token_terms(hidden_BTD, teacher, micro, alpha)
                losses = self.objective(terms, micro.mask_BT, credits, totals)
                term_gradients.backward(losses)
            else:
                hidden_BTD = self._wrapped(micro)
                token_loss = self.objective.token_loss(micro.mask_BT, credits, totals)
                loss, terms = self.models.student_loss(hidden_BTD, teacher, micro, alpha, token_loss)
                # the wrapper averages gradients over ranks, but the divisors already count all ranks
                self.accelerator.backward(loss * self.accelerator.num_processes)
                losses = self.objective(terms, micro.mask_BT, credits, totals)
            if self.critic is not None and batch.targets is not None:
                value_loss = self.critic.loss(hidden_BTD, batch.targets, rows, micro, totals.tokens)
                value_loss.backward()
                metrics["value_loss"] = value_loss.detach()
        return hidden_BTD, terms, metrics | loss_metrics(losses, terms, alpha, totals)

    def _optimizer_update(self, loss: float) -> dict[str, float]:
        """Clip the gradients and update, unless the loss or a gradient norm is not finite."""
        with self._phase("update"):
            norms = [self.accelerator.clip_grad_norm_(self._wrapped.parameters(), self.settings.max_grad_norm)]
            if self.critic is not None:
                for parameter in self.critic.head.parameters():
                    if parameter.grad is not None:
                        parameter.grad = self._sum(parameter.grad)
                norms.append(torch.nn.utils.clip_grad_norm_(self.critic.head.parameters(), self.settings.max_grad_norm))
            values = [float(norm) for norm in norms]  # pyright: ignore[reportArgumentType]
            finite = all_finite(loss, *values)
            if finite:
                self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return {"grad_norm": values[0], "guard/skipped": float(not finite)}

    # --- after the last update ---------------------------------------------------------------------------------------

    def _step_metrics(self, batch: _StepBatch, scores: Scores | None) -> dict[str, float]:
        """Metrics of the step over all ranks, without reward metrics where it has no reward; advances the schedule."""
        metrics = {"learning_rate": self.schedule.get_last_lr()[0], "alpha": batch.alpha}
        self.schedule.step()
        metrics |= rollout_metrics(
            batch.rollout, batch.totals, scores, teacher_scored=self.models.uses_teacher(batch.alpha)
        )
        metrics |= guard_metrics(batch.rollout, scores, {} if self.reward is None else self.reward.bounds())
        return reduce_metrics(self.accelerator, metrics | self._cost_meter.take())

    def _sum(self, value: Tensor) -> Tensor:
        """Sum over all ranks."""
        return self.accelerator.reduce(value, "sum")  # pyright: ignore[reportReturnType]


def score(reward: Composite, rollout: Rollout) -> Scores:
    """Rewards of all completions of a rollout, from prompt, completion, reference and the task's columns.

    Raises:
        RewardError: the reward raised a ValueError or returned an unusable value.
    """
    rows = [rollout.prompts.examples[i] for i in rollout.prompt_index_B.tolist()]
    columns = {name: [row.columns[name] for row in rows] for name in rows[0].columns}
    try:
        return reward(
            [row.prompt for row in rows], list(rollout.texts), reference=[row.reference for row in rows], **columns
        )
    except ValueError as error:
        raise RewardError(str(error)) from error
