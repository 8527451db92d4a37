"""What quantisation costs a teacher: KL(full precision || quantised) on the student's own text.

No student can be told to be nearer to the full-precision teacher than this: it is the noise floor of the divergence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gkd_rl.architecture import HiddenStateModel
from gkd_rl.choices import DivergenceName, Dtype, Quantization
from gkd_rl.divergence import TokenDivergence
from gkd_rl.fused_head import FusedHead
from gkd_rl.masking import sequence_mean
from gkd_rl.rollout import Sampler
from gkd_rl.types import Example, Projection, Rollout
from gkd_rl.uncertainty import Estimate


@dataclass(frozen=True)
class TeacherAudit:
    """The measured KL, in nats per token, with its 95% bootstrap interval over rollouts."""

    dtype: Dtype
    quantization: Quantization
    kl: Estimate

    def __str__(self) -> str:
        """E.g. `KL(float32 || int8) = 0.00041 [0.00035, 0.00049] nats per token on 64 student rollouts`."""
        kl = self.kl
        return (
            f"KL({self.dtype.value} || {self.quantization.value}) = {kl.mean:.2g} [{kl.low:.2g}, {kl.high:.2g}] "
            f"nats per token on {kl.n} student rollouts"
        )

    def as_dict(self) -> dict[str, float | int | str]:
        """For eval.json."""
        return {
            "dtype": self.dtype.value,
            "quantization": self.quantization.value,
            "unit": "nats per token",
            **self.kl.as_dict(),
        }


@torch.no_grad()
def kl_between(
    full: HiddenStateModel,
    quantised: HiddenStateModel,
    rollouts: Sequence[Rollout],
    chunk_tokens: int | None,
    vocabulary: int,
) -> np.ndarray:
    """KL(full || quantised) in nats per token, averaged over each completion, one number for each.

    Args:
        full: the teacher at full precision.
        quantised: the same, quantised.
        rollouts: the student's.
        chunk_tokens: positions whose logits exist at one time, see `FusedHead`.
        vocabulary: words that can be sampled.
    """
    divergence = TokenDivergence(DivergenceName.forward_kl)
    head = FusedHead(divergence, chunk_tokens=chunk_tokens, vocabulary=vocabulary)
    parts = []
    for rollout in rollouts:
        one, other = (Projection(model(rollout), model.head()) for model in (full, quantised))
        values_BT = head(other, one, rollout.ids_BT, rollout.mask_BT).divergence_BT
        assert values_BT is not None
        parts.append(sequence_mean(values_BT, rollout.mask_BT).cpu().numpy())
    return np.concatenate(parts)


def student_rollouts(
    student: HiddenStateModel, sampler: Sampler, examples: Sequence[Example], batch_size: int, seed: int
) -> list[Rollout]:
    """One completion of every example, in batches."""
    generator = torch.Generator(student.device)
    generator.manual_seed(seed)
    batches = [examples[start : start + batch_size] for start in range(0, len(examples), batch_size)]
    return [sampler.sample(student, sampler.codec.prompts(batch), 1, generator) for batch in batches]
