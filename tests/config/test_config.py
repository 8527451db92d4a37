"""Every file in conf/ composes and validates, and every check says everything that is wrong at once."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import yaml
from conftest import configured, essential
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from gkd_rl.config import Config
from gkd_rl.config.choices import OptimizerName
from gkd_rl.config.validation import describe_setting, validate
from gkd_rl.errors import ConfigError
from gkd_rl.run import find_config_dir

CONF = find_config_dir()
COUNTS = {
    "adapter": 3,
    "alpha_schedule": 5,
    "divergence": 7,
    "evaluation": 2,
    "experiment": 29,
    "fixed_data": 2,
    "policy_gradient": 4,
    "reward": 16,
    "rollout": 1,
    "scale": 3,
    "student": 7,
    "sweep": 3,
    "task": 6,
    "teacher": 11,
    "tracking": 3,
    "trainer": 3,
}
# choices that contradict the defaults on purpose, with what they go with
COMPANIONS = {
    "divergence=cross_entropy": ["alpha=1", "lmbda=0"],
    "teacher=none": ["alpha=0"],
    "teacher=endpoint": ["teacher.endpoint.model=any"],
    "reward=judge": ["reward.components.judge.server.model=m"],
    "reward=none": ["alpha=1"],
    "student=checkpoint": ["student.path=any"],
    "student=paper": ["scale=paper"],
    "task=cnn_dailymail": ["scale=single_gpu"],
    "teacher=checkpoint": ["teacher.path=any"],
    "teacher=paper_xl": ["scale=paper"],
    "trainer=paper": ["scale=paper"],
}
CHOICES = [f"{group}={path.stem}" for group in sorted(COUNTS) for path in sorted((CONF / group).glob("*.yaml"))]
EXPERIMENT_CHOICES = [choice for choice in CHOICES if choice.startswith("experiment=")]
FIRST_CHOICES = {choice.partition("=")[0]: choice for choice in reversed(CHOICES)}.values()
PAIRS = [(path.parent.name, path.stem) for path in sorted((CONF / "preset").glob("*/*.yaml"))]
EXPERIMENTS = [path.stem for path in sorted((CONF / "experiment").glob("*.yaml"))]
FAMILIES = ("xsum", "wmt", "gsm8k", "instruct")
METHODS = [name for name in EXPERIMENTS if name.split("_")[0] not in FAMILIES]
DIFFERENT = ("rlef", "self_distillation")  # methods that change what a preset chose
RUNS = [
    *((scale, task, method) for scale, task in PAIRS for method in (METHODS if task == "xsum" else DIFFERENT)),
    *((scale, task, name) for scale, task in PAIRS for name in EXPERIMENTS if name.split("_")[0] == task),
]


@pytest.fixture(autouse=True)
def hydra_context() -> Iterator[None]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


@functools.cache
def config_of(*overrides: str) -> Config:
    config = OmegaConf.to_object(compose("config", list(overrides)))
    assert isinstance(config, Config)
    return config


def problems_of(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        validate(configured(*overrides))
    return caught.value.problems


def test_every_file_is_counted() -> None:
    groups = {path.name: len(list(path.glob("*.yaml"))) for path in CONF.iterdir() if path.is_dir()}
    others = {
        name: groups.pop(name) for name in ("accelerate", "hydra", "preset", "reward_training", "sft")
    }  # the text of --help, and what is no choice
    assert groups == COUNTS, "a file came or went: change COUNTS"
    assert len(CHOICES) == sum(COUNTS.values())
    assert others["sft"] == 1 and others["reward_training"] == 2 and len(PAIRS) == 14
    assert (
        len(list(CONF.rglob("*.yaml"))) == sum(COUNTS.values()) + len(PAIRS) + 12
    )  # config.yaml, benchmark.yaml, help, sft, accelerate, 2 of reward_training, 5 of Hydra's launchers and sweepers


def test_the_defaults_are_valid() -> None:
    validate(config_of())


@pytest.mark.parametrize("choice", essential(CHOICES, *FIRST_CHOICES, *EXPERIMENT_CHOICES))
def test_every_choice_composes_and_validates(choice: str) -> None:
    validate(config_of(choice, *COMPANIONS.get(choice, [])))


@pytest.mark.parametrize(("scale", "task", "experiment"), essential(RUNS, *RUNS[::10]))
def test_every_experiment_composes_at_every_scale(scale: str, task: str, experiment: str) -> None:
    config = config_of(f"experiment={experiment}", f"scale={scale}", f"task={task}")
    validate(config)
    plain, embedded = config_of(f"scale={scale}", f"task={task}"), scale == "embedded"
    assert config.scale == plain.scale and config.task == plain.task
    assert (config.student, config.adapter, config.reward) == (plain.student, plain.adapter, plain.reward)
    assert embedded == (config.student.architecture is not None)
    sequences = config.trainer.prompts_per_step * config.rollout.per_prompt
    assert sequences == config.scale.sequences_per_step
    teacher = config.teacher
    assert teacher is not None and teacher.initial_student == (experiment == "rlef")
    if experiment == "self_distillation":
        assert (teacher.path, teacher.architecture) == (config.student.path, config.student.architecture)
        assert teacher.sft == config.scale.sft
    else:
        assert plain.teacher is not None and teacher.path == plain.teacher.path


@pytest.mark.parametrize(
    ("task", "size", "path", "sft_steps", "learning_rate"),
    [
        ("xsum", "small", "google/t5-small-lm-adapt", 100_000, 1e-3),
        ("xsum", "base", "google/t5-base-lm-adapt", 50_000, 3e-4),
        ("xsum", "large", "google/t5-large-lm-adapt", 38_000, 3e-4),
        ("gsm8k", "small", "google/flan-t5-small", 10_000, 3e-4),
        ("gsm8k", "large", "google/flan-t5-large", 10_000, 3e-4),
    ],
)
def test_the_paper_scale_is_the_tables_of_the_paper(
    task: str, size: str, path: str, sft_steps: int, learning_rate: float
) -> None:
    """Section A.3, Tables A.1 and A.2."""
    config = config_of("experiment=gkd", "scale=paper", f"scale.size={size}", f"task={task}")
    student, teacher, trainer = config.student, config.teacher, config.trainer
    assert student.path == path and student.sft is not None and student.sft.steps == sft_steps
    assert teacher is not None and teacher.path == path.replace(size, "xl") and teacher.sft is not None
    assert teacher.sft.steps == (8_000 if task == "xsum" else 10_000)
    assert trainer.learning_rate == learning_rate and trainer.optimizer is OptimizerName.adafactor
    assert (trainer.steps, trainer.warmup_steps, trainer.cooldown_steps) == (40_000, 2_000, 10_000)
    assert (trainer.prompts_per_step, config.rollout.per_prompt) == (32, 1)
    lengths = (config.task["max_prompt_tokens"], config.task["max_completion_tokens"])
    assert lengths == ((1024, 64) if task == "xsum" else (512, 320))
    assert student.dropout == (0.0 if task == "xsum" else 0.05)
    assert task == "xsum" or (config.task["shots"], config.task["answer_style"]) == (4, "words")
    assert config.divergence.teacher_temperature == (1.0 if task == "xsum" else 0.1)


def test_a_task_takes_the_preset_of_another() -> None:
    config = config_of("task=gsm8k", "preset=embedded/xsum", "reward=exact_match")
    validate(config)
    assert config.student == config_of().student and config.task["_target_"].endswith("Gsm8k")


def test_a_choice_of_ones_own_wins_over_the_scale() -> None:
    config = config_of("scale=single_gpu", "adapter=none", "teacher=none", "student=t5_tiny", "alpha=0")
    assert config.adapter is None and config.teacher is None and config.student.path is None


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
        ("evaluation.temperatures=[1.0,0.0]", "a list of numbers > 0"),
    ],
)
def test_ranges(override: str, allowed: str) -> None:
    key = override.partition("=")[0]
    (problem,) = [one for one in problems_of(override) if "takes" in one and one.startswith(f"{key}=")][:1]
    assert f"{key} takes {allowed}." in problem


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["checkpoint.best=reward/men"], "is not a metric of this run's steps: it takes loss,"),
        (["checkpoint.best=loss", "trainer.checkpoint_every=0"], "set trainer.checkpoint_every"),
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
        (["reward.weights.entailment=0", "reward.weights.length=0"], "are all 0"),
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


PG, KL = "policy_gradient", "policy_gradient.sampled_kl"
LINEAR, WARMUP, SWITCH = (f"alpha_schedule={kind}" for kind in ("linear", "warmup", "switch"))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([LINEAR, "alpha_schedule.start=null"], "alpha_schedule.start=null with alpha_schedule=linear"),
        ([WARMUP, "alpha_schedule.start=null"], "alpha_schedule.start=null with alpha_schedule=warmup"),
        ([WARMUP, "alpha_schedule.until=null"], "alpha_schedule.until=null with alpha_schedule=warmup"),
        ([SWITCH, "alpha_schedule.start=null"], "alpha_schedule.start=null with alpha_schedule=switch"),
        ([SWITCH, "alpha_schedule.until=null"], "alpha_schedule.until=null with alpha_schedule=switch"),
        ([LINEAR, "alpha_schedule.until=0.5"], "alpha_schedule.until=0.5 has no effect"),
        (["alpha_schedule.start=0.5"], "alpha_schedule.start=0.5 has no effect"),
        (["alpha_schedule=balanced", "alpha_schedule.start=0.5"], "alpha_schedule.start=0.5 has no effect"),
        (["alpha_schedule.until=0.5"], "alpha_schedule.until=0.5 has no effect"),
        (["alpha_schedule=balanced", "alpha=0"], "alpha=0.0 with alpha_schedule=balanced leaves one term"),
        (["alpha_schedule=balanced", "alpha=1"], "alpha=1.0 with alpha_schedule=balanced leaves one term"),
        ([SWITCH, "alpha=0", "lmbda=0.5"], "lmbda=0.5 with alpha=0 leaves steps"),
        ([SWITCH, "alpha=1", "alpha_schedule.start=0", "lmbda=0"], "lmbda=0 never samples"),
        ([SWITCH, "alpha=0", "teacher=none"], "teacher is null"),
        (
            ["experiment=sft", "fixed_data=teacher_samples", "teacher=none"],
            "fixed_data=teacher_samples needs a teacher",
        ),
        (["divergence=skew_kl", "divergence.skew=null"], "divergence.skew takes a number > 0 and < 1, e.g. 0.1"),
        (["divergence=reverse_skew_kl", "divergence.skew=null"], "divergence.skew=null"),
        (["divergence=skew_kl", "divergence.beta=0.5"], "divergence.beta=0.5 has no effect"),
        (["divergence.skew=0.1"], "divergence.skew=0.1 has no effect with divergence.name=jsd"),
        (["experiment=sft", "divergence.teacher_top_k=5"], "teacher_top_k=5 has no effect with cross_entropy"),
        (["experiment=sft", "divergence.kd_credit=reward_to_go"], "reward_to_go has no effect with cross_entropy"),
        (["experiment=supervised_kd", "divergence.kd_credit=reward_to_go"], "lmbda=0 has no samples to credit"),
        (["experiment=minillm", "rollout.top_p=0.9"], "or set divergence.kd_credit=none"),
        (["rollout.top_p=0.9"], "rollout.top_p must be 1; or set alpha=1"),
        ([f"{PG}.baseline=none", f"{PG}.divide_by_std=true", "rollout.per_prompt=1"], f"{PG}.divide_by_std=true takes"),
        ([f"{PG}=grpo", "rollout.per_prompt=1"], f"{PG}.baseline=group_mean takes rollout.per_prompt >= 2"),
        ([f"{PG}.clip_low=0.2"], f"{PG}.clip_low=0.2 with {PG}.clip_high=None: set both"),
        ([f"{PG}.clip_high=0.2"], f"{PG}.clip_low=None with {PG}.clip_high=0.2: set both"),
        ([f"{PG}.epochs=2"], f"{PG}.epochs=2 without a clip"),
        ([f"{PG}.baseline=learned"], f"{PG}.value is null with {PG}.baseline=learned"),
        ([f"{PG}=ppo", f"{PG}.value=null"], f"{PG}.value is null with {PG}.baseline=learned"),
        ([f"{PG}=ppo", f"{PG}.baseline=none"], f"{PG}.value is set with {PG}.baseline=none"),
        ([f"{PG}=ppo", f"{PG}.divide_by_std=true"], "divide_by_std=true has no effect"),
        ([f"{PG}=ppo", f"{PG}.fixed_advantage=1"], f"without effect: set {PG}.whiten=false"),
        ([f"{PG}=ppo", f"{PG}.fixed_advantage=1"], f"without effect: set {PG}.baseline=none"),
        ([f"{PG}.fixed_advantage=1", f"{PG}.divide_by_std=true"], f"without effect: set {PG}.divide_by_std=false"),
        ([f"{PG}.fixed_advantage=1", f"{KL}.coefficient=1"], f"without effect: set {KL}.coefficient=0"),
        ([f"{KL}.coefficient=1", f"{KL}.place=loss"], "its expected gradient is 0"),
        ([f"{KL}.coefficient=1", f"{KL}.estimator=k3", f"{KL}.place=loss"], "that of the forward KL"),
        ([f"{KL}.coefficient=1", f"{KL}.estimator=k2"], "that of no KL"),
        ([f"{KL}.coefficient=1", f"{KL}.estimator=k3"], "minus KL(initial || student)'s"),
        (["experiment=shuffled_teacher", "trainer.prompts_per_step=1"], "leaves no other prompt"),
        (["teacher.path=somewhere"], "teacher.architecture=null"),
        (["experiment=rlef", "teacher.path=somewhere"], "teacher takes exactly one of the two"),
        (["teacher.sft=null"], "teacher.sft=null leaves a model of random weights"),
        (["reward=none"], "reward.weights are all 0"),
        (["+teacher.architecture._target_=os.system"], "teacher.architecture._target_=os.system is outside"),
        (["~reward.components.all_supported._target_"], "reward.components.all_supported._target_ is missing"),
    ],
)
def test_methods_that_contradict_themselves_are_refused(overrides: list[str], says: str) -> None:
    problems = problems_of(*overrides)
    assert any(says in problem for problem in problems), problems


@pytest.mark.parametrize(
    "overrides",
    [
        ["teacher=initial_student", "teacher.architecture=null"],
        ["alpha=0", "lmbda=1", "teacher=none"],
        [SWITCH, "alpha=0"],
        [SWITCH, "alpha=0.5", "lmbda=0.5"],
        ["alpha_schedule=balanced", "alpha=0.5", "lmbda=0.5"],
        ["divergence.teacher_top_k=5", "divergence.kd_credit=reward_to_go", "lmbda=0.5"],
        [f"{PG}=ppo", "rollout.per_prompt=1"],
        [f"{PG}=dapo", f"{PG}.epochs=4"],
        [f"{PG}.baseline=none", "rollout.per_prompt=1", "trainer.prompts_per_step=1"],
        [f"{PG}.fixed_advantage=-1", "rollout.per_prompt=1"],
        [f"{PG}.fixed_advantage=-1", f"{KL}.coefficient=1", f"{KL}.place=loss", f"{KL}.estimator=k2"],
        [f"{KL}.coefficient=1"],
        [f"{KL}.coefficient=1", f"{KL}.estimator=k2", f"{KL}.place=loss"],
        [f"{KL}.estimator=k3", f"{KL}.place=loss"],
        ["experiment=f_distill", "alpha=0.5", "rollout.per_prompt=2"],
        ["experiment=seqkd", "fixed_data=references"],
    ],
)
def test_methods_that_go_together_are_taken(overrides: list[str]) -> None:
    validate(configured(*overrides))


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
        ("rollout", "the settings per_prompt, temperature, top_p, top_k, engine, static_cache, vllm"),
        ("trainer.zzz", ""),
        ("alpha.zzz", ""),
    ],
)
def test_settings_are_described_from_their_types(key: str, words: str) -> None:
    assert describe_setting(key) == words
