"""Whether cost is linear in tokens: tokens a second of a step's updates, over batch sizes and over prompt lengths.

    python -m experiments.benchmarks.linear                     # 1 to 16 times 8 texts; prompts of 64 to 1,024 tokens

alpha = 1 on given texts: seconds of the student's forward and backward and the teacher's forward. Tokens are those of
prompts and completions, without padding. Attention is quadratic: "without attention" divides the rate by the share of
FLOPs that are not attention's. The output heads process completions only. Therefore each prompt length is measured
twice: with completions whose length is proportional to the prompt's, so that the heads' cost a token is the same at
every length, and with the completions of the other rows, which are a third of the shortest texts. GFLOP/s include heads
and attention.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch

from experiments.benchmarks import Side, Work, parser_of, summary, take_turns, write
from experiments.benchmarks.models import our_trainer
from experiments.benchmarks.steps import Bench, add_sizes
from gkd_rl.generation.codec import TextCodec
from gkd_rl.training.cost import ModelCost
from gkd_rl.types import Example

PHASES = ("student", "teacher")


class Updates:
    """Steps on texts of one size.

    Attributes:
        padding: share of padding in the student's micro-batches, by step.
        linear: share of the FLOPs that are not attention's.
        flops: of both phases, per token.
    """

    def __init__(
        self, arguments: argparse.Namespace, prompts: int, shortest: int, longest: int, completion: int
    ) -> None:
        settings: dict[str, Any] = {"prompts": prompts, "per_prompt": 1, "completion": completion}
        settings |= {"shortest": shortest, "longest": longest}
        arguments = argparse.Namespace(**vars(arguments) | settings)
        bench = Bench(arguments)
        draw = np.random.default_rng(arguments.seed)
        lengths = draw.integers(completion // 4, completion, len(bench.examples))
        words = [f"w{word}" for word in draw.integers(1000, size=completion)]
        examples = [
            Example(one.prompt, " ".join(words[:length]), {})
            for one, length in zip(bench.examples, lengths, strict=True)
        ]
        codec = TextCodec(bench.tokenizer, longest, completion, torch.device(arguments.device), decoder_only=True)
        models = (bench.student, bench.teacher)
        self._trainer = our_trainer(arguments, models, codec, examples, "alpha=1", "lmbda=0")
        self._step = 0
        self.padding: list[float] = []
        self.linear, self.flops = 1.0, 0.0

    def run(self) -> Work:
        """One step; its work are the tokens of prompts and completions."""
        record = self._trainer.step(self._step)
        self._step += 1
        rollout = record.rollout
        self.padding.append(record.metrics["padding_share"])
        cost = ModelCost.of(self._trainer.student)
        lengths = (rollout.prompts.mask_PS.sum(1) + rollout.mask_BT.sum(1)).double().cpu()
        attention = float(4 * cost.decoder.attention * lengths.square().sum())
        self.linear = 1 - attention / cost.forward(rollout)
        tokens, seconds = float(lengths.sum()), sum(record.metrics[f"time/{name}"] for name in PHASES)
        self.flops = sum(record.metrics[f"flops/{name}"] for name in PHASES) / tokens
        return Work(tokens, seconds)


def main() -> None:
    """Command line."""
    parser = parser_of(__doc__)
    add_sizes(parser)
    parser.add_argument("--times", default="1,4,16", help="sizes of the batch, in those of --prompts")
    parser.add_argument("--lengths", default="64,256,1024", help="tokens of the prompts, of one length each")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    prompts, completion = arguments.prompts, arguments.completion
    shortest, longest = arguments.shortest, arguments.longest
    works = {
        f"{prompts * times} prompts of {shortest} to {longest} tokens": Updates(
            arguments, prompts * times, shortest, longest, completion
        )
        for times in map(int, arguments.times.split(","))
    }
    for length in map(int, arguments.lengths.split(",")):
        for most in sorted(
            {max(4, length * completion // longest), completion}
        ):  # completions have at least a quarter of it
            name = f"{prompts} prompts of {length} tokens, completions up to {most}"
            works[name] = Updates(arguments, prompts, length, length, most)
    sides = [Side(name, work.run) for name, work in works.items()]
    take_turns(sides, arguments.rounds)
    rows: list[dict[str, Any]] = [
        {
            "texts": side.name,
            "seconds": summary(side.seconds),
            "tokens a second": side.rate,
            "without attention": side.rate / work.linear,
            "GFLOP/s": side.rate * work.flops / 1e9,
            "padding": summary(work.padding),
        }
        for side, work in zip(sides, works.values(), strict=True)
    ]
    write(arguments, rows)


if __name__ == "__main__":
    main()
