"""Evaluation of a model on a split, and the audit of a quantised teacher.

`Evaluator` decodes a split and measures it: greedy text (or beams) against references and reward, samples against the
teacher. Every number is a mean over examples, or a corpus score, with a percentile bootstrap interval. The teacher, the
student before and the student after training get the same prompts and random numbers, so that differences are paired.
Each process measures its share of the examples and then has the numbers of all.

`TeacherAudit` is KL(full precision || quantised) of a teacher on rollouts of the student. It is the noise floor of the
divergence to a quantised teacher: smaller differences between students mean nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm.auto import tqdm

from gkd_rl.config.choices import DivergenceName, Dtype, Metric, Quantization
from gkd_rl.evaluation.metrics import CorpusCounts, by_position, corpus_counts, rouge_scores, self_bleu
from gkd_rl.evaluation.uncertainty import estimate, paired_difference
from gkd_rl.generation.codec import TextCodec
from gkd_rl.generation.sampler import GREEDY, Beams, Sampler, Sampling
from gkd_rl.generation.text_statistics import copy_rate, repetition_rate
from gkd_rl.losses.divergences import TokenDivergence
from gkd_rl.losses.fused_head import FusedHead
from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.models.remote_teacher import EndpointTeacher, forward_outputs
from gkd_rl.outputs.tables import Estimate
from gkd_rl.training.processes import gather_objects, merge_rank_shares, progress, rank_seed, rank_share
from gkd_rl.training.trainer import score
from gkd_rl.types import Example, Projection, Rollout, sequence_mean
from reward_models.composite import Composite


@dataclass(frozen=True)
class EvaluationSettings:
    """Sizes, metrics and seeds of an evaluation.

    Attributes:
        metrics: text metrics against references.
        beams: beam search; None decodes greedily.
        judge: component of the reward that the policy is not trained on, for judge - reward; None without one.
        batch_size: prompts in one decoded batch.
        rollout_prompts: prompts of the samples, the first ones of the split.
        self_bleu_prompts: prompts of Self-BLEU; 0 omits it.
        self_bleu_samples: samples of each of these prompts.
        self_bleu_temperature: their temperature.
        temperatures: further temperatures at which diversity is measured.
        bootstrap_samples: resamples of an interval.
        seed: of samples and resamples.
    """

    metrics: Sequence[Metric]
    beams: Beams | None
    judge: str | None
    batch_size: int
    rollout_prompts: int
    self_bleu_prompts: int
    self_bleu_samples: int
    self_bleu_temperature: float
    temperatures: Sequence[float]
    bootstrap_samples: int
    seed: int


@dataclass(frozen=True)
class Evaluation:
    """Measurements of one model on one split.

    Attributes:
        values: metric -> one number for each example that it is measured on, [n].
        completions: the greedy completion, or the best beam, of each example.
        corpus: corpus metric -> counts of each example.
        by_position: divergence -> its mean at each token position of the sampled completions, in nats, [T].
    """

    values: dict[str, np.ndarray]
    completions: list[str]
    corpus: dict[str, CorpusCounts] = field(default_factory=dict)
    by_position: dict[str, np.ndarray] = field(default_factory=dict)

    def scores(self) -> dict[str, float]:
        """Metric -> its mean or corpus score."""
        means = {name: float(np.mean(values, dtype=np.float64)) for name, values in self.values.items()}
        return means | {name: counts.score(counts.counts_NC.sum(axis=0)) for name, counts in self.corpus.items()}

    def estimates(self, samples: int, seed: int) -> dict[str, Estimate]:
        """Metric -> mean or corpus score, with its interval and number of examples.

        Args:
            samples: resamples of the bootstrap.
            seed: of the resampling.
        """
        means = {name: estimate(values, samples, seed) for name, values in self.values.items()}
        return means | {name: counts.estimate(samples, seed) for name, counts in self.corpus.items()}

    def changes(self, before: Evaluation, samples: int, seed: int) -> dict[str, Estimate]:
        """Metric -> paired difference: this evaluation minus `before`, on the same examples.

        Args:
            before: evaluation of another model on the same examples.
            samples: resamples of the bootstrap.
            seed: of the resampling.
        """
        means = {
            name: paired_difference(values, before.values[name], samples, seed) for name, values in self.values.items()
        }
        return means | {name: own.difference(before.corpus[name], samples, seed) for name, own in self.corpus.items()}


@dataclass(frozen=True)
class Evaluator:
    """Measures models on a list of examples.

    Attributes:
        examples: rows of the split.
        codec: text <-> token ids, of the student.
        sampling: of the samples that are compared with the teacher.
        teacher: None omits divergences to it.
        heads: name -> divergence to the teacher that is measured.
        initial: the student before training; None omits the KL to it.
        initial_head: the KL to `initial`.
        reward: None omits rewards.
        settings: sizes, metrics and seeds.
    """

    examples: Sequence[Example]
    codec: TextCodec
    sampling: Sampling
    teacher: HiddenStateModel | EndpointTeacher | None
    heads: dict[str, FusedHead]
    initial: HiddenStateModel | None
    initial_head: FusedHead
    reward: Composite | None
    settings: EvaluationSettings

    @torch.no_grad()
    def evaluate(self, model: HiddenStateModel, name: str) -> Evaluation:
        """All metrics of one model.

        Args:
            model: set to evaluation mode.
            name: label of the progress bar.
        """
        model.eval()
        with progress(self._batches(), f"{name}: evaluation", "batch") as bar:
            return self._evaluate(model, bar)

    def _batches(self) -> int:
        """Number of batches that this rank decodes in one evaluation."""
        settings = self.settings
        again = [settings.self_bleu_prompts] * (1 + len(settings.temperatures))
        parts = [self.examples[:count] for count in (None, settings.rollout_prompts, *again)]
        return sum(-(-len(rank_share(part)) // settings.batch_size) for part in parts)

    def _evaluate(self, model: HiddenStateModel, bar: tqdm) -> Evaluation:
        greedy = self._decode(model, self.examples, self.settings.beams or GREEDY, 1, bar)
        values = _gathered(self._text_metrics(greedy), len(self.examples))
        prompts = self.examples[: self.settings.rollout_prompts]
        sampled = self._decode(model, prompts, self.sampling, 1, bar)
        numbers = {f"sampled/{name}": numbers for name, numbers in self._text_metrics(sampled).items()}
        tokens: dict[str, list[np.ndarray]] = {}
        if self.teacher is not None:
            tokens |= self._divergences(model, self.teacher, self.heads, sampled)
        if self.initial is not None:
            tokens |= self._divergences(model, self.initial, {"kl_to_initial": self.initial_head}, sampled)
        numbers |= {name: np.array([row.mean() for row in rows]) for name, rows in tokens.items()}
        values |= _gathered(numbers, len(prompts))
        profiles = {name: by_position(_gathered_rows(rows, len(prompts))) for name, rows in tokens.items()}
        if self.settings.self_bleu_prompts > 0:
            prompts = self.examples[: self.settings.self_bleu_prompts]
            own_temperature = self._diversity(model, prompts, self.settings.self_bleu_temperature, bar)
            diversity = {"self_bleu": own_temperature["self_bleu"]}
            for temperature in self.settings.temperatures:
                found = self._diversity(model, prompts, temperature, bar)
                diversity |= {f"temperature_{temperature:g}/{name}": numbers for name, numbers in found.items()}
            values |= _gathered(diversity, len(prompts))
        own = [text for rollout in greedy for text in rollout.texts]
        texts = merge_rank_shares(gather_objects(own), len(self.examples))
        references = [example.reference for example in self.examples]
        corpus = corpus_counts(texts, references) if Metric.bleu in self.settings.metrics else {}
        return Evaluation(values | self._by_kind(values), texts, corpus, profiles)

    def _by_kind(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The reward of each kind of rows, for tasks with several kinds (column `kind`)."""
        kinds = np.array([str(example.columns.get("kind", "")) for example in self.examples])
        if self.reward is None or len(set(kinds)) < 2:
            return {}
        return {f"reward/{kind}": values["reward"][kinds == kind] for kind in sorted(set(kinds))}

    def _decode(
        self,
        model: HiddenStateModel,
        examples: Sequence[Example],
        sampling: Sampling | Beams,
        per_prompt: int,
        bar: tqdm,
    ) -> list[Rollout]:
        """Completions of this rank's examples, in batches; random numbers depend on the seed and the rank only."""
        sampler = Sampler(self.codec, sampling)
        generator = torch.Generator(model.device)
        generator.manual_seed(rank_seed(self.settings.seed))
        rollouts, examples = [], rank_share(examples)
        for start in range(0, len(examples), self.settings.batch_size):
            prompts = self.codec.prompts(examples[start : start + self.settings.batch_size])
            rollouts.append(sampler.sample(model, prompts, per_prompt, generator))
            bar.update()
        return rollouts

    def _text_metrics(self, rollouts: list[Rollout]) -> dict[str, np.ndarray]:
        """ROUGE in percent, rewards, length in tokens, copy rate, repetition and truncation, one number per example."""
        texts = [text for rollout in rollouts for text in rollout.texts]
        examples = [example for rollout in rollouts for example in rollout.prompts.examples]
        values: dict[str, np.ndarray] = {}
        if Metric.rouge in self.settings.metrics:
            values |= rouge_scores(texts, [example.reference for example in examples])
        if self.reward is not None:
            scores = [score(self.reward, rollout) for rollout in rollouts]
            values["reward"] = np.array([x for one in scores for x in one.total])
            for name in scores[0].components:
                values[f"reward/{name}"] = np.array([x for one in scores for x in one.components[name]])
            if all(one.failed is not None for one in scores):
                values["reward_failed"] = np.array([float(x) for one in scores for x in one.failed or ()])
            if self.settings.judge is not None:
                values["judge_minus_reward"] = values[f"reward/{self.settings.judge}"] - values["reward"]
        values["completion_tokens"] = np.concatenate([r.mask_BT.sum(dim=1).cpu().numpy() for r in rollouts]).astype(
            float
        )
        values["truncated_share"] = np.concatenate([r.truncated_B.cpu().numpy() for r in rollouts]).astype(float)
        values["copy_rate"] = np.array(
            [copy_rate(text, example.prompt) for text, example in zip(texts, examples, strict=True)]
        )
        values["repetition"] = np.array([repetition_rate(text) for text in texts])
        return values

    def _divergences(
        self,
        model: HiddenStateModel,
        other: HiddenStateModel | EndpointTeacher,
        heads: dict[str, FusedHead],
        rollouts: list[Rollout],
    ) -> dict[str, list[np.ndarray]]:
        """Divergence -> for each completion its values at the completion's tokens, in nats."""
        found: dict[str, list[np.ndarray]] = {f"sampled/{name}": [] for name in heads}
        for rollout in rollouts:
            own_side, other_side = Projection(model(rollout), model.head()), forward_outputs(other, rollout)
            lengths = rollout.mask_BT.sum(dim=1).tolist()
            for name, head in heads.items():
                terms = head(own_side, other_side, rollout.ids_BT, rollout.mask_BT)
                if terms.divergence_BT is None:
                    raise ValueError(f"the head {name!r} computes no divergence.")
                table = terms.divergence_BT.float().cpu().numpy()
                found[f"sampled/{name}"] += [row[:length] for row, length in zip(table, lengths, strict=True)]
        return found

    def _diversity(
        self, model: HiddenStateModel, prompts: Sequence[Example], temperature: float, bar: tqdm
    ) -> dict[str, np.ndarray]:
        """Self-BLEU (0..100) of each prompt's samples and, if ROUGE is measured, their mean ROUGE-2."""
        samples = self.settings.self_bleu_samples
        rollouts = self._decode(model, prompts, Sampling(temperature), samples, bar)
        texts = [text for rollout in rollouts for text in rollout.texts]
        groups = [texts[start : start + samples] for start in range(0, len(texts), samples)]
        values = {"self_bleu": np.array([self_bleu([group]) for group in groups])}
        if Metric.rouge in self.settings.metrics:
            examples = [example for rollout in rollouts for example in rollout.prompts.examples]
            references = [example.reference for example in examples for _ in range(samples)]
            values["rouge2"] = rouge_scores(texts, references)["rouge2"].reshape(-1, samples).mean(axis=1)
        return values


def _gathered(values: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """The numbers of all ranks, in the order of the `count` examples."""
    parts = gather_objects(values)
    return {name: np.array(merge_rank_shares([part[name] for part in parts], count)) for name in values}


def _gathered_rows(rows: list[np.ndarray], count: int) -> list[np.ndarray]:
    """The rows of all ranks, in the order of the `count` examples."""
    return merge_rank_shares(gather_objects(rows), count)


@dataclass(frozen=True)
class TeacherAudit:
    """KL(full precision || quantised) of a teacher.

    Attributes:
        dtype: of the full precision.
        quantization: of the quantised teacher.
        kl: in nats per token, with its 95% bootstrap interval over rollouts.
    """

    dtype: Dtype
    quantization: Quantization
    kl: Estimate

    def __str__(self) -> str:
        """E.g. `KL(float32 || int8) = 0.00041 [0.00035, 0.00049] nats per token on 64 student rollouts`."""
        kl = self.kl
        return (
            f"KL({self.dtype.value} || {self.quantization.value}) = {kl.mean:.2g} [{kl.low:.2g}, {kl.high:.2g}] "
            f"nats per token on {kl.n} student rollouts"
        )

    def as_dict(self) -> dict[str, float | int | str]:
        """The entry "teacher_audit" of eval.json."""
        return {
            "dtype": self.dtype.value,
            "quantization": self.quantization.value,
            "unit": "nats per token",
            **self.kl.as_dict(),
        }


@torch.no_grad()
def kl_between(
    full: HiddenStateModel,
    quantised: HiddenStateModel,
    rollouts: Sequence[Rollout],
    chunk_tokens: int | None,
    vocabulary: int,
) -> np.ndarray:
    """KL(full || quantised) in nats per token, averaged over the tokens of each completion, [B].

    Args:
        full: the teacher at full precision.
        quantised: the quantised teacher.
        rollouts: of the student, B completions in all.
        chunk_tokens: positions whose logits are in memory at one time, see `FusedHead`.
        vocabulary: number of tokens that can be sampled.
    """
    divergence = TokenDivergence(DivergenceName.forward_kl)
    head = FusedHead(divergence, chunk_tokens=chunk_tokens, vocabulary=vocabulary)
    parts = []
    for rollout in rollouts:
        one, other = (Projection(model(rollout), model.head()) for model in (full, quantised))
        values_BT = head(other, one, rollout.ids_BT, rollout.mask_BT).divergence_BT
        assert values_BT is not None
        parts.append(sequence_mean(values_BT, rollout.mask_BT).cpu().numpy())
    return np.concatenate(parts)


def student_rollouts(
    student: HiddenStateModel, sampler: Sampler, examples: Sequence[Example], batch_size: int, seed: int
) -> list[Rollout]:
    """One sampled completion of every example, in batches.

    Args:
        student: the model that samples.
        sampler: how it samples.
        examples: rows with the prompts.
        batch_size: prompts in a batch.
        seed: of the sampling.
    """
    generator = torch.Generator(student.device)
    generator.manual_seed(seed)
    batches = [examples[start : start + batch_size] for start in range(0, len(examples), batch_size)]
    return [sampler.sample(student, sampler.codec.prompts(batch), 1, generator) for batch in batches]
