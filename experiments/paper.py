"""Which of the paper's statements hold at the embedded scale: every study, its runs, and a verdict for each claim.

    python -m experiments.paper scale=embedded           # runs all studies in multirun/paper; goes on where it stopped
    python -m experiments.paper --plan                   # what it runs, and for how long
    python -m experiments.paper --read --out FOLDER      # results of what is finished
    python -m experiments.paper --studies walk,alpha     # some studies only

Verdicts are computed from the runs by rules that stand in `verdicts.py` and in each study's docstring. A statement with
several claims is shown if all of them are, not shown if one is not, and undecided otherwise. The results stand in the
folder of --out: paper.md and paper.json, a file for each study, report.html about all runs, and its figures in plots.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.design import Study, all_studies
from experiments.report.__main__ import NO_STILLS, draws_stills
from experiments.report.__main__ import main as write_report
from experiments.statements import STATEMENTS
from experiments.study import markdown_rows
from experiments.study_tables import claim_rows, markdown, measured
from experiments.suite import Outcome, conduct, out_of, parser, say, stop_if_failed, write
from experiments.verdicts import Verdict, overall
from gkd_rl.json_files import write_json

FOLDER = Path("multirun/paper")


def statement_table(summaries: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every statement of the paper with its claims and verdict; without a claim, why none was decided."""
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
    """The table of statements: what the paper reports, what was measured, the verdict."""
    rows = []
    for entry in table:
        rows.append([str(entry["statement"]), f"**{entry['text']}**", entry["reported"], "", f"**{entry['verdict']}**"])
        rows += [["", one["claim"], "", measured(one), one["verdict"]] for one in entry["claims"]]
    return "\n".join(markdown_rows(["", "claim", "the paper reports", "measured here", "verdict"], rows))


def paper_markdown(found: Outcome, studies: Mapping[str, Study]) -> str:
    """Statements first, then what the studies found besides, then every study."""
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
        "Claims of our own:",
        "",
        *claim_rows(own),
    ]
    for name, summary in found.summaries.items():
        lines += ["", f"## {name}", "", markdown(summary, studies[name].metrics)]
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    made = parser(__doc__, FOLDER)
    made.add_argument("--studies", default="", help="names with commas between them; all if there are none")
    arguments = made.parse_args()
    known = all_studies()
    wanted = [name for name in arguments.studies.split(",") if name] or list(known)
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
        plots = ["--plots", str(out / "plots")] if draws_stills() else []
        write_report([str(arguments.folder), "--out", str(out / "report.html"), *plots])
        if not plots:
            say(NO_STILLS)
    stop_if_failed(found)


if __name__ == "__main__":
    main()
