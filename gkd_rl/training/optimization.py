"""Gradients and updates: gradient checkpointing, separate gradients of the two terms, optimiser and schedule.

`TermGradients` computes the gradients g_r and g_D of the two terms of paper Eq. 5 separately, where their norms and
cosine are logged (`trainer.diagnose_every`) or decide alpha (`alpha_schedule=balanced`). All other steps have one
backward pass through the weighted loss. Optimisers and schedules are those of torch and transformers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Adafactor, AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from gkd_rl.config.choices import Decay, OptimizerName
from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.types import LossTerms


@contextmanager
def recomputed_layers(model: HiddenStateModel, on: bool) -> Iterator[None]:
    """Gradient checkpointing inside the block: layers save their inputs only and run again in the backward pass.

    The gradient is the same. Non-reentrant, because with adapters the frozen embeddings have no gradient. The backward
    pass has to be inside the block.
    """
    if not on:
        yield
        return
    model.model.activation_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        model.model.activation_checkpointing_disable()


class TermGradients:
    """Sums the gradient of each term over micro-batches, then sets the parameters' gradients to the weighted sum."""

    def __init__(self, parameters: Iterable[nn.Parameter], accelerator: Accelerator) -> None:
        self._parameters = [one for one in parameters if one.requires_grad]
        self._accelerator = accelerator
        self._sums: dict[str, list[Tensor]] = {}

    def backward(self, losses: LossTerms) -> None:
        """Backward pass through each term of a micro-batch."""
        terms = {"reward": losses.reward, "divergence": losses.divergence}
        present = {name: term for name, term in terms.items() if term is not None}
        for left, (name, term) in enumerate(present.items(), start=1 - len(present)):
            found = torch.autograd.grad(term, self._parameters, retain_graph=left < 0, allow_unused=True)
            gradient = [torch.zeros_like(p) if g is None else g for p, g in zip(self._parameters, found, strict=True)]
            if name in self._sums:
                gradient = [old + new for old, new in zip(self._sums[name], gradient, strict=True)]
            self._sums[name] = gradient

    def set_gradients(self, alpha: float, balanced: bool) -> dict[str, float]:
        """Set every parameter's gradient to (1 - a) g_r + a g_D.

        Args:
            alpha: the weight a; with `balanced`, a is chosen so that a|g_D| / ((1-a)|g_r| + a|g_D|) = alpha. In a step
                where one of the two gradients is 0, a = alpha.
            balanced: see alpha.

        Returns:
            Metrics: gradient/reward_norm, gradient/divergence_norm, and where both exist gradient/cosine,
            gradient/divergence_share and alpha_effective = a.
        """
        for name, gradient in self._sums.items():
            self._sums[name] = [self._accelerator.reduce(one, "sum") for one in gradient]  # pyright: ignore
        metrics = {f"gradient/{name}_norm": float(_norm(gradient)) for name, gradient in self._sums.items()}
        weight = alpha
        if len(self._sums) == 2:
            reward, divergence = metrics["gradient/reward_norm"], metrics["gradient/divergence_norm"]
            both = reward > 0 and divergence > 0
            if balanced and both:
                weight = alpha * reward / ((1 - alpha) * divergence + alpha * reward)
            total = (1 - weight) * reward + weight * divergence
            metrics["gradient/divergence_share"] = weight * divergence / total if total else 0.0
            metrics["alpha_effective"] = weight
            if both:
                dot = sum(float((a * b).sum()) for a, b in zip(*self._sums.values(), strict=True))
                metrics["gradient/cosine"] = dot / (reward * divergence)
        weights = {"reward": 1 - weight, "divergence": weight}
        for index, parameter in enumerate(self._parameters):
            parameter.grad = sum(
                (weights[name] * gradient[index] for name, gradient in self._sums.items()),
                start=torch.zeros_like(parameter),
            )
        return metrics


def _norm(gradient: list[Tensor]) -> Tensor:
    return torch.stack([one.float().norm() for one in gradient]).norm()


SCHEDULES = {
    Decay.constant: "constant_with_warmup",
    Decay.linear: "linear",
    Decay.cosine: "cosine",
    Decay.cooldown: "warmup_stable_decay",
}


@dataclass(frozen=True)
class OptimizerSettings:
    """Settings of the optimiser and its schedule; see conf/trainer."""

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
        """Optimiser and schedule: linear warm-up from 0, then constant or a decay to 0 at `steps`.

        Args:
            parameters: with the learning rate of the settings; frozen ones are left out.
            extra: further parameters with their own learning rates, on the same schedule.
        """
        groups = [(parameters, self.learning_rate), *extra]
        trainable = [{"params": [one for one in some if one.requires_grad], "lr": rate} for some, rate in groups]
        # torch's Adafactor multiplies the learning rate by each tensor's scale, as in T5's training
        from transformers import get_scheduler  # imports peft and bitsandbytes, which takes seconds

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
