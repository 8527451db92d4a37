"""Which of the paper's statements (arXiv 2306.13649) hold at the embedded scale: all studies and their verdicts.

    python -m experiments.paper scale=embedded           # runs all studies in multirun/paper; continues if interrupted
    python -m experiments.paper --plan                   # prints what would be run and how long it takes
    python -m experiments.paper --read --out FOLDER      # results of the finished runs
    python -m experiments.paper --studies walk,alpha     # these studies only

Twelve statements that a small replication can test, with the numbers that the paper reports. Verdicts follow from the
runs by the rules in `study/verdicts.py` and by each study's claims. A statement with several claims is shown if all of
them are, not shown if one is not shown, and undecided otherwise. Written to the folder of --out: paper.md and
paper.json, two files for each study, report.html about all runs, and its figures in plots/.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from experiments import markdown_rows
from experiments.report.__main__ import NO_PLOTS, can_draw_plots
from experiments.report.__main__ import main as write_report
from experiments.studies import all_studies
from experiments.study import Study
from experiments.study.runner import (
    Outcome,
    claim_rows,
    conduct,
    exit_if_failed,
    log,
    markdown,
    measured,
    out_of,
    parser,
    write,
)
from experiments.study.verdicts import Verdict, overall
from gkd_rl.outputs.json_files import write_json


@dataclass(frozen=True)
class Statement:
    """One statement of the paper.

    Attributes:
        text: the statement.
        reported: the paper's numbers.
        left_out: why no study here can test it; None if one does.
    """

    text: str
    reported: str
    left_out: str | None = None


STATEMENTS = {
    1: Statement(
        "On-policy beats fixed data: for one divergence, lambda = 1 is at least as good as lambda = 0 in the "
        "task's metric",
        "54 of 55 cells of Figures 6, 7, A.12, A.13; e.g. XSum greedy, T5-small, mean over D: 15.4 -> 16.1 -> 16.3",
    ),
    2: Statement(
        "On-policy GKD with its best D beats supervised KD, SeqKD, ImitKD and f-distill at equal steps from "
        "one student",
        "Figures 1, 2, 9, e.g. XSum T5-small greedy: 16.3 against 15.2 (supervised KD) and 15.1 (SeqKD)",
    ),
    3: Statement(
        "Every distillation is at least as good as the supervised student that it starts from",
        "Figure 1; one near-tie: supervised KD, XSum T5-base, 17.89 against 17.94",
    ),
    4: Statement(
        "Diversity: Self-BLEU rises from the forward KL over JSD(0.1), JSD(0.5), JSD(0.9) to the reverse KL, "
        "and as the temperature falls",
        "Figure 4, temperature 1: 14.4, 18.6, 23.5, 27.2, 28.5; at 0.1: 85.0 to 89.1",
    ),
    5: Statement(
        "The gap between divergences depends on the temperature: large at 1, where the forward KL is clearly "
        "worst, small at 0.1; greedy, the reverse KL is worst for a small student",
        "Figure 4, spread of ROUGE-2: 2.76 at temperature 1, 0.93 at 0.1; Figure A.13: 16.4, 16.6, 16.6, 16.3, 15.6",
    ),
    6: Statement(
        "The gap between divergences shrinks as the student grows",
        "Figure A.13, greedy, lambda = 1: 1.0, 0.3, 0.1 for T5-small, base, large",
        "it is about students of 77M to 800M weights of one pre-trained family; the tiny students here are not "
        "pre-trained, and how far they are trained changes with their size",
    ),
    7: Statement(
        "lambda: flat or slightly worse up to about 25% of student data, then rising, best at 100%",
        "Figure 8, forward KL: 7.13, 6.86, 7.12, 8.81, 9.24, 9.66, 11.20 at 0, 10, 25, 50, 75, 90, 100%",
    ),
    8: Statement(
        "Data efficiency: on-policy lies above supervised KD and ImitKD at every fraction of the prompts, "
        "and reaches their 100% level at about 5 to 25%",
        "Figure 3: 12.40, 12.91, 13.75, 15.13 at 0.5, 5, 25, 100% against 13.11 and 13.14 with all",
    ),
    9: Statement(
        "RL + GKD: the reward falls and quality rises in alpha; at one reward its quality is above RL held to its own "
        "start; up to alpha = 0.5 its reward is above the teacher's",
        "Figure 5, alpha = 0.05 to 0.5: ROUGE-2 +3.6 to +4.7, entailment +42 to +22; RLEF* +3.2, +44.8; teacher +17.2",
    ),
    10: Statement(
        "A self-distilled student is better than its teacher, and than the student before",
        "Figure A.10: 24.6 to 26.2% against the teacher's 20.5% and the student's 14.4%",
    ),
    11: Statement(
        "Instruction tuning: on-policy reverse KL is better than on-policy forward KL on held-out suites",
        "Figure A.11: MMLU +1.97 against -0.49, BBH +1.13 against +0.65",
        "held-out suites test what a model learns in pre-training; a student of 40,000 weights without any solves "
        "none of their tasks before or after",
    ),
    12: Statement(
        "Sampling makes a step about twice as costly as fixed data",
        "Section A.3: 1.8, 2 and 2.2 times at teachers 38, 12 and 3.8 times as large",
    ),
}


def statement_table(summaries: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every statement of the paper with its claims and verdict; without a claim, the reason."""
    claims = [{**claim, "study": name} for name, summary in summaries.items() for claim in summary["claims"]]
    table = []
    for number, statement in STATEMENTS.items():
        own = [claim for claim in claims if claim["statement"] == number]
        verdict = overall(Verdict(claim["verdict"]) for claim in own).value if own else None
        reason = statement.left_out or "no study that was run answers it"
        entry = {"statement": number, "text": statement.text, "reported": statement.reported}
        table.append({**entry, "verdict": verdict or f"left out: {reason}", "claims": own})
    return table


def statements_markdown(table: list[dict[str, Any]]) -> str:
    """The table of statements: the paper's numbers, the measured ones, the verdict."""
    rows = []
    for entry in table:
        rows.append([str(entry["statement"]), f"**{entry['text']}**", entry["reported"], "", f"**{entry['verdict']}**"])
        rows += [["", one["claim"], "", measured(one), one["verdict"]] for one in entry["claims"]]
    return "\n".join(markdown_rows(["", "claim", "the paper reports", "measured here", "verdict"], rows))


def paper_markdown(found: Outcome, studies: Mapping[str, Study]) -> str:
    """Statements first, then the studies' further claims, then every study."""
    facts = found.facts
    own = [one for summary in found.summaries.values() for one in summary["claims"] if one["statement"] is None]
    revisions = ", ".join(facts["revisions"]) or "unknown"
    hours = facts["run seconds"] / 3600
    lines = [
        f"{facts['finished']} of {facts['runs']} runs are finished (revisions: {revisions}), "
        f"{hours:.1f} hours of one thread. Differences are paired by seed; in brackets: 95% Student intervals.",
        "",
        statements_markdown(statement_table(found.summaries)),
        "",
        "Claims that are not the paper's:",
        "",
        *claim_rows(own),
    ]
    for name, summary in found.summaries.items():
        lines += ["", f"## {name}", "", markdown(studies[name], summary)]
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    made = parser((__doc__ or "").splitlines()[0])
    made.add_argument(
        "--studies", default="", help="names with commas between them; if not given, all about the paper's statements"
    )
    arguments = made.parse_args()
    known = all_studies()
    wanted = [name for name in arguments.studies.split(",") if name]
    wanted = wanted or [name for name, study in known.items() if study.in_paper]
    for name in wanted:
        if name not in known:
            made.error(f"--studies {name}: there is no such study; it takes {', '.join(known)}.")
    studies = {name: known[name] for name in wanted}
    found = conduct(list(studies.values()), arguments)
    if found is None:
        return
    out = out_of(arguments)
    write(found, list(studies.values()), out)
    table = statement_table(found.summaries)
    write_json(out / "paper.json", {"facts": found.facts, "statements": table})
    (out / "paper.md").write_text(paper_markdown(found, studies) + "\n", encoding="utf-8")
    sys.stdout.write(statements_markdown(table) + f"\nwritten to {out}\n")
    if found.facts["finished"]:
        plots = ["--plots", str(out / "plots")] if can_draw_plots() else []
        write_report([str(arguments.folder), "--out", str(out / "report.html"), *plots])
        if not plots:
            log(NO_PLOTS)
    exit_if_failed(found)


if __name__ == "__main__":
    main()
