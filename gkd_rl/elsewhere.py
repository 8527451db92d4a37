"""A frozen model whose weights are not on the device that its numbers are needed on.

The architecture's contract is kept from outside: prompts and rollouts go to the weights, hidden states come back. The
output head is applied chunk by chunk beside the student's (`fused_head.py`), so a copy of its weight is moved to the
student's device once: the largest matrix of a small model, and the only one there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate import cpu_offload
from torch import Tensor
from transformers import PreTrainedModel

from gkd_rl.architecture import Architecture, HiddenStateModel
from gkd_rl.decoding import DecodingState
from gkd_rl.types import OutputHead, PromptBatch, Rollout


class ModelElsewhere(HiddenStateModel):
    """Reads and gives tensors on `here`.

    `offload`: the weights stay in CPU memory and each layer's visit `there` while it is computed (accelerate).
    """

    def __init__(self, model: PreTrainedModel, there: torch.device, here: torch.device, *, offload: bool) -> None:
        super().__init__(model)
        model.requires_grad_(False).eval()
        if not offload:
            model.to(there)  # pyright: ignore[reportArgumentType]
        head = _moved_head(self.architecture.output_head(model), here)  # before offloading hides the weights
        if offload:
            cpu_offload(model, there)
        self.architecture = _Elsewhere(self.architecture, head, there, here)
        self._here = here

    @property
    def device(self) -> torch.device:
        """Where its numbers are read and given."""
        return self._here


class _Elsewhere:
    """An architecture that moves what goes in and what comes out."""

    def __init__(self, inner: Architecture, head: OutputHead, there: torch.device, here: torch.device) -> None:
        self.decoder_only = inner.decoder_only
        self._inner, self._head, self._there, self._here = inner, head, there, here

    def lay_out(self, model: PreTrainedModel, rollout: Rollout) -> Any:
        """The text there, in the form that `read` takes."""
        moved = replace(
            rollout,
            prompts=_moved_prompts(rollout.prompts, self._there),
            prompt_index_B=rollout.prompt_index_B.to(self._there),
            ids_BT=rollout.ids_BT.to(self._there),
            mask_BT=rollout.mask_BT.to(self._there),
        )
        return self._inner.lay_out(model, moved)

    def read(self, model: PreTrainedModel, text: Any) -> Tensor:
        """Hidden states that predict each completion token, shape (B, T, D)."""
        return self._inner.read(model, text).to(self._here)

    def output_head(self, model: PreTrainedModel) -> OutputHead:
        """The head's copy."""
        return self._head

    def alike(self, model: PreTrainedModel, prompts: PromptBatch) -> list[list[int]]:
        """Prompts in groups of like length, the cheapest to read."""
        return self._inner.alike(model, prompts)

    def start(
        self, model: PreTrainedModel, prompts: PromptBatch, per_prompt: int, groups: Sequence[Sequence[int]]
    ) -> DecodingState:
        """Read the prompts there and open `per_prompt` empty completions of each."""
        state = self._inner.start(model, _moved_prompts(prompts, self._there), per_prompt, groups)
        return _StateElsewhere(state, self._there, self._here)


class _StateElsewhere:
    """A decoding state that is kept there and told of here."""

    def __init__(self, inner: DecodingState, there: torch.device, here: torch.device) -> None:
        self._inner, self._there, self._here = inner, there, here
        self.hidden_BD = inner.hidden_BD.to(here)

    def step(self, last_ids_B: Tensor) -> Tensor:
        """Read one more token of every row; returns the new `hidden_BD`."""
        self.hidden_BD = self._inner.step(last_ids_B.to(self._there)).to(self._here)
        return self.hidden_BD

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these (indices)."""
        self._inner.keep(rows.to(self._there))
        self.hidden_BD = self.hidden_BD[rows]


def _moved_prompts(prompts: PromptBatch, device: torch.device) -> PromptBatch:
    return replace(prompts, ids_PS=prompts.ids_PS.to(device), mask_PS=prompts.mask_PS.to(device))


def _moved_head(head: OutputHead, device: torch.device) -> OutputHead:
    bias = None if head.bias_V is None else head.bias_V.to(device)
    return replace(head, weight_VD=head.weight_VD.detach().to(device), bias_V=bias)
