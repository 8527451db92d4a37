"""PPO's learned baseline at work: values for the survey, and the value loss beside the student's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gkd_rl.types import Rollout
from gkd_rl.value_head import ValueHead, value_loss


@dataclass(frozen=True)
class Targets:
    """What the value head is to predict on one rollout; each (B, T)."""

    old_values_BT: Tensor
    returns_BT: Tensor

    @classmethod
    def of(cls, values_BT1: Tensor, advantages_BT: Tensor) -> Targets:
        """R = A + V, with the advantages before whitening."""
        old_BT = values_BT1[:, :-1]
        return cls(old_BT, advantages_BT + old_BT)


@dataclass(frozen=True)
class Critic:
    """A value head and the half-width of its clip."""

    head: ValueHead
    clip: float | None

    def values(self, hidden_BTD: Tensor) -> Tensor:
        """V of each state without gradient, shape (B, T)."""
        with torch.no_grad():
            return self.head(hidden_BTD)

    def loss(self, hidden_BTD: Tensor, targets: Targets, rows: Tensor, micro: Rollout, tokens: int) -> Tensor:
        """The micro-batch's share of the step's value loss, a mean over its `tokens`."""
        width = micro.ids_BT.shape[1]
        return (
            value_loss(
                self.head(hidden_BTD),
                targets.old_values_BT[rows, :width],
                targets.returns_BT[rows, :width],
                micro.mask_BT,
                self.clip,
            )
            / tokens
        )
