"""What a run costs: FLOPs estimated from the models' shapes, and totals of what the steps did, for equal-cost plots.

Counted are 2 FLOPs per weight and token of every matrix product (attention projections, feed-forward, output head) and
4 per query, key and unit of head width in attention (scores and weighted sum, the whole square that a masked product
computes). Not counted are padding, embedding look-ups, norms, activations, and rows that wait for others to finish.
Attention with a window or in blocks counts as full. Adapters count, merged or not. Mixtures of experts are not served.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from gkd_rl.architecture import HiddenStateModel
from gkd_rl.errors import ModelError
from gkd_rl.types import Rollout

OUTPUT = {"o", "o_proj", "out_proj"}  # reads what the heads give, so that its inputs are heads times head width
KEY_VALUE = {"k", "v", "k_proj", "v_proj"}
CROSS_ATTENTION = {"EncDecAttention", "encoder_attn"}
COUNTED = ("tokens/", "time/", "flops/")
TIME_TOTAL = "time/total"


@dataclass(frozen=True)
class StackCost:
    """Shapes of an encoder or a decoder, summed over its layers.

    Attributes:
        weights: of the products that read the stack's own tokens.
        attention: heads times head width of the self-attention.
        cross_weights: of the keys and values of the cross-attention, which read prompt tokens.
        cross_attention: heads times head width of the cross-attention.
    """

    weights: int
    attention: int
    cross_weights: int = 0
    cross_attention: int = 0

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
        if sizes["attention"] == 0:
            raise ModelError(
                f"the cost of {type(stack).__name__} cannot be estimated: its attention has no output projection "
                f"called {' or '.join(sorted(OUTPUT))}. Choose a T5-like, BART-like or Llama-like model."
            )
        return cls(**sizes)


@dataclass(frozen=True)
class ModelCost:
    """FLOPs of a model, from its shapes.

    Attributes:
        encoder: None for a decoder-only model.
        decoder: the stack that reads or writes completions.
        head: weights of the output embedding.
    """

    encoder: StackCost | None
    decoder: StackCost
    head: int

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
        )

    def forward(self, rollout: Rollout) -> float:
        """FLOPs of one forward with teacher forcing over prompts and completions, the head on completion tokens.

        An encoder reads each prompt once; a decoder-only model reads it again in every completion's row.
        """
        prompt_P, prompt_B, completion_B = _lengths(rollout)
        decoder, head = self.decoder, 2 * self.head * completion_B.sum()
        if self.encoder is None:
            read_B = prompt_B + completion_B - 1  # the last token predicts nothing
            return float(head + _products(decoder, read_B) + 4 * decoder.attention * read_B.square().sum())
        pairs_B = completion_B.square()
        return float(head + self._encoder_decoder(prompt_P, prompt_B, completion_B, pairs_B))

    def training(self, rollout: Rollout) -> float:
        """FLOPs of forward and backward; the backward counts as two forwards, adapters or not."""
        return 3 * self.forward(rollout)

    def generation(self, rollout: Rollout) -> float:
        """FLOPs of sampling the rollout: each prompt read once, every completion decoded with a cache."""
        prompt_P, prompt_B, completion_B = _lengths(rollout)
        decoder, head = self.decoder, 2 * self.head * completion_B.sum()
        if self.encoder is None:
            fed_B = completion_B - 1  # the prompt's last token predicts the first, the last is not read
            pairs = prompt_P.square().sum() + (fed_B * prompt_B + fed_B * (fed_B + 1) / 2).sum()
            read = _products(decoder, prompt_P) + _products(decoder, fed_B)
            return float(head + read + 4 * decoder.attention * pairs)
        pairs_B = completion_B * (completion_B + 1) / 2  # token t looks at t tokens
        return float(head + self._encoder_decoder(prompt_P, prompt_B, completion_B, pairs_B))

    def _encoder_decoder(self, prompt_P: Tensor, prompt_B: Tensor, completion_B: Tensor, pairs_B: Tensor) -> Tensor:
        """FLOPs of both stacks, whose completions have `pairs_B` pairs of a query and a key."""
        assert self.encoder is not None
        decoder = self.decoder
        encode = _products(self.encoder, prompt_P) + 4 * self.encoder.attention * prompt_P.square().sum()
        write = _products(decoder, completion_B) + 4 * decoder.attention * pairs_B.sum()
        # every completion projects its prompt's keys and values anew
        cross = 2 * decoder.cross_weights * prompt_B + 4 * decoder.cross_attention * prompt_B * completion_B
        return encode + write + cross.sum()


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


def _products(stack: StackCost, tokens: Tensor) -> Tensor:
    """FLOPs of the matrix products over a stack's own tokens."""
    return 2 * stack.weights * tokens.sum()


def _lengths(rollout: Rollout) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens of each prompt (P,), of each completion's prompt (B,) and of each completion (B,), as float64."""
    prompt_P = rollout.prompts.mask_PS.sum(dim=1).cpu().double()
    return prompt_P, prompt_P[rollout.prompt_index_B.cpu()], rollout.mask_BT.sum(dim=1).cpu().double()
