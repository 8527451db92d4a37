"""One optimiser step: choose whose text -> roll out -> score -> teach -> update. `accelerate` is the engine.

What varies between methods comes in as objects (objective, sampler, reward, teacher); the step itself is always this.
The step is cut into micro-batches of completions; every divisor is that of the whole step, so the cut does not change
the gradient.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from gkd_rl import mixing
from gkd_rl.architecture import HiddenStateModel
from gkd_rl.config import Baseline
from gkd_rl.errors import RewardError
from gkd_rl.fused_head import FusedHead
from gkd_rl.metrics import repetition_rate
from gkd_rl.objective import Objective, StepTotals
from gkd_rl.policy_gradient import advantages
from gkd_rl.prompt_stream import PromptStream
from gkd_rl.rollout import Sampler, TextCodec
from gkd_rl.types import Projection, Rollout, Source
from reward_models.composite import Composite, Scores


@dataclass(frozen=True)
class StepSettings:
    """How a step is taken, beside the objects that take it."""

    lmbda: float
    seed: int
    per_prompt: int
    micro_batch_size: int
    max_grad_norm: float
    baseline: Baseline


@dataclass
class StepRecord:
    """What one step did: numbers for metrics.jsonl, and the rollout for samples.jsonl."""

    metrics: dict[str, float]
    rollout: Rollout
    scores: Scores | None


@dataclass
class Trainer:
    """Everything one step needs. `teacher` may be None (alpha = 0, cross-entropy), `reward` too (alpha = 1)."""

    accelerator: Accelerator
    student: HiddenStateModel
    teacher: HiddenStateModel | None
    objective: Objective
    head: FusedHead
    sampler: Sampler
    codec: TextCodec
    reward: Composite | None
    stream: PromptStream
    optimizer: Optimizer
    schedule: LRScheduler
    settings: StepSettings
    _seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float), init=False)

    def __post_init__(self) -> None:
        self._wrapped = self.accelerator.prepare_model(self.student)

    def run(self, steps: int, after_step: Callable[[int, StepRecord], None]) -> None:
        """Take `steps` steps; `after_step(step, record)` follows each, with step counted from 1."""
        for step in range(steps):
            after_step(step + 1, self.step(step))

    def step(self, step: int) -> StepRecord:
        """One optimiser step (counted from 0)."""
        self._seconds.clear()
        self._wrapped.train()
        source = mixing.choose(self.settings.lmbda, self.settings.seed, step)
        with self._phase("rollout"):
            rollout = self._rollout(step, source)
        scores = None
        if self.reward is not None and source is Source.student:
            with self._phase("reward"):
                scores = score(self.reward, rollout)
        advantages_B = None if scores is None else self._advantages(scores, rollout)
        totals = self._totals(rollout)
        sums = self._accumulate(rollout, advantages_B, totals)
        with self._phase("update"):
            norm = self.accelerator.clip_grad_norm_(self._wrapped.parameters(), self.settings.max_grad_norm)
            self.optimizer.step()
            metrics = {"learning_rate": self.schedule.get_last_lr()[0], "grad_norm": float(norm)}  # pyright: ignore
            self.schedule.step()
            self.optimizer.zero_grad(set_to_none=True)
        metrics |= self._describe(rollout, scores, totals, sums)
        return StepRecord(metrics, rollout, scores)

    def _rollout(self, step: int, source: Source) -> Rollout:
        """The completions of this rank, decided by (seed, step, rank)."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        examples = self.stream.batch(step, rank, world)
        if source is Source.dataset:
            return self.codec.references(examples)
        generator = torch.Generator(self.student.device)
        generator.manual_seed(random.Random(f"rollout {self.settings.seed} {step} {rank}").getrandbits(63))
        return self.sampler.sample(self.student, self.codec.prompts(examples), self.settings.per_prompt, generator)

    def _advantages(self, scores: Scores, rollout: Rollout) -> Tensor:
        """Reward minus baseline of this rank's completions, shape (B,)."""
        rewards = torch.tensor(scores.total, device=rollout.ids_BT.device)
        return advantages(rewards.view(-1, self.settings.per_prompt), self.settings.baseline).flatten()

    def _totals(self, rollout: Rollout) -> StepTotals:
        """Sequences and generated tokens of the whole step, over all ranks."""
        counts = torch.stack([torch.tensor(rollout.n_sequences, device=self.student.device), rollout.mask_BT.sum()])
        sequences, tokens = self.accelerator.reduce(counts, "sum").tolist()  # pyright: ignore
        return StepTotals(int(sequences), int(tokens))

    def _accumulate(self, rollout: Rollout, advantages_B: Tensor | None, totals: StepTotals) -> dict[str, float]:
        """Forward and backward of every micro-batch; returns the step's loss terms summed over them."""
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.student.device))
        size, end = self.settings.micro_batch_size, rollout.n_sequences
        for start in range(0, end, size):
            micro = rollout.rows(start, min(start + size, end))
            part = None if advantages_B is None else advantages_B[start : start + size]
            last = start + size >= end
            with nullcontext() if last else self.accelerator.no_sync(self._wrapped):  # ranks meet once a step
                teacher = self._teach(micro)
                with self._phase("student"):
                    student = Projection(self._wrapped(micro), self.student.head())
                    terms = self.head(student, teacher, micro.ids_BT, micro.mask_BT)
                    losses = self.objective(terms, micro.mask_BT, part, totals)
                    # Wrappers average gradients over ranks; the divisors count all ranks already.
                    self.accelerator.backward(losses.loss * self.accelerator.num_processes)
            sums["loss"] += losses.loss.detach()
            sums["entropy"] += terms.entropy_BT.sum() / totals.tokens
            if losses.policy_gradient is not None:
                sums["policy_gradient"] += losses.policy_gradient.detach()
            if losses.divergence is not None:
                sums["divergence"] += losses.divergence.detach()
        return {name: float(self.accelerator.reduce(value, "sum")) for name, value in sums.items()}  # pyright: ignore

    def _teach(self, micro: Rollout) -> Projection | None:
        """The teacher's hidden states of a micro-batch; None where nothing reads them."""
        if self.teacher is None:
            return None
        with self._phase("teacher"), torch.no_grad():
            return Projection(self.teacher(micro), self.teacher.head())

    def _describe(
        self, rollout: Rollout, scores: Scores | None, totals: StepTotals, sums: dict[str, float]
    ) -> dict[str, float]:
        """The step's numbers. A step without a reward has no reward metric."""
        metrics = {
            **sums,
            "alpha": self.objective.alpha,
            "student_data": float(rollout.source is Source.student),
            "completion_tokens": float(rollout.mask_BT.sum(dim=1).float().mean()),
            "truncated_share": float(rollout.truncated_B.float().mean()),
            "repetition": sum(map(repetition_rate, rollout.texts)) / len(rollout.texts),
            "tokens/student_trained": float(totals.tokens),
            "tokens/student_generated": float(totals.tokens if rollout.source is Source.student else 0),
            "tokens/teacher_scored": float(totals.tokens if self.teacher is not None else 0),
        }
        if scores is not None:
            total = torch.tensor(scores.total)
            metrics |= {"reward/mean": float(total.mean()), "reward/std": float(total.std(correction=0))}
            metrics |= {f"reward/{name}": sum(values) / len(values) for name, values in scores.components.items()}
        return metrics | {f"time/{name}": seconds for name, seconds in self._seconds.items()}

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """Adds the seconds of a block to a phase of the step."""
        start = time.perf_counter()
        yield
        self._seconds[name] += time.perf_counter() - start


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
