"""What a run costs: FLOPs estimated from the models' shapes, and totals of what the steps did, for equal-cost plots.

Counted are 2 FLOPs per weight and token of every matrix product (attention projections, feed-forward, output head) and
4 per query, key and unit of head width in attention (scores and weighted sum). A masked product computes the whole
square of a row, so all of it is counted, also of a row that completions share (`packing.py`) and of layers with a
window. Not counted are padding, embedding look-ups, norms, activations, and rows that wait for others to finish.
Adapters count, merged or not. Mixtures of experts are not served.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gkd_rl.architecture import HiddenStateModel
from gkd_rl.packing import row_lengths, shares_prompts, takes_masks
from gkd_rl.stack_cost import StackCost
from gkd_rl.types import Rollout

COUNTED = ("tokens/", "time/", "flops/")
TIME_TOTAL = "time/total"


@dataclass(frozen=True)
class ModelCost:
    """FLOPs of a model, from its shapes.

    Attributes:
        encoder: None for a decoder-only model.
        decoder: the stack that reads or writes completions.
        head: weights of the output embedding.
        masked: the attention of a decoder-only model can read shared rows.
    """

    encoder: StackCost | None
    decoder: StackCost
    head: int
    masked: bool = True

    @classmethod
    def of(cls, model: HiddenStateModel) -> ModelCost:
        """Shapes of a loaded model.

        Raises:
            ModelError: it is not one whose cost can be estimated.
        """
        inner = model.model
        return cls(
            encoder=StackCost.of(inner.get_encoder()) if inner.config.is_encoder_decoder else None,
            decoder=StackCost.of(inner.get_decoder()),
            head=model.head().weight_VD.numel(),
            masked=takes_masks(inner),
        )

    @property
    def layers(self) -> int:
        """Of encoder and decoder."""
        return self.decoder.layers + (0 if self.encoder is None else self.encoder.layers)

    def forward(self, rollout: Rollout) -> float:
        """FLOPs of one forward with teacher forcing over prompts and completions, the head on completion tokens.

        An encoder reads each prompt once, and every completion makes the keys and values of its prompt anew. A
        decoder-only model reads it once, or again in every completion's row where that is the cheaper form.
        """
        prompt_P, prompt_B, completion_B = _lengths(rollout)
        head = 2 * self.head * completion_B.sum()
        if self.encoder is None:
            shared = self.masked and shares_prompts(self.decoder, rollout)
            return float(head + self.decoder.of_rows(row_lengths(rollout, shared=shared)))
        written = self.decoder.of_rows(completion_B)
        return float(head + self._around(prompt_P, prompt_B, prompt_B * completion_B) + written)

    def tokens(self, rollout: Rollout) -> tuple[float, float]:
        """Tokens that one forward reads, and how many they are with the padding of the batch."""
        prompt_P, _, completion_B = _lengths(rollout)
        if self.encoder is None:
            length_R = row_lengths(rollout, shared=self.masked and shares_prompts(self.decoder, rollout))
            return float(length_R.sum()), float(length_R.max() * len(length_R))
        padded = prompt_P.max() * len(prompt_P) + completion_B.max() * len(completion_B)
        return float(prompt_P.sum() + completion_B.sum()), float(padded)

    def training(self, rollout: Rollout) -> float:
        """FLOPs of forward and backward; the backward counts as two forwards, adapters or not."""
        return 3 * self.forward(rollout)

    def generation(self, rollout: Rollout) -> float:
        """FLOPs of sampling the rollout: each prompt read once, every completion decoded with a cache."""
        prompt_P, prompt_B, completion_B = _lengths(rollout)
        decoder, head = self.decoder, 2 * self.head * completion_B.sum()
        if self.encoder is None:
            fed_B = completion_B - 1  # the prompt's last token predicts the first, the last is not read
            pairs_B = fed_B * prompt_B + fed_B * (fed_B + 1) / 2
            return float(head + decoder.of_rows(prompt_P) + decoder.flops(fed_B, pairs_B))
        rest_B = completion_B - 1  # the first token is written once a prompt
        pairs_B = completion_B * (completion_B + 1) / 2 - 1  # token t looks at t tokens
        read_P = torch.ones_like(prompt_P)
        written = decoder.flops(torch.cat([read_P, rest_B]), torch.cat([read_P, pairs_B]))
        return float(head + written + self._around(prompt_P, prompt_P, torch.cat([prompt_P, prompt_B * rest_B])))

    def _around(self, prompt_P: Tensor, keys: Tensor, pairs: Tensor) -> Tensor:
        """FLOPs of the encoder and of the cross-attention.

        Args:
            prompt_P: tokens of each prompt that is encoded.
            keys: tokens of each prompt whose keys and values are made.
            pairs: of a written token and a token of its prompt.
        """
        assert self.encoder is not None
        cross = 2 * self.decoder.cross_weights * keys.sum() + 4 * self.decoder.cross_attention * pairs.sum()
        return self.encoder.of_rows(prompt_P) + cross


@dataclass
class CostTotals:
    """Sums over steps of the metrics that count tokens, seconds and FLOPs."""

    totals: dict[str, float] = field(default_factory=dict)

    def add(self, metrics: Mapping[str, float]) -> None:
        """Add one step's metrics, or an earlier `as_dict()`; other keys and `time/total` are passed over."""
        for name, value in metrics.items():
            if name.startswith(COUNTED) and name != TIME_TOTAL:
                self.totals[name] = self.totals.get(name, 0.0) + value

    def as_dict(self) -> dict[str, float]:
        """The totals, and `time/total`: the seconds of all phases together."""
        seconds = sum(value for name, value in self.totals.items() if name.startswith("time/"))
        return {**self.totals, TIME_TOTAL: float(seconds)}


def _lengths(rollout: Rollout) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens of each prompt (P,), of each completion's prompt (B,) and of each completion (B,), as float64."""
    prompt_P = rollout.prompts.mask_PS.sum(dim=1).cpu().double()
    return prompt_P, prompt_P[rollout.prompt_index_B.cpu()], rollout.mask_BT.sum(dim=1).cpu().double()
