"""Rules between settings of the objective: alpha, lambda, divergence, policy gradient, rollouts and reward.

A rule is a function of the configuration that yields one message for each contradiction: the settings, their values and
what to type instead. `validation.py` applies these rules and those of `model_rules.py` and `run_rules.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from gkd_rl.config import Config
from gkd_rl.config.alpha_schedule import Schedule
from gkd_rl.config.choices import (
    AlphaSchedule,
    Baseline,
    DivergenceName,
    FixedSource,
    KdCredit,
    KlEstimator,
    KlPlace,
)

_EXPECTED_GRADIENTS = {  # of the pairs (estimator, place) that do not give KL(student || initial)'s; docs/estimators.md
    (KlEstimator.k1, KlPlace.loss): "its expected gradient is 0",
    (KlEstimator.k3, KlPlace.loss): "its expected gradient is that of the forward KL(initial || student)",
    (KlEstimator.k2, KlPlace.reward): "its expected gradient is that of no KL",
    (
        KlEstimator.k3,
        KlPlace.reward,
    ): "its expected gradient is KL(student || initial)'s minus KL(initial || student)'s",
}


def alpha_schedule(config: Config) -> Schedule:
    """Alpha as a function of the run's steps."""
    schedule = config.alpha_schedule
    return Schedule(schedule.kind, config.alpha, config.trainer.steps, schedule.start, schedule.until)


def _alpha(config: Config) -> Iterator[str]:
    """`start` and `until` are set exactly where the schedule uses them; balanced needs both terms."""
    schedule, key = config.alpha_schedule, "alpha_schedule"
    kind = schedule.kind
    uses_start = kind in (AlphaSchedule.linear, AlphaSchedule.warmup, AlphaSchedule.switch)
    uses_until = kind in (AlphaSchedule.warmup, AlphaSchedule.switch)
    for name, value, used in (("start", schedule.start, uses_start), ("until", schedule.until, uses_until)):
        if used and value is None:
            yield f"{key}.{name}=null with {key}={kind.value}: {key}.{name} takes a number, e.g. 0.5."
        if not used and value is not None:
            yield f"{key}.{name}={value} has no effect with {key}={kind.value}: set {key}.{name}=null."
    if kind is AlphaSchedule.balanced and config.alpha in (0, 1):
        yield (
            f"alpha={config.alpha} with alpha_schedule=balanced leaves one term and nothing to balance: "
            "set alpha between 0 and 1, or alpha_schedule=constant."
        )


def _objective(config: Config) -> Iterator[str]:
    """Every step has a term to train on, and every term has its teacher, data or samples."""
    alpha, lmbda, divergence = alpha_schedule(config), config.lmbda, config.divergence
    cross_entropy = divergence.name is DivergenceName.cross_entropy
    if alpha.has_reward and lmbda == 0:
        yield (
            f"alpha={config.alpha} with lmbda=0 never samples from the student, so the reward is never used: "
            "set alpha=1, or lmbda above 0."
        )
    if alpha.reaches_zero and 0 < lmbda < 1:
        yield f"lmbda={lmbda} with alpha=0 leaves steps on data without any term: set lmbda=1, or keep alpha above 0."
    if cross_entropy and lmbda > 0 and alpha.has_divergence:
        yield (
            f"divergence.name=cross_entropy with lmbda={lmbda} would imitate the student's own samples: "
            "set lmbda=0, or choose another one with divergence=forward_kl, reverse_kl or jsd."
        )
    if alpha.has_divergence and config.teacher is None and not cross_entropy:
        yield (
            f"alpha={config.alpha} needs a teacher and teacher is null: choose one (teacher=t5_small), "
            "or set alpha=0, or divergence=cross_entropy with lmbda=0."
        )
    if config.fixed_data.source is FixedSource.teacher and lmbda < 1 and config.teacher is None:
        yield (
            "fixed_data=teacher_samples needs a teacher and teacher is null: choose one (teacher=t5_small), "
            "or set fixed_data=references."
        )


def _divergence(config: Config) -> Iterator[str]:
    """The divergence has exactly its own parameters; cross entropy and lmbda=0 exclude settings that need samples."""
    divergence, name = config.divergence, config.divergence.name
    for parameter, value, example in (("beta", divergence.beta, "0.9"), ("skew", divergence.skew, "0.1")):
        key = f"divergence.{parameter}"
        if name.parameter == parameter and value is None:
            yield f"{key}=null with divergence.name={name.name}: {key} takes a number > 0 and < 1, e.g. {example}."
        if name.parameter != parameter and value is not None:
            owner = "jsd" if parameter == "beta" else "skew_kl"
            yield (
                f"{key}={value} has no effect with divergence.name={name.name}: "
                f"choose divergence={name.name}, set {key}=null, or choose divergence={owner}."
            )
    if name is DivergenceName.cross_entropy:
        if divergence.teacher_top_k is not None:
            yield (
                f"divergence.teacher_top_k={divergence.teacher_top_k} has no effect with cross_entropy: "
                "set divergence.teacher_top_k=null."
            )
        if divergence.kd_credit is not KdCredit.none:
            yield "divergence.kd_credit=reward_to_go has no effect with cross_entropy: set divergence.kd_credit=none."
    elif divergence.kd_credit is not KdCredit.none and config.lmbda == 0:
        yield (
            "divergence.kd_credit=reward_to_go with lmbda=0 has no samples to credit: "
            "set divergence.kd_credit=none, or lmbda above 0."
        )


def _sampling(config: Config) -> Iterator[str]:
    """Rollouts are what the score function and its baseline need: untruncated sampling, and enough completions."""
    alpha = alpha_schedule(config)
    credit = config.divergence.kd_credit is not KdCredit.none
    if not (alpha.has_reward or credit):
        return
    rollout, baseline, prompts = config.rollout, config.policy_gradient.baseline, config.trainer.prompts_per_step
    reason = f"a policy gradient (alpha={config.alpha})" if alpha.has_reward else "divergence.kd_credit=reward_to_go"
    for key, value, neutral in (("rollout.top_p", rollout.top_p, 1), ("rollout.top_k", rollout.top_k, 0)):
        if value != neutral:
            instead = "set alpha=1" if alpha.has_reward else "set divergence.kd_credit=none"
            yield (
                f"{key}={value} with {reason} would sample from another distribution "
                f"than the one whose log-probability is trained: {key} must be {neutral}; or {instead}."
            )
    if not alpha.has_reward or config.policy_gradient.fixed_advantage is not None:
        return
    grouped = baseline in (Baseline.leave_one_out, Baseline.group_mean)
    if (grouped or config.policy_gradient.divide_by_std) and rollout.per_prompt < 2:
        setting = f"policy_gradient.baseline={baseline.value}" if grouped else "policy_gradient.divide_by_std=true"
        yield (
            f"rollout.per_prompt={rollout.per_prompt} leaves no other completion to compare with: "
            f"{setting} takes rollout.per_prompt >= 2; or set policy_gradient.baseline=batch_mean."
        )
    if baseline is Baseline.batch_mean and rollout.per_prompt * prompts < 2:
        yield (
            f"rollout.per_prompt={rollout.per_prompt} with trainer.prompts_per_step={prompts} "
            "makes every advantage 0: policy_gradient.baseline=batch_mean takes two rollouts or more in a step."
        )


def _policy_gradient(config: Config) -> Iterator[str]:
    """Clip, epochs, value head, fixed advantage and sampled KL fit one another."""
    settings, key = config.policy_gradient, "policy_gradient"
    if (settings.clip_low is None) != (settings.clip_high is None):
        yield (
            f"{key}.clip_low={settings.clip_low} with {key}.clip_high={settings.clip_high}: set both, or both to null."
        )
    if settings.epochs > 1 and settings.clip_low is None:
        yield (
            f"{key}.epochs={settings.epochs} without a clip would reuse samples of a policy that has changed since: "
            f"set {key}.clip_low=0.2 {key}.clip_high=0.2, or {key}.epochs=1."
        )
    if (settings.baseline is Baseline.learned) != (settings.value is not None):
        given = "null" if settings.value is None else "set"
        yield (
            f"{key}.value is {given} with {key}.baseline={settings.baseline.value}: the value head is used "
            f"with {key}.baseline=learned only. Choose policy_gradient=ppo, or set {key}.value=null."
        )
    if settings.baseline is Baseline.learned and settings.divide_by_std:
        yield f"{key}.divide_by_std=true has no effect with {key}.baseline=learned: set {key}.divide_by_std=false."
    kl = settings.sampled_kl
    if settings.fixed_advantage is not None:
        shaped = {
            "whiten": (settings.whiten, "false"),
            "divide_by_std": (settings.divide_by_std, "false"),
            "baseline": (settings.baseline is Baseline.learned, "none"),
            "sampled_kl.coefficient": (kl.coefficient > 0 and kl.place is KlPlace.reward, "0"),
        }
        for name, (is_set, instead) in shaped.items():
            if is_set:
                yield (
                    f"{key}.fixed_advantage={settings.fixed_advantage} replaces every advantage and leaves "
                    f"{key}.{name} without effect: set {key}.{name}={instead}, or {key}.fixed_advantage=null."
                )
    gradient = _EXPECTED_GRADIENTS.get((kl.estimator, kl.place))
    if kl.coefficient > 0 and gradient:
        yield (
            f"{key}.sampled_kl.estimator={kl.estimator.value} with {key}.sampled_kl.place={kl.place.value} does not "
            f"estimate the gradient of KL(student || initial student): {gradient}. Use k1 in the reward or k2 in the "
            "loss, or teacher=initial_student for the full divergence."
        )


def _reward(config: Config) -> Iterator[str]:
    """Components and weights have the same names, the judge has weight 0, and a reward term has a nonzero reward."""
    components, weights = config.reward.components, config.reward.weights
    for name in sorted(weights.keys() - components.keys()):
        yield (
            f"reward.weights.{name}={weights[name]}: no component has that name; "
            f"reward.components has {', '.join(sorted(components)) or 'none'}."
        )
    for name in sorted(components.keys() - weights.keys()):
        yield f"reward.weights.{name} is missing: give reward.components.{name} a number."
    for name, weight in sorted(weights.items()):
        if not math.isfinite(weight):
            yield f"reward.weights.{name}={weight} is out of range: reward.weights.{name} takes a finite number."
    judge = config.reward.judge
    if judge is not None and weights.get(judge, 1) != 0:
        others = ", ".join(sorted(name for name, weight in weights.items() if weight == 0)) or "none"
        yield (
            f"reward.judge={judge}: reward.judge takes a component that is measured only, of weight 0: "
            f"{others}. Set one of them, or null."
        )
    if alpha_schedule(config).has_reward and not any(weights.values()):
        yield f"reward.weights are all 0 with alpha={config.alpha}: set one of them above 0, or set alpha=1."


OBJECTIVE_RULES = (_alpha, _objective, _divergence, _sampling, _policy_gradient, _reward)
