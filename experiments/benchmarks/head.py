"""The output head alone: hidden states of both models -> divergence and its gradient, ours beside trl's.

    python -m experiments.benchmarks.head                       # SmolLM2-135M's head, 512 tokens, float32
    python -m experiments.benchmarks.head --dtype bfloat16 --out FILE

Both compute the sum of JSD(0.9) over tokens and its gradients with respect to the student's hidden states and output
embedding. Memory is the peak of the tensors of one forward and backward, beyond hidden states and weights. On CUDA our
compiled head and liger's (if it is installed) run too.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

from experiments.benchmarks import Side, Work, live_bytes, parser_of, speedup, summary, take_turns, write
from gkd_rl.config.choices import DivergenceName
from gkd_rl.losses.divergences import TokenDivergence
from gkd_rl.losses.fused_head import FusedHead
from gkd_rl.losses.fused_loss import FusedLoss, LossOfTokens
from gkd_rl.types import OutputHead, Projection

BETA = 0.9


def main() -> None:
    """Command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--teacher-width", type=int, default=576)
    parser.set_defaults(rounds=15)
    parser.add_argument(
        "--chunk", type=int, default=128, help="tokens whose logits exist at one time in our head; 0: as in a run"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    case = Case(arguments)
    work = case.works()
    sides = [Side(name, run) for name, run in work.items()]
    take_turns(sides, arguments.rounds)
    work[sides[0].name]()
    expected = case.gradient().clone()
    rows = [
        {
            "side": side.name,
            "seconds": summary(side.seconds),
            "times as fast as trl": speedup(side, sides[0]),
            "MiB": live_bytes(work[side.name], arguments.device) / 2**20,
            "gradient's distance": _distance(case.gradient(), expected) if "policy" not in side.name else None,
        }
        for side in sides
    ]
    write(arguments, rows)


def _distance(gradient: Tensor, expected: Tensor) -> float:
    """Distance from the expected gradient, relative to its norm."""
    return float((gradient - expected).norm() / expected.norm())


class Case:
    """Random hidden states and output embeddings, and each side's forward and backward on them."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        generator = torch.Generator().manual_seed(arguments.seed)
        self.tokens, device, dtype = arguments.tokens, arguments.device, getattr(torch, arguments.dtype)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return (scale * torch.randn(*shape, generator=generator)).to(device, dtype)

        own, other = arguments.width, arguments.teacher_width
        self.hidden, self.teacher_hidden = normal(1, self.tokens, own).requires_grad_(), normal(1, self.tokens, other)
        self.weight = normal(arguments.vocabulary, own, scale=2 * own**-0.5).requires_grad_()
        self.teacher_weight = normal(arguments.vocabulary, other, scale=2 * other**-0.5)
        self.ids = torch.randint(arguments.vocabulary, (1, self.tokens), generator=generator).to(device)
        self.head = FusedHead(TokenDivergence(DivergenceName.jsd, BETA), 1.0, arguments.chunk or None)
        self.on_cuda = torch.device(device).type == "cuda"

    def works(self) -> dict[str, Callable[[], Work]]:
        """All sides, trl first."""
        sides = {
            "trl, chunked divergence": self._trl,
            "gkd_rl, one pass": self._fused(self.head, _divergence_alone),
            "gkd_rl, one pass with the policy gradient": self._fused(self.head, _both),
            "gkd_rl, autograd (the oracle)": self._autograd,
        }
        if self.on_cuda:
            compiled = replace(self.head, compiled=True)
            sides["gkd_rl, one pass, compiled"] = self._fused(compiled, _divergence_alone)
            sides["gkd_rl, one pass with the policy gradient, compiled"] = self._fused(compiled, _both)
            if find_spec("liger_kernel") is not None:
                sides["liger, fused linear JSD"] = self._liger
        return {name: self._update(side) for name, side in sides.items()}

    def gradient(self) -> Tensor:
        """Gradient with respect to the student's hidden states, after a side has run."""
        assert self.hidden.grad is not None
        return self.hidden.grad

    def _update(self, loss: Callable[[], Tensor]) -> Callable[[], Work]:
        """Forward and backward from empty gradients."""

        def run() -> Work:
            self.hidden.grad = self.weight.grad = None
            loss().backward()
            return Work(self.tokens)

        return run

    def _trl(self) -> Tensor:
        student, teacher = (self.hidden[0], self.weight, None), (self.teacher_hidden[0], self.teacher_weight, None)
        divergence_N, _ = ChunkedDivergenceFunction.apply(*student, *teacher, BETA, 1.0, 1.0, None, 1.0, None)
        return divergence_N.sum()

    def _liger(self) -> Tensor:
        kernel = import_module("liger_kernel.transformers.fused_linear_jsd").LigerFusedLinearJSD(jsd_beta=BETA)
        return self.tokens * kernel(self.hidden[0], self.weight, self.teacher_hidden[0], self.teacher_weight, None)

    def _models(self) -> tuple[Projection, Projection, Tensor, Tensor]:
        student = Projection(self.hidden, OutputHead(self.weight))
        return (
            student,
            Projection(self.teacher_hidden, OutputHead(self.teacher_weight)),
            self.ids,
            torch.ones_like(self.ids, dtype=torch.bool),
        )

    def _fused(self, head: FusedHead, loss: LossOfTokens) -> Callable[[], Tensor]:
        return lambda: FusedLoss(head, loss)(*self._models())[0]

    def _autograd(self) -> Tensor:
        divergence_BT = self.head(*self._models()).divergence_BT
        assert divergence_BT is not None
        return divergence_BT.sum()


def _divergence_alone(_: Tensor, divergence_N: Tensor | None, __: slice) -> Tensor:
    assert divergence_N is not None
    return divergence_N.sum()


def _both(logp_N: Tensor, divergence_N: Tensor | None, rows: slice) -> Tensor:
    return _divergence_alone(logp_N, divergence_N, rows) - 0.5 * logp_N.sum()


if __name__ == "__main__":
    main()
