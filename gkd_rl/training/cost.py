"""The cost of training: FLOPs estimated from the models' shapes, seconds by phase, and totals for equal-cost plots.

`ModelCost` estimates the FLOPs of one pass, `CostMeter` collects a step's seconds and FLOPs by phase, `CostTotals` sums
steps, `profile_lines` prints where the time goes.

Counted are 2 FLOPs per weight and token of every matrix product (attention projections, feed-forward, output head) and
4 per query, key and unit of head width in attention (scores and weighted sum). A masked product computes the whole
square of a row, so all of it is counted, also in rows that completions share (`models/row_layout.py`) and in layers
with sliding windows. Adapters are counted, merged or not. Not counted are padding, embedding look-ups, norms,
activations, and finished rows that are still computed. Mixtures of experts are not supported.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import torch
from torch import Tensor

from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.models.row_layout import StackCost, can_share, row_flops, row_lengths, shares_prompts
from gkd_rl.types import Rollout

COUNTED = ("tokens/", "time/", "flops/")  # prefixes of the metrics that are summed over steps
TIME_TOTAL = "time/total"
TERA = 1e12


@dataclass(frozen=True)
class ModelCost:
    """FLOPs of a model, from its shapes.

    Attributes:
        encoder: None for a decoder-only model.
        decoder: the stack that computes completions.
        head: number of weights of the output embedding.
        masked: the attention takes a mask, so that completions of one prompt can share a row.
    """

    encoder: StackCost | None
    decoder: StackCost
    head: int
    masked: bool = True

    @classmethod
    def of(cls, model: HiddenStateModel) -> ModelCost:
        """The shapes of a loaded model.

        Raises:
            ModelError: its cost cannot be estimated.
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
        """Number of layers of encoder and decoder."""
        return self.decoder.layers + (0 if self.encoder is None else self.encoder.layers)

    def forward(self, rollout: Rollout) -> float:
        """FLOPs of one forward pass with teacher forcing over prompts and completions, the head on completions only.

        A prompt (in an encoder-decoder: the decoder's keys and values of it) is computed once, or once per completion
        where that is cheaper. An encoder computes each prompt once.
        """
        prompt_P, prompt_B, completion_B = _lengths(rollout)
        flops = 2 * self.head * completion_B.sum() + row_flops(self.decoder, rollout, shared=self._shares(rollout))
        if self.encoder is not None:
            pairs = (prompt_B * completion_B).sum()
            flops += self.encoder.of_rows(prompt_P) + 4 * self.decoder.cross_attention * pairs
        return float(flops)

    def training(self, rollout: Rollout) -> float:
        """FLOPs of forward and backward; the backward counts as two forwards, with adapters as well."""
        return 3 * self.forward(rollout)

    def generation(self, rollout: Rollout) -> float:
        """FLOPs of sampling the rollout: each prompt once, every completion decoded with a cache."""
        prompt_P, prompt_B, completion_B = _lengths(rollout)
        decoder, head = self.decoder, 2 * self.head * completion_B.sum()
        if self.encoder is None:
            fed_B = completion_B - 1  # the prompt's last token predicts the first, and the last is not fed back
            pairs_B = fed_B * prompt_B + fed_B * (fed_B + 1) / 2
            return float(head + decoder.of_rows(prompt_P) + decoder.flops(fed_B, pairs_B))
        rest_B = completion_B - 1  # the start token, with the prompt's keys and values, is computed once per prompt
        pairs_B = completion_B * (completion_B + 1) / 2 - 1  # token t attends to t tokens
        start_P = torch.ones_like(prompt_P)
        decoded = decoder.flops(torch.cat([start_P, rest_B]), torch.cat([start_P, pairs_B]))
        pairs = prompt_P.sum() + (prompt_B * rest_B).sum()
        cross = 2 * decoder.cross_weights * prompt_P.sum() + 4 * decoder.cross_attention * pairs
        return float(head + decoded + self.encoder.of_rows(prompt_P) + cross)

    def tokens(self, rollout: Rollout) -> tuple[float, float]:
        """Number of tokens of one forward pass, without and with the padding of the batch."""
        encoded = self.encoder is not None
        length_R = row_lengths(rollout, shared=self._shares(rollout), encoded=encoded)
        tokens, padded = length_R.sum(), length_R.max() * len(length_R)
        if encoded:
            prompt_P, _, _ = _lengths(rollout)
            tokens, padded = tokens + prompt_P.sum(), padded + prompt_P.max() * len(prompt_P)
        return float(tokens), float(padded)

    def _shares(self, rollout: Rollout) -> bool:
        """Whether completions of one prompt share a row."""
        return self.masked and shares_prompts(self.decoder, rollout)


def _lengths(rollout: Rollout) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens of each prompt (P,), of each completion's prompt (B,) and of each completion (B,), as float64."""
    prompt_P = rollout.prompts.mask_PS.sum(dim=1).cpu().double()
    return prompt_P, prompt_P[rollout.prompt_index_B.cpu()], rollout.mask_BT.sum(dim=1).cpu().double()


class PassKind(Enum):
    """What a model computes on a rollout; the values are the methods of `ModelCost`."""

    forward = "forward"
    training = "training"
    generation = "generation"


class CostMeter:
    """Sums the seconds and FLOPs of one step by phase."""

    def __init__(self, synchronise: bool = False) -> None:
        """Make a meter.

        Args:
            synchronise: wait for the GPU at the end of each phase; else its work may be counted in a later phase.
        """
        self._synchronise = synchronise and torch.cuda.is_available()
        self._seconds: Counter[str] = Counter()
        self._flops: Counter[str] = Counter()
        self._costs: dict[int, ModelCost] = {}
        self._tokens = np.zeros(2)  # that the student was trained on, without and with padding
        self._hits = np.zeros(2)  # completions found in the teacher output cache, and all that were looked up

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the seconds of a block to a phase."""
        start = time.perf_counter()
        yield
        if self._synchronise:
            torch.cuda.synchronize()
        self._seconds[name] += time.perf_counter() - start  # pyright: ignore[reportArgumentType]

    def add_flops(self, phase: str, model: HiddenStateModel, kind: PassKind, rollout: Rollout) -> None:
        """Add the FLOPs of one pass of a model over a rollout to a phase."""
        if id(model) not in self._costs:
            self._costs[id(model)] = ModelCost.of(model)
        cost = self._costs[id(model)]
        self._flops[phase] += getattr(cost, kind.value)(rollout)
        if kind is PassKind.training:
            self._tokens += np.array(cost.tokens(rollout))

    def add_cache_hits(self, phase: str, hits: int, completions: int) -> None:
        """Count completions found in the teacher output cache; the phase is reported even with 0 FLOPs."""
        self._flops[phase] += 0
        self._hits += (hits, completions)

    def take(self) -> dict[str, float]:
        """Metrics since the last call: time/PHASE in seconds, flops/PHASE, shares of padding and of cache hits."""
        spent = {f"time/{name}": float(value) for name, value in self._seconds.items()}
        spent |= {f"flops/{name}": float(value) for name, value in self._flops.items()}
        if self._tokens[1] > 0:
            spent["padding_share"] = float(1 - self._tokens[0] / self._tokens[1])
        if self._hits[1] > 0:
            spent["teacher_cache/hit_share"] = float(self._hits[0] / self._hits[1])
        self._seconds.clear()
        self._flops.clear()
        self._tokens[:] = 0
        self._hits[:] = 0
        return spent


@dataclass
class CostTotals:
    """Sums over steps of the metrics that count tokens, seconds and FLOPs."""

    totals: dict[str, float] = field(default_factory=dict)

    def add(self, metrics: Mapping[str, float]) -> None:
        """Add one step's metrics, or an earlier `as_dict()`; other keys and `time/total` are ignored."""
        for name, value in metrics.items():
            if name.startswith(COUNTED) and name != TIME_TOTAL:
                self.totals[name] = self.totals.get(name, 0.0) + value

    def as_dict(self) -> dict[str, float]:
        """The totals, and `time/total`: the seconds of all phases together."""
        seconds = sum(value for name, value in self.totals.items() if name.startswith("time/"))
        return {**self.totals, TIME_TOTAL: float(seconds)}


def profile_lines(totals: Mapping[str, float], steps: int, seconds: float) -> list[str]:
    """A table of the phases of a step, the longest first.

    Args:
        totals: time/PHASE in seconds and flops/PHASE, summed over steps.
        steps: number of steps.
        seconds: duration of these steps; what belongs to no phase is listed as "everything else".
    """
    spent = {name.removeprefix("time/"): value for name, value in totals.items() if name.startswith("time/")}
    spent = {name: value for name, value in spent.items() if name != "total"}
    spent["everything else"] = seconds - sum(spent.values())
    lines = [f"where a step's time goes: {seconds / steps:.3g} s, the mean of {steps} steps"]
    lines.append(f"{'phase':<16}{'seconds':>10}{'share':>8}{'TFLOP':>10}{'TFLOP/s':>10}")
    for name, value in sorted(spent.items(), key=lambda item: -item[1]):
        flops = totals.get(f"flops/{name}")
        work = "" if flops is None else f"{flops / steps / TERA:>10.3g}{flops / value / TERA:>10.3g}"
        lines.append(f"{name:<16}{value / steps:>10.3g}{value / seconds:>8.1%}{work}".rstrip())
    return lines
