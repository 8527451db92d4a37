"""Every study, found automatically, and the conditions that studies share; same overrides and seed: one run.

Adding a study: one file in this folder that declares STUDY or STUDIES (`experiments/study`), and nothing else.

Two tasks. News: summaries of generated articles, a T5 of 13,000 weights that is trained until it no longer improves,
ROUGE-2 and exact faithfulness. Walk: number walks of some 40 tokens, a Llama of 40,000 weights with few references,
exact answers. The sizes are chosen so that all studies of the paper's statements end in three hours on two cores: 120
(news) or 250 (walk) steps of 64 sequences, 500 or 1,000 test rows. The learning rates of the news were chosen on
validation rows with seeds 3 and 4, which are not used here.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from experiments.study import Gate, Overrides, Study

SEEDS = (5, 6, 7, 8, 9)
FEW = SEEDS[:3]  # of studies that answer none of the paper's statements
NO_FILES = ("tracking=none", "save_model=false")
ONE_THREAD = "scale.threads=1"
QUICK = (*NO_FILES, ONE_THREAD, "evaluation.bootstrap_samples=200")
NEWS: Overrides = (
    "reward=faithfulness",
    "student=t5_narrow",
    "trainer.steps=120",
    "task.test_size=500",
    "evaluation.rollout_prompts=250",
    *QUICK,
)
DISTILL = "trainer.learning_rate=1.0e-3"  # without a reward; with one: the rate of trainer=embedded
TEMPERATURES = (1.0, 0.5, 0.3, 0.1)  # of sampling in the evaluation
DIVERGENCES: dict[str, Overrides] = {  # from mode-covering to mode-seeking
    "forward KL": ("divergence=forward_kl",),
    "JSD(0.1)": ("divergence.beta=0.1",),
    "JSD(0.5)": ("divergence.beta=0.5",),
    "JSD(0.9)": ("divergence.beta=0.9",),
    "reverse KL": ("divergence=reverse_kl",),
}
NEWS_METRICS = {
    "rouge2": "ROUGE-2",
    "sampled/rouge2": "ROUGE-2, sampled",
    "reward/all_supported": "faithfulness",
    "sampled/reward": "faithfulness, sampled",
    "sampled/forward_kl": "forward KL to teacher",
    "sampled/divergence": "D",
    "self_bleu": "Self-BLEU",
    "completion_tokens": "length",
}


def without_reward(experiment: str, *overrides: str) -> Overrides:
    """News: a method without a reward."""
    return (*NEWS, DISTILL, f"experiment={experiment}", *overrides)


def with_reward(experiment: str, alpha: float, *overrides: str) -> Overrides:
    """News: a method with a reward."""
    return (*NEWS, f"experiment={experiment}", f"alpha={alpha:g}", *overrides)


def gkd(divergence: str, lmbda: float = 1.0) -> Overrides:
    """News: GKD; on-policy students are evaluated at several temperatures."""
    more = f"evaluation.temperatures=[{','.join(map(str, TEMPERATURES))}]" if lmbda == 1 else f"lmbda={lmbda:g}"
    return without_reward("gkd", *DIVERGENCES[divergence], more)


WALK_STEPS = 250
WALK: Overrides = ("task=walk", *QUICK, "evaluation.self_bleu_prompts=0")
WALK_METRICS = {
    "reward": "accuracy",
    "sampled/reward": "accuracy, sampled",
    "reward/progress": "targets hit",
    "sampled/forward_kl": "forward KL to teacher",
    "sampled/divergence": "D",
    "completion_tokens": "length",
}
# Fixed before any run: a student takes part if it solves 5% to 90% of 500 validation walks after its supervised stage.
WALK_GATE = Gate(
    overrides=(
        *WALK,
        *("experiment=sft", "trainer.steps=1", "evaluation.split=validation"),
        *("task.validation_size=500", "evaluation.rollout_prompts=100"),
    ),
    metric="reward",
    low=0.05,
    high=0.9,
    candidates=tuple(range(12)),
    students=8,
)


def walk_method(experiment: str, *overrides: str, steps: int = WALK_STEPS) -> Overrides:
    """Walk: any method."""
    sizes = (f"trainer.steps={steps}", "task.test_size=1000", "evaluation.rollout_prompts=300")
    return (*WALK, *sizes, f"experiment={experiment}", *overrides)


def walk_gkd(divergence: str, lmbda: float, *overrides: str, steps: int = WALK_STEPS) -> Overrides:
    """Walk: GKD."""
    return walk_method("gkd", *DIVERGENCES[divergence], f"lmbda={lmbda:g}", *overrides, steps=steps)


def all_studies() -> dict[str, Study]:
    """Every study of this folder by name, in the order of the names.

    Raises:
        ValueError: a file declares no study, or two studies have one name.
    """
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    declared = [study for name in names for study in _studies_of(importlib.import_module(f"{__name__}.{name}"))]
    found = {study.name: study for study in declared}
    if len(found) < len(declared):
        raise ValueError(f"studies of one name: {sorted(study.name for study in declared)}")
    return dict(sorted(found.items()))


def _studies_of(module: ModuleType) -> tuple[Study, ...]:
    """STUDIES of a file, or its STUDY."""
    if hasattr(module, "STUDIES"):
        return module.STUDIES
    if hasattr(module, "STUDY"):
        return (module.STUDY,)
    raise ValueError(f"{module.__name__} declares neither STUDY nor STUDIES.")
