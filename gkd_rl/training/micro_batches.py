"""Micro-batches of a step: completions sorted by length and split where padding and overhead cost least.

The cost of a padded batch is its longest row times its number of rows, and every forward and backward pass has a fixed
overhead. Completions are sorted by length, and dynamic programming finds the split with the lowest total cost within
the limits. The gradient does not depend on the split (`losses/objective.py`).

    U    units: a prompt with all its completions, or with some of them where all together exceed the limits
    I    candidate batches that end with the same unit and begin with the first, the second, ..., the unit itself
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gkd_rl.models.row_layout import FloatArray, cheapest_batches, layer_flops
from gkd_rl.training.cost import ModelCost
from gkd_rl.types import Rollout

# Overhead of a micro-batch in FLOPs per trained weight: its gradient is read and written once more per micro-batch (see
# also `models/row_layout.py`). On a CPU, steps with the shapes of SmolLM2 took the same time with 50 to 200, within 5%,
# and 100 leaves half of the padding of 200.
WEIGHT_FLOPS = {"cpu": 100.0, "cuda": 2600.0}


@dataclass(frozen=True)
class PaddedBatches:
    """Sizes of padded batches, one number per batch.

    Attributes:
        prompts: number of prompts.
        prompt_tokens: of the longest prompt.
        completions: number of completions.
        completion_tokens: of the longest completion.
        row: tokens of the longest row with a prompt and one completion.
        shared_row: tokens of the longest row with a prompt and all its completions.
        decoder_row: tokens of the longest decoder row with all completions of a prompt, each after a start token.
    """

    prompts: FloatArray
    prompt_tokens: FloatArray
    completions: FloatArray
    completion_tokens: FloatArray
    row: FloatArray
    shared_row: FloatArray
    decoder_row: FloatArray

    def cost(self, model: ModelCost) -> tuple[FloatArray, FloatArray]:
        """Tokens including padding, and FLOPs of forward and backward without the output head, per batch."""
        if model.encoder is not None:
            encoder = model.encoder.products(self.prompts * self.prompt_tokens, self.prompts * self.prompt_tokens**2)
            tokens, flops = self._decoder(model, self.completions, self.completion_tokens)
            if model.masked:
                together, cheaper = self._decoder(model, self.prompts, self.decoder_row)
                tokens, flops = np.where(cheaper < flops, together, tokens), np.minimum(cheaper, flops)
            return self.prompts * self.prompt_tokens + tokens, 3 * (encoder + flops)
        tokens = self.completions * self.row
        flops = model.decoder.products(tokens, tokens * self.row)
        if not model.masked:
            return tokens, 3 * flops
        together = self.prompts * self.shared_row
        cheaper = model.decoder.products(together, together * self.shared_row)
        return np.where(cheaper < flops, together, tokens), 3 * np.minimum(cheaper, flops)

    def _decoder(self, model: ModelCost, rows: FloatArray, width: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Tokens and FLOPs of an encoder-decoder's decoder, with cross-attention to one prompt per row.

        Args:
            model: cost of the model.
            rows: number of rows per batch.
            width: tokens of each row.
        """
        decoder, keys = model.decoder, rows * self.prompt_tokens
        own = decoder.products(rows * width, rows * width**2)
        return rows * width, own + 2 * decoder.cross_weights * keys + 4 * decoder.cross_attention * keys * width


@dataclass(frozen=True)
class MicroBatcher:
    """Splits rollouts into micro-batches for one model.

    Attributes:
        model: cost of the model that is trained.
        device: type of its device.
        trained_weights: their number.
        max_completions: of a micro-batch; None: no limit.
        max_tokens: of a micro-batch, padding included; None: no limit. One completion may exceed it.
    """

    model: ModelCost
    device: str
    trained_weights: int = 0
    max_completions: int | None = None
    max_tokens: int | None = None

    def __call__(self, rollout: Rollout) -> list[Tensor]:
        """Indices of the completions of each micro-batch, for the split of lowest cost.

        The shortest prompts with their completions come first; completions of one prompt are adjacent.
        """
        completion_B = rollout.mask_BT.sum(dim=1)
        index_B, prompt_P = rollout.prompt_index_B, rollout.prompts.mask_PS.sum(dim=1)
        place_B = prompt_P.index_add(0, index_B, completion_B).argsort(stable=True).argsort()[index_B]
        order_B = (place_B * (completion_B.max() + 1) + completion_B).argsort(stable=True)
        index_B, completion_B = index_B[order_B], completion_B[order_B]
        units = self._units(*(one.cpu().numpy() for one in (prompt_P[index_B], index_B, completion_B)))
        call = self.model.layers * layer_flops(self.device)
        call += self.trained_weights * WEIGHT_FLOPS.get(self.device, WEIGHT_FLOPS["cuda"])
        count = len(units.prompt_tokens)
        whole = _ending_with(units, count - 1)
        tokens, flops = whole.cost(self.model)
        padding = flops[0] - units.cost(self.model)[1].sum()  # the most that a split could save
        if padding <= call and self._fits(whole, tokens)[0]:
            return [order_B]

        def costs(last: int) -> FloatArray:
            batches = _ending_with(units, last)
            tokens, flops = batches.cost(self.model)
            fits = self._fits(batches, tokens)
            fits[last] = True  # a single unit is always possible
            return np.where(fits, flops + call, np.inf)

        firsts = np.concatenate([[0], np.cumsum(units.completions)]).astype(int)
        return [order_B[firsts[piece.start] : firsts[piece.stop]] for piece in cheapest_batches(count, costs)]

    def _units(self, prompt_B: FloatArray, index_B: FloatArray, completion_B: FloatArray) -> PaddedBatches:
        """Every unit as a batch, of completions in their sorted order."""
        firsts = np.flatnonzero(np.diff(index_B, prepend=-1))
        groups = _units_of(prompt_B[firsts], completion_B, firsts)
        if self._fits(groups, groups.cost(self.model)[0]).all():
            return groups
        units: list[PaddedBatches] = []
        for first in firsts:
            prompt, rest_K = prompt_B[first], completion_B[index_B == index_B[first]]
            while len(rest_K):
                pieces = 1
                while not self._is_small(prompt, part_K := rest_K[: -(-len(rest_K) // pieces)]) and len(part_K) > 1:
                    pieces += 1
                units.append(_unit(prompt, part_K))
                rest_K = rest_K[len(part_K) :]
        return PaddedBatches(
            *(np.array(column) for column in zip(*(vars(unit).values() for unit in units), strict=True))
        )

    def _is_small(self, prompt: float, completion_K: FloatArray) -> bool:
        unit = _unit(prompt, completion_K)
        return bool(self._fits(unit, unit.cost(self.model)[0]))

    def _fits(self, batches: PaddedBatches, tokens: FloatArray) -> NDArray[np.bool_]:
        """Which batches are within both limits."""
        fits = batches.completions <= (np.inf if self.max_completions is None else self.max_completions)
        return fits & (tokens <= (np.inf if self.max_tokens is None else self.max_tokens))


def _units_of(prompt_U: FloatArray, completion_B: FloatArray, first_U: NDArray[np.intp]) -> PaddedBatches:
    """Prompts with all their completions as units.

    Args:
        prompt_U: tokens of each prompt.
        completion_B: tokens of each completion; the last one is not fed to the model.
        first_U: index of each prompt's first completion.
    """
    longest_U = np.maximum.reduceat(completion_B, first_U).astype(float)
    return PaddedBatches(
        prompts=np.ones(len(first_U)),
        prompt_tokens=prompt_U.astype(float),
        completions=np.diff(first_U, append=len(completion_B)).astype(float),
        completion_tokens=longest_U,
        row=prompt_U + longest_U - 1,
        shared_row=prompt_U + np.add.reduceat(completion_B - 1.0, first_U),
        decoder_row=np.add.reduceat(completion_B.astype(float), first_U),
    )


def _unit(prompt: float, completion_K: FloatArray) -> PaddedBatches:
    """One prompt with some of its completions, as scalars."""
    units = _units_of(np.array([prompt]), completion_K, np.array([0]))
    return PaddedBatches(*(values[0] for values in vars(units).values()))


def _ending_with(units: PaddedBatches, last: int) -> PaddedBatches:
    """All batches of adjacent units that end with the unit `last`, by their first unit."""

    def total(values_U: FloatArray) -> FloatArray:
        return values_U[last::-1].cumsum()[::-1]

    def longest(values_U: FloatArray) -> FloatArray:
        return np.maximum.accumulate(values_U[last::-1])[::-1]

    return PaddedBatches(
        prompts=total(units.prompts),
        prompt_tokens=longest(units.prompt_tokens),
        completions=total(units.completions),
        completion_tokens=longest(units.completion_tokens),
        row=longest(units.row),
        shared_row=longest(units.shared_row),
        decoder_row=longest(units.decoder_row),
    )
