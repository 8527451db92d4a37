"""Configuration -> the measurements of a run."""

from __future__ import annotations

from gkd_rl.beam_search import Beams
from gkd_rl.build import Models, token_divergence
from gkd_rl.choices import DivergenceName
from gkd_rl.config import Config
from gkd_rl.divergence import TokenDivergence
from gkd_rl.evaluation import EvaluationSettings, Evaluator
from gkd_rl.fused_head import FusedHead
from gkd_rl.rollout import Sampling
from gkd_rl.types import Example
from reward_models.composite import Composite


def build_evaluator(config: Config, models: Models, reward: Composite | None, examples: list[Example]) -> Evaluator:
    """The measurements of a run; the same random numbers for every model of the run."""
    configured = token_divergence(config.divergence)
    reverse_kl = TokenDivergence(DivergenceName.reverse_kl)
    divergences = {"forward_kl": TokenDivergence(DivergenceName.forward_kl), "reverse_kl": reverse_kl}
    if configured.needs_teacher:
        divergences["divergence"] = configured
    evaluation, rollout = config.evaluation, config.rollout

    def head(divergence: TokenDivergence) -> FusedHead:
        return FusedHead(divergence, rollout.temperature, config.trainer.head_chunk_tokens, models.codec.vocabulary)

    return Evaluator(
        examples=examples,
        codec=models.codec,
        sampling=Sampling(rollout.temperature, rollout.top_p, rollout.top_k),
        teacher=models.teacher or models.endpoint,
        heads={name: head(divergence) for name, divergence in divergences.items()},
        initial=models.initial,
        initial_head=head(reverse_kl),
        reward=reward,
        settings=EvaluationSettings(
            metrics=tuple(evaluation.metrics),
            beams=Beams(evaluation.beams, evaluation.length_penalty) if evaluation.beams > 1 else None,
            judge=config.reward.judge,
            batch_size=evaluation.batch_size,
            rollout_prompts=evaluation.rollout_prompts,
            self_bleu_prompts=evaluation.self_bleu_prompts,
            self_bleu_samples=evaluation.self_bleu_samples,
            self_bleu_temperature=evaluation.self_bleu_temperature,
            temperatures=tuple(evaluation.temperatures),
            bootstrap_samples=evaluation.bootstrap_samples,
            seed=config.seed,
        ),
    )
