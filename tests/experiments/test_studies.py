"""Studies as declarations: their runs, shared between them, what is run and kept, and the claims they decide."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

import pytest
from conftest import configured
from forked import run_forked
from run_cases import make_run, record_of

import experiments.studies as studies_package
from experiments import paper
from experiments.paper import STATEMENTS
from experiments.studies import alpha, baselines, data_efficiency, walk
from experiments.study import plan as study
from experiments.study import runner as suite
from experiments.study.design import Cell, Gate, Results, Study, all_studies
from experiments.study.plan import asked_by, composed, plan_of, seeds_before
from experiments.study.verdicts import About, Claim, Series, Verdict
from gkd_rl.config.validation import validate

STUDIES = all_studies()
SMALL = (
    *("experiment=gkd", "reward=faithfulness", "task.train_size=200", "task.test_size=20", "trainer.steps=2"),
    *("student.sft.steps=3", "teacher.sft.steps=3", "student.sft.batch_size=8", "teacher.sft.batch_size=8"),
    *("trainer.prompts_per_step=4", "task.max_completion_tokens=12", "evaluation.rollout_prompts=8"),
    *("evaluation.self_bleu_prompts=2", "evaluation.bootstrap_samples=100", "scale.threads=1", "tracking=none"),
    "save_model=false",
)


def planted(claim: Callable[[Results], list[Claim]], **more: Any) -> Study:
    """A study of two conditions."""
    conditions = {"on": ("experiment=gkd",), "off": ("experiment=gkd", "lmbda=0")}
    facts = {"file": "planted.py", "doc": "Question: does it?\n\nExpected: yes,\nit does.\n", "seeds": (0, 1, 2)}
    return Study(**{**facts, "conditions": conditions, "metrics": {"rouge2": "R2"}, "claims": claim, **more})


def on_beats_off(results: Results) -> list[Claim]:
    return [About("on - off", 1).greater(results.after("on", "rouge2") - results.after("off", "rouge2"))]


def results_of(value: Callable[[str, str, int], float], names: tuple[str, ...], metrics: tuple[str, ...]) -> Results:
    """Runs of five seeds whose trained student measures value(condition, metric, seed); 0 before and of the teacher."""

    def run(name: str, seed: int) -> dict[str, Any]:
        after = {metric: {"mean": value(name, metric, seed)} for metric in metrics}
        none = {metric: {"mean": 0.0} for metric in metrics}
        cost = {"time/total": value(name, "time/total", seed), "flops/student": 1.0}
        return {"student after": after, "student before": none, "teacher": none, "cost": cost}

    return Results({name: {seed: run(name, seed) for seed in range(5)} for name in names}, tuple(range(5)))


def verdicts(found: Study, results: Results) -> list[str]:
    return [claim.verdict.value for claim in found.claims(results)]


def test_every_study_states_question_command_and_expectation() -> None:
    assert len(STUDIES) == 13
    for name, found in STUDIES.items():
        assert found.name == name and found.question.endswith("?") and found.expected.endswith("."), name
        assert found.conditions and (found.seeds or found.gate), name


def test_every_statement_is_answered_or_left_out() -> None:
    answered = {
        claim.statement for found in STUDIES.values() for claim in found.claims(Results({}, (0, 1))) if claim.statement
    }
    assert answered.isdisjoint(number for number, one in STATEMENTS.items() if one.left_out)
    assert answered | {number for number, one in STATEMENTS.items() if one.left_out} == set(range(1, 13))


@pytest.mark.parametrize("name", list(STUDIES))
def test_without_runs_a_claim_is_undecided_and_says_what_is_missing(name: str) -> None:
    for claim in STUDIES[name].claims(Results({}, (3,))):
        assert claim.verdict is Verdict.undecided
        assert claim.missing and all("seed 3" in one for one in claim.missing)


@pytest.mark.slow
def test_every_condition_is_valid_and_on_its_tasks_budget() -> None:
    for found in STUDIES.values():
        composed(Cell(next(iter(found.conditions.values())), 0).typed)  # which Hydra takes
        for name, overrides in found.conditions.items():
            config = configured(*Cell(overrides, 0).typed)
            validate(config)
            sequences = config.trainer.prompts_per_step * config.rollout.per_prompt
            assert sequences == 64 and config.scale.threads == 1, name
            steps = 120 if "xsum" in config.task["_target_"] else 500 if name == walk.LONGER else 250
            assert config.trainer.steps == steps, name


def test_a_study_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "from pathlib import Path\nfrom experiments.studies.walk import STUDY as one\nfrom dataclasses import replace\n"
    )
    (tmp_path / "planted_study.py").write_text(text + "STUDY = replace(one, file=__file__)\n", encoding="utf-8")
    monkeypatch.setattr(studies_package, "__path__", [*studies_package.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "experiments.studies.planted_study", raising=False)
    assert set(all_studies()) == {*STUDIES, "planted_study"}


def test_one_run_for_the_same_overrides() -> None:
    one, other = (
        Cell(("experiment=gkd", "alpha=0.5", "lmbda=0"), 1),
        Cell(("lmbda=0", "experiment=gkd", "alpha=0.5"), 1),
    )
    assert one.folder == other.folder
    assert one.folder.startswith("gkd_") and one.folder.endswith("/seed_1")
    assert Cell(one.overrides, 2).folder != one.folder
    assert one.plus(("lmbda=1",)).typed == ("experiment=gkd", "alpha=0.5", "lmbda=1")
    assert one.plus(("lmbda=1",)).folder != one.folder


def test_a_plan_is_the_union_of_what_studies_ask_for() -> None:
    second = planted(on_beats_off, file="second.py", conditions={"same": ("lmbda=0", "experiment=gkd"), "x": SMALL})
    pair = [planted(on_beats_off), second]
    plan = plan_of(asked_by(pair, seeds_before(pair, ungated=False)), ())
    assert len(plan.cells) == len(plan.users) == 9  # on, off (= same) and x, three seeds each
    assert sorted(plan.users.values()) == [("planted",)] * 3 + [("planted", "second")] * 3 + [("second",)] * 3
    assert [cell.seed for cell in plan.cells] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    job = plan.jobs()[-1]
    assert job.overrides[-1] == "seed=2"
    first, later = (plan.seconds[plan.cells[i].folder] for i in (0, 3))
    assert first > later + 100 and later > 40  # the teacher, once
    with pytest.raises(SystemExit, match="alpha=2"):
        plan_of(asked_by(pair, seeds_before(pair, ungated=False)), ("alpha=2",))


def test_the_walks_share_their_runs() -> None:
    three = [STUDIES["walk"], STUDIES["lambda_sweep"], STUDIES["data_efficiency"]]
    cells = {cell.folder for one in three for cell in one.cells((4,))}
    assert len(cells) == 8  # four of walk, lambda 0.25, three with a quarter of the prompts
    assert len({cell.folder for one in three for cell in one.gate_cells()}) == 12


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs that take no time: what was typed of each, and its numbers from `value`."""
    seen: list[list[str]] = []
    state = SimpleNamespace(seen=seen, value=lambda words: 1.0, fails=lambda words: False)

    def fake(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        words = command[3:]
        folder = Path(words[-1].removeprefix("hydra.run.dir="))
        seen.append(words)
        if state.fails(words):
            return subprocess.CompletedProcess(command, 1)
        seed = int(next(one for one in words if one.startswith("seed=")).removeprefix("seed="))
        value = {"rouge2": {"mean": state.value(words), "low": 0, "high": 0, "n": 5}}
        results = {"student before": value, "student after": value, "cost": {"time/total": 1.0}}
        record = record_of(1, 0.0, status="finished", started=10.0, ended=70.0)
        (folder / "run.log").unlink()
        folder.rmdir()
        make_run(folder, {"seed": seed}, eval=results, run=record)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(study.subprocess, "run", fake)
    return state


def arguments(folder: Path, **more: Any) -> argparse.Namespace:
    plain = {"folder": folder, "workers": 2, "plan": False, "read": False, "out": None, "overrides": []}
    return argparse.Namespace(**{**plain, **more})


def test_finished_runs_are_kept_and_the_others_run_again(tmp_path: Path, typed: Any) -> None:
    one = planted(on_beats_off)
    typed.value = lambda words: 1.0 if "lmbda=0" in words else 2.0 + 0.1 * ("seed=1" in words)
    typed.fails = lambda words: "seed=2" in words and "lmbda=0" in words
    found = suite.conduct([one], arguments(tmp_path))
    assert found is not None and len(typed.seen) == 6
    (claim,) = found.summaries["planted"]["claims"]
    assert claim["verdict"] == "shown" and claim["missing"] == ["off, seed 2"]
    assert found.summaries["planted"]["missing"] == ["off, seed 2"]
    assert (found.facts["finished"], found.facts["runs"], found.facts["run seconds"]) == (5, 6, 300.0)
    with pytest.raises(SystemExit, match="1 runs failed"):
        suite.stop_if_failed(found)
    typed.fails = lambda words: False
    again = suite.conduct([one], arguments(tmp_path))
    assert again is not None and len(typed.seen) == 7 and "lmbda=0" in typed.seen[-1] and "seed=2" in typed.seen[-1]
    assert again.summaries["planted"]["claims"][0]["missing"] == []
    assert again.facts["failed"] == []
    suite.write(again, [one], tmp_path / "results")
    assert "| 1 | on - off | 1.0 [" in (tmp_path / "results" / "planted.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "results" / "planted.json").read_text())["expected"] == "yes, it does."


def test_the_command_writes_statements_and_the_report(
    tmp_path: Path, typed: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(paper, "all_studies", lambda: {"planted": planted(on_beats_off)})
    typed.value = lambda words: float("lmbda=0" not in words) + 0.1 * ("seed=1" in words)
    monkeypatch.setattr(sys, "argv", ["paper", "scale=embedded", "--folder", str(tmp_path / "runs")])
    paper.main()
    said = capsys.readouterr().out
    assert "6 runs" in said
    out = tmp_path / "runs" / "results"
    assert "6 of 6 runs are finished" in (out / "paper.md").read_text(encoding="utf-8")
    (first, *_) = json.loads((out / "paper.json").read_text(encoding="utf-8"))["statements"]
    assert first["verdict"] == first["claims"][0]["verdict"]
    assert (out / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert f"{out / 'plots'}: 0 figures" in said  # these runs have nothing to draw
    monkeypatch.setattr(paper, "draws_stills", lambda: False)
    paper.main()
    assert "need matplotlib" in capsys.readouterr().err


def test_a_plan_alone_runs_nothing(tmp_path: Path, typed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert suite.conduct([planted(on_beats_off)], arguments(tmp_path, plan=True)) is None
    assert "2 conditions x 3 seeds: 6 runs" in capsys.readouterr().err and not typed.seen
    found = suite.conduct([planted(on_beats_off)], arguments(tmp_path, read=True, overrides=["scale=embedded"]))
    assert found is not None and not typed.seen and found.facts["overrides"] == []
    with pytest.raises(SystemExit, match="scale=paper"):
        suite.conduct([planted(on_beats_off)], arguments(tmp_path, overrides=["scale=paper"]))


def test_a_gate_lets_in_the_first_students_with_room_and_lists_the_others(tmp_path: Path, typed: Any) -> None:
    before = {0: 0.0, 1: 0.5, 2: 0.95, 3: 0.9, 4: 0.05, 5: 0.3}
    typed.value = lambda words: before[int(words[-2].removeprefix("seed="))] if "experiment=sft" in words else 1.0
    gate = Gate(("experiment=sft",), "rouge2", 0.05, 0.9, (0, 1, 2, 3, 4, 5), 3)
    one = planted(on_beats_off, seeds=(), gate=gate)
    found = suite.conduct([one], arguments(tmp_path))
    assert found is not None
    assert found.summaries["planted"]["seeds"] == [1, 3, 4]
    words = {seed: entry[""] for seed, entry in found.summaries["planted"]["students"]["candidates"].items()}
    assert words == {
        **dict.fromkeys((1, 3, 4), "takes part"),
        **{0: "failed", 2: "at the ceiling", 5: "not needed"},
    }
    assert len(typed.seen) == 6 + 3 * 2
    text = suite.markdown(found.summaries["planted"], one.metrics)
    assert "| 2 | 0.950 | at the ceiling |" in text
    assert "| 3 | 1.000 | 1.000 |" in text


def test_statements_have_one_verdict_of_all_their_claims() -> None:
    def claim(statement: int | None, verdict: str) -> dict[str, Any]:
        return {"statement": statement, "claim": "c", "verdict": verdict, "effects": {}, "missing": [], "unit": ""}

    summaries = {
        "a": {"claims": [claim(1, "shown"), claim(2, "shown"), claim(None, "not shown")]},
        "b": {"claims": [claim(1, "undecided"), claim(3, "not shown")]},
    }
    table = {entry["statement"]: entry for entry in paper.statement_table(summaries)}
    assert [table[number]["verdict"] for number in (1, 2, 3)] == ["undecided", "shown", "not shown"]
    assert [one["study"] for one in table[1]["claims"]] == ["a", "b"]
    assert table[11]["verdict"].startswith("left out: held-out suites")
    assert table[4]["verdict"] == "left out: no study that was run answers it"
    assert "**undecided**" in paper.statements_markdown(list(table.values()))


def test_the_best_divergence_is_not_chosen_by_the_seed_that_it_is_judged_on() -> None:
    lucky = Series({0: 100.0, 1: 1.0, 2: 1.0})
    steady = Series({0: 3.0, 1: 3.0, 2: 3.0})
    assert baselines.best_elsewhere([lucky, steady]).by_seed == {0: 3.0, 1: 1.0, 2: 1.0}
    assert baselines.best_elsewhere([Series({0: 1.0})]).by_seed == {}


def test_the_gap_between_two_curves_at_equal_reward() -> None:
    first = [(10.0 + i, 1.0 - 0.2 * i) for i in range(len(alpha.TEACHER))]  # quality falls by 5 a unit of reward
    second = [(7.0 + i, 0.8 - 0.2 * i) for i in range(len(alpha.OWN))]
    flat = [number for point in [*first, *second] for number in point]
    assert alpha.gap(*flat) == pytest.approx(4.0)
    apart = [number for point in [*first, *[(1.0, 2.0 + i) for i in range(len(alpha.OWN))]] for number in point]
    assert alpha.gap(*apart) != alpha.gap(*apart)


def test_walk_claims() -> None:
    def value(name: str, metric: str, seed: int) -> float:
        on = {"lambda 0": 0.0, "lambda 0.5": 0.5, "lambda 1": 1.0, walk.LONGER: 0.4}[name]
        if metric == "time/total":
            return 20.0 + 20.0 * on if name != walk.LONGER else 39.0 + 0.1 * seed
        return 0.3 + 0.2 * on + 0.01 * seed * on if metric == "reward" else 1.0 - 0.5 * on

    found = results_of(value, tuple(walk.STUDY.conditions), ("reward", "sampled/forward_kl"))
    assert verdicts(walk.STUDY, found) == ["shown"] * 6
    off = results_of(lambda n, m, s: -value(n, m, s), tuple(walk.STUDY.conditions), ("reward", "sampled/forward_kl"))
    assert verdicts(walk.STUDY, off)[0] == "not shown"


def test_data_efficiency_claims() -> None:
    def value(name: str, metric: str, seed: int) -> float:
        return (0.6 if "on-policy" in name else 0.3) - 0.2 * ("quarter" in name) + 0.001 * seed * len(name)

    found = results_of(value, tuple(data_efficiency.STUDY.conditions), ("reward",))
    assert verdicts(data_efficiency.STUDY, found) == ["shown", "shown"]


@pytest.mark.slow
def test_two_real_runs_from_the_command_to_the_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forked(command: list[str], stdout: TextIO, **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[:3] == [sys.executable, "-m", "gkd_rl.run"]
        done = run_forked(command[3:], tmp_path, GKD_RL_CACHE=str(tmp_path / "cache"))
        stdout.write(done.stdout + done.stderr)
        return done

    monkeypatch.setattr(study.subprocess, "run", forked)
    warm = ("evaluation.temperatures=[1.0,0.1]",)
    pair = {"on": (*SMALL, *warm), "off": (*SMALL, "lmbda=0")}
    one = planted(on_beats_off, conditions=pair, seeds=(0,))
    found = suite.conduct([one], arguments(tmp_path / "runs"))
    assert found is not None and found.facts["finished"] == 2 and found.facts["failed"] == []
    (claim,) = found.summaries["planted"]["claims"]
    assert claim["verdict"] == "undecided" and claim["effects"]["difference"]["n"] == 1  # one seed has no interval
    results = json.loads((tmp_path / "runs" / Cell(pair["on"], 0).folder / "eval.json").read_text())["student after"]
    assert results["temperature_1/self_bleu"]["mean"] == results["self_bleu"]["mean"]
    assert results["temperature_0.1/self_bleu"]["mean"] >= results["self_bleu"]["mean"]
    assert {"temperature_1/rouge2", "temperature_0.1/rouge2"} <= results.keys()
    assert found.summaries["planted"]["cost"]["on"]["time/total"]["mean"] > 0
