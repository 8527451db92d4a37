"""Which divergence: what each does to diversity and quality of samples, and what one alpha means across them.

- `diversity`: news, on-policy GKD with five divergences at four temperatures (paper Figure 4).
- `beta_scale`: news, one alpha with two betas of JSD(beta), on the raw and on the unit scale.
"""

from __future__ import annotations

from experiments.studies import DIVERGENCES, FEW, NEWS_METRICS, SEEDS, TEMPERATURES, gkd, with_reward
from experiments.study import Results, Study
from experiments.study.runner import main
from experiments.study.verdicts import About, Claim, Series, mean_of, spread_of

BETAS = (0.5, 0.99)
SCALES = ("raw", "unit")


def diversity_claims(results: Results) -> list[Claim]:
    """Four samples of each of 100 prompts at temperatures 1, 0.5, 0.3 and 0.1; a Self-BLEU of 100 is no diversity.

    Statement 4: Self-BLEU is ordered by divergence at temperature 1, and, on average over the divergences, by
    temperature. Statement 5: the spread (largest - smallest) of ROUGE-2 over the divergences is larger at temperature 1
    than at 0.1; at 1 the forward KL is below each of the others; greedy, the reverse KL is below the mean of forward
    KL, JSD(0.1) and JSD(0.5).
    """

    def at(temperature: float, metric: str) -> dict[str, Series]:
        return {name: results.after(name, f"temperature_{temperature:g}/{metric}") for name in DIVERGENCES}

    warm, greedy = at(1, "rouge2"), {name: results.after(name, "rouge2") for name in DIVERGENCES}
    over_forward = {name: series - warm["forward KL"] for name, series in warm.items() if name != "forward KL"}
    covering = mean_of(greedy[name] for name in ("forward KL", "JSD(0.1)", "JSD(0.5)"))
    by_temperature = {f"at {one:g}": mean_of(at(one, "self_bleu").values()) for one in TEMPERATURES}
    gap = spread_of(warm.values()) - spread_of(at(0.1, "rouge2").values())
    return [
        About("Self-BLEU at temperature 1 rises from forward KL to reverse KL", 4).ordered(at(1, "self_bleu")),
        About("Self-BLEU, mean over D, rises as the temperature falls", 4).ordered(by_temperature),
        About("spread of ROUGE-2 over D is larger at temperature 1 than at 0.1", 5, "ROUGE-2").greater(gap),
        About("at temperature 1 every other D is above forward KL", 5, "ROUGE-2").all_greater(over_forward),
        About("greedy, forward KL, JSD(0.1) and JSD(0.5) are above reverse KL", 5, "ROUGE-2").greater(
            covering - greedy["reverse KL"]
        ),
    ]


def scale_claims(results: Results) -> list[Claim]:
    """How far sampled faithfulness differs between the betas at alpha = 0.5, on both scales.

    Near p_T = p_S the raw JSD(beta) is beta (1 - beta) of a KL: 0.25 of it at beta = 0.5 and 0.01 at 0.99, so that the
    same alpha weights it far less. The unit scale divides by that factor.
    """
    spread = {
        scale: spread_of(results.after(f"{scale}, beta {beta:g}", "sampled/reward") for beta in BETAS)
        for scale in SCALES
    }
    text = "sampled faithfulness differs more between the betas on the raw scale than on the unit scale"
    return [About(text, unit="share").greater(spread["raw"] - spread["unit"])]


STUDIES = (
    Study(
        name="diversity",
        question="how do divergence and temperature trade diversity for quality?",
        expected="both orders of Self-BLEU show; the last part of statement 5 need not, for these divergences hardly "
        "differ when text is greedy.",
        conditions={name: gkd(name) for name in DIVERGENCES},
        seeds=SEEDS,
        metrics={
            **NEWS_METRICS,
            **{f"temperature_{one:g}/self_bleu": f"Self-BLEU at {one:g}" for one in TEMPERATURES},
            **{f"temperature_{one:g}/rouge2": f"ROUGE-2 at {one:g}" for one in TEMPERATURES},
        },
        claims=diversity_claims,
    ),
    Study(
        name="beta_scale",
        question="does one alpha mean one thing for every beta of JSD(beta)?",
        expected="raw, JSD(0.99) is close to reward alone; on the unit scale the two betas end close together.",
        conditions={
            f"{scale}, beta {beta:g}": with_reward(
                "rl_gkd", 0.5, f"divergence.beta={beta:g}", f"divergence.scale={scale}"
            )
            for scale in SCALES
            for beta in BETAS
        },
        seeds=FEW,
        metrics=NEWS_METRICS,
        claims=scale_claims,
    ),
)


if __name__ == "__main__":
    main(*STUDIES)
