"""Question: does one alpha mean one thing for every beta of JSD(beta)?

News, alpha = 0.5. Near p_T = p_S the raw JSD(beta) is beta (1 - beta) of a KL: 0.25 of it at beta = 0.5 and 0.01 at
0.99, so that the same alpha holds the student far less. The unit scale divides that out. Compared by how far sampled
faithfulness differs between the two betas.
Expected: raw, JSD(0.99) is close to reward alone; on the unit scale the two betas end close together.
"""

from __future__ import annotations

from experiments.study.design import FEW, NEWS_METRICS, Results, Study, rewarded
from experiments.study.runner import main
from experiments.study.verdicts import About, Claim, spread_of

BETAS = (0.5, 0.99)
SCALES = ("raw", "unit")


def claims(results: Results) -> list[Claim]:
    """The spread over beta on both scales."""
    spread = {
        scale: spread_of(results.after(f"{scale}, beta {beta:g}", "sampled/reward") for beta in BETAS)
        for scale in SCALES
    }
    text = "sampled faithfulness differs more between the betas on the raw scale than on the unit scale"
    return [About(text, unit="share").greater(spread["raw"] - spread["unit"])]


STUDY = Study(
    file=__file__,
    doc=__doc__,
    conditions={
        f"{scale}, beta {beta:g}": rewarded("rl_gkd", 0.5, f"divergence.beta={beta:g}", f"divergence.scale={scale}")
        for scale in SCALES
        for beta in BETAS
    },
    seeds=FEW,
    metrics=NEWS_METRICS,
    claims=claims,
)


if __name__ == "__main__":
    main(STUDY)
