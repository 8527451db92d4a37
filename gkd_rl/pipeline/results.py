"""What a run leaves behind: eval.json, predictions.jsonl, the model card and the last table."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gkd_rl.config import AdapterConfig, Config, PolicyGradientConfig
from gkd_rl.config.choices import AdapterKind, AlphaSchedule, DivergenceName, KdCredit, Quantization, TeacherPrompts
from gkd_rl.evaluation.evaluator import Evaluation, TeacherAudit
from gkd_rl.outputs.json_files import write_json
from gkd_rl.outputs.tables import Estimate, markdown_table, model_card, results_table

GREEDY_METRICS = {
    "bleu": "BLEU",
    "chrf": "chrF",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "reward": "reward",
    "judge_minus_reward": "judge - reward",
    "reward_failed": "reward failed",
    "completion_tokens": "length in tokens",
    "copy_rate": "copied bigrams",
    "repetition": "repetition",
    "truncated_share": "truncated share",
}
SAMPLED_METRICS = {
    "sampled/rouge2": "ROUGE-2, sampled",
    "sampled/reward": "reward, sampled",
    "sampled/judge_minus_reward": "judge - reward, sampled",
    "sampled/divergence": "D, sampled",
    "sampled/reverse_kl": "reverse KL, sampled",
    "sampled/kl_to_initial": "initial KL, sampled",
    "self_bleu": "Self-BLEU, sampled",
}
CHANGE = "after - before"


@dataclass(frozen=True)
class Results:
    """Evaluations of the run's models on the same rows.

    Attributes:
        evaluations: "teacher" (if any), "student before", "student after".
        references: one per row.
        bootstrap_samples: resamples behind every interval.
        cost: tokens, seconds and estimated FLOPs of the run's own stage.
        memory: the device, and bytes at the peak of the run.
        data: rows that were read, dropped and cut.
        teacher_audit: what quantising the teacher cost; None for one that is not quantised.
        prompts: one per row, so that the predictions can be used without the data set; may be left out.
        folder: of the run; set by `run_experiment`.
    """

    evaluations: dict[str, Evaluation]
    references: list[str]
    bootstrap_samples: int
    cost: dict[str, float]
    memory: dict[str, str | int]
    data: dict[str, Any] = field(default_factory=dict)
    teacher_audit: TeacherAudit | None = None
    prompts: list[str] = field(default_factory=list)
    folder: Path | None = None

    def estimates(self) -> dict[str, dict[str, Estimate]]:
        """Model -> metric -> mean with interval."""
        return {name: one.estimates(self.bootstrap_samples, seed=0) for name, one in self.evaluations.items()}

    def changes(self) -> dict[str, Estimate]:
        """Paired differences, student after - student before, by metric."""
        before, after = self.evaluations["student before"], self.evaluations["student after"]
        return after.changes(before, self.bootstrap_samples, seed=0)

    def as_dict(self) -> dict[str, Any]:
        """All estimates and the paired differences, as JSON."""
        rows = {**self.estimates(), CHANGE: self.changes()}
        return {name: {key: value.as_dict() for key, value in row.items()} for name, row in rows.items()}

    def by_position(self) -> dict[str, dict[str, list[float]]]:
        """Model -> divergence -> its mean at each place of the sampled completions, as JSON."""
        return {
            model: {name: means.round(6).tolist() for name, means in one.by_position.items()}
            for model, one in self.evaluations.items()
            if one.by_position
        }

    def table(self) -> dict[str, dict[str, Estimate]]:
        """Metric -> model -> estimate, in the order of the table."""
        by_model = {**self.estimates(), CHANGE: self.changes()}
        after = by_model["student after"]
        components = {key: key.removeprefix("reward/").replace("_", " ") for key in after if key.startswith("reward/")}
        labels = {}
        for key, label in GREEDY_METRICS.items():
            labels[key] = label
            if key == "reward":
                labels |= components
        labels |= SAMPLED_METRICS
        return {
            label: {model: row[key] for model, row in by_model.items() if key in row}
            for key, label in labels.items()
            if key in after
        }

    def columns(self) -> list[tuple[str, str]]:
        """The models and the change, as table columns."""
        return [(name, name) for name in (*self.evaluations, CHANGE)]

    def objective(self, alpha: float) -> float:
        """(1 - alpha) E[r] - alpha E[D] of the student after training, on samples; an absent term counts as 0."""
        after = self.evaluations["student after"].values
        terms = {
            name: float(np.mean(after[f"sampled/{name}"])) if f"sampled/{name}" in after else 0.0
            for name in ("reward", "divergence")
        }
        return (1 - alpha) * terms["reward"] - alpha * terms["divergence"]

    def numbers(self, alpha: float) -> dict[str, float]:
        """What a sweeper can search for: `objective`, and every metric of the student after training."""
        return {"objective": self.objective(alpha), **self.evaluations["student after"].scores()}

    def predictions(self) -> list[dict[str, str]]:
        """One row per example: the prompt, the reference and every model's greedy completion."""
        return [
            {
                **({"prompt": self.prompts[i]} if self.prompts else {}),
                "reference": reference,
                **{name: one.completions[i] for name, one in self.evaluations.items()},
            }
            for i, reference in enumerate(self.references)
        ]


def describe_method(config: Config) -> dict[str, str]:
    """The settings that a number depends on, for captions and the model card."""
    divergence, schedule = config.divergence, config.alpha_schedule
    parameter = divergence.name.parameter
    name = divergence.name.value
    if parameter is not None:
        name = f"{name}({getattr(divergence, parameter):g}), {divergence.scale.value} scale".replace("jsd", "JSD")
    if divergence.teacher_top_k is not None:
        name += f", teacher's top {divergence.teacher_top_k}"
    if divergence.kd_credit is not KdCredit.none:
        name += f", credit {divergence.kd_credit.value}"
    temperature = f"temperature {divergence.temperature:g}"
    if divergence.teacher_temperature != 1:
        temperature += f", teacher's {divergence.temperature * divergence.teacher_temperature:g}"
    weights = {name: weight for name, weight in config.reward.weights.items() if weight != 0}
    alpha = f"{config.alpha:g}"
    if schedule.kind is not AlphaSchedule.constant:
        alpha += f" ({schedule.kind.value}" + ("" if schedule.start is None else f" from {schedule.start:g}") + ")"
    fixed = f", else {config.fixed_data.source.value}" if config.lmbda < 1 else ""
    return {
        "alpha": alpha,
        "divergence": f"{name}, {divergence.reduction.value}, {temperature}",
        "imitates": _imitated(config),
        **({} if config.adapter is None else {"trains": _trained(config.adapter)}),
        "reward": " + ".join(f"{weight:g} {name}" for name, weight in weights.items()) or "none",
        "policy gradient": _describe_policy_gradient(config.policy_gradient),
        "lmbda": f"{config.lmbda:g}{fixed}",
        "steps": f"{config.trainer.steps} of {config.trainer.prompts_per_step} prompts x {config.rollout.per_prompt}",
        "seed": f"{config.seed}",
    }


def _described(config: Config, results: Results) -> dict[str, str]:
    """The settings, and how far the teacher's own numbers can be trusted."""
    audit = results.teacher_audit
    return describe_method(config) | ({} if audit is None else {"teacher audit": str(audit)})


def _imitated(config: Config) -> str:
    """Whose distributions the divergence compares the student with."""
    teacher = config.teacher
    if teacher is None or config.divergence.name is DivergenceName.cross_entropy:
        return "the text alone"
    who = "the initial student" if teacher.initial_student else "the teacher"
    if teacher.endpoint is not None:
        who += (
            f" {teacher.endpoint.model} behind a server, by its {teacher.endpoint.top_k} likeliest tokens and the rest"
        )
    if teacher.quantization is not Quantization.none:
        who += f" in {teacher.quantization.value}"
    return who if teacher.prompts is TeacherPrompts.own else f"{who}, at another prompt"


def _trained(adapter: AdapterConfig) -> str:
    """The weights that are trained in place of the student's own."""
    name = {AdapterKind.lora: "LoRA", AdapterKind.dora: "DoRA"}[adapter.kind]
    targets = "all linear layers" if adapter.targets is None else " ".join(adapter.targets)
    scale = ", rslora" if adapter.rslora else ""
    return f"{name} of rank {adapter.rank}, lora_alpha {adapter.lora_alpha:g}{scale}, on {targets}"


def _describe_policy_gradient(settings: PolicyGradientConfig) -> str:
    """E.g. `REINFORCE, leave_one_out, sequence_sum`."""
    parts = ["REINFORCE" if settings.clip_low is None else f"clip {settings.clip_low:g}/{settings.clip_high:g}"]
    parts += [settings.baseline.value + (" / std" if settings.divide_by_std else ""), settings.reduction.value]
    parts += [f"{settings.epochs} epochs"] if settings.epochs > 1 else []
    parts += [f"GAE {settings.value.gae_lambda:g}"] if settings.value is not None else []
    parts += ["whitened"] if settings.whiten else []
    if settings.fixed_advantage is not None:
        parts = [parts[0], f"advantage fixed at {settings.fixed_advantage:g}", settings.reduction.value]
    kl = settings.sampled_kl
    return ", ".join(parts) + (
        f", {kl.coefficient:g} {kl.estimator.value} in {kl.place.value}" if kl.coefficient else ""
    )


def model_card_of(results: Results, config: Config, model_class: str) -> str:
    """The README of the model folder."""
    table = markdown_table(results.table(), results.columns(), "", "")
    settings = _described(config, results)
    return model_card(config.name, f"alpha = {config.alpha:g}", settings, table, config.scale.notice, model_class)


def write_results(folder: Path, results: Results, config: Config) -> str:
    """Write predictions.jsonl and eval.json, whose presence marks the run as finished; returns the table."""
    settings, audit = _described(config, results), results.teacher_audit
    facts = {"settings": settings, "notice": config.scale.notice, "cost": results.cost, "memory": results.memory}
    signatures = {name: counts.signature for name, counts in results.evaluations["student after"].corpus.items()}
    facts |= {"data": results.data, "objective": results.objective(config.alpha)}
    facts |= {} if audit is None else {"teacher_audit": audit.as_dict()}
    facts |= {"signatures": signatures} if signatures else {}
    facts |= {"by_position": profiles} if (profiles := results.by_position()) else {}
    lines = [json.dumps(row, ensure_ascii=False) for row in results.predictions()]
    (folder / "predictions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8", errors="backslashreplace")
    write_json(folder / "eval.json", {**facts, **results.as_dict()})
    caption = "; ".join(f"{key} {value}" for key, value in settings.items())
    counts = {key: len(values) for key, values in results.evaluations["student after"].values.items()}
    sampled = next(count for key, count in counts.items() if key.startswith("sampled/"))
    sizes = f"{len(results.references)} rows, sampled: {sampled} rows"
    sizes += f", Self-BLEU: {counts['self_bleu']} prompts" if "self_bleu" in counts else ""
    beams = config.evaluation.beams
    decoding = "greedy" if beams == 1 else f"beam {beams}, length penalty {config.evaluation.length_penalty:g}"
    caption += f". {config.evaluation.split} split, {decoding}: {sizes}; 95% bootstrap intervals. "
    caption += " ".join([*(f"{name}: {text}." for name, text in signatures.items()), config.scale.notice])
    return results_table(results.table(), results.columns(), config.name, caption)
