"""How completions are laid out in rows and batches, by what each layout costs in FLOPs.

`StackCost` counts the FLOPs of an encoder or a decoder from its shapes. `length_batches` groups texts of similar
length: padding against the fixed cost of a batch. `Rows` lays out a decoder's input: completions that share a row with
the others of their prompt, or stand apart.

In a shared row (prompt, completion 1, ..., completion K) a token of a completion attends to the prompt and to what is
before it in its own completion, and its position counts on from the prompt. So every hidden state is that of the
completion in a row of its own, while the prompt is computed once, forward and backward. The decoder of an
encoder-decoder has the completions alone in its rows, each behind the start token; they share the keys and values of
the encoded prompt. T5's positions are distances between columns of one completion, so that it needs no position of its
own; a model with learned positions (BART) keeps its rows apart.

A shared row is cheaper unless completions are long: it saves K - 1 times the prompt's tokens, but attention computes
all pairs of a row of K completions. Each batch takes the form that needs fewer FLOPs (`shares_prompts`); the seconds of
the two forms are in about the same ratio.

    R rows    K completions in the longest row    S columns of prompts    W columns of a row
    F tokens of a completion in the decoder's input: T - 1, or T behind a start token
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from gkd_rl.errors import ModelError
from gkd_rl.types import PromptBatch, Rollout, shift_right

OUTPUT = {"o", "o_proj", "out_proj"}  # its inputs are the heads' outputs: heads times head width
KEY_VALUE = {"k", "v", "k_proj", "v_proj"}
FloatArray = NDArray[np.float64]
Numbers = TypeVar("Numbers", Tensor, NDArray[np.float64])
CROSS_ATTENTION = {"EncDecAttention", "encoder_attn"}


@dataclass(frozen=True)
class StackCost:
    """Shapes of an encoder or a decoder, summed over its layers.

    Attributes:
        weights: of the products on the stack's own tokens.
        attention: heads times head width of the self-attention.
        cross_weights: of the keys and values of the cross-attention, on prompt tokens.
        cross_attention: heads times head width of the cross-attention.
        layers: their number.
    """

    weights: int
    attention: int
    cross_weights: int = 0
    cross_attention: int = 0
    layers: int = 0

    @classmethod
    def of(cls, stack: nn.Module) -> StackCost:
        """Shapes of a stack, from the names of its modules.

        Raises:
            ModelError: no attention that this estimate knows.
        """
        sizes: Counter[str] = Counter()
        for name, module in stack.named_modules():
            if not isinstance(module, nn.Linear):
                continue
            path = set(name.split("."))
            cross = "cross_" if CROSS_ATTENTION & path else ""
            # a quantised matrix keeps its sizes here, while its weight has another shape
            weights = module.in_features * module.out_features
            sizes["cross_weights" if cross and KEY_VALUE & path else "weights"] += weights
            if OUTPUT & path and "lora_" not in name:
                sizes[f"{cross}attention"] += module.in_features
                sizes["layers"] += not cross
        if sizes["attention"] == 0:
            raise ModelError(
                f"the cost of {type(stack).__name__} cannot be estimated: its attention has no output projection "
                f"called {' or '.join(sorted(OUTPUT))}. Choose a T5-like, BART-like or Llama-like model."
            )
        return cls(**sizes)

    def products(self, tokens: Numbers, pairs: Numbers) -> Numbers:
        """2 a weight and token, 4 a unit of head width and pair of a query and a key (scores and weighted sum)."""
        return 2 * self.weights * tokens + 4 * self.attention * pairs

    def flops(self, tokens: Tensor, pairs: Tensor) -> Tensor:
        """The same, summed."""
        return self.products(tokens.sum(), pairs.sum())

    def of_rows(self, lengths: Tensor) -> Tensor:
        """FLOPs of rows of these lengths, with the whole square of a row in attention."""
        return self.flops(lengths, lengths.square())


# What a forward and backward of one layer costs before its first token, in FLOPs that the device could do meanwhile.
LAYER_FLOPS = {"cpu": 5e8, "cuda": 8e10}


def layer_flops(device: str) -> float:
    """Of a device's type; an unknown one is taken for a GPU."""
    return LAYER_FLOPS.get(device, LAYER_FLOPS["cuda"])


def cheapest_batches(count: int, costs: Callable[[int], FloatArray]) -> list[range]:
    """The pieces of a sequence of `count` whose costs add up to the least (dynamic programming).

    Args:
        count: units in the sequence.
        costs: of the pieces that end with a unit, by their first unit, shape (unit + 1,).
    """
    least, begins = np.zeros(count + 1), np.zeros(count, dtype=int)
    for last in range(count):
        totals = least[: last + 1] + costs(last)
        begins[last] = int(totals.argmin())
        least[last + 1] = totals[begins[last]]
    pieces, end = [], count
    while end > 0:
        pieces.append(range(int(begins[end - 1]), end))
        end = pieces[-1].start
    return pieces[::-1]


def length_batches(lengths: Sequence[int], cost: StackCost, device: str) -> list[list[int]]:
    """Texts in batches of similar length, the cheapest for one forward pass without backward.

    Args:
        lengths: tokens of each text.
        cost: of the stack.
        device: its type.

    Returns:
        Numbers of the texts of each batch.
    """
    order = sorted(range(len(lengths)), key=lambda text: lengths[text])
    call = layer_flops(device) / 3 * cost.layers / (2 * cost.weights)  # in tokens; a third of both passes
    wide = np.array([lengths[text] for text in order], dtype=float)

    def costs(last: int) -> FloatArray:
        return np.arange(last + 1, 0, -1) * wide[last] + call

    return [[order[place] for place in piece] for piece in cheapest_batches(len(order), costs)]


MASKED_ATTENTION = ("sdpa", "eager")  # the others (flash, flex) take no mask of this form: their rows stay apart
MASK_BY_LAYER = ("smollm3", "qwen2", "qwen3", "ministral", "gemma2", "gemma3_text", "cohere2", "olmo3")
WINDOW_IN_ALL_LAYERS = ("mistral", "phi3")
POSITIONS_BY_COLUMN = ("bart", "mbart")  # a learned vector for each column of a row
PADDING = -1


@dataclass(frozen=True)
class Rows:
    """The model's input, padded on the right, and where its hidden states predict completions.

    Attributes:
        ids_RW: token ids.
        position_RW: of a token in its prompt and completion; 0 on padding.
        part_RW: 0 in the prompt, k in the row's completion k, -1 on padding.
        row_B: each completion's row.
        columns_BT: column of the token that predicts each completion token; on padding, any.
        shared: rows are those of the prompts, with all their completions.
    """

    ids_RW: Tensor
    position_RW: Tensor
    part_RW: Tensor
    row_B: Tensor
    columns_BT: Tensor
    shared: bool

    @classmethod
    def of(cls, rollout: Rollout, *, shared: bool) -> Rows:
        """Rows of the prompts if `shared`, else of the completions. Prompts may be padded on either side."""
        prompts, read_BF = rollout.prompts, rollout.mask_BT[:, :-1]
        rows, last_R = cls._laid(prompts, rollout.prompt_index_B, rollout.ids_BT[:, :-1], read_BF, shared)
        columns_BT = torch.cat([last_R[rows.row_B].unsqueeze(1), rows.columns_BT], dim=1)
        return replace(rows, columns_BT=columns_BT.clamp(max=rows.ids_RW.shape[1] - 1))

    @classmethod
    def for_decoding(cls, rollout: Rollout, start: int, *, shared: bool) -> Rows:
        """Rows of an encoder-decoder's decoder: each completion behind its start token, with no prompt."""
        nothing_P0 = rollout.prompts.ids_PS[:, :0]
        nothing = PromptBatch(rollout.prompts.examples, nothing_P0, nothing_P0.bool())
        ids_BT, read_BT = shift_right(rollout.ids_BT, start), pad(rollout.mask_BT[:, :-1], (1, 0), value=True)
        return cls._laid(nothing, rollout.prompt_index_B, ids_BT, read_BT, shared)[0]

    @classmethod
    def _laid(
        cls, prompts: PromptBatch, row_B: Tensor, ids_BF: Tensor, read_BF: Tensor, shared: bool
    ) -> tuple[Rows, Tensor]:
        """Prompts with tokens of completions behind them.

        Returns:
            Rows with the columns of these tokens, and the column of each row's last prompt token.
        """
        ids_RS, mask_RS = prompts.ids_PS, prompts.mask_PS
        if not shared:
            ids_RS, mask_RS, row_B = ids_RS[row_B], mask_RS[row_B], torch.arange(len(row_B), device=row_B.device)
        (R, S), F = ids_RS.shape, read_BF.shape[1]
        rank_B = (row_B.unsqueeze(1) == row_B).tril(-1).sum(dim=1)  # completions before it in its row
        K = int(rank_B.max()) + 1 if shared else 1
        ids_RKF, read_RKF = ids_RS.new_zeros(R, K, F), mask_RS.new_zeros(R, K, F)
        ids_RKF[row_B, rank_B], read_RKF[row_B, rank_B] = ids_BF, read_BF
        used_RX = torch.cat([mask_RS, read_RKF.flatten(1)], dim=1)  # X = S + K * F columns, then W without gaps
        order_RX = (~used_RX).long().argsort(dim=1, stable=True)
        order_RW = order_RX[:, : int(used_RX.sum(dim=1).max())] if shared else order_RX

        step_F, part_K = (torch.arange(count, device=row_B.device) for count in (F, K))
        length_R = mask_RS.sum(dim=1)
        behind_RKF = (length_R.unsqueeze(1) + step_F).unsqueeze(1).expand(R, K, F)
        position_RX = torch.cat([mask_RS.cumsum(dim=1) - 1, behind_RKF.flatten(1)], dim=1)
        part_RX = torch.cat([torch.zeros_like(ids_RS), (part_K + 1).repeat_interleave(F).expand(R, K * F)], dim=1)

        column_RX = order_RX.argsort(dim=1)
        loose_BF = S + rank_B.unsqueeze(1) * F + step_F
        rows = cls(
            ids_RW=torch.cat([ids_RS, ids_RKF.flatten(1)], dim=1).gather(1, order_RW),
            position_RW=position_RX.masked_fill(~used_RX, 0).gather(1, order_RW),
            part_RW=part_RX.masked_fill(~used_RX, PADDING).gather(1, order_RW),
            row_B=row_B,
            columns_BT=column_RX[row_B.unsqueeze(1), loose_BF].clamp(max=order_RW.shape[1] - 1),
            shared=shared,
        )
        return rows, length_R - 1

    def seen(self, window: int | None) -> Tensor:
        """True where a column (third axis) attends to another (last axis), (R, 1, W, W); padding attends to itself.

        Args:
            window: positions that a token sees, its own included; None for all.
        """
        distance_RWW = self.position_RW.unsqueeze(2) - self.position_RW.unsqueeze(1)
        reader_RW1, read_R1W = self.part_RW.unsqueeze(2), self.part_RW.unsqueeze(1)
        seen_RWW = ((read_R1W == 0) | (read_R1W == reader_RW1)) & (distance_RWW >= 0)
        if window is not None:
            seen_RWW &= distance_RWW < window
        return seen_RWW.unsqueeze(1)

    def masks(self, model: PreTrainedModel) -> Tensor | dict[str, Tensor]:
        """What the model's forward takes as `attention_mask`: one for all layers, or one for each type of layer.

        transformers uses such a mask as it is, so that windows are part of it.
        """
        config = model.config
        window = getattr(config, "sliding_window", None)
        if config.model_type in MASK_BY_LAYER:
            windows = {"full_attention": None, "sliding_attention": window}
            return {kind: _as_taken(self.seen(windows[kind]), model) for kind in set(config.layer_types)}
        return _as_taken(self.seen(window if config.model_type in WINDOW_IN_ALL_LAYERS else None), model)


def takes_masks(model: PreTrainedModel) -> bool:
    """Whether the model's attention takes a mask of our own."""
    return model.config._attn_implementation in MASKED_ATTENTION


def can_share(model: PreTrainedModel) -> bool:
    """Whether the model takes shared rows."""
    return takes_masks(model) and model.config.model_type not in POSITIONS_BY_COLUMN


def shares_prompts(cost: StackCost, rollout: Rollout) -> bool:
    """Whether shared rows need fewer FLOPs than rows apart, padding not counted."""
    if rollout.n_sequences == len(rollout.prompts.ids_PS):  # one completion each
        return False
    shared, apart = (row_flops(cost, rollout, shared=shared) for shared in (True, False))
    return bool(shared < apart)


def row_flops(cost: StackCost, rollout: Rollout, *, shared: bool) -> Tensor:
    """FLOPs of a decoder on its rows, with the keys and values of encoded prompts, without those of its queries."""
    if cost.cross_weights == 0:
        return cost.of_rows(row_lengths(rollout, shared=shared))
    prompt_P = rollout.prompts.mask_PS.sum(dim=1).cpu().double()
    keys = prompt_P.sum() if shared else prompt_P[rollout.prompt_index_B.cpu()].sum()
    return cost.of_rows(row_lengths(rollout, shared=shared, encoded=True)) + 2 * cost.cross_weights * keys


def row_lengths(rollout: Rollout, *, shared: bool, encoded: bool = False) -> Tensor:
    """Tokens of each row, as float64 on the CPU.

    Args:
        rollout: the completions.
        shared: rows of prompts, not of completions.
        encoded: the row has no prompt, and a start token before each completion. The last token of a completion
            predicts nothing and is not counted.
    """
    prompt_P = rollout.prompts.mask_PS.sum(dim=1).cpu().double()
    if encoded:
        prompt_P = torch.zeros_like(prompt_P)
    read_B = rollout.mask_BT.sum(dim=1).cpu().double() - int(not encoded)
    index_B = rollout.prompt_index_B.cpu()
    return prompt_P.index_add(0, index_B, read_B) if shared else prompt_P[index_B] + read_B


def _as_taken(seen: Tensor, model: PreTrainedModel) -> Tensor:
    """A mask for sdpa; for eager attention what is added to the scores."""
    if model.config._attn_implementation == "sdpa":
        return seen
    return torch.zeros_like(seen, dtype=model.dtype).masked_fill(~seen, torch.finfo(model.dtype).min)
