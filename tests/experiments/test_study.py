"""The mechanism of studies: runs shared between them, plans, gates, what is run and kept, result files."""

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
from forked import run_forked
from run_cases import make_run, record_of

import experiments.studies as studies_package
from experiments import paper
from experiments.studies import all_studies
from experiments.study import Cell, Gate, Results, Study, runner
from experiments.study import plan as planning
from experiments.study.plan import Job, first_stage_seeds, most_seeds, plan_of, requested, run_jobs
from experiments.study.verdicts import About, Claim

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
    facts = {"name": "planted", "question": "does it?", "expected": "yes, it does.", "seeds": (0, 1, 2)}
    return Study(**{**facts, "conditions": conditions, "metrics": {"rouge2": "R2"}, "claims": claim, **more})


def on_beats_off(results: Results) -> list[Claim]:
    return [About("on - off", 1).greater(results.after("on", "rouge2") - results.after("off", "rouge2"))]


@pytest.mark.parametrize("declared", ["STUDY = one", "STUDIES = (one, replace(one, name='second'))"])
def test_a_study_is_one_file(declared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "from dataclasses import replace\n"
        "from experiments.studies.walk import STUDIES\n"
        "one = replace(STUDIES[0], name='planted')\n"
    )
    before = set(all_studies())
    (tmp_path / "planted_study.py").write_text(f"{text}del STUDIES\n{declared}\n", encoding="utf-8")
    monkeypatch.setattr(studies_package, "__path__", [*studies_package.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "experiments.studies.planted_study", raising=False)
    assert set(all_studies()) - before == {"planted", "second"} - ({"second"} if "STUDY =" in declared else set())


@pytest.mark.parametrize(("text", "words"), [("", "neither STUDY nor STUDIES"), ("STUDY = STUDIES[0]", "of one name")])
def test_a_file_without_a_study_and_a_name_that_is_taken_are_refused(
    text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = "from experiments.studies.walk import STUDIES\n" if text else ""
    (tmp_path / "planted_study.py").write_text(f"{imported}{text}\n", encoding="utf-8")
    monkeypatch.setattr(studies_package, "__path__", [*studies_package.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "experiments.studies.planted_study", raising=False)
    with pytest.raises(ValueError, match=words):
        all_studies()


def test_one_run_for_the_same_overrides() -> None:
    one, other = (
        Cell(("experiment=gkd", "alpha=0.5", "lmbda=0"), 1),
        Cell(("lmbda=0", "experiment=gkd", "alpha=0.5"), 1),
    )
    assert one.folder == other.folder
    assert one.folder.startswith("gkd_") and one.folder.endswith("/seed_1")
    assert Cell(one.overrides, 2).folder != one.folder
    assert one.plus(("lmbda=1",)).effective == ("experiment=gkd", "alpha=0.5", "lmbda=1")
    assert one.plus(("lmbda=1",)).folder != one.folder


def test_a_plan_is_the_union_of_what_studies_ask_for() -> None:
    second = planted(on_beats_off, name="second", conditions={"same": ("lmbda=0", "experiment=gkd"), "x": SMALL})
    pair = [planted(on_beats_off), second]
    plan = plan_of(requested(pair, most_seeds(pair)), ())
    assert len(plan.cells) == len(plan.users) == 9  # on, off (= same) and x, three seeds each
    assert sorted(plan.users.values()) == [("planted",)] * 3 + [("planted", "second")] * 3 + [("second",)] * 3
    assert [cell.seed for cell in plan.cells] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    job = plan.jobs()[-1]
    assert job.overrides[-1] == "seed=2"
    first, later = (plan.seconds[plan.cells[i].folder] for i in (0, 3))
    assert first > later + 100 and later > 40  # the teacher, once
    with pytest.raises(SystemExit, match="alpha=2"):
        plan_of(requested(pair, most_seeds(pair)), ("alpha=2",))


def test_a_gated_study_has_no_seeds_before_its_gate_has_decided() -> None:
    gated = planted(on_beats_off, name="gated", seeds=(), gate=Gate(("x=1",), "rouge2", 0.1, 0.9, (4, 5, 6), 2))
    pair = [planted(on_beats_off), gated]
    assert first_stage_seeds(pair) == {"planted": (0, 1, 2), "gated": ()}
    assert most_seeds(pair) == {"planted": (0, 1, 2), "gated": (4, 5)}
    cells = [cell for name, cell in requested(pair, first_stage_seeds(pair)) if name == "gated"]
    assert cells == gated.gate_cells() and len(cells) == 3


def test_finished_jobs_are_kept_and_failed_ones_named(tmp_path: Path) -> None:
    make_run(tmp_path / "done", {}, eval={})
    failed = run_jobs([Job("done", ("alpha=nonsense",)), Job("bad", ("alpha=2",))], tmp_path, workers=2)
    assert failed == ["bad"]
    assert "alpha takes a number >= 0 and <= 1" in (tmp_path / "bad" / "run.log").read_text(encoding="utf-8")


@pytest.fixture
def fake_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs that take no time: their overrides, and their metric from `value`."""
    seen: list[list[str]] = []
    state = SimpleNamespace(seen=seen, value=lambda overrides: 1.0, fails=lambda overrides: False)

    def fake(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        overrides = command[3:]
        folder = Path(overrides[-1].removeprefix("hydra.run.dir="))
        seen.append(overrides)
        if state.fails(overrides):
            return subprocess.CompletedProcess(command, 1)
        seed = int(next(one for one in overrides if one.startswith("seed=")).removeprefix("seed="))
        value = {"rouge2": {"mean": state.value(overrides), "low": 0, "high": 0, "n": 5}}
        cost = {"time/total": 1.5, "flops/student": 2.0, "flops/teacher": 1.0}
        results = {"student before": value, "student after": value, "cost": cost}
        record = record_of(1, 0.0, status="finished", started=10.0, ended=70.0)
        (folder / "run.log").unlink()
        folder.rmdir()
        make_run(folder, {"seed": seed}, eval=results, run=record)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(planning.subprocess, "run", fake)
    return state


def arguments(folder: Path, **more: Any) -> argparse.Namespace:
    plain = {"folder": folder, "workers": 2, "plan": False, "read": False, "out": None, "seeds": None, "overrides": []}
    return argparse.Namespace(**{**plain, **more})


def test_finished_runs_are_kept_and_the_others_run_again(tmp_path: Path, fake_runs: Any) -> None:
    one = planted(on_beats_off)
    fake_runs.value = lambda overrides: 1.0 if "lmbda=0" in overrides else 2.0 + 0.1 * ("seed=1" in overrides)
    fake_runs.fails = lambda overrides: "seed=2" in overrides and "lmbda=0" in overrides
    found = runner.conduct([one], arguments(tmp_path))
    assert found is not None and len(fake_runs.seen) == 6
    (claim,) = found.summaries["planted"]["claims"]
    assert claim["verdict"] == "shown" and claim["missing"] == ["off, seed 2"]
    assert found.summaries["planted"]["missing"] == ["off, seed 2"]
    assert (found.facts["finished"], found.facts["runs"], found.facts["run seconds"]) == (5, 6, 300.0)
    with pytest.raises(SystemExit, match="1 runs failed"):
        runner.exit_if_failed(found)
    fake_runs.fails = lambda overrides: False
    again = runner.conduct([one], arguments(tmp_path))
    assert (
        again is not None
        and len(fake_runs.seen) == 7
        and "lmbda=0" in fake_runs.seen[-1]
        and "seed=2" in fake_runs.seen[-1]
    )
    assert again.summaries["planted"]["claims"][0]["missing"] == []
    assert again.facts["failed"] == []
    runner.write(again, [one], tmp_path / "results")
    assert "| 1 | on - off | 1.0 [" in (tmp_path / "results" / "planted.md").read_text(encoding="utf-8")
    assert "| on | 1.5 | 3 | 0 |" in (tmp_path / "results" / "planted.md").read_text(encoding="utf-8")
    summary = json.loads((tmp_path / "results" / "planted.json").read_text())
    assert summary["expected"] == "yes, it does." and summary["command"].endswith("experiments.paper --studies planted")


def test_the_command_writes_statements_and_the_report(
    tmp_path: Path, fake_runs: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = planted(on_beats_off, name="other", conditions={"x": SMALL}, in_paper=False)  # only if it is named
    monkeypatch.setattr(paper, "all_studies", lambda: {"planted": planted(on_beats_off), "other": other})
    fake_runs.value = lambda overrides: float("lmbda=0" not in overrides) + 0.1 * ("seed=1" in overrides)
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
    monkeypatch.setattr(paper, "can_draw_plots", lambda: False)
    paper.main()
    assert "need matplotlib" in capsys.readouterr().err


def test_a_plan_alone_runs_nothing(tmp_path: Path, fake_runs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.conduct([planted(on_beats_off)], arguments(tmp_path, plan=True)) is None
    assert "2 conditions x 3 seeds: 6 runs" in capsys.readouterr().err and not fake_runs.seen
    found = runner.conduct([planted(on_beats_off)], arguments(tmp_path, read=True, overrides=["scale=embedded"]))
    assert found is not None and not fake_runs.seen and found.facts["overrides"] == []
    with pytest.raises(SystemExit, match="scale=paper"):
        runner.conduct([planted(on_beats_off)], arguments(tmp_path, overrides=["scale=paper"]))


def test_a_gate_lets_in_the_first_students_with_room_and_lists_the_others(tmp_path: Path, fake_runs: Any) -> None:
    before = {0: 0.0, 1: 0.5, 2: 0.95, 3: 0.9, 4: 0.05, 5: 0.3}
    fake_runs.value = lambda overrides: (
        before[int(overrides[-2].removeprefix("seed="))] if "experiment=sft" in overrides else 1.0
    )
    gate = Gate(("experiment=sft",), "rouge2", 0.05, 0.9, (0, 1, 2, 3, 4, 5), 3)
    one = planted(on_beats_off, seeds=(), gate=gate)
    found = runner.conduct([one], arguments(tmp_path))
    assert found is not None
    assert found.summaries["planted"]["seeds"] == [1, 3, 4]
    words = {seed: entry[""] for seed, entry in found.summaries["planted"]["students"]["candidates"].items()}
    assert words == {
        **dict.fromkeys((1, 3, 4), "takes part"),
        **{0: "failed", 2: "at the ceiling", 5: "not needed"},
    }
    assert len(fake_runs.seen) == 6 + 3 * 2
    text = runner.markdown(one, found.summaries["planted"])
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


def test_seeds_of_the_command_line(tmp_path: Path, fake_runs: Any) -> None:
    found = runner.conduct([planted(on_beats_off)], arguments(tmp_path, seeds="7,9,7"))
    assert found is not None and found.summaries["planted"]["seeds"] == [7, 9] and len(fake_runs.seen) == 4
    with pytest.raises(SystemExit, match="--seeds one: takes whole numbers"):
        runner.conduct([planted(on_beats_off)], arguments(tmp_path, seeds="one"))
    gate = Gate(("experiment=sft",), "rouge2", 0.05, 0.9, (0, 1), 1)
    with pytest.raises(SystemExit, match="selected by a gate"):
        runner.conduct([planted(on_beats_off, seeds=(), gate=gate)], arguments(tmp_path, seeds="1"))


def test_a_study_file_runs_its_first_study_or_the_one_that_is_named(
    tmp_path: Path, fake_runs: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = planted(on_beats_off), planted(on_beats_off, name="second", seeds=(4,))
    for typed, name, runs in (([], "planted", 6), (["--study", "second", "--workers", "1"], "second", 2)):
        fake_runs.seen.clear()
        monkeypatch.setattr(sys, "argv", ["studies", *typed, "--folder", str(tmp_path / name)])
        runner.main(*pair)
        assert len(fake_runs.seen) == runs
        assert [path.stem for path in (tmp_path / name / "results").glob("*.json")] == [name]
        assert "**does it?**" in capsys.readouterr().out


@pytest.mark.slow
def test_two_real_runs_from_the_command_to_the_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forked(command: list[str], stdout: TextIO, **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[:3] == [sys.executable, "-m", "gkd_rl.run"]
        done = run_forked(command[3:], tmp_path, GKD_RL_CACHE=str(tmp_path / "cache"))
        stdout.write(done.stdout + done.stderr)
        return done

    monkeypatch.setattr(planning.subprocess, "run", forked)
    warm = ("evaluation.temperatures=[1.0,0.1]",)
    pair = {"on": (*SMALL, *warm), "off": (*SMALL, "lmbda=0")}
    one = planted(on_beats_off, conditions=pair, seeds=(0,))
    found = runner.conduct([one], arguments(tmp_path / "runs"))
    assert found is not None and found.facts["finished"] == 2 and found.facts["failed"] == []
    (claim,) = found.summaries["planted"]["claims"]
    assert claim["verdict"] == "undecided" and claim["effects"]["difference"]["n"] == 1  # one seed has no interval
    results = json.loads((tmp_path / "runs" / Cell(pair["on"], 0).folder / "eval.json").read_text())["student after"]
    assert results["temperature_1/self_bleu"]["mean"] == results["self_bleu"]["mean"]
    assert results["temperature_0.1/self_bleu"]["mean"] >= results["self_bleu"]["mean"]
    assert {"temperature_1/rouge2", "temperature_0.1/rouge2"} <= results.keys()
    assert found.summaries["planted"]["cost"]["on"]["time/total"]["mean"] > 0
