"""Checks over the whole configuration: ranges, leftovers and settings that contradict one another.

`validate` collects every problem before it raises, so that one try shows all of them. It reads numbers and names only
and imports neither torch nor the classes that the configuration names.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import MISSING

from gkd_rl.config import Baseline, Config, DivergenceName, describe_setting
from gkd_rl.errors import ConfigError

ALLOWED_PACKAGES = ("gkd_rl", "reward_models")
_PACKAGES = " or ".join(ALLOWED_PACKAGES)


def validate(config: Config) -> None:
    """Check the whole configuration.

    Raises:
        ConfigError: with every problem found, one sentence each.
    """
    problems = list(_leftovers(config)) + list(_missing(config))
    if not any(value == MISSING for _, value, _ in _walk(config)):
        for check in (_limits, _names, _objective, _sampling, _models, _reward, _targets):
            problems += check(config)
    if problems:
        raise ConfigError(problems)


def not_a_setting(key: str, value: Any, known: Iterable[str]) -> str:
    """The sentence for a key that does not exist, with the nearest one that does.

    Args:
        key: dotted key as typed.
        value: what it was set to.
        known: every dotted key that exists; those beside `key` are listed.
    """
    known = sorted(set(known))
    parent, _, last = key.rpartition(".")
    others = [one for one in known if not key.startswith(one + ".")]
    near = difflib.get_close_matches(key, others, n=1, cutoff=0.75)
    if not near:  # the right name in the wrong place, e.g. learning_rate for trainer.learning_rate
        tails: dict[str, list[str]] = {}
        for one in others:
            tails.setdefault(one.rpartition(".")[2], []).append(one)
        close = difflib.get_close_matches(last, tails, n=1, cutoff=0.8)
        near = sorted(tails[close[0]], key=lambda one: one.count("."))[:2] if close else []
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    prefix = f"{parent}." if parent else ""
    beside = sorted({one.removeprefix(prefix).split(".")[0] for one in known if one.startswith(prefix)})
    if not beside:
        return f"{key}={value} is not a setting.{hint}"
    return f"{key}={value} is not a setting.{hint} {parent or 'The top level'} takes {', '.join(beside)}."


def _walk(node: Any, prefix: str = "") -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Key, value and metadata of every field under a dataclass, depth first."""
    for item in fields(node):
        value = getattr(node, item.name)
        yield prefix + item.name, value, dict(item.metadata)
        if is_dataclass(value):
            yield from _walk(value, f"{prefix}{item.name}.")


def _leftovers(config: Config) -> Iterator[str]:
    """Keys that `+key=value` put beside the schema: `to_object` leaves them as attributes of the dataclass."""
    known = [key for key, _, _ in _walk(config)]
    nodes = [("", config)] + [(f"{key}.", value) for key, value, _ in _walk(config) if is_dataclass(value)]
    for prefix, node in nodes:
        for name in vars(node).keys() - {item.name for item in fields(node)}:
            yield not_a_setting(prefix + name, getattr(node, name), known)


def _missing(config: Config) -> Iterator[str]:
    """Settings that no file and no override gave a value."""
    for key, value, _ in _walk(config):
        if value == MISSING:
            yield f"{key} has no value: {key} takes {describe_setting(key)}."


def _limits(config: Config) -> Iterator[str]:
    """Numbers outside the range, and names outside the choices, that their field declares."""
    for key, value, metadata in _walk(config):
        if value is None:
            continue
        if "range" in metadata:
            low, high, open_low, open_high = metadata["range"]
            above = value > low if open_low else value >= low
            below = value < high if open_high else value <= high
            inside = above and below and math.isfinite(value)  # NaN and infinity are in no range
            if not inside:
                yield f"{key}={value} is out of range: {key} takes {describe_setting(key)}."
        elif "choices" in metadata and value not in metadata["choices"]:
            yield f"{key}={value} is not a choice: {key} takes {describe_setting(key)}."


def _names(config: Config) -> Iterator[str]:
    """`name` becomes a folder."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", config.name):
        yield (
            f"name={config.name} cannot name a folder: name takes up to 80 letters, digits, '.', '_' and '-', "
            "and starts with a letter or digit."
        )


def _objective(config: Config) -> Iterator[str]:
    """alpha, lambda, divergence and teacher against one another."""
    alpha, lmbda, divergence = config.alpha, config.lmbda, config.divergence
    cross_entropy = divergence.name is DivergenceName.cross_entropy
    if alpha < 1 and lmbda == 0:
        yield (
            f"alpha={alpha} with lmbda=0 never samples from the student, so the reward is never used: "
            "set alpha=1, or lmbda above 0."
        )
    if alpha == 0 and 0 < lmbda < 1:
        yield (f"lmbda={lmbda} with alpha=0 leaves steps on data without any term: set lmbda=1, or alpha above 0.")
    if cross_entropy and lmbda > 0 and alpha > 0:
        yield (
            f"divergence.name=cross_entropy with lmbda={lmbda} would imitate the student's own samples: "
            "set lmbda=0, or choose another one with divergence=forward_kl, reverse_kl or jsd."
        )
    if alpha > 0 and config.teacher is None and not cross_entropy:
        yield (
            f"alpha={alpha} needs a teacher and teacher is null: choose one (teacher=t5_small), "
            "or set alpha=0, or divergence=cross_entropy with lmbda=0."
        )
    if divergence.name is DivergenceName.jsd and divergence.beta is None:
        yield "divergence.beta=null with divergence.name=jsd: divergence.beta takes a number > 0 and < 1, e.g. 0.9."
    if divergence.name is not DivergenceName.jsd and divergence.beta is not None:
        yield (
            f"divergence.beta={divergence.beta} has no effect with divergence.name={divergence.name.name}: "
            f"choose divergence={divergence.name.name}, set divergence.beta=null, or choose divergence=jsd."
        )


def _sampling(config: Config) -> Iterator[str]:
    """Rollouts that a policy gradient cannot use."""
    if config.alpha >= 1:
        return
    rollout, baseline = config.rollout, config.policy_gradient.baseline
    for key, value, neutral in (("rollout.top_p", rollout.top_p, 1), ("rollout.top_k", rollout.top_k, 0)):
        if value != neutral:
            yield (
                f"{key}={value} with a policy gradient (alpha={config.alpha}) would sample from another distribution "
                f"than the one whose log-probability is trained: {key} must be {neutral}; or set alpha=1."
            )
    if baseline is Baseline.leave_one_out and rollout.per_prompt < 2:
        yield (
            f"rollout.per_prompt={rollout.per_prompt} leaves nothing to compare with: "
            "policy_gradient.baseline=leave_one_out takes rollout.per_prompt >= 2; "
            "or set policy_gradient.baseline=batch_mean."
        )
    if baseline is Baseline.batch_mean and rollout.per_prompt * config.trainer.prompts_per_step < 2:
        yield (
            f"rollout.per_prompt={rollout.per_prompt} with trainer.prompts_per_step={config.trainer.prompts_per_step} "
            "makes every advantage 0: policy_gradient.baseline=batch_mean takes two rollouts or more in a step."
        )


def _models(config: Config) -> Iterator[str]:
    """Models with no source of weights, or with two."""
    for key, model in (("student", config.student), ("teacher", config.teacher)):
        if model is None:
            continue
        if (model.path is None) == (model.architecture is None):
            other = "null" if model.architecture is None else "set"
            yield (
                f"{key}.path={model.path} with {key}.architecture {other}: {key} takes exactly one of the two. Type "
                f"{key}.path=FOLDER_OR_HUB_ID {key}.architecture=null, or {key}.path=null with an architecture."
            )
        if model.path is None and model.sft is None:
            yield f"{key}.sft=null leaves a model of random weights: give {key}.sft its settings, or set {key}.path."


def _reward(config: Config) -> Iterator[str]:
    """Components without weights, weights without components, and nothing to climb."""
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
    if config.alpha < 1 and not any(weights.values()):
        yield f"reward.weights are all 0 with alpha={config.alpha}: set one of them above 0, or set alpha=1."


def _targets(config: Config) -> Iterator[str]:
    """`_target_` names code that will be called, so only this project's own packages are taken."""
    instantiated = {"task": config.task}
    instantiated |= {f"reward.components.{name}": node for name, node in config.reward.components.items()}
    for key, node in instantiated.items():
        if not isinstance(node, dict) or "_target_" not in node:
            yield f"{key}._target_ is missing: it takes the dotted name of a class of {_PACKAGES}."
    free_form = instantiated | {"student.architecture": config.student.architecture}
    if config.teacher is not None:
        free_form["teacher.architecture"] = config.teacher.architecture
    for root, node in free_form.items():
        for key, target in _find_targets(node, root):
            if str(target).split(".")[0] not in ALLOWED_PACKAGES:
                yield f"{key}={target} is outside this project: {key} takes a class of {_PACKAGES}."


def _find_targets(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Every `_target_` under a plain container, with its dotted key."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, child in items:
        if name == "_target_":
            yield f"{prefix}.{name}", child
        else:
            yield from _find_targets(child, f"{prefix}.{name}")
