"""Question: how do divergence and temperature trade diversity for quality?

News, on-policy GKD with five divergences; four samples of each of 100 prompts at temperatures 1, 0.5, 0.3 and 0.1
(paper Figure 4). Self-BLEU: 100 is no diversity. Statement 4: Self-BLEU is ordered by divergence at temperature 1,
and, on average over the divergences, by temperature. Statement 5: the spread (largest - smallest) of ROUGE-2 over the
divergences is larger at temperature 1 than at 0.1; at 1 the forward KL is below each of the others; greedy, the
reverse KL is below the mean of forward KL, JSD(0.1) and JSD(0.5).
Expected: both orders of Self-BLEU show; the last part of statement 5 need not, for these divergences hardly differ
when text is greedy.
"""

from __future__ import annotations

from experiments.study.design import DIVERGENCES, NEWS_METRICS, SEEDS, TEMPERATURES, Results, Study, gkd
from experiments.study.runner import main
from experiments.study.verdicts import About, Claim, Series, mean_of, spread_of


def claims(results: Results) -> list[Claim]:
    """Statements 4 and 5."""

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


STUDY = Study(
    file=__file__,
    doc=__doc__,
    conditions={name: gkd(name) for name in DIVERGENCES},
    seeds=SEEDS,
    metrics={
        **NEWS_METRICS,
        **{f"temperature_{one:g}/self_bleu": f"Self-BLEU at {one:g}" for one in TEMPERATURES},
        **{f"temperature_{one:g}/rouge2": f"ROUGE-2 at {one:g}" for one in TEMPERATURES},
    },
    claims=claims,
)


if __name__ == "__main__":
    main(STUDY)
