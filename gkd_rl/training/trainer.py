"""One optimiser step: choose whose text -> roll out -> score -> pre_update -> teach -> update. `accelerate` is the engine.

What varies between methods comes in as objects (objective, alpha, credit, sampler, reward, teacher, critic); the step
itself is always this. The step is cut into micro-batches of completions; every divisor is that of the whole step, so
the cut does not change the gradient.
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
from gkd_rl.training.step_models import StepModels
from gkd_rl.training.teacher_data import TeacherSamples
from gkd_rl.types import Credits, PreUpdateTerms, Rollout, Source, TeacherOutput
from reward_models.composite import Composite, Scores


@dataclass(frozen=True)
class StepSettings:
    """How a step is taken, beside the objects that take it.

    Attributes:
        lmbda: probability of a step on student rollouts.
        otherwise: who wrote the text of the other steps.
        seed: of coins and rollouts.
        per_prompt: K.
        max_grad_norm: of the student's gradient; the value head's is held to the same.
        epochs: updates on one rollout with a reward.
        diagnose_every: steps between two measurements of both gradients and of the KL to the initial student; 0: never.
        gradient_checkpointing: layers are computed again in the backward pass.
    """

    lmbda: float
    seed: int
    per_prompt: int
    max_grad_norm: float
    otherwise: Source = Source.dataset
    epochs: int = 1
    diagnose_every: int = 0
    gradient_checkpointing: bool = False


@dataclass
class StepRecord:
    """What one step did: numbers for metrics.jsonl, and the rollout for samples.jsonl."""

    metrics: dict[str, float]
    rollout: Rollout
    scores: Scores | None


@dataclass
class _Work:
    """One step's text and everything that is decided about it before its first update."""

    rollout: Rollout
    micro_batches: list[Tensor]
    alpha: float
    totals: StepTotals
    credits: Credits
    targets: Targets | None
    teacher_outputs: dict[
        int, TeacherOutput | None
    ]  # the teacher's states by micro-batch, where they are known already
    diagnose: bool


@dataclass
class Trainer:
    """Everything one step needs; `reward`, `critic` and `samples` may be None."""

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
    samples: TeacherSamples | None
    micro_batcher: MicroBatcher
    optimizer: Optimizer
    schedule: LRScheduler
    settings: StepSettings
    guard: Guard = field(default_factory=Guard)

    def __post_init__(self) -> None:
        self.student = self.models.student
        self._meter = self.models.meter
        self._phase = self._meter.phase
        self._wrapped = self.accelerator.prepare_model(self.student)

    def run(self, steps: int, after_step: Callable[[int, StepRecord], None], taken: int = 0) -> None:
        """Take `steps` steps but for the first `taken`; `after_step(step, record)` follows each, counted from 1."""
        with closing(self.models):
            for step in range(taken, steps):
                after_step(step + 1, self.step(step))

    def step(self, step: int) -> StepRecord:
        """One rollout and its optimiser updates (step counted from 0)."""
        self._wrapped.train()
        settings, alpha = self.settings, self.alpha(step)
        source = choose_source(settings.lmbda, settings.seed, step, settings.otherwise)
        with self._phase("rollout"):
            rollout = self._rollout(step, source)
        scores = None
        if self.reward is not None and source is Source.student and alpha < 1:
            with self._phase("reward"):
                scores = score(self.reward, rollout)
        work = self._prepare(step, rollout, alpha, scores)
        epochs = settings.epochs if scores is not None else 1
        metrics: dict[str, float] = {}
        for epoch in range(epochs):
            with recomputed_layers(self.student, settings.gradient_checkpointing):
                first, sums = self._accumulate(work, keep=epochs > 1)
            if work.diagnose and scores is not None:
                sums |= ratio_error(self.models.sampling_log_probs(rollout, work.micro_batches), first, rollout.mask_BT)
            work.diagnose = False  # the first update is the one that is described
            metrics |= sums if epoch == 0 else {name: sums[name] for name in ("clipped_share",)}
            skipped = metrics.get("guard/skipped", 0.0)
            metrics |= self._update(sums["loss"])
            metrics["guard/skipped"] += skipped
            work.credits = replace(work.credits, old_logp_BT=first if epoch == 0 else work.credits.old_logp_BT)
        metrics |= self._describe(work, scores)
        return StepRecord(metrics | self.guard.check(step + 1, metrics), rollout, scores)

    def _rollout(self, step: int, source: Source) -> Rollout:
        """The completions of this rank, decided by (seed, step, rank)."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        rows = self.stream.rows(step, rank, world)
        examples = [self.stream.examples[row] for row in rows]
        if source is Source.dataset:
            return self.codec.references(examples)
        if source is Source.teacher:
            if self.samples is None:
                raise ValueError("a step on the teacher's samples needs them.")
            rollout = self.codec.completions(examples, [self.samples.ids[row] for row in rows], source)
            self._meter.add_flops("teacher_samples", self.samples.author, PassKind.generation, rollout)
            return rollout
        generator = torch.Generator(self.student.device)
        generator.manual_seed(random.Random(f"rollout {self.settings.seed} {step} {rank}").getrandbits(63))
        prompts = self.codec.prompts(examples)
        rollout = self.sampler.sample(self.student, prompts, self.settings.per_prompt, generator)
        self._meter.add_flops("rollout", self.student, PassKind.generation, rollout)
        return rollout

    def _prepare(self, step: int, rollout: Rollout, alpha: float, scores: Scores | None) -> _Work:
        """Totals over all ranks, the pre_update, and the weights of the score function."""
        counts = torch.stack([torch.tensor(rollout.n_sequences, device=self.student.device), rollout.mask_BT.sum()])
        totals = StepTotals(*(int(count) for count in self._sum(counts).tolist()))
        micro_batches = self.micro_batcher(rollout)
        with self._phase("pre_update"):
            pre_update, teacher_outputs = self.models.pre_update_pass(
                rollout, micro_batches, rewarded=scores is not None, alpha=alpha, critic=self.critic
            )
        every = self.settings.diagnose_every
        diagnose = every > 0 and (step % every == 0 or step == self.alpha.steps - 1)
        weights_BT, targets = self._reward_weights(rollout, scores, pre_update)
        credit_BT = None
        if pre_update.divergence_BT is not None:
            total = float(self._sum(pre_update.divergence_BT.sum()))
            credit_BT = token_divergence_credit(self.credit, rollout, pre_update, (total, totals.tokens))
        credits = Credits(weights_BT, credit_BT, None, pre_update.initial_logp_BT)
        return _Work(rollout, micro_batches, alpha, totals, credits, targets, teacher_outputs, diagnose)

    def _reward_weights(
        self, rollout: Rollout, scores: Scores | None, pre_update: PreUpdateTerms
    ) -> tuple[Tensor | None, Targets | None]:
        """Advantages, and what the value head is to learn from them."""
        if scores is None:
            return None, None
        rewards_B = self.accelerator.gather(torch.tensor(scores.total, device=rollout.ids_BT.device))
        first = self.accelerator.process_index * rollout.n_sequences
        weights_BT = token_advantages(self.credit, rewards_B, rollout, pre_update, first)  # pyright: ignore[reportArgumentType]
        targets = None if pre_update.values_BT1 is None else Targets.of(pre_update.values_BT1, weights_BT)
        if self.credit.whiten:
            weights_BT = whiten(weights_BT, rollout.mask_BT, self._sum(moments(weights_BT, rollout.mask_BT)))
        return weights_BT, targets

    def _accumulate(self, work: _Work, keep: bool) -> tuple[Tensor, dict[str, float]]:
        """Forward and backward of every micro-batch.

        Returns:
            Log-probabilities (B, T) and the step's loss terms summed over micro-batches and ranks.
        """
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.student.device))
        logp_BT = torch.zeros(work.rollout.ids_BT.shape, device=self.student.device)
        apart = None
        if work.diagnose or self.alpha.balanced:
            apart = TermGradients(self.student.parameters(), self.accelerator)
        for number, rows in enumerate(work.micro_batches):
            micro = work.rollout.rows(rows)
            width = micro.ids_BT.shape[1]
            if number not in work.teacher_outputs:
                with self._phase("teacher"):
                    work.teacher_outputs[number] = self.models.teacher_forward(work.rollout, rows, micro, work.alpha)
            teacher = work.teacher_outputs[number] if keep else work.teacher_outputs.pop(number)
            with (
                self._phase("student"),
                nullcontext() if rows is work.micro_batches[-1] else self.accelerator.no_sync(self._wrapped),
            ):
                hidden_BTD = (self._wrapped if apart is None else self.student)(micro)  # ranks meet once a step
                credits = work.credits.rows(rows, width)
                if apart is not None:
                    terms = self.models.token_terms(hidden_BTD, teacher, micro, work.alpha)
                    losses = self.objective(terms, micro.mask_BT, credits, work.totals)
                    apart.backward(losses)
                else:  # wrappers average gradients over ranks; the divisors count all ranks already
                    of_tokens = self.objective.token_loss(micro.mask_BT, credits, work.totals)
                    loss, terms = self.models.student_loss(hidden_BTD, teacher, micro, work.alpha, of_tokens)
                    self.accelerator.backward(loss * self.accelerator.num_processes)
                    losses = self.objective(terms, micro.mask_BT, credits, work.totals)
                if self.critic is not None and work.targets is not None:
                    loss = self.critic.loss(hidden_BTD, work.targets, rows, micro, work.totals.tokens)
                    loss.backward()
                    sums["value_loss"] += loss.detach()
            logp_BT[rows, :width] = terms.logp_BT.detach()
            for name, value in loss_metrics(losses, terms, work.alpha, work.totals).items():
                sums[name] += value
            if work.diagnose and work.rollout.source is Source.student:
                with self._phase("initial"):
                    for name, value in self.models.kl_to_others(hidden_BTD, teacher, micro).items():
                        sums[name] += value.sum() / work.totals.tokens
        metrics = {name: float(self._sum(value)) for name, value in sums.items()}
        return logp_BT, metrics | ({} if apart is None else apart.set_gradients(work.alpha, self.alpha.balanced))

    def _update(self, loss: float) -> dict[str, float]:
        """Clip and take one optimiser update, unless the loss or a gradient is not finite."""
        with self._phase("update"):
            norms = [self.accelerator.clip_grad_norm_(self._wrapped.parameters(), self.settings.max_grad_norm)]
            if self.critic is not None:
                for parameter in self.critic.head.parameters():
                    if parameter.grad is not None:
                        parameter.grad = self._sum(parameter.grad)
                norms.append(torch.nn.utils.clip_grad_norm_(self.critic.head.parameters(), self.settings.max_grad_norm))
            found = [float(norm) for norm in norms]  # pyright: ignore[reportArgumentType]
            taken = all_finite(loss, *found)
            if taken:
                self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return {"grad_norm": found[0], "guard/skipped": float(not taken)}

    def _describe(self, work: _Work, scores: Scores | None) -> dict[str, float]:
        """The step's numbers. A step without a reward has no reward metric."""
        metrics = {"learning_rate": self.schedule.get_last_lr()[0], "alpha": work.alpha}
        self.schedule.step()
        metrics |= rollout_metrics(
            work.rollout, work.totals, scores, teacher_scored=self.models.uses_teacher(work.alpha)
        )
        metrics |= guard_metrics(work.rollout, scores, {} if self.reward is None else self.reward.bounds())
        return reduce_metrics(self.accelerator, metrics | self._meter.take())

    def _sum(self, value: Tensor) -> Tensor:
        """Over all ranks."""
        return self.accelerator.reduce(value, "sum")  # pyright: ignore[reportReturnType]


def score(reward: Composite, rollout: Rollout) -> Scores:
    """Reward every completion of a rollout with its prompt, reference and task columns.

    Raises:
        RewardError: the reward returned something unusable.
    """
    rows = [rollout.prompts.examples[i] for i in rollout.prompt_index_B.tolist()]
    columns = {name: [row.columns[name] for row in rows] for name in rows[0].columns}
    try:
        return reward(
            [row.prompt for row in rows], list(rollout.texts), reference=[row.reference for row in rows], **columns
        )
    except ValueError as error:
        raise RewardError(str(error)) from error
