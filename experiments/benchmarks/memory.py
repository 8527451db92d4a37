"""Memory and seconds of one update, ours and trl's: peak bytes of tensors beyond weights and optimiser state.

    python -m experiments.benchmarks.memory                                # 8 texts of 64 + 448 tokens
    python -m experiments.benchmarks.memory --prompts 16 --completion 192

One forward of both models, JSD(0.9) on the completions, and backward, on the same texts, without gradient
checkpointing. trl computes them as one batch, as our second row does; our first row has micro-batches, as a run has.
The gradients of the weights are part of each number; the optimiser's step is part of our seconds only.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch

from experiments.benchmarks import Side, Work, live_bytes, parser_of, speedup, summary, take_turns, write
from experiments.benchmarks.models import SPECIAL, our_trainer, vocabulary
from experiments.benchmarks.steps import Bench, add_sizes
from gkd_rl.generation.codec import TextCodec
from gkd_rl.types import Example

Update = Callable[[], object]


def main() -> None:
    """Command line."""
    parser = parser_of(__doc__)
    add_sizes(parser)
    parser.set_defaults(completion=448)
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.shortest = arguments.longest = arguments.prompt
    bench = Bench(arguments)
    draw = torch.Generator().manual_seed(arguments.seed)
    ids_BT = torch.randint(3, vocabulary(arguments.shape), (arguments.prompts, arguments.completion), generator=draw)
    sides = {
        "trl GKDTrainer": _gkd(bench, ids_BT),
        "trl DistillationTrainer": _distillation(bench, ids_BT),
        "gkd_rl": _ours(bench, ids_BT, arguments.tokens),
        "gkd_rl, one batch": _ours(bench, ids_BT, 10 * ids_BT.numel()),
    }
    timed = [Side(name, _counted(update, ids_BT.numel())) for name, update in sides.items()]
    take_turns(timed, arguments.rounds)  # the first round allocates the optimiser state and lazy buffers
    rows = [
        {
            "side": side.name,
            "MiB": live_bytes(sides[side.name], arguments.device) / 2**20,
            "seconds": summary(side.seconds),
            "times as fast": speedup(side, timed[0]),
        }
        for side in timed
    ]
    write(arguments, rows)


def _counted(update: Update, tokens: int) -> Callable[[], Work]:
    def run() -> Work:
        update()
        return Work(tokens)

    return run


def _texts(bench: Bench, ids_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids of the prompts (P, S), and of the completions with an end-of-sequence token (B, T)."""
    prompts = bench.examples[: len(ids_BT)]
    ids: Any = bench.tokenizer([one.prompt for one in prompts], add_special_tokens=False)["input_ids"]
    ids_PS = torch.tensor(ids)
    ids_BT = ids_BT.clone()
    ids_BT[:, -1] = SPECIAL["eos_token_id"]
    return ids_PS.to(bench.arguments.device), ids_BT.to(bench.arguments.device)


def _gkd(bench: Bench, ids_BT: torch.Tensor) -> Update:
    trainer = bench.trl_trainer("gkd")
    ids_PS, ids_BT = _texts(bench, ids_BT)
    ids = torch.cat([ids_PS, ids_BT], dim=1)
    labels = torch.cat([torch.full_like(ids_PS, -100), ids_BT], dim=1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    return _update(trainer, inputs)


def _distillation(bench: Bench, ids_BT: torch.Tensor) -> Update:
    ids_PS, ids_BT = _texts(bench, ids_BT)
    inputs = {
        "prompt_ids": ids_PS,
        "prompt_mask": torch.ones_like(ids_PS),
        "completion_ids": ids_BT,
        "completion_mask": torch.ones_like(ids_BT),
    }
    return _update(bench.trl_trainer("distillation"), inputs)


def _update(trainer: object, inputs: dict[str, torch.Tensor]) -> Update:
    """Loss and backward of trl's trainer."""
    model = trainer.model.train()  # pyright: ignore[reportAttributeAccessIssue]

    def run() -> None:
        model.zero_grad(set_to_none=True)
        trainer.compute_loss(model, inputs).backward()  # pyright: ignore[reportAttributeAccessIssue]

    return run


def _ours(bench: Bench, ids_BT: torch.Tensor, tokens: int) -> Update:
    """A step on these texts as references, with the optimiser's update."""
    arguments = argparse.Namespace(**vars(bench.arguments) | {"tokens": tokens})
    _, ids_BT = _texts(bench, ids_BT)
    texts = bench.tokenizer.batch_decode(ids_BT[:, :-1])
    examples = [Example(one.prompt, text, {}) for one, text in zip(bench.examples, texts, strict=False)]
    device = torch.device(arguments.device)
    codec = TextCodec(bench.tokenizer, arguments.longest, ids_BT.shape[1], device, decoder_only=True)
    settings = ("alpha=1", "lmbda=0")
    trainer = our_trainer(arguments, (bench.student, bench.teacher), codec, examples, *settings)
    return lambda: trainer.step(0)


if __name__ == "__main__":
    main()
