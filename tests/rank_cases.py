"""Computations whose result does not depend on the number of processes, run by each of them: `rank_cases.py FOLDER`.

Sampling depends on the rank, so the completions of a step are a function of their prompt here.
"""

from __future__ import annotations

import dataclasses
import random
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from conftest import ARCHITECTURE, LLAMA, config_of, gradient_of, models_of, share_of_a
from torch import Tensor, nn

from gkd_rl.config import Config
from gkd_rl.data.embedded.news import generate
from gkd_rl.data.embedded.tokenizer import build_tokenizer
from gkd_rl.data.prompt_order import PromptStream
from gkd_rl.evaluation.evaluator import Evaluation
from gkd_rl.generation.codec import TextCodec
from gkd_rl.generation.sampler import Sampler, Sampling
from gkd_rl.models.adapter import InitialView
from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.models.loading import build_model
from gkd_rl.models.remote_teacher import EndpointTeacher
from gkd_rl.pipeline.build import Models, attach_adapter, build_critic
from gkd_rl.pipeline.build_trainer import build_evaluator, build_trainer
from gkd_rl.training.processes import start_processes
from gkd_rl.training.teacher_data import generate_teacher_samples
from gkd_rl.training.trainer import Trainer
from gkd_rl.types import Example, PromptBatch, Rollout, Source, TopLogProbs
from reward_models.composite import Composite

WHOLE = "trainer.max_grad_norm=1e9"
TOKEN_MEAN = ["divergence.reduction=token_mean", "policy_gradient.reduction=token_mean"]
CASES = {
    "both terms": [],
    "split, token means, whitened": [*TOKEN_MEAN, "policy_gradient.whiten=true", "trainer.micro_batch_size=3"],
    "baseline of the whole step": ["policy_gradient.baseline=batch_mean"],
    "divided by the std": ["policy_gradient.baseline=group_mean", "policy_gradient.divide_by_std=true"],
    "separate terms": ["trainer.diagnose_every=1", "trainer.micro_batch_size=3"],
    "balanced": ["alpha_schedule.kind=balanced"],
    "value head": ["policy_gradient=ppo"],
    "credit": [*TOKEN_MEAN, "divergence.kd_credit=reward_to_go"],
    "gradient checkpointing": ["trainer.gradient_checkpointing=true", "trainer.micro_batch_size=2"],
    "references": ["alpha=1", "lmbda=0", "divergence.name=forward_kl"],
    "adapter": ["adapter=lora", "adapter.rank=2", "trainer.micro_batch_size=3"],
    "adapter, separate terms": ["adapter=lora", "adapter.kind=dora", "adapter.rank=2", "trainer.diagnose_every=1"],
}
KINDS = {"t5": ARCHITECTURE, "llama": LLAMA}
ENDPOINT = "llama: remote teacher"
MAX_TOKENS, TOP_K = 8, 5
Gradients = dict[str, tuple[Tensor, dict[str, float]]]


class PromptSampler(Sampler):
    """Completions of one to eight tokens, a function of the prompt's text and their index."""

    def sample(
        self, model: HiddenStateModel, prompts: PromptBatch, per_prompt: int, generator: torch.Generator | None
    ) -> Rollout:
        rows = [(example, k) for example in prompts.examples for k in range(per_prompt)]
        ids = []
        for example, k in rows:
            draw = random.Random(f"{example.prompt} {k}")
            ids.append([draw.randrange(3, self.codec.vocabulary) for _ in range(draw.randint(1, MAX_TOKENS - 1))] + [1])
        given = self.codec.completions([example for example, _ in rows], ids, Source.student)
        index_B = torch.arange(len(prompts.examples)).repeat_interleave(per_prompt)
        return dataclasses.replace(given, prompts=prompts, prompt_index_B=index_B)


class LocalTeacher(EndpointTeacher):
    """A remote teacher without a server; records the number of completions of each request."""

    def __call__(self, rollout: Rollout) -> TopLogProbs:
        requests.append(rollout.n_sequences)
        with torch.no_grad():
            model = model_of("llama", 2)
            best = (model(rollout) @ model.head().weight_VD.T).log_softmax(-1).topk(TOP_K)
        return TopLogProbs(best.indices, best.values)


requests: list[int] = []


def model_of(kind: str, seed: int) -> HiddenStateModel:
    return HiddenStateModel(build_model(KINDS[kind], build_tokenizer(), seed, torch.float32, "student"))


def examples() -> list[Example]:
    return [Example(item.article, item.summary, {}) for item in generate("train", 13, 0)]


def codec_of(kind: str) -> TextCodec:
    return TextCodec(build_tokenizer(), 60, MAX_TOKENS, torch.device("cpu"), decoder_only=kind == "llama")


def built(kind: str, config: Config) -> Models:
    """Student and teacher of random weights, with with an adapter of random weights where it is configured."""
    student = model_of(kind, 1)
    models = models_of(student, model_of(kind, 2).requires_grad_(False).eval(), codec_of(kind))
    if config.adapter is not None:
        adapted = attach_adapter(config, student.model, None)
        generator = torch.Generator().manual_seed(1)
        for parameter in filter(lambda one: one.requires_grad, adapted.parameters()):
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        models = dataclasses.replace(models, student=adapted, initial=InitialView(adapted))
    return dataclasses.replace(models, critic=build_critic(config, models.student))


def trainer_of(config: Config, models: Models) -> Trainer:
    stream = PromptStream(examples(), config.trainer.prompts_per_step, 0)
    trainer = build_trainer(config, models, reward(), stream, Accelerator(cpu=True))
    trainer.sampler = PromptSampler(models.codec, trainer.sampler.sampling)
    return trainer


def reward() -> Composite:
    """Different for any two completions of a step."""

    def share_of_letters(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
        return share_of_a(prompts, [" ".join(text) for text in completions])

    return Composite({"stub": share_of_letters}, {"stub": 1.0})


def gradients() -> Gradients:
    """Case -> the gradient of student and value head, and the step's metrics."""
    found = {}
    for kind in KINDS:
        for name, overrides in CASES.items():
            config = config_of("alpha=0.5", WHOLE, *overrides)
            models = built(kind, config)
            heads = [] if models.critic is None else [models.critic.head]
            gradient, record = gradient_of(trainer_of(config, models), 0, nn.ModuleList([models.student, *heads]))
            found[f"{kind}: {name}"] = (gradient, record.metrics)
    config = config_of(
        "alpha=0.5", WHOLE, "teacher=endpoint", "teacher.endpoint.model=any", "trainer.micro_batch_size=3"
    )
    codec = codec_of("llama")
    server = LocalTeacher("http://nowhere", "any", TOP_K, codec.vocabulary, timeout=1.0, parallel=1)
    models = dataclasses.replace(built("llama", config), teacher=None, endpoint=server)
    requests.clear()
    gradient, record = gradient_of(trainer_of(config, models))
    found[ENDPOINT] = (gradient, record.metrics)
    return found


def evaluation() -> Evaluation:
    """Of 13 rows, 7 of them sampled, 3 for Self-BLEU: no number of processes divides them evenly."""
    config = config_of("evaluation.rollout_prompts=7", "evaluation.self_bleu_prompts=3", "evaluation.batch_size=2")
    models = built("llama", config)
    return build_evaluator(config, models, reward(), examples()).evaluate(models.student, "student")


def samples(folder: Path) -> list[list[int]]:
    """Of 13 rows in chunks of 3."""
    codec = codec_of("llama")
    return generate_teacher_samples(
        folder / "samples", model_of("llama", 3), Sampler(codec, Sampling()), examples(), 0, 3
    )


def everything(folder: Path) -> dict[str, Any]:
    found = gradients()
    return {"gradients": found, "requests": sum(requests), "evaluation": evaluation(), "samples": samples(folder)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank = start_processes().process_index
    folder = Path(sys.argv[1])
    torch.save(everything(folder), folder / f"{rank}.pt")
