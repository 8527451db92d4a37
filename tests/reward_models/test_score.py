"""`python -m reward_models.score`: any text, any reward of conf/, and one message for what cannot be scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reward_models.score import load_reward, main, reward_files

ROWS = [
    {"prompt": "p", "completion": "the cat sat", "reference": "the cat sat"},
    {"prompt": "p", "completion": "a dog", "reference": "the cat sat"},
]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_means_and_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.jsonl"
    file = write(tmp_path / "rows.jsonl", ROWS * 3)
    assert main(["--reward", "rouge", "--file", file, "--out", str(out), "--batch-size", "4"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "6 rows",
        "reward                  0.5000",
        "rouge                   0.5000",
    ]
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert rows == [{"reward": score, "rouge": score} for score in (1.0, 0.0)] * 3


def test_a_reward_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(
        "components:\n  short: {_target_: reward_models.text.form.LengthPenalty, longest: 2}\n"
        "  chrf: {_target_: reward_models.text.overlap.Overlap, kind: chrf}\nweights: {short: 2.0, chrf: 1.0}\n"
    )
    file = write(tmp_path / "rows.jsonl", [{"text": "the cat sat", "reference": "the cat sat"}])
    assert main(["--reward", str(own), "--file", file, "--completion", "text"]) == 0
    assert "reward                  0.0000" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(path.stem for path in reward_files().glob("*.yaml") if path.stem != "none"))
def test_every_reward_loads(name: str) -> None:
    changes = {
        "code_execution": ["components.code.allow_code_execution=true"],
        "judge": ["components.judge.server.model=m"],
    }
    assert load_reward(name, changes.get(name, [])).components


def test_settings_that_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "rows.jsonl", ROWS)
    assert main(["--reward", "rouge", "components.rouge.kind=rouge1", "weights.rouge=2", "--file", file]) == 0
    assert "reward                  1.0000" in capsys.readouterr().out
    assert main(["--reward", "rouge", "components.rouge.kind", "--file", file]) == 1
    assert "a setting is KEY=VALUE" in capsys.readouterr().err
    assert main(["--reward", "judge", "--file", file]) == 1
    assert "components.judge.server.model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "rows", "message"),
    [
        (["--reward", "nope"], ROWS, "it takes one of"),
        (["--reward", "none"], ROWS, "has no components"),
        (
            ["--reward", "rouge"],
            [ROWS[0], {"completion": 3}],
            "row 2: it takes a JSON object with a text in 'completion'",
        ),
        (["--reward", "rouge"], [ROWS[0], {"completion": "x"}], "row 2: its columns differ"),
        (["--reward", "rouge"], [{"completion": "x"}], "needs a column"),
        (["--reward", "rouge"], [], "it has no rows"),
        (["--reward", "rouge", "--batch-size", "0"], ROWS, "--batch-size 0"),
    ],
)
def test_refusals(
    arguments: list[str], rows: list[Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--file", write(tmp_path / "rows.jsonl", rows)]) == 1
    assert message in capsys.readouterr().err


def test_text_that_is_no_utf8_is_named_by_its_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(json.dumps(ROWS[0]).encode() + b"\n\xff\xfe\n")
    assert main(["--reward", "rouge", "--file", str(file)]) == 1
    assert "row 2: it is not JSON in UTF-8" in capsys.readouterr().err


def test_code_of_other_packages_is_refused(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("components:\n  x: {_target_: os.system, command: ls}\nweights: {x: 1.0}\n")
    with pytest.raises(ValueError, match=r"components\.x\._target_ takes a class of gkd_rl or reward_models"):
        load_reward(str(own))
    own.write_text(
        "components:\n  x: {_target_: reward_models.models.judge.Judge, server: {_target_: os.system, command: ls}}\n"
        "weights: {x: 1.0}\n"
    )
    with pytest.raises(ValueError, match=r"components\.x\.server\._target_ takes a class"):
        load_reward(str(own))
