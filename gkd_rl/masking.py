"""Completion masks and masked reductions. One rule: the first end-of-sequence token counts, what follows does not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def completion_mask(ids_BT: Tensor, eos_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Mask up to and including the first end-of-sequence token.

    Args:
        ids_BT: completion ids, shape (B, T).
        eos_ids: ids that end a sequence.

    Returns:
        mask_BT (bool), and truncated_B (bool): rows without an end-of-sequence token.
    """
    is_eos = torch.isin(ids_BT, torch.tensor(list(eos_ids), device=ids_BT.device))
    seen_before = is_eos.long().cumsum(dim=1) - is_eos.long()
    return seen_before == 0, ~is_eos.any(dim=1)


def shift_right(ids_BT: Tensor, start_id: int) -> Tensor:
    """Decoder inputs that predict `ids_BT`: the start token, then all but the last token. Shape (B, T)."""
    return torch.cat([torch.full_like(ids_BT[:, :1], start_id), ids_BT[:, :-1]], dim=1)


def sequence_sum(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Sum over each row's valid tokens, shape (B,)."""
    return torch.where(mask_BT, values_BT, 0).sum(dim=1)


def sequence_mean(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean over each row's valid tokens, shape (B,); 0 for a row without any."""
    return sequence_sum(values_BT, mask_BT) / mask_BT.sum(dim=1).clamp(min=1)
