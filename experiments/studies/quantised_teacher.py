"""Question: what does the student lose when its teacher is quantised?

News, GKD with JSD(0.9) from the teacher in 32, 8 (int8) and 4 bits (nf4). Nothing is lost if the interval of the
difference in greedy ROUGE-2 lies within one point.
Expected: 8 bits lose nothing; 4 bits of so narrow a model may.
"""

from __future__ import annotations

from experiments.study.design import FEW, NEWS_METRICS, Results, Study, gkd
from experiments.study.runner import main
from experiments.study.verdicts import About, Claim

FULL = "32 bits"
BITS = {"8 bits": "int8", "4 bits": "nf4"}
MARGIN = 1.0


def claims(results: Results) -> list[Claim]:
    """Each quantised teacher against the full one."""
    full = results.after(FULL, "rouge2")
    return [
        About(f"{name} - {FULL} in greedy ROUGE-2 is within +- {MARGIN:g}", unit="ROUGE-2").within(
            results.after(name, "rouge2") - full, MARGIN
        )
        for name in BITS
    ]


STUDY = Study(
    file=__file__,
    doc=__doc__,
    conditions={
        FULL: gkd("JSD(0.9)"),
        **{name: (*gkd("JSD(0.9)"), f"teacher.quantization={kind}") for name, kind in BITS.items()},
    },
    seeds=FEW,
    metrics=NEWS_METRICS,
    claims=claims,
)


if __name__ == "__main__":
    main(STUDY)
