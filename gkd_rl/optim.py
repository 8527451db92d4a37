"""Optimisers and learning-rate schedules, from the libraries that keep them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn
from torch.optim import Adafactor, AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from gkd_rl.choices import Decay, OptimizerName

SCHEDULES = {
    Decay.constant: "constant_with_warmup",
    Decay.linear: "linear",
    Decay.cosine: "cosine",
    Decay.cooldown: "warmup_stable_decay",
}


@dataclass(frozen=True)
class OptimizerSettings:
    """What decides an optimiser step; see conf/trainer."""

    steps: int
    name: OptimizerName
    learning_rate: float
    weight_decay: float
    warmup_steps: int
    decay: Decay
    cooldown_steps: int = 0

    def build(
        self, parameters: Iterable[nn.Parameter], extra: Sequence[tuple[Iterable[nn.Parameter], float]] = ()
    ) -> tuple[Optimizer, LRScheduler]:
        """Optimiser and schedule: linear warm-up from 0, then constant, or to 0 at `steps` as `decay` says.

        Args:
            parameters: at the learning rate of the settings; those without gradient are left out.
            extra: further parameters with learning rates of their own, on the same schedule.
        """
        groups = [(parameters, self.learning_rate), *extra]
        trainable = [{"params": [one for one in some if one.requires_grad], "lr": rate} for some, rate in groups]
        # torch's Adafactor multiplies the rate by each tensor's own scale, as T5's training did.
        kind = AdamW if self.name is OptimizerName.adamw else Adafactor
        optimizer = kind(trainable, lr=self.learning_rate, weight_decay=self.weight_decay)
        cooldown = {"num_decay_steps": self.cooldown_steps, "decay_type": "linear"}
        schedule = get_scheduler(
            SCHEDULES[self.decay],
            optimizer,
            num_warmup_steps=self.warmup_steps,
            num_training_steps=self.steps,
            scheduler_specific_kwargs=cooldown if self.decay is Decay.cooldown else None,
        )
        return optimizer, schedule
