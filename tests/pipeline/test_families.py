"""Translation, walks and the instruction mixture: rows from generators and files, rewards of each kind, new ones."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import configured
from forked import run_forked

from gkd_rl.data.embedded.splits import split_of
from gkd_rl.data.task import row_reports
from gkd_rl.data.tasks.instruct import Instruct
from gkd_rl.data.tasks.walk import Walk
from gkd_rl.data.tasks.wmt import Wmt
from gkd_rl.errors import DataError
from gkd_rl.pipeline import build

ROOT = Path(__file__).resolve().parents[2]
SHORT = (
    "student.sft.steps=2", "teacher.sft.steps=2", "trainer.steps=2", "trainer.prompts_per_step=2", "tracking=none",
    "evaluation.rollout_prompts=4", "evaluation.self_bleu_prompts=0", "scale.threads=1", "save_model=false",
)  # fmt: skip


def task_of(name: str, *changes: str) -> Any:
    """The task of a file in conf/, with other settings."""
    node = dict(configured(f"task={name}").task)
    for change in changes:
        key, _, value = change.partition("=")
        assert key in node
        node[key] = yaml.safe_load(value)
    return build.construct(node, "task")


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", ["wmt", "walk", "instruct", "gsm8k"])
def test_references_are_right_by_the_reward_of_the_task(name: str) -> None:
    sizes = [f"task.{split}_size=400" for split in ("train", "validation", "test")]
    config = configured(f"task={name}", *sizes)
    task, reward = build.build_task(config), build.build_reward(config)
    assert reward is not None
    for split in ("train", "validation", "test"):
        rows = task.examples(split)
        columns = {key: [row.columns[key] for row in rows] for key in rows[0].columns}
        texts = [row.reference for row in rows]
        scores = reward([row.prompt for row in rows], texts, reference=texts, **columns)
        if name == "instruct":  # summaries name what their article does not state
            known = [score for score, kind in zip(scores.total, columns["kind"], strict=True) if kind != "news"]
            assert set(known) == {1.0} and 250 < len(known) < 350
        else:
            assert set(scores.total) == {1.0} and len(rows) == 400
        crossed = reward([row.prompt for row in rows], [*texts[1:], texts[0]], reference=texts, **columns)
        exact = crossed.components["accepted"] if name == "wmt" else crossed.total  # chrF is never quite 0
        assert sum(exact) < 40
        tokenizer = task.tokenizer()
        assert tokenizer is not None
        prompts, completions = ([len(tokenizer(text)["input_ids"]) for text in side] for side in zip(*(
            (row.prompt, row.reference) for row in rows
        ), strict=True))  # fmt: skip
        assert max(prompts) <= task.max_prompt_tokens and max(completions) <= task.max_completion_tokens


def test_pairs_of_sentences_from_files(tmp_path: Path) -> None:
    rows = [{"translation": {"en": f"house {i}", "de": f"Haus {i}"}} for i in range(3)]
    file = write(tmp_path / "a.jsonl", rows)
    files = f"data_files={{train: {file}, validation: {file}, test: {file}}}"
    task = task_of("wmt", files, "prompt_prefix='translate: '")
    assert isinstance(task, Wmt)
    (first, *_) = task.examples("test")
    assert (first.prompt, first.reference, first.columns) == ("translate: house 0", "Haus 0", {"accepted": ["Haus 0"]})
    assert task.tokenizer() is None and task.row_reports["test"].read == 3
    flat = write(tmp_path / "b.jsonl", [{"en": "cat", "de": "Katze"}, {"en": "", "de": "x"}])
    task = task_of(
        "wmt", f"data_files={{train: {flat}, validation: {flat}, test: {flat}}}", "source_column=en", "target_column=de"
    )
    assert [row.reference for row in task.examples("train")] == ["Katze"]
    with pytest.raises(DataError, match=r"needs task\.data_files\.validation"):
        task_of("wmt", f"data_files={{train: {file}}}")
    with pytest.raises(DataError, match=r"task\.data=web"):
        task_of("wmt", "data=web")


def test_walks_fit_their_prompts() -> None:
    with pytest.raises(DataError, match=r"task\.targets=13: it takes a whole number from 1 to"):
        task_of("walk", "targets=13")
    task = task_of("walk", "targets=2", "train_size=5")
    assert isinstance(task, Walk) and all(len(row.prompt.split()) == 6 for row in task.examples("train"))
    with pytest.raises(DataError, match="split 'dev' is unknown"):
        task.examples("dev")


def test_weights_of_the_mixture() -> None:
    task = task_of("instruct", "mixture={news: 0, translation: 3, word_problems: 1, instructions: 0}", "train_size=200")
    kinds = [row.columns["kind"] for row in task.examples("train")]
    assert (kinds.count("translation"), kinds.count("word_problems"), len(kinds)) == (150, 50, 200)
    assert 20 < kinds[:50].count("translation") < 50, "they are mixed"
    assert task.examples("train") == task.examples("train")


def test_word_problems_of_the_mixture_are_the_short_ones() -> None:
    task = task_of("instruct", "mixture={news: 0, translation: 0, word_problems: 1, instructions: 0}", "train_size=800")
    for row in task.examples("train"):
        numbers = [int(number) for number in re.findall(r"\d+", f"{row.prompt} {row.reference}")]
        assert max(numbers) <= 20 and 1 <= row.reference.count("=") <= 2, row


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("mixture={poems: 1}", r"task\.mixture\.poems: there is no such source; sources are news, translation"),
        ("mixture={news: -1}", r"task\.mixture\.news=-1.*: a weight takes a number >= 0"),
        ("mixture={news: 0, translation: 0, word_problems: 0, instructions: 0}", "at least one weight must be above 0"),
        ("prompt_template=hello", r"takes a text with \{instruction\}"),
        ("data_files={test: a.jsonl}", "needs train"),
        ("data_files={train: a.jsonl, dev: b.jsonl}", r"task\.data_files\.dev: there is no such split"),
        ("sources={own: {file: a}}", "a source takes data_files, hub_id"),
    ],
)
def test_mixtures_that_cannot_be(override: str, message: str) -> None:
    more = ["mixture={own: 1}"] if "own" in override else []
    with pytest.raises(DataError, match=message):
        task_of("instruct", override, *more)


def test_dolly_and_alpaca_files(tmp_path: Path) -> None:
    dolly = [
        {
            "instruction": f"Name animal {i}",
            "context": "in a zoo" if i % 2 else "",
            "response": f"lion {i}",
            "category": "qa",
        }
        for i in range(200)
    ]
    file = write(tmp_path / "dolly.jsonl", [*dolly, {"instruction": "", "context": "", "response": "x"}])
    task = task_of("instruct", f"data_files={{train: {file}}}")
    assert isinstance(task, Instruct) and task.tokenizer() is None
    rows = {split: task.examples(split) for split in ("train", "validation", "test")}
    assert sum(map(len, rows.values())) == 200 and len(rows["train"]) > 130
    for split, items in rows.items():
        assert items and all(split_of(row.prompt) == split for row in items)
    prompts = {row.prompt for items in rows.values() for row in items}
    assert "Name animal 1\n\nin a zoo" in prompts and "Name animal 2" in prompts
    assert task.row_reports["files/train"].unusable == 1
    alpaca = write(tmp_path / "alpaca.jsonl", [{"instruction": "add", "input": "1 2", "output": "3"}] * 3)
    with_test = f"data_files={{train: {file}, test: {alpaca}}}"
    assert len(task_of("instruct", with_test).examples("train")) > len(rows["train"]), "test has a file of its own"
    own_files = f"{{train: {alpaca}, test: {alpaca}, validation: {alpaca}}}"
    own = (
        f"sources={{own: {{data_files: {own_files}, hub_id: '', hub_config: null, "
        "instruction_column: instruction, context_column: input, response_column: output}}"
    )
    task = task_of("instruct", own, "mixture={own: 1, translation: 1}", "test_size=4")
    assert task.tokenizer() is None
    assert sorted(row.columns["kind"] for row in task.examples("test")) == ["own", "own", "translation", "translation"]
    assert next(row for row in task.examples("test") if row.columns["kind"] == "own").prompt == "add\n\n1 2"


@pytest.mark.slow
@pytest.mark.exhaustive
def test_every_generated_task_runs(tmp_path: Path) -> None:
    """In one multirun; the news are in tests/pipeline/test_run.py."""
    tasks = sorted(path.stem for path in (ROOT / "conf" / "preset" / "embedded").glob("*.yaml") if path.stem != "xsum")
    arguments = [
        "-m", "experiment=rl_gkd", f"task={','.join(tasks)}", *SHORT,
        "task.train_size=1000", "task.validation_size=20", "task.test_size=20", f"cache_dir={tmp_path}",
        f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=${task._target_}",
    ]  # fmt: skip
    done = run_forked(arguments, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(file.read_text(encoding="utf-8")) for file in tmp_path.glob("*/eval.json")]
    assert len(found) == len(tasks) == 4
    assert all(results["student after"]["sampled/divergence"]["mean"] > 0 for results in found)


def test_a_task_that_generates_its_rows_has_no_reports() -> None:
    assert row_reports(task_of("walk")) == {}
