"""Question: does on-policy GKD beat the other ways to distil where the student has room?

Walks, forward KL, the students of `walk.py`, equal steps (paper Figures 1, 2, 9). Statement 2: GKD is above each of
the four others in accuracy. Statement 3: the mean change over all methods is above 0, and no method's is below. "More
SFT" is the control: as many steps on the references.
Expected: GKD is above supervised KD, SeqKD and more SFT by 5 to 20 points, and hardly above ImitKD and f-distill, which
see the student's text in half of their steps; nothing falls below the student before.
"""

from __future__ import annotations

from experiments.study.design import WALK_GATE, WALK_METRICS, Results, Study, walk, walk_method
from experiments.study.runner import main
from experiments.study.verdicts import About, Claim

GKD = "on-policy GKD"
OTHERS = {
    "supervised KD": walk("forward KL", 0),
    "SeqKD": walk_method("seqkd"),
    "ImitKD": walk("forward KL", 0.5),
    "f-distill": walk_method("f_distill"),
}
CONTROL = "more SFT"


def claims(results: Results) -> list[Claim]:
    """Statements 2 and 3, and the control."""
    own = results.after(GKD, "reward")
    over = {name: own - results.after(name, "reward") for name in OTHERS}
    change = {name: results.change(name, "reward") for name in (GKD, *OTHERS)}
    return [
        About("walk: GKD - each other method in accuracy is above 0", 2, "share").all_greater(over),
        About("walk: every distillation - the student before in accuracy is not below 0", 3, "share").none_less(change),
        About("walk: GKD - more SFT in accuracy is above 0", unit="share").greater(
            own - results.after(CONTROL, "reward")
        ),
    ]


STUDY = Study(
    file=__file__,
    doc=__doc__,
    conditions={GKD: walk("forward KL", 1), **OTHERS, CONTROL: walk_method("sft")},
    seeds=(),
    metrics=WALK_METRICS,
    claims=claims,
    gate=WALK_GATE,
)


if __name__ == "__main__":
    main(STUDY)
