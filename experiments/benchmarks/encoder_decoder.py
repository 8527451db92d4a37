"""Whole steps of a T5, ours beside a direct loop with transformers: generate, two forward passes, JSD, backward.

    python -m experiments.benchmarks.encoder_decoder                     # T5-small's shapes, 512-token documents, K = 4
    python -m experiments.benchmarks.encoder_decoder --shape t5_xl --dtype bfloat16      # base and XL, for a GPU

Random weights; T5-small's student has half of its teacher's layers. The loop repeats each prompt for its completions,
as `generate` with num_return_sequences does, and computes the logits of all of them at once. Completions end by
themselves or at 48 tokens. Speed is measured in valid completion tokens a second.
"""

from __future__ import annotations

import argparse
import copy
import itertools
from collections.abc import Callable

import torch

from experiments.benchmarks import Side, Work, parser_of, step_rows, take_turns, write
from experiments.benchmarks.models import (
    BETA,
    LEARNING_RATE,
    Model,
    models,
    our_step,
    our_trainer,
    random_texts,
    reward,
    vocabulary,
)
from gkd_rl.config.choices import DivergenceName
from gkd_rl.generation.codec import TextCodec
from gkd_rl.losses.divergences import TokenDivergence
from gkd_rl.types import Example, completion_mask, sequence_mean, shift_right


class Loop:
    """The direct loop: (1 - alpha) REINFORCE with a leave-one-out baseline + alpha JSD(0.9), full logits."""

    def __init__(
        self, arguments: argparse.Namespace, student: Model, teacher: Model, codec: TextCodec, examples: list[Example]
    ) -> None:
        self.arguments, self.teacher, self.codec, self.examples = arguments, teacher, codec, examples
        self.student = copy.deepcopy(student)
        self.optimizer = torch.optim.AdamW(self.student.parameters(), LEARNING_RATE, weight_decay=0.0)
        self.divergence = TokenDivergence(DivergenceName.jsd, BETA)

    def run(self, step: int) -> Work:
        """One step on the next prompts."""
        K, count = self.arguments.per_prompt, self.arguments.prompts
        rows = [self.examples[(step * count + i) % len(self.examples)] for i in range(count)]
        prompts = self.codec.prompts(rows)
        inputs = {"input_ids": prompts.ids_PS, "attention_mask": prompts.mask_PS.long()}
        ids_BT = self.student.generate(
            **inputs, do_sample=True, top_k=0, num_return_sequences=K, max_new_tokens=self.arguments.completion
        )[:, 1:]
        mask_BT, _ = completion_mask(ids_BT, self.codec.eos_ids)
        repeated = {name: value.repeat_interleave(K, 0) for name, value in inputs.items()}
        repeated["decoder_input_ids"] = shift_right(ids_BT, self.student.config.decoder_start_token_id)
        logits_BTV = self.student(**repeated, use_cache=False).logits
        with torch.no_grad():
            teacher_BTV = self.teacher(**repeated, use_cache=False).logits
        divergence_N = self.divergence(
            teacher_BTV.flatten(0, 1).float(), logits_BTV.flatten(0, 1).float(), ids_BT.flatten()
        )
        divergence_B = sequence_mean(divergence_N.view_as(ids_BT), mask_BT)
        logp_BT = logits_BTV.float().log_softmax(dim=-1).gather(2, ids_BT.unsqueeze(2)).squeeze(2)
        texts = self.codec.decode(ids_BT, mask_BT)
        rewards_PK = torch.tensor(reward([""] * len(texts), texts), device=ids_BT.device).view(count, K)
        advantage_B = (rewards_PK - (rewards_PK.sum(1, keepdim=True) - rewards_PK) / (K - 1)).flatten()
        policy_B = -advantage_B * torch.where(mask_BT, logp_BT, 0).sum(dim=1)
        (0.5 * policy_B + 0.5 * divergence_B).mean().backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return Work(float(mask_BT.sum()))


def main() -> None:
    """Command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--prompts", type=int, default=4, help="of a step")
    parser.add_argument("--per-prompt", type=int, default=4, help="completions of each, K > 1")
    parser.add_argument("--shortest", type=int, default=512, help="tokens of the shortest document")
    parser.add_argument("--longest", type=int, default=512, help="tokens of the longest document")
    parser.add_argument("--completion", type=int, default=48, help="tokens of the longest completion")
    parser.add_argument("--shape", choices=["t5_small", "t5_xl"], default="t5_small")
    parser.add_argument("--layers", type=int, help="of the teacher's encoder and of its decoder, instead of its own")
    parser.add_argument("--teacher-bits", type=int, choices=[8, 4], help="of its matrices, through bitsandbytes")
    parser.add_argument("--tokens", type=int, default=4096, help="at most, in one of our micro-batches")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    sizes = arguments.prompts * 16, arguments.shortest - 1, arguments.longest - 1  # an end-of-sequence token is added
    tokenizer, examples = random_texts(vocabulary(arguments.shape), *sizes, arguments.seed)
    student, teacher = models(arguments)
    codec = TextCodec(tokenizer, arguments.longest, arguments.completion, torch.device(arguments.device))
    loop, steps = Loop(arguments, student, teacher, codec, examples), itertools.count()
    work: dict[str, Callable[[], Work]] = {
        "transformers, full logits": lambda: loop.run(next(steps)),
        "gkd_rl, alpha=0.5": our_step(our_trainer(arguments, (student, teacher), codec, examples, "alpha=0.5")),
    }
    sides = [Side(name, run) for name, run in work.items()]
    take_turns(sides, arguments.rounds)
    write(arguments, step_rows(sides, arguments.device))


if __name__ == "__main__":
    main()
