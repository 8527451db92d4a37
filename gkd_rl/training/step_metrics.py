"""What a run costs: FLOPs estimated from the models' shapes, and totals of what the steps did, for equal-cost plots.

Counted are 2 FLOPs per weight and token of every matrix product (attention projections, feed-forward, output head) and
4 per query, key and unit of head width in attention (scores and weighted sum). A masked product computes the whole
square of a row, so all of it is counted, also of a row that completions share (`models/row_layout.py`) and of layers with a
window. Not counted are padding, embedding look-ups, norms, activations, and rows that wait for others to finish.
Adapters count, merged or not. Mixtures of experts are not served.

What one step spends: seconds by phase, measured, FLOPs by phase, estimated from the models' shapes, and padding.

The numbers of a step that come from its text and its losses.

Where a step's time goes: seconds of each phase, beside the FLOPs that its work needs (`training/step_metrics.py`).
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

from gkd_rl.generation.text_statistics import repetition_rate
from gkd_rl.losses.objective import StepTotals
from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.models.row_layout import StackCost, can_share, row_flops, row_lengths, shares_prompts
from gkd_rl.types import LossTerms, Rollout, Source, TokenTerms
from reward_models.composite import Scores

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


class Pass(Enum):
    """How a model goes through a rollout."""

    forward = "forward"
    training = "training"
    generation = "generation"


class CostMeter:
    """Adds up the seconds and FLOPs of one step."""

    def __init__(self, waits: bool = False) -> None:
        """`waits`: a phase ends when the GPU has done what it was given; else its work can fall into a later phase."""
        self._waits = waits and torch.cuda.is_available()
        self._seconds: Counter[str] = Counter()
        self._flops: Counter[str] = Counter()
        self._costs: dict[int, ModelCost] = {}
        self._tokens = np.zeros(2)  # that the student was trained on, and with padding
        self._hits = np.zeros(2)  # completions whose teacher's states were on disk, and all that were looked for

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the seconds of a block to a phase of the step."""
        start = time.perf_counter()
        yield
        if self._waits:
            torch.cuda.synchronize()
        self._seconds[name] += time.perf_counter() - start  # pyright: ignore[reportArgumentType]

    def flops(self, phase: str, model: HiddenStateModel, kind: Pass, rollout: Rollout) -> None:
        """Adds the FLOPs of one pass of a model through a rollout."""
        if id(model) not in self._costs:
            self._costs[id(model)] = ModelCost.of(model)
        cost = self._costs[id(model)]
        self._flops[phase] += getattr(cost, kind.value)(rollout)
        if kind is Pass.training:
            self._tokens += np.array(cost.tokens(rollout))

    def cached(self, phase: str, hits: int, completions: int) -> None:
        """Counts completions that a phase did not have to compute; a phase without any FLOPs is named all the same."""
        self._flops[phase] += 0
        self._hits += (hits, completions)

    def take(self) -> dict[str, float]:
        """time/PHASE, flops/PHASE and the shares of padding and of remembered completions, since the last call."""
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


def loss_metrics(losses: LossTerms, terms: TokenTerms, alpha: float, totals: StepTotals) -> dict[str, Tensor]:
    """What a micro-batch adds to loss, both terms, entropy and the share of clipped tokens."""
    values = {
        "loss": losses.loss(alpha).detach(),
        "entropy": terms.entropy_BT.sum() / totals.tokens,
        "clipped_share": losses.clipped_tokens / totals.tokens,
    }
    if losses.reward is not None:
        values["policy_gradient"] = losses.reward.detach()
    if losses.divergence_value is not None:
        values["divergence"] = losses.divergence_value
    return values


def rollout_metrics(
    rollout: Rollout, totals: StepTotals, scores: Scores | None, *, teacher_scored: bool
) -> dict[str, float]:
    """Whose text it was, how long, how repetitive, what it cost in tokens, and its rewards if it had any."""
    source, tokens = rollout.source, float(totals.tokens)
    metrics = {
        "student_data": float(source is Source.student),
        "completion_tokens": float(rollout.mask_BT.sum(dim=1).float().mean()),
        "truncated_share": float(rollout.truncated_B.float().mean()),
        "repetition": sum(map(repetition_rate, rollout.texts)) / len(rollout.texts),
        "tokens/student_trained": tokens,
        "tokens/student_generated": tokens if source is Source.student else 0.0,
        "tokens/teacher_generated": tokens if source is Source.teacher else 0.0,
        "tokens/teacher_scored": tokens if teacher_scored else 0.0,
    }
    if scores is not None:
        total = torch.tensor(scores.total)
        metrics |= {"reward/mean": float(total.mean()), "reward/std": float(total.std(correction=0))}
        if scores.failed is not None:
            metrics["reward/failed"] = sum(scores.failed) / len(scores.failed)
        metrics |= {f"reward/{name}": sum(values) / len(values) for name, values in scores.components.items()}
    return metrics


TERA = 1e12


def profile_lines(totals: Mapping[str, float], steps: int, seconds: float) -> list[str]:
    """A table of phases, the longest first.

    Args:
        totals: time/PHASE in seconds and flops/PHASE, summed over steps.
        steps: how many.
        seconds: that these steps took in all; what no phase has is "everything else".
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
