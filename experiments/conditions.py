"""Settings that studies share, so that they share runs: same overrides and seed, one run.

Two tasks. News: summaries of generated articles, a T5 of 13,000 weights at its plateau, ROUGE-2 and exact faithfulness.
Walk: number walks of some 40 tokens, a Llama of 40,000 weights that has seen few references, exact answers. The sizes
are what lets all studies end in three hours on two cores: 120 (news) or 250 (walk) steps of 64 sequences, 500 or 1,000
test rows. Learning rates of the news are those of `methods.py`, chosen on validation rows with seeds 3 and 4; the seeds
here had no part in it.
"""

from __future__ import annotations

from experiments.design import Gate, Overrides

SEEDS = (5, 6, 7, 8, 9)
FEW = SEEDS[:3]  # of studies that answer none of the paper's statements
QUIET = ("tracking=none", "save_model=false", "scale.threads=1", "evaluation.bootstrap_samples=200")
NEWS: Overrides = (
    "reward=faithfulness",
    "student=t5_narrow",
    "trainer.steps=120",
    "task.test_size=500",
    "evaluation.rollout_prompts=250",
    *QUIET,
)
DISTIL = "trainer.learning_rate=1.0e-3"  # of runs without a reward; those with one take trainer=embedded's
TEMPERATURES = (1.0, 0.5, 0.3, 0.1)  # of samples
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


def method(experiment: str, *overrides: str) -> Overrides:
    """A method on the news that has no reward."""
    return (*NEWS, DISTIL, f"experiment={experiment}", *overrides)


def gkd(divergence: str, lmbda: float = 1.0) -> Overrides:
    """GKD on the news; on-policy students are measured at several temperatures."""
    more = f"evaluation.temperatures=[{','.join(map(str, TEMPERATURES))}]" if lmbda == 1 else f"lmbda={lmbda:g}"
    return method("gkd", *DIVERGENCES[divergence], more)


def rewarded(experiment: str, alpha: float, *overrides: str) -> Overrides:
    """A method on the news that has a reward."""
    return (*NEWS, f"experiment={experiment}", f"alpha={alpha:g}", *overrides)


WALK_STEPS = 250
WALK_TASK: Overrides = ("task=walk", *QUIET, "evaluation.self_bleu_prompts=0")
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
        *WALK_TASK,
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
    """A method on the walk."""
    sizes = (f"trainer.steps={steps}", "task.test_size=1000", "evaluation.rollout_prompts=300")
    return (*WALK_TASK, *sizes, f"experiment={experiment}", *overrides)


def walk(divergence: str, lmbda: float, *overrides: str, steps: int = WALK_STEPS) -> Overrides:
    """GKD on the walk."""
    return walk_method("gkd", *DIVERGENCES[divergence], f"lmbda={lmbda:g}", *overrides, steps=steps)
