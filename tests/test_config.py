"""Every file in conf/ composes and validates, and every check says everything that is wrong at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from gkd_rl.config import Config
from gkd_rl.errors import ConfigError
from gkd_rl.run import find_config_dir
from gkd_rl.setting_words import describe_setting
from gkd_rl.validation import validate

CONF = find_config_dir()
COUNTS = {
    "alpha_schedule": 5,
    "divergence": 7,
    "evaluation": 1,
    "experiment": 18,
    "fixed_data": 2,
    "policy_gradient": 4,
    "reward": 2,
    "rollout": 1,
    "scale": 1,
    "student": 2,
    "sweep": 1,
    "task": 1,
    "teacher": 4,
    "tracking": 3,
    "trainer": 1,
}
# choices that contradict the defaults on purpose, with what they go with
COMPANIONS = {
    "divergence=cross_entropy": ["alpha=1", "lmbda=0"],
    "teacher=none": ["alpha=0"],
    "reward=none": ["alpha=1"],
}
CHOICES = [f"{group}={path.stem}" for group in sorted(COUNTS) for path in sorted((CONF / group).glob("*.yaml"))]


@pytest.fixture(autouse=True)
def hydra_context() -> Iterator[None]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def config_of(*overrides: str) -> Config:
    config = OmegaConf.to_object(compose("config", list(overrides)))
    assert isinstance(config, Config)
    return config


def problems_of(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        validate(config_of(*overrides))
    return caught.value.problems


def test_every_file_is_counted() -> None:
    groups = {path.name: len(list(path.glob("*.yaml"))) for path in CONF.iterdir() if path.is_dir()}
    groups.pop("hydra")  # the text of --help
    assert groups == COUNTS, "a file came or went: change COUNTS"
    assert len(CHOICES) == sum(COUNTS.values())
    assert len(list(CONF.rglob("*.yaml"))) == sum(COUNTS.values()) + 2  # config.yaml and the help


def test_the_defaults_are_valid() -> None:
    validate(config_of())


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes_and_validates(choice: str) -> None:
    validate(config_of(choice, *COMPANIONS.get(choice, [])))


def test_an_experiment_wins_over_the_defaults() -> None:
    assert config_of("experiment=sft").lmbda == 0
    assert config_of("experiment=sft").name == "sft"
    assert config_of("experiment=xsum_rl", "alpha=0.25").alpha == 0.25


def test_alpha_has_one_home() -> None:
    for path in CONF.rglob("*.yaml"):
        if path.parent.name in ("experiment", "sweep", "conf", "help"):
            continue
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert not {"alpha", "lmbda"} & set(content or {}), path


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("alpha=-0.1", "a number >= 0 and <= 1"),
        ("alpha=nan", "a number >= 0 and <= 1"),
        ("lmbda=1.01", "a number >= 0 and <= 1"),
        ("seed=-1", "a whole number >= 0"),
        ("divergence.beta=0", "a number > 0 and < 1, or null"),
        ("divergence.beta=1", "a number > 0 and < 1, or null"),
        ("divergence.temperature=0", "a number > 0"),
        ("rollout.top_p=1.5", "a number > 0 and <= 1"),
        ("rollout.per_prompt=0", "a whole number >= 1"),
        ("trainer.learning_rate=inf", "a number > 0"),
        ("trainer.steps=0", "a whole number >= 1"),
        ("student.sft.steps=0", "a whole number >= 1"),
        ("evaluation.self_bleu_samples=1", "a whole number >= 2"),
        ("evaluation.split=dev", "one of train, validation, test"),
    ],
)
def test_ranges(override: str, allowed: str) -> None:
    key = override.partition("=")[0]
    (problem,) = [one for one in problems_of(override) if "takes" in one and one.startswith(f"{key}=")][:1]
    assert f"{key} takes {allowed}." in problem


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["lmbda=0"], "alpha=0.5 with lmbda=0"),
        (["alpha=0", "lmbda=0.5"], "lmbda=0.5 with alpha=0"),
        (["rollout.top_k=5"], "rollout.top_k must be 0"),
        (["rollout.per_prompt=1"], "policy_gradient.baseline=batch_mean"),
        (
            ["rollout.per_prompt=1", "trainer.prompts_per_step=1", "policy_gradient.baseline=batch_mean"],
            "two rollouts or more",
        ),
        (["divergence=cross_entropy"], "set lmbda=0"),
        (["teacher=none"], "teacher is null"),
        (["divergence.beta=null"], "e.g. 0.9"),
        (["divergence=reverse_kl", "divergence.beta=0.5"], "has no effect"),
        (["student.path=somewhere"], "student.architecture=null"),
        (["student.architecture=null"], "takes exactly one"),
        (["student.sft=null"], "random weights"),
        (["+reward.weights.other=1"], "no component has that name"),
        (["~reward.weights.all_supported"], "reward.weights.all_supported is missing"),
        (["reward.weights.all_supported=0", "reward.weights.supported_share=0"], "are all 0"),
        (["reward.weights.all_supported=inf"], "a finite number"),
        (["reward.components.all_supported.checker._target_=os.system"], "outside this project"),
        (["task._target_=builtins.eval"], "outside this project"),
        (["~task._target_"], "task._target_ is missing"),
        (["+student.architecture._target_=os.system"], "outside this project"),
        (["name='a b'"], "name=a b"),
        (["~alpha"], "alpha has no value"),
        (["+sed=1"], "Did you mean seed?"),
        (["+student.sft.step=1"], "Did you mean student.sft.steps?"),
    ],
)
def test_contradictions_are_refused(overrides: list[str], says: str) -> None:
    assert any(says in problem for problem in problems_of(*overrides))


def test_every_problem_is_reported_at_once() -> None:
    problems = problems_of(
        "alpha=1.5",
        "teacher.seed=-1",
        "trainer.steps=0",
        "divergence.beta=null",
        "+zzz=1",
        "student.sft=null",
        "name=/",
    )
    for key in ("alpha", "teacher.seed", "trainer.steps", "divergence.beta", "zzz", "student.sft", "name"):
        assert sum(problem.startswith(f"{key}=") for problem in problems) == 1, key
    assert len(problems) == 7


def test_truncated_sampling_is_fine_without_a_policy_gradient() -> None:
    validate(config_of("alpha=1", "rollout.top_p=0.9", "rollout.top_k=5", "rollout.per_prompt=1"))


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("alpha", "a number >= 0 and <= 1"),
        ("save_model", "true or false"),
        ("name", "text"),
        ("student.path", "text, or null"),
        ("divergence.scale", "one of raw, unit"),
        ("student.sft.steps", "a whole number >= 1"),
        ("reward.weights.anything", "a number"),
        ("task.anything.below", "any value"),
        ("rollout", "the settings per_prompt, temperature, top_p, top_k"),
        ("trainer.zzz", ""),
        ("alpha.zzz", ""),
    ],
)
def test_settings_are_described_from_their_types(key: str, words: str) -> None:
    assert describe_setting(key) == words
