"""Question: does a student become better than a teacher of its own size?

News, GKD with JSD(0.9) from a teacher that has the student's architecture and twice its supervised steps (paper A.1).
Statement 10: after training the student's greedy ROUGE-2 is above its teacher's, and above its own before.
Expected: neither is sure; the student is at its plateau, and so is the teacher.
"""

from __future__ import annotations

from experiments.study.design import NEWS_METRICS, SEEDS, Results, Study, method
from experiments.study.runner import main
from experiments.study.verdicts import About, Claim

NAME = "self-distillation"


def claims(results: Results) -> list[Claim]:
    """Statement 10."""
    after = results.after(NAME, "rouge2")
    over = {"its teacher": after - results.teacher(NAME, "rouge2"), "before": results.change(NAME, "rouge2")}
    return [About("the student after - its teacher, and - itself before, is above 0", 10, "ROUGE-2").all_greater(over)]


STUDY = Study(
    file=__file__,
    doc=__doc__,
    conditions={NAME: method("self_distillation", "divergence.beta=0.9")},
    seeds=SEEDS,
    metrics=NEWS_METRICS,
    claims=claims,
)


if __name__ == "__main__":
    main(STUDY)
