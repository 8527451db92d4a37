"""How a step's completions are cut into micro-batches: neighbours in length, within a budget of tokens.

A padded batch costs as much as its longest row times its rows, and a forward costs something before its first token.
Completions are put in order of their length and cut where the sum of both is least. The gradient does not depend on
the cut (`losses/objective.py`).

    U    units: a prompt with its completions, or with some of them where all are more than the budget
    I    batches that end with one unit and begin with the first, the second, ... up to itself
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gkd_rl.models.row_layout import FloatArray, cheapest_batches, layer_flops
from gkd_rl.training.step_metrics import ModelCost
from gkd_rl.types import Rollout

# What a micro-batch costs for each trained weight, whose gradient is written, read and added to; as in `models/row_layout.py`. On a
# CPU steps of SmolLM2's shapes took the same time with 50 to 200, within 5%, and 100 leaves half of 200's padding.
WEIGHT_FLOPS = {"cpu": 100.0, "cuda": 2600.0}


@dataclass(frozen=True)
class Padded:
    """Batches of padded rows: I of them at a time.

    Attributes:
        prompts: P of each.
        prompt: tokens of its longest prompt.
        completions: B of each.
        completion: tokens of its longest completion.
        apart: tokens of its longest prompt with one completion.
        shared: tokens of its longest prompt with all completions.
        written: tokens of its longest completions of one prompt together, each behind a start token.
    """

    prompts: FloatArray
    prompt: FloatArray
    completions: FloatArray
    completion: FloatArray
    apart: FloatArray
    shared: FloatArray
    written: FloatArray

    def cost(self, model: ModelCost) -> tuple[FloatArray, FloatArray]:
        """Tokens with padding, and FLOPs of forward and backward without the output head."""
        if model.encoder is not None:
            encoder = model.encoder.products(self.prompts * self.prompt, self.prompts * self.prompt**2)
            tokens, flops = self._decoder(model, self.completions, self.completion)
            if model.masked:
                together, cheaper = self._decoder(model, self.prompts, self.written)
                tokens, flops = np.where(cheaper < flops, together, tokens), np.minimum(cheaper, flops)
            return self.prompts * self.prompt + tokens, 3 * (encoder + flops)
        tokens = self.completions * self.apart
        flops = model.decoder.products(tokens, tokens * self.apart)
        if not model.masked:
            return tokens, 3 * flops
        together = self.prompts * self.shared
        cheaper = model.decoder.products(together, together * self.shared)
        return np.where(cheaper < flops, together, tokens), 3 * np.minimum(cheaper, flops)

    def _decoder(self, model: ModelCost, rows: FloatArray, width: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Tokens and FLOPs of an encoder-decoder's decoder on rows that read a prompt each."""
        decoder, keys = model.decoder, rows * self.prompt
        own = decoder.products(rows * width, rows * width**2)
        return rows * width, own + 2 * decoder.cross_weights * keys + 4 * decoder.cross_attention * keys * width


@dataclass(frozen=True)
class MicroBatcher:
    """Cuts rollouts for the model that is trained.

    Attributes:
        model: its cost.
        device: type of the device that it is on.
        trained: weights.
        completions: the most in a micro-batch; None: any number.
        tokens: the most in a micro-batch, padding included; None: any number. A completion is never cut.
    """

    model: ModelCost
    device: str
    trained: int = 0
    completions: int | None = None
    tokens: int | None = None

    def __call__(self, rollout: Rollout) -> list[Tensor]:
        """Which completions make each micro-batch: the cut of the least cost (dynamic programming).

        The shortest prompts with their completions come first; a prompt's completions are neighbours.
        """
        completion_B = rollout.mask_BT.sum(dim=1)
        index_B, prompt_P = rollout.prompt_index_B, rollout.prompts.mask_PS.sum(dim=1)
        place_B = prompt_P.index_add(0, index_B, completion_B).argsort(stable=True).argsort()[index_B]
        order_B = (place_B * (completion_B.max() + 1) + completion_B).argsort(stable=True)
        index_B, completion_B = index_B[order_B], completion_B[order_B]
        units = self._units(*(one.cpu().numpy() for one in (prompt_P[index_B], index_B, completion_B)))
        call = self.model.layers * layer_flops(self.device)
        call += self.trained * WEIGHT_FLOPS.get(self.device, WEIGHT_FLOPS["cuda"])
        count = len(units.prompt)
        whole = _ending_with(units, count - 1)
        tokens, flops = whole.cost(self.model)
        padding = flops[0] - units.cost(self.model)[1].sum()  # all that a cut could save
        if padding <= call and self._fits(whole, tokens)[0]:
            return [order_B]

        def costs(last: int) -> FloatArray:
            batches = _ending_with(units, last)
            tokens, flops = batches.cost(self.model)
            fits = self._fits(batches, tokens)
            fits[last] = True  # a unit alone
            return np.where(fits, flops + call, np.inf)

        firsts = np.concatenate([[0], np.cumsum(units.completions)]).astype(int)
        return [order_B[firsts[piece.start] : firsts[piece.stop]] for piece in cheapest_batches(count, costs)]

    def _units(self, prompt_B: FloatArray, index_B: FloatArray, completion_B: FloatArray) -> Padded:
        """Each unit as a batch of its own, of completions that lie in order."""
        firsts = np.flatnonzero(np.diff(index_B, prepend=-1))
        groups = _units_of(prompt_B[firsts], completion_B, firsts)
        if self._fits(groups, groups.cost(self.model)[0]).all():
            return groups
        units: list[Padded] = []
        for first in firsts:
            prompt, rest_K = prompt_B[first], completion_B[index_B == index_B[first]]
            while len(rest_K):
                pieces = 1
                while not self._is_small(prompt, part_K := rest_K[: -(-len(rest_K) // pieces)]) and len(part_K) > 1:
                    pieces += 1
                units.append(_unit(prompt, part_K))
                rest_K = rest_K[len(part_K) :]
        return Padded(*(np.array(column) for column in zip(*(vars(unit).values() for unit in units), strict=True)))

    def _is_small(self, prompt: float, completion_K: FloatArray) -> bool:
        unit = _unit(prompt, completion_K)
        return bool(self._fits(unit, unit.cost(self.model)[0]))

    def _fits(self, batches: Padded, tokens: FloatArray) -> NDArray[np.bool_]:
        """Within both budgets."""
        fits = batches.completions <= (np.inf if self.completions is None else self.completions)
        return fits & (tokens <= (np.inf if self.tokens is None else self.tokens))


def _units_of(prompt_U: FloatArray, completion_B: FloatArray, first_U: NDArray[np.intp]) -> Padded:
    """Prompts with all completions from their first one on; the last token of a completion predicts nothing."""
    longest_U = np.maximum.reduceat(completion_B, first_U).astype(float)
    return Padded(
        prompts=np.ones(len(first_U)),
        prompt=prompt_U.astype(float),
        completions=np.diff(first_U, append=len(completion_B)).astype(float),
        completion=longest_U,
        apart=prompt_U + longest_U - 1,
        shared=prompt_U + np.add.reduceat(completion_B - 1.0, first_U),
        written=np.add.reduceat(completion_B.astype(float), first_U),
    )


def _unit(prompt: float, completion_K: FloatArray) -> Padded:
    """One prompt with some of its completions."""
    units = _units_of(np.array([prompt]), completion_K, np.array([0]))
    return Padded(*(values[0] for values in vars(units).values()))


def _ending_with(units: Padded, last: int) -> Padded:
    """The batches of neighbours that end with a unit, by their first unit."""

    def total(values_U: FloatArray) -> FloatArray:
        return values_U[last::-1].cumsum()[::-1]

    def longest(values_U: FloatArray) -> FloatArray:
        return np.maximum.accumulate(values_U[last::-1])[::-1]

    return Padded(
        prompts=total(units.prompts),
        prompt=longest(units.prompt),
        completions=total(units.completions),
        completion=longest(units.completion),
        apart=longest(units.apart),
        shared=longest(units.shared),
        written=longest(units.written),
    )
