"""MT-Bench: both turns, a judge on a local server, and verdicts that cannot be read."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from judge_server import JudgeServer, running_server

from gkd_rl import evaluate
from gkd_rl.evaluation.benchmarks import mt_bench
from gkd_rl.evaluation.benchmarks.mt_bench import PROMPTS, Question, read_grade, read_questions, summarise
from reward_models.models import judge as judge_module

ROWS = [
    {"question_id": 1, "category": "writing", "turns": ["Write.", "Again."]},
    {"question_id": 2, "category": "math", "turns": ["1+1?", "Twice?"], "reference": ["2", "4"]},
    {"question_id": 3, "category": "stem", "turns": ["Why?", "How?"]},
]


def verdict(text: str) -> str:
    """The judge's reply, by the turns in its prompt."""
    if "Why?" in text and "How?" in text:
        return "I cannot say."
    return "Rating: [[8]]" if "1+1?" in text else "Rating: [[4.5]]"


class Lm:
    """Answers with the number of the turn, and records its prompts."""

    def __init__(self, template: bool) -> None:
        self.tokenizer = SimpleNamespace(chat_template="x" if template else None)
        self.requests: list[tuple[str, dict[str, Any]]] = []

    def apply_chat_template(self, chat: list[dict[str, str]]) -> str:
        return "".join(f"<{one['role']}>{one['content']}" for one in chat)

    def generate_until(self, requests: list[Any]) -> list[str]:
        self.requests += [request.args for request in requests]
        return [f" answer {len(self.requests) // len(requests)} \n" for _ in requests]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    monkeypatch.setattr(judge_module, "FIRST_PAUSE", 0.01)
    with running_server() as server:
        server.reply = verdict
        yield server


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    file = tmp_path / "question.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


def arguments(server: JudgeServer, questions: Path, *more: str) -> list[str]:
    judge = [f"mt_bench.judge.url={server.url}", "mt_bench.judge.model=judge", "mt_bench.judge.parallel=1"]
    return ["model=any", "suite=mt_bench", f"data.mt_bench={questions}", *judge, *more]


@pytest.mark.parametrize("template", [False, True])
def test_both_turns_are_answered_and_graded(
    template: bool, server: JudgeServer, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    lm = Lm(template)
    monkeypatch.setattr("gkd_rl.evaluation.benchmarks.harness.load", lambda config: lm)
    monkeypatch.setenv("JUDGE_KEY", "secret")
    output = tmp_path / "out"
    server.codes += [503, 429]  # tried again
    given = arguments(server, questions, "mt_bench.judge.api_key_variable=JUDGE_KEY", f"output={output}")
    assert evaluate.main(given) == 0
    result = json.loads((output / "results.json").read_text())["mt_bench"]
    scores = result["scores"]
    assert (result["verdicts"], result["unreadable"]) == (6, 1)
    assert scores["turn 1"] == {"mean": pytest.approx((4.5 + 8 + 4.5) / 3), "stderr": pytest.approx(3.5 / 3), "n": 3}
    assert scores["turn 2"]["n"] == 2 and scores["math"] == {"mean": 8.0, "stderr": None, "n": 2}
    assert scores["stem"] == {"mean": 4.5, "stderr": None, "n": 1}  # the unreadable one is left out, not 0
    assert scores["mean"]["mean"] == pytest.approx((4.5 * 3 + 8 * 2) / 5)
    assert set(server.keys) == {"Bearer secret"} and "secret" not in (output / "results.json").read_text()
    assert {one["path"] for one in server.requests} == {"/v1/chat/completions"}
    first, second = lm.requests[0][0], lm.requests[3][0]
    if template:
        assert (first, second) == ("<user>Write.", "<user>Write.<assistant>answer 1<user>Again.")
    else:
        assert second == "User: Write.\nAssistant: answer 1\nUser: Again.\nAssistant:"
    assert [one[1].get("temperature") for one in lm.requests] == [0.7, None, 0.1] * 2
    graded = [one["messages"] for one in server.requests if len(one["messages"]) == 2]
    assert len(graded) == 6
    system, user = graded[3][0]["content"], graded[3][1]["content"]  # the second turn of the mathematical one
    assert "compare the answer with the reference" in system and "second question" in system
    assert user.index("### Reference answer:\n4") < user.index("### Assistant A:\nanswer 2")
    table = capsys.readouterr().out
    assert "1 of 6 verdicts unreadable" in table and "mt_bench turn 1" in table


def test_a_judge_that_fails_leaves_the_answers(
    server: JudgeServer, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("gkd_rl.evaluation.benchmarks.harness.load", lambda config: Lm(True))
    server.codes += [200, 401]  # the first is the check
    assert evaluate.main(arguments(server, questions, f"output={tmp_path / 'out'}")) == 1
    assert "answers HTTP 401" in capsys.readouterr().err
    answers = json.loads((tmp_path / "out" / "mt_bench_answers.json").read_text())
    assert [row["answers"] for row in answers] == [["answer 1", "answer 2"]] * 3
    server.codes += [401]
    assert evaluate.main(arguments(server, questions, f"output={tmp_path / 'other'}")) == 1
    assert not (tmp_path / "other").exists()  # refused before the model was loaded


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("Rating: [[7]]", 7.0),
        ("[[9.5]] or [[3]]", 9.5),
        ("Rating: [6]", 6.0),
        ("[[0]]", None),
        ("[[11]]", None),
        ("seven of ten", None),
        ("[[rating]]", None),
    ],
)
def test_grades_are_read(text: str, grade: float | None) -> None:
    assert read_grade(text) == grade


def test_standard_errors_take_questions_as_clusters() -> None:
    questions = [Question(i, "math", ("", ""), None) for i in range(4)]
    grades = [[1.0, 1.0], [4.0, 4.0], [7.0, 7.0], [10.0, 10.0]]
    scores = summarise(questions, grades)["scores"]
    single = statistics.stdev([1, 4, 7, 10]) / 2
    assert scores["turn 1"]["stderr"] == pytest.approx(single)
    assert scores["mean"]["stderr"] == pytest.approx(single)  # an equal second grade adds no information


def test_reference_answers_and_prompts_of_fastchat(questions: Path, tmp_path: Path) -> None:
    (tmp_path / "reference_answer").mkdir()
    row = {"question_id": 3, "choices": [{"index": 0, "turns": ["so", "thus"]}]}
    (tmp_path / "reference_answer" / "gpt-4.jsonl").write_text(json.dumps(row))
    found = read_questions(str(tmp_path), None)
    assert [one.references for one in found] == [None, ("2", "4"), ("so", "thus")]
    rows = [{"name": name, "system_prompt": "s", "prompt_template": "{question}"} for name in PROMPTS]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    assert mt_bench._read_prompts(str(file))["single-v1"] == ("s", "{question}")
    file.write_text(json.dumps(rows[0]))
    with pytest.raises(ValueError, match=r"it takes FastChat's judge_prompts\.jsonl"):
        mt_bench._read_prompts(str(file))
