"""Question: how few prompts does distillation on the student's own text need?

Walks, forward KL, with all 1,000 and with the first 250 prompts; every student saw all 1,000 references in its
supervised stage (paper Figure 3). The first five students of the gate of `walk.py`. Statement 8: at both sizes on-
policy GKD is above supervised KD and ImitKD, and with a quarter of the prompts it is not below what these reach with
all.
Expected: it is above at both sizes; a quarter is about enough.
"""

from __future__ import annotations

from dataclasses import replace

from experiments.study.design import WALK_GATE, WALK_METRICS, Results, Study, walk
from experiments.study.runner import main
from experiments.study.verdicts import About, Claim

METHODS = {"supervised KD": 0.0, "ImitKD": 0.5, "on-policy GKD": 1.0}
SIZES: dict[str, tuple[str, ...]] = {"all prompts": (), "a quarter": ("trainer.train_rows=250",)}


def claims(results: Results) -> list[Claim]:
    """Statement 8."""
    accuracy = {(name, size): results.after(f"{name}, {size}", "reward") for name in METHODS for size in SIZES}
    *others, own = METHODS
    above = {f"{size}, {name}": accuracy[own, size] - accuracy[name, size] for size in SIZES for name in others}
    reached = {name: accuracy[own, "a quarter"] - accuracy[name, "all prompts"] for name in others}
    return [
        About("walk: on-policy - the other method in accuracy, equal prompts, is above 0", 8, "share").all_greater(
            above
        ),
        About(
            "walk: on-policy with a quarter of the prompts - the other with all is not below 0", 8, "share"
        ).none_less(reached),
    ]


STUDY = Study(
    file=__file__,
    doc=__doc__,
    conditions={
        f"{name}, {size}": walk("forward KL", lmbda, *rows)
        for name, lmbda in METHODS.items()
        for size, rows in SIZES.items()
    },
    seeds=(),
    metrics=WALK_METRICS,
    claims=claims,
    gate=replace(WALK_GATE, students=5),
)


if __name__ == "__main__":
    main(STUDY)
