"""PPO's learned baseline: V(state) from the student's hidden states, for every architecture, and its loss.

The hidden state that predicts token t is the state before token t. No gradient flows from V into the student, so that
the student's update stays that of the objective. `Critic` gives the values of the pre-update pass and the value loss of
each micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gkd_rl.errors import ModelError
from gkd_rl.types import Rollout

FILE = "value_head.safetensors"


class ValueHead(nn.Module):
    """Two layers on the hidden state; the last starts at 0, so that the first advantages are the rewards to go."""

    def __init__(self, width: int, hidden_size: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.inner = nn.Linear(width, hidden_size)
            self.outer = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """V of each state, shape (B, T), float32."""
        hidden = hidden_BTD.detach().to(self.inner.weight.dtype)
        return self.outer(torch.tanh(self.inner(hidden))).squeeze(-1).float()

    def save(self, folder: Path) -> None:
        """Write the weights into a model's folder."""
        save_file(self.state_dict(), folder / FILE)

    def load(self, folder: Path) -> None:
        """Take the weights from a model's folder.

        Raises:
            ModelError: the file is damaged or belongs to another shape.
        """
        try:
            self.load_state_dict(load_file(folder / FILE))
        except (RuntimeError, SafetensorError) as error:
            raise ModelError(
                f"{folder / FILE}: these weights do not fit ({str(error).splitlines()[0]}). Set "
                "policy_gradient.value.hidden_size to that of the run that wrote them, or remove the file."
            ) from error


def value_loss(
    values_BT: Tensor, old_values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, clip: float | None
) -> Tensor:
    """Σ 1/2 (V - R)² over valid tokens, a scalar to be divided by the step's tokens.

    With clip (PPO's code): the larger of the two errors of V and of V held within `clip` of its old value.

    Args:
        values_BT: V now, with gradient.
        old_values_BT: V before the first update on this rollout.
        returns_BT: R = A + old V.
        mask_BT: valid tokens.
        clip: half-width of the allowed change, or None.
    """
    error_BT = (values_BT - returns_BT) ** 2
    if clip is not None:
        near_BT = old_values_BT + (values_BT - old_values_BT).clamp(-clip, clip)
        error_BT = torch.maximum(error_BT, (near_BT - returns_BT) ** 2)
    return 0.5 * torch.where(mask_BT, error_BT, 0.0).sum()


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
