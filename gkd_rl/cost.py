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
from gkd_rl.packing import can_share, row_flops, row_lengths, shares_prompts
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
        masked: completions of one prompt can share a row.
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
            masked=can_share(inner),
        )

    @property
    def layers(self) -> int:
        """Of encoder and decoder."""
        return self.decoder.layers + (0 if self.encoder is None else self.encoder.layers)

    def forward(self, rollout: Rollout) -> float:
        """FLOPs of one forward with teacher forcing over prompts and completions, the head on completion tokens.

        A prompt, or in a decoder the keys and values of an encoded one, is computed once, or again for every
        completion where that is the cheaper form. An encoder reads each prompt once.
        """
        prompt_P, prompt_B, completion_B = _lengths(rollout)
        flops = 2 * self.head * completion_B.sum() + row_flops(self.decoder, rollout, shared=self._shares(rollout))
        if self.encoder is not None:
            pairs = (prompt_B * completion_B).sum()
            flops += self.encoder.of_rows(prompt_P) + 4 * self.decoder.cross_attention * pairs
        return float(flops)

    def tokens(self, rollout: Rollout) -> tuple[float, float]:
        """Tokens that one forward reads, and how many they are with the padding of the batch."""
        encoded = self.encoder is not None
        length_R = row_lengths(rollout, shared=self._shares(rollout), encoded=encoded)
        tokens, padded = length_R.sum(), length_R.max() * len(length_R)
        if encoded:
            prompt_P, _, _ = _lengths(rollout)
            tokens, padded = tokens + prompt_P.sum(), padded + prompt_P.max() * len(prompt_P)
        return float(tokens), float(padded)

    def _shares(self, rollout: Rollout) -> bool:
        """Whether completions of one prompt stand in one row."""
        return self.masked and shares_prompts(self.decoder, rollout)

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
        rest_B = completion_B - 1  # the first token is written once a prompt, whose keys and values are made there
        pairs_B = completion_B * (completion_B + 1) / 2 - 1  # token t looks at t tokens
        read_P = torch.ones_like(prompt_P)
        written = decoder.flops(torch.cat([read_P, rest_B]), torch.cat([read_P, pairs_B]))
        pairs = prompt_P.sum() + (prompt_B * rest_B).sum()
        cross = 2 * decoder.cross_weights * prompt_P.sum() + 4 * decoder.cross_attention * pairs
        return float(head + written + self.encoder.of_rows(prompt_P) + cross)


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
