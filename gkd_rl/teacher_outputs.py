"""What the teacher says of fixed text (references, its own samples), kept on disk: it is computed once.

Kept are the hidden states of a completion before the output head, (T, D) in the teacher's dtype, so that any
divergence, temperature and scale reads them. A completion goes by the hash of its own ids and of its prompt's as the
teacher reads them; the folder by the hash of all that decides the teacher (`build_teacher.build_outputs`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gkd_rl.architecture import HiddenStateModel
from gkd_rl.errors import ModelError
from gkd_rl.tensor_shards import TensorShards
from gkd_rl.types import Rollout


@dataclass
class TeacherOutputs:
    """A teacher's hidden states by completion; those that are missing are computed and added.

    Attributes:
        shards: where they are.
        tolerance: how far stored states may be from computed ones, as a share of these ones' norm: what rounding does.
        checked: the first micro-batch with states from the disk has been computed again and compared.
    """

    shards: TensorShards
    tolerance: float
    checked: bool = False

    def __call__(
        self, teacher: HiddenStateModel, micro: Rollout, compute: Callable[[Rollout], Tensor]
    ) -> tuple[Tensor, int]:
        """The teacher's hidden states of a micro-batch.

        Args:
            teacher: whose they are.
            micro: the text.
            compute: the teacher's forward, of the completions that are missing.

        Returns:
            States (B, T, D), 0 on padding, and how many of the B completions were there already.

        Raises:
            ModelError: what is stored is not what this teacher says.
        """
        keys, lengths = completion_keys(teacher, micro), micro.mask_BT.sum(dim=1).tolist()
        found = self.shards.read(keys)
        check = not self.checked and any(self.shards.on_disk(key) for key in found)
        rows = [row for row, key in enumerate(keys) if check or key not in found]
        parts = {row: found[key] for row, key in enumerate(keys) if key in found}
        if rows:
            computed_BTD = compute(micro.rows(torch.tensor(rows, device=micro.ids_BT.device)))
            for row, computed_TD in zip(rows, computed_BTD, strict=True):
                computed = computed_TD[: lengths[row]]
                if row in parts:
                    self._compare(parts[row], computed)
                else:
                    self.shards.add(keys[row], computed)
                parts[row] = computed
        self.checked |= check
        any_TD = parts[0]
        hidden_BTD = torch.zeros(*micro.ids_BT.shape, any_TD.shape[1], dtype=any_TD.dtype, device=micro.ids_BT.device)
        for row, part_TD in parts.items():
            hidden_BTD[row, : lengths[row]] = part_TD
        return hidden_BTD, sum(key in found for key in keys)

    def _compare(self, stored_TD: Tensor, computed_TD: Tensor) -> None:
        """Refuse stored states that rounding does not explain."""
        stored, computed = stored_TD.float(), computed_TD.float().cpu()
        same = stored.shape == computed.shape
        away = float((stored - computed).norm() / computed.norm()) if same else float("inf")
        if not away <= self.tolerance:
            raise ModelError(
                f"teacher.output_cache_gib: {self.shards.folder} does not hold what this teacher says: the states "
                f"of a completion are {away:.2g} of their norm away, and rounding explains {self.tolerance:g}. Delete "
                "that folder, or set teacher.output_cache_gib=null."
            )


def completion_keys(teacher: HiddenStateModel, micro: Rollout) -> list[str]:
    """The hash of each completion and of its prompt as the teacher reads it; padding is no part of it."""
    prompts = teacher.own(micro.prompts)
    read = [ids[mask] for ids, mask in zip(prompts.ids_PS.cpu(), prompts.mask_PS.cpu(), strict=True)]
    keys = []
    for prompt, ids, mask in zip(micro.prompt_index_B.tolist(), micro.ids_BT.cpu(), micro.mask_BT.cpu(), strict=True):
        digest = hashlib.sha256(len(read[prompt]).to_bytes(8, "little"))
        digest.update(read[prompt].numpy().tobytes())
        digest.update(ids[mask].numpy().tobytes())
        keys.append(digest.hexdigest()[:32])
    return keys
