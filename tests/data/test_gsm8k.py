"""GSM8K: rows and splits, messages that say what to type, and the exact-match reward on official solutions."""

from __future__ import annotations

import json
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from conftest import configured

from gkd_rl.data.tasks.gsm8k import Gsm8k
from gkd_rl.errors import DataError
from gkd_rl.pipeline.build import build_reward, build_task
from reward_models.text.answers import ExactMatch, answer_of, numbers
from reward_models.text.equations import recalculate

OFFICIAL = [  # from the training split of Cobbe et al. 2021 (MIT licence)
    {
        "question": "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. "
        "How many clips did Natalia sell altogether in April and May?",
        "answer": "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n"
        "Natalia sold 48+24 = <<48+24=72>>72 clips altogether in April and May.\n#### 72",
    },
    {
        "question": "Weng earns $12 an hour for babysitting. Yesterday, she just did 50 minutes of babysitting. "
        "How much did she earn?",
        "answer": "Weng earns 12/60 = $<<12/60=0.2>>0.2 per minute.\n"
        "Working 50 minutes, she earned 0.2 x 50 = $<<0.2*50=10>>10.\n#### 10",
    },
    {
        "question": "The stadium seats 60,000 fans, but only 75% of the seats were sold for the music show. Because of "
        "the threat of rain, 5,000 fans stayed home. How many attended the show?",
        "answer": "The number of seats sold was 0.75*60,000=<<0.75*60000=45000>>45,000.\n"
        "And 45,000-5,000=<<45000-5000=40000>>40,000.\n#### 40,000",
    },
]


def task_of(**changes: Any) -> Gsm8k:
    settings = configured("task=gsm8k", "scale=single_gpu", "task.data=files").task
    return Gsm8k(**({name: value for name, value in settings.items() if name != "_target_"} | changes))


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def numbered(count: int, name: str = "train") -> list[dict[str, Any]]:
    return [{"question": f"{name} {i}?", "answer": f"<<{i}={i}>>{i}\n#### {i}"} for i in range(count)]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    return {name: write(tmp_path / f"{name}.jsonl", numbered(10, name)) for name in ("train", "test")}


def test_official_rows(tmp_path: Path, files: dict[str, str]) -> None:
    path = write(tmp_path / "official.jsonl", OFFICIAL)
    task = task_of(data_files=files | {"test": path})
    rows = task.examples("test")
    assert rows[0].prompt == f"Question: {OFFICIAL[0]['question']}\nAnswer:"
    assert rows[0].reference == (
        "Natalia sold 48/2 = 24 clips in May.\nNatalia sold 48+24 = 72 clips altogether in April and May.\n#### 72"
    )
    assert [row.columns for row in rows] == [{"final_answer": text} for text in ("72", "10", "40,000")]
    kept = task_of(data_files=files | {"test": path}, strip_annotations=False, prompt_template="{question} A:")
    assert [row.reference for row in kept.examples("test")] == [row["answer"] for row in OFFICIAL]
    assert kept.examples("test")[2].prompt == OFFICIAL[2]["question"] + " A:"
    assert task.tokenizer() is None


def test_validation_is_the_end_of_train_and_not_trained_on(files: dict[str, str]) -> None:
    names = {
        split: [row.prompt.split("?")[0] for row in task_of(data_files=files, validation_size=3).examples(split)]
        for split in ("train", "validation", "test")
    }
    assert names["train"] == [f"Question: train {i}" for i in range(7)]
    assert names["validation"] == [f"Question: train {i}" for i in (7, 8, 9)]
    assert names["test"] == [f"Question: test {i}" for i in range(10)]
    small = task_of(data_files=files, validation_size=3, train_size=2, test_size=4)
    assert [len(small.examples(split)) for split in names] == [2, 3, 4]
    assert small.examples("validation") == task_of(data_files=files, validation_size=3).examples("validation")
    with pytest.raises(DataError, match=r"task\.validation_size=10: .*has 10; .*task\.data_files\.validation"):
        task_of(data_files=files, validation_size=10).examples("train")


def test_a_validation_file_leaves_train_whole(tmp_path: Path, files: dict[str, str]) -> None:
    own = files | {"validation": write(tmp_path / "v.jsonl", numbered(6, "own"))}
    task = task_of(data_files=own, validation_size=4)
    assert [row.columns["final_answer"] for row in task.examples("train")] == [str(i) for i in range(10)]
    assert [row.prompt for row in task.examples("validation")] == [f"Question: own {i}?\nAnswer:" for i in range(4)]


def test_the_hub_configuration_is_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def load_dataset(*arguments: Any, split: str) -> list[dict[str, Any]]:
        calls.append((*arguments, split))
        return numbered(10)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    task = task_of(data="hub", validation_size=3)
    assert [len(task.examples(split)) for split in ("train", "validation", "test")] == [7, 3, 10]
    assert calls == [("openai/gsm8k", "main", split) for split in ("train", "train", "test")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"needs task\.data_files\.train.* type 'task\.data_files=\{train: train\.jsonl, test: test\.jsonl\}"),
        ({"data_files": {"train": "a.jsonl"}}, r"needs task\.data_files\.test"),
        ({"data_files": {"train": "a", "test": "b", "dev": "c"}}, r"task\.data_files\.dev=c: there is no such split"),
        ({"data": "hub", "data_files": {"train": "a.jsonl"}}, r"needs task\.data_files\.test"),
        ({"data": "hub", "shots": 5}, r"task\.shots=5: it takes a whole number from 0 to 4"),
        ({"data": "hub", "answer_style": "latex"}, r"task\.answer_style=latex: it takes hashes"),
        ({"data": "web"}, r"task\.data=web: task\.data takes embedded, files"),
        ({"data": "hub", "prompt_template": "Q:"}, r"task\.prompt_template='Q:': it takes a text with \{question\}"),
    ],
)
def test_messages_about_settings_name_what_to_type(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        task_of(**changes)


def test_rows_that_cannot_be_used_are_named(tmp_path: Path, files: dict[str, str]) -> None:
    path = write(tmp_path / "bad.jsonl", [{"question": "q", "answer": "it is 4"}, *numbered(4)])
    for split, data_files in (("validation", files | {"train": path}), ("test", files | {"test": path})):
        task = task_of(data_files=data_files, validation_size=1)
        assert task.examples(split)[-1].columns == {"final_answer": "3"}
        report = task.row_reports["test" if split == "test" else "train"]
        assert report.reasons() == "column 'answer' has no final answer like '#### 72': row 1"
        with pytest.raises(DataError, match=r"bad\.jsonl: 1 of 5 rows cannot be used: .*row 1"):
            task_of(data_files=data_files, validation_size=1, on_malformed="refuse").examples(split)
    with pytest.raises(DataError, match=r"column 'text' is missing: .*task\.question_column=text"):
        task_of(data_files=files, question_column="text").examples("test")
    with pytest.raises(DataError, match="split 'dev' is unknown"):
        task_of(data_files=files).examples("dev")


def test_the_experiment_requires_its_data_before_anything_is_loaded(files: dict[str, str]) -> None:
    config = configured("experiment=gsm8k_rl", "scale=single_gpu", "task.data=files")
    with pytest.raises(DataError, match=r"type 'task\.data_files="):
        build_task(config)
    config.task["data_files"] = files
    config.task["validation_size"] = 3
    rows = build_task(config).examples("train")
    reward = build_reward(config)
    assert reward is not None
    columns = {"final_answer": [row.columns["final_answer"] for row in rows]}
    scores = reward([row.prompt for row in rows], [row.reference for row in rows], **columns)
    assert scores.total == scores.components["exact_match"] == [1.0] * 7
    for news in ("news", "embedded"):  # nothing of the generated articles is left
        assert news not in (config.scale.name + config.scale.notice).lower()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1,234,567 and 12.50", ["1234567", "12.5"]),
        ("$72. 72% 72.", ["72", "72", "72"]),
        ("-5, -$5, $-5, (-5), \u22125", ["-5"] * 5),
        ("10-5 = 5, 10 - 5 = 5", ["10", "5", "5", "10", "5", "5"]),
        ("(3)-2", ["3", "2"]),
        ("1,2 or 1234,567", ["1", "2", "1234", "567"]),
        (".5 0.5", ["0.5", "0.5"]),
        ("none", []),
    ],
)
def test_numbers_of_a_text(text: str, found: list[str]) -> None:
    assert numbers(text) == [Decimal(one) for one in found]


def test_the_marker_comes_first_then_the_last_number() -> None:
    assert answer_of("9 apples\n#### 72\n#### 5\nthen 3", "nothing") == 72
    assert answer_of("#### $1,000.00 a day, or 3", "nothing") == 1000
    assert answer_of("#### Paris.", "last_number") == answer_of("####paris", "last_number") == "paris"
    assert answer_of("####\n72", "last_number") is None
    assert answer_of("it is 5, so 72.", "last_number") == 72
    assert answer_of("it is 5, so 72.", "nothing") is answer_of("no idea", "last_number") is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So 21 - 15 = 6. The answer is 6.", 6),
        ("the final answer is: $1,000.50 for 3 days\nQ: 4", Decimal("1000.5")),
        ("The answer is 20 - 12 = 8 lollipops.", 8),
        ("The answer is <<8=8>>8.\n#### 9", 9),
        ("The answer is Paris.", "paris"),
    ],
)
def test_answers_in_words(text: str, answer: Decimal | str) -> None:
    assert answer_of(text, "nothing") == answer


def test_four_worked_examples_as_in_the_paper(tmp_path: Path, files: dict[str, str]) -> None:
    """The GKD paper, section A.5, prints this prompt."""
    path = write(tmp_path / "official.jsonl", OFFICIAL)
    style = {"shots": 4, "answer_style": "words", "prompt_template": "Q: {question}\nA:"}
    row = task_of(data_files=files | {"test": path}, **style).examples("test")[0]
    blocks = row.prompt.split("\n\n")
    assert blocks[0] == (
        "Q: There are 15 trees in the grove. Grove workers will plant trees in the grove today. After they are done, "
        "there will be 21 trees. How many trees did the grove workers plant today?\n"
        "A: There are 15 trees originally. Then there were 21 trees after some more were planted. So there must have "
        "been 21 - 15 = 6. The answer is 6."
    )
    assert [answer_of(block, "nothing") for block in blocks[:4]] == [6, 5, 39, 8]
    assert all(block.startswith("Q: ") and recalculate(block) == block for block in blocks)
    assert blocks[4:] == [f"Q: {OFFICIAL[0]['question']}\nA:"]
    assert row.reference == (
        "Natalia sold 48/2 = 24 clips in May. Natalia sold 48+24 = 72 clips altogether in April and May. "
        "The answer is 72."
    )
    again = write(tmp_path / "words.jsonl", [{"question": "q", "answer": row.reference}])
    hashes = task_of(data_files=files | {"test": again}, shots=1).examples("test")[0]
    assert hashes.reference.endswith("in April and May.\n#### 72") and hashes.columns == {"final_answer": "72"}
    assert (
        hashes.prompt.startswith("Question: There are 15") and "= 6.\n#### 6\n\nQuestion: q\nAnswer:" in hashes.prompt
    )


@pytest.mark.skipif("GKD_RL_GSM8K" not in os.environ, reason="the folder of the official files")
def test_the_official_files() -> None:
    folder = Path(os.environ["GKD_RL_GSM8K"])
    with (folder / "train.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    finals = [row["answer"].rpartition("#### ")[2] for row in rows]
    paths = {"train": str(folder / "train.jsonl"), "test": str(folder / "test_first400.jsonl")}
    task = task_of(data_files=paths)
    examples = task.examples("train") + task.examples("validation")
    assert [one.columns["final_answer"] for one in examples] == finals and len(finals) == 7473
    assert len(task.examples("test")) == 400 and not any(report.problems for report in task.row_reports.values())
    truths = [Decimal(text.replace(",", "")) for text in finals]
    assert [answer_of(one.reference, "nothing") for one in examples] == truths
    words = task_of(data_files=paths, answer_style="words").examples("train")
    assert [answer_of(one.reference, "nothing") for one in words] == truths[: len(words)]
    found = [answer_of(recalculate(one.reference), "nothing") for one in examples]
    assert sum(answer != truth for answer, truth in zip(found, truths, strict=True)) <= 13  # they do not hold


def test_official_solutions_match_themselves_and_no_other() -> None:
    reward = ExactMatch("last_number")
    solutions = [row["answer"] for row in OFFICIAL]
    finals = ["72", "10", "40,000"]
    unmarked = [text.replace("#### ", "so it is $") + ".00." for text in solutions]
    for completions in (solutions, unmarked):
        assert reward(solutions, completions, final_answer=finals, reference=["unused"] * 3) == [1.0, 1.0, 1.0]
        assert reward(solutions, completions, reference=solutions) == [1.0, 1.0, 1.0]
        assert reward(solutions, completions[1:] + completions[:1], final_answer=finals) == [0.0, 0.0, 0.0]
    assert ExactMatch("nothing")(solutions, unmarked, final_answer=finals) == [0.0, 0.0, 0.0]
    assert reward(["p"], [""], final_answer=["72"]) == [0.0]
    long = "1" * 60
    assert reward(["p"] * 2, [long, long + "2"], final_answer=[long] * 2) == [1.0, 0.0]
    assert all(type(one) is float for one in reward(solutions, solutions, final_answer=finals))


def test_what_cannot_be_compared_is_refused() -> None:
    reward = ExactMatch("last_number")
    with pytest.raises(ValueError, match="final_answer or reference"):
        reward(["p"], ["72"])
    with pytest.raises(ValueError, match="has no final answer"):
        reward(["p"], ["72"], reference=["no idea"])
    with pytest.raises(ValueError, match=r"zip|shorter|longer"):
        reward(["p"] * 2, ["72", "72"], final_answer=["72"])
    with pytest.raises(ValueError, match="otherwise=guess: takes last_number or nothing"):
        ExactMatch("guess")  # pyright: ignore[reportArgumentType]


def test_the_calculator_is_a_setting() -> None:
    slip = "He has 3 + 4 = 8 apples and eats 2. 8 - 2 = 6. The answer is 6."
    for calculator in (False, True):
        assert ExactMatch("nothing", calculator)(["p"], [slip], final_answer=["5"]) == [float(calculator)]
    paper, gpu = (configured("experiment=gkd", "task=gsm8k", f"scale={one}") for one in ("paper", "single_gpu"))
    rewards = [config.reward.components["exact_match"]["calculator"] for config in (paper, gpu)]
    assert rewards == [True, False] and (paper.task["shots"], gpu.task["shots"]) == (4, 0)
