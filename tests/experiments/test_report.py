"""The report without a browser: numbers kept, texts made harmless, metrics taken as they come, figures drawn."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_runs import write_run

from experiments.report import __main__ as command
from experiments.report.__main__ import html, main, safe_json
from experiments.report.figures import FIGURES, hypervolume, pareto_front
from experiments.report.payload import (
    CHARACTERS,
    bucketed,
    grid,
    packed,
    payload,
    points_for,
    readable_labels,
    unpacked,
)
from experiments.report.texts import LONGEST, marked, visible
from experiments.runs import find_runs
from gkd_rl.data.embedded.news import NewsChecker, generate


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for alpha in (0.1, 0.5):
        for seed in (0, 1):
            write_run(root / f"sweep/a{alpha}_{seed}", {"alpha": alpha, "seed": seed})
    for lmbda in (0.0, 1.0):
        for name in ("forward_kl", "reverse_kl"):
            changes = {"alpha": 1.0, "lmbda": lmbda, "divergence.name": name, "divergence.beta": None, "name": "gkd"}
            write_run(root / f"gkd/{name}_{lmbda}", changes)
    crashed = write_run(root / "crashed", {"alpha": 0.1, "seed": 2})
    (crashed / "eval.json").unlink()
    return root


@pytest.fixture(scope="module")
def data(folder: Path) -> dict[str, Any]:
    return payload(find_runs([folder]), rows=4)


def runs_of(data: dict[str, Any], group: str) -> list[dict[str, Any]]:
    return [run for run in data["runs"] if run["group"] == group]


@pytest.mark.parametrize("count", [1, 30, 31, 2000])
def test_curves_keep_their_mean_and_every_spike(count: int) -> None:
    values = np.random.default_rng(0).normal(3, 1, count)
    values[count // 2] = 1000.0
    points = 10
    kept = grid(np.arange(count), points)
    places = kept["steps"]
    size = len(places) if isinstance(places, list) else places["count"]
    found = unpacked(packed(values, points), size, kept["whole"])
    tolerance = 1000 / 65535
    assert kept["whole"] == (count <= 30) and found.shape == ((1, count) if count <= 30 else (3, points))
    assert abs(found.max() - 1000) < tolerance and abs(found.min() - values.min()) < tolerance
    if kept["whole"]:
        assert np.abs(found[0] - values).max() < tolerance
    else:
        sizes = np.diff(np.linspace(0, count, points + 1).round())
        assert np.average(found[0], weights=sizes) == pytest.approx(values.mean(), abs=tolerance)
        assert (found[1] <= found[0] + tolerance).all() and (found[0] <= found[2] + tolerance).all()


def test_equal_values_take_no_levels_even_after_averaging() -> None:
    assert packed(np.full(2000, 0.3), 10)[2] == ""
    assert unpacked(packed(np.full(2000, 0.3), 10), 10, False) == pytest.approx(0.3)


def test_steps_that_are_not_even_are_listed() -> None:
    assert grid(np.array([1, 5, 6]), 10)["steps"] == [1, 5, 6]
    assert grid(np.array([1, 11, 21]), 10)["steps"] == {"start": 1.0, "by": 10.0, "count": 3}
    assert bucketed(np.arange(100.0), 10)[0, 0] == 4.5


def test_a_hundred_runs_of_fifty_metrics_stay_within_the_size() -> None:
    assert points_for(10) == 400 and points_for(100_000) == 40
    assert points_for(5000) * 8 * 5000 <= CHARACTERS


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8))
def test_the_front_and_its_area(pairs: list[tuple[int, int]]) -> None:
    points = np.array(pairs, float)
    front = pareto_front(points)
    for i, one in enumerate(points):
        better = any((other >= one).all() and (other > one).any() for other in points)
        assert front[i] == (not better)
    cells = [(x, y) for x in range(6) for y in range(6) if any(x < a and y < b for a, b in pairs)]
    assert hypervolume(points, (0, 0), (6, 6)) == pytest.approx(len(cells) / 36)


def test_the_page_holds_no_markup_of_its_data(data: dict[str, Any]) -> None:
    hostile = "</script><script>x</script><!-- & \u2028\u2029"
    text = safe_json({"text": hostile})
    assert not set("<>&\u2028\u2029") & set(text) and json.loads(text) == {"text": hostile}
    page = html({**data, "texts": [{"text": hostile + "{{script}}{{policy}}"}]})
    assert page.count("</script>") == 2 and "{{script}}{{policy}}" in page
    assert re.search(r"https?://(?!www\.w3\.org/2000/svg)", page) is None


def test_controls_are_shown() -> None:
    assert visible("a\x1b[31mb\x00\x7f\u202e\ud800\r") == "a␛[31mb␀␡⟨U+202E⟩⟨U+D800⟩␍"
    assert visible("tab\tline\n😀 é") == "tab\tline\n😀 é"
    visible("\ud800\x85").encode("utf-8")


def test_marks_are_the_checkers_unsupported_words() -> None:
    items, checker, unsupported = generate("test", 200, 0), NewsChecker(), 0
    for item in items:
        found, verdict = marked(item.article, item.summary), checker(item.article, item.summary)
        words = sorted(item.summary[start:end] for start, end in found["spans"])
        assert words == sorted(verdict.unsupported)
        assert ("evasive" in found["note"]) == verdict.evasive
        unsupported += len(words)
    assert unsupported > 50
    assert marked(items[0].article, "anna has .") == {"spans": [], "note": "not a sentence of the grammar"}


def test_runs_are_taken_as_they_come(folder: Path, tmp_path: Path, data: dict[str, Any]) -> None:
    assert len(data["runs"]) == 9 and [task["label"] for task in data["tasks"]] == ["xsum, embedded"]
    assert len(runs_of(data, "xsum_rl, α = 0.1, λ = 1, JSD(0.9)")) == 3
    assert [problem["name"] for problem in data["problems"]] == ["crashed"]
    run = write_run(tmp_path / "new", {})
    results = json.loads((run / "eval.json").read_text())
    results["student after"]["smell"] = {"mean": 0.123456789, "low": 0.1, "high": 0.2, "n": 9}
    results["by_position"] = {"student after": {"sampled/forward_kl": [0.5, "nan", 0.25]}}
    (run / "eval.json").write_text(json.dumps(results))
    lines = [json.loads(line) | {"taste": 1.0} for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines[3] |= {"taste": "nan", "entropy": "inf"}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    new = payload(find_runs([tmp_path]), rows=4)
    assert new["runs"][0]["values"]["student after"]["smell"] == [0.123457, 0.1, 0.2, 9]
    assert new["runs"][0]["profiles"] == {"sampled/forward_kl": [0.5, None, 0.25]}
    assert {"smell", "taste"} <= new["measures"].keys() and new["runs"][0]["curves"]["not_finite"] == {"entropy": 1}
    assert new["runs"][0]["curves"]["grids"][new["runs"][0]["curves"]["metrics"]["taste"][0]]["values"] == 29


def test_what_a_run_on_text_alone_logs_is_no_divergence_in_the_curves(tmp_path: Path) -> None:
    for name in ("jsd", "cross_entropy"):
        write_run(tmp_path / name, {"divergence.name": name})
    curves = {
        run["settings"]["divergence"]: run["curves"]["metrics"] for run in payload(find_runs([tmp_path]), 4)["runs"]
    }
    assert "divergence" in curves["JSD(0.9)"] and "cross_entropy" not in curves["JSD(0.9)"]
    assert "cross_entropy" in curves["cross entropy"] and "divergence" not in curves["cross entropy"]


def test_figures_without_matplotlib_are_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda _: None)
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--out", str(tmp_path / "page.html"), "--plots", str(tmp_path / "plots")])
    assert "pip install matplotlib" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_nothing_of_the_machine_is_in_the_page(folder: Path, data: dict[str, Any]) -> None:
    page = html(data)
    assert "/secret" not in page and str(folder) not in page and "cache_dir" not in page


def test_lines_join_runs_whose_other_settings_agree(data: dict[str, Any]) -> None:
    lines = {run["lines"]["lambda"] for run in data["runs"] if run["settings"]["divergence"] == "forward KL"}
    assert len(lines) == 1
    assert len({run["lines"]["tradeoff"] for run in data["runs"] if run["name"].startswith("sweep")}) == 1
    assert {run["lines"]["divergence_lambda"] for run in data["runs"] if run["settings"]["alpha"] == 1} != lines


def test_labels_stay_where_short_ones_would_meet(folder: Path) -> None:
    runs = [run for run in find_runs([folder]) if run.settings["divergence.name"] == "jsd"][:2]
    assert readable_labels(["divergence.beta=0.9 a", "divergence=jsd a"], runs) == [
        "divergence.beta=0.9 a",
        "divergence=jsd a",
    ]


def test_texts_are_kept_once_and_cut(tmp_path: Path) -> None:
    long = "word " * 200_000
    write_run(tmp_path / "a", {}, texts=["same", long])
    write_run(tmp_path / "b", {"seed": 1}, texts=["same", long])
    data = payload(find_runs([tmp_path]), rows=2)
    texts = [entry["text"] for entry in data["texts"]]
    assert texts.count("same") == 1 and max(map(len, texts)) == LONGEST
    assert [entry["left_out"] for entry in data["texts"] if "left_out" in entry] == [len(long) - LONGEST]
    row = data["tasks"][0]["held_out"][0]
    assert row["cells"]["0"]["student after"] == row["cells"]["1"]["student after"]
    assert data["texts"][row["prompt"]]["text"] == generate("test", 1, 0)[0].article


def test_predictions_of_older_runs_get_their_articles_back(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {})
    now = payload(find_runs([tmp_path]), rows=3)
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    stripped = [{key: text for key, text in row.items() if key != "prompt"} for row in rows]
    (run / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in stripped))
    older = payload(find_runs([tmp_path]), rows=3)
    assert older["tasks"] == now["tasks"] and older["texts"] == now["texts"]
    assert [row["row"] for row in now["tasks"][0]["held_out"]] == [1, 2, 3]


@pytest.mark.slow
def test_the_command_line_writes_page_and_figures(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(folder), "--out", str(tmp_path / "deep" / "page.html"), "--plots", str(tmp_path / "plots")])
    assert (tmp_path / "deep" / "page.html").read_text("utf-8").startswith("<!doctype html>")
    drawn = {path.stem.removeprefix("xsum_embedded_") for path in (tmp_path / "plots").glob("*.png")}
    assert drawn == {figure.key for figure in FIGURES} - {"data", "position"}
    for path in (tmp_path / "plots").glob("*.svg"):
        assert path.with_suffix(".png").stat().st_size > 5000 and "<svg" in path.read_text("utf-8")
    assert "9 runs" in capsys.readouterr().out


def test_wrong_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="no run in or below"):
        main([str(tmp_path / "empty")])
    with pytest.raises(SystemExit, match="is no folder"):
        main([str(tmp_path / "absent")])
