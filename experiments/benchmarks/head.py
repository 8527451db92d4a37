"""The output head alone: hidden states of both models -> divergence and its gradient, ours beside trl's.

    python -m experiments.benchmarks.head                       # SmolLM2-135M's head, 512 tokens, float32
    python -m experiments.benchmarks.head --dtype bfloat16 --out FILE

Both give the gradients of the student's hidden states and of its output embedding, of the sum of JSD(0.9) over tokens.
Memory is what the tensors of one forward and backward take at most, beside hidden states and weights. On CUDA our
head compiled, and liger's (where it is installed), run too.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

from experiments.benchmarks.sides import Side, Work, live_bytes, parser_of, speedup, summary, take_turns, write
from gkd_rl.choices import DivergenceName
from gkd_rl.divergence import TokenDivergence
from gkd_rl.fused_head import FusedHead
from gkd_rl.fused_loss import FusedLoss, LossOfTokens
from gkd_rl.types import OutputHead, Projection

BETA = 0.9


def main() -> None:
    """Command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--teacher-width", type=int, default=576)
    parser.add_argument("--chunk", type=int, default=128, help="tokens whose logits we hold; 0: as in a run")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    work, gradient = _works(arguments)
    sides = [Side(name, run) for name, run in work.items()]
    take_turns(sides, arguments.rounds)
    plain = next(iter(work.values()))
    plain()
    expected = gradient().clone()
    rows = [
        {
            "side": side.name,
            "seconds": summary(side.seconds),
            "times as fast as trl": speedup(side, sides[0]),
            "MiB": live_bytes(work[side.name], arguments.device) / 2**20,
            "gradient's distance": _distance(gradient(), expected) if "policy" not in side.name else None,
        }
        for side in sides
    ]
    write(arguments, rows)


def _distance(gradient: Tensor, expected: Tensor) -> float:
    """From the expected one, as a share of it."""
    return float((gradient - expected).norm() / expected.norm())


def _works(arguments: argparse.Namespace) -> tuple[dict[str, Callable[[], Work]], Callable[[], Tensor]]:
    """Each side's forward and backward; the gradient of the student's hidden states after one."""
    generator = torch.Generator().manual_seed(arguments.seed)
    tokens, device, dtype = arguments.tokens, arguments.device, getattr(torch, arguments.dtype)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator)).to(device, dtype)

    own, other = arguments.width, arguments.teacher_width
    hidden, told = normal(1, tokens, own).requires_grad_(), normal(1, tokens, other)
    weight = normal(arguments.vocabulary, own, scale=2 * own**-0.5).requires_grad_()
    teacher_weight = normal(arguments.vocabulary, other, scale=2 * other**-0.5)
    ids = torch.randint(arguments.vocabulary, (1, tokens), generator=generator).to(device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    student, teacher = Projection(hidden, OutputHead(weight)), Projection(told, OutputHead(teacher_weight))

    def reset() -> None:
        hidden.grad = weight.grad = None

    def theirs() -> Work:
        reset()
        divergence, _ = ChunkedDivergenceFunction.apply(
            hidden[0], weight, None, told[0], teacher_weight, None, BETA, 1.0, 1.0, None, 1.0, None
        )
        divergence.sum().backward()
        return Work(tokens)

    def liger() -> Work:
        reset()
        kernel = import_module("liger_kernel.transformers.fused_linear_jsd").LigerFusedLinearJSD(jsd_beta=1 - BETA)
        (kernel(hidden[0], weight, told[0], teacher_weight, None) * tokens).backward()
        return Work(tokens)

    jsd, chunk = TokenDivergence(DivergenceName.jsd, BETA), arguments.chunk or None

    def ours(loss: LossOfTokens, *, compiled: bool = False) -> Callable[[], Work]:
        head = FusedHead(jsd, 1.0, chunk, compiled=compiled)

        def run() -> Work:
            reset()
            FusedLoss(head, loss)(student, teacher, ids, mask)[0].backward()
            return Work(tokens)

        return run

    def divergence_alone(_: Tensor, divergence_N: Tensor | None, __: slice) -> Tensor:
        assert divergence_N is not None
        return divergence_N.sum()

    def both(logp_N: Tensor, divergence_N: Tensor | None, rows: slice) -> Tensor:
        return divergence_alone(logp_N, divergence_N, rows) - 0.5 * logp_N.sum()

    def by_autograd() -> Work:
        reset()
        terms = FusedHead(jsd, 1.0, chunk)(student, teacher, ids, mask)
        assert terms.divergence_BT is not None
        terms.divergence_BT.sum().backward()
        return Work(tokens)

    work = {
        "trl, chunked divergence": theirs,
        "gkd_rl, one pass": ours(divergence_alone),
        "gkd_rl, one pass with the policy gradient": ours(both),
        "gkd_rl, autograd (the oracle)": by_autograd,
    }
    if torch.device(device).type == "cuda":
        work["gkd_rl, one pass, compiled"] = ours(divergence_alone, compiled=True)
        work["gkd_rl, one pass with the policy gradient, compiled"] = ours(both, compiled=True)
        if find_spec("liger_kernel") is not None:
            work["liger, fused linear JSD"] = liger

    def gradient() -> Tensor:
        assert hidden.grad is not None
        return hidden.grad

    return work, gradient


if __name__ == "__main__":
    main()
