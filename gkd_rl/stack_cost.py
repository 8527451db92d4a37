"""FLOPs of an encoder or a decoder from its shapes: what a run costs, and which form of a batch is the cheaper one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from gkd_rl.errors import ModelError

OUTPUT = {"o", "o_proj", "out_proj"}  # reads what the heads give, so that its inputs are heads times head width
KEY_VALUE = {"k", "v", "k_proj", "v_proj"}
Numbers = TypeVar("Numbers", Tensor, NDArray[np.float64])
CROSS_ATTENTION = {"EncDecAttention", "encoder_attn"}


@dataclass(frozen=True)
class StackCost:
    """Shapes of an encoder or a decoder, summed over its layers.

    Attributes:
        weights: of the products that read the stack's own tokens.
        attention: heads times head width of the self-attention.
        cross_weights: of the keys and values of the cross-attention, which read prompt tokens.
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
        """Shapes of a stack, told apart by the names of its modules.

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
