"""The judge behind a server: its prompts, how its grade is read, and replies without a grade."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from judge_server import JudgeServer, running_server

from reward_models.composite import Composite
from reward_models.guard import Guard
from reward_models.models import judge as judge_module
from reward_models.models.judge import ChatServer, Judge, ServerError


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_module, "FIRST_PAUSE", 0.001)


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with running_server() as server:
        yield server


def judge_of(server: JudgeServer, **changes: Any) -> Judge:
    where: dict[str, Any] = {"url": server.url, "model": "m", "api_key_variable": None, "timeout": 5.0}
    settings: dict[str, Any] = {
        "verdict": r"Mark:\s*([0-9.]+)",
        "template": "Q: {prompt}\nA: {completion}\nR: {reference}",
        "marks": [1, 10],
    }
    chat = ChatServer(**{name: changes.pop(name, value) for name, value in where.items()})
    return Judge(server=chat, **(settings | changes))


def test_grades_lie_between_0_and_1_in_the_order_of_the_rows(server: JudgeServer) -> None:
    server.reply = lambda content: f"I saw Mark: 2 before. Mark: {content.split()[3]}"
    scores = judge_of(server)(["q"] * 12, [str(1 + i % 10) for i in range(12)], reference=["r"] * 12)
    assert scores == [pytest.approx((i % 10) / 9) for i in range(12)]
    request = server.requests[0]
    assert request["path"] == "/v1/chat/completions" and (request["model"], request["temperature"]) == ("m", 0.0)


def test_braces_in_a_completion_are_text(server: JudgeServer) -> None:
    judge_of(server)(["{completion}"], ["{reference} {x}"], reference=["truth"])
    assert server.requests[0]["messages"][0]["content"] == "Q: {completion}\nA: {reference} {x}\nR: truth"


def test_a_reply_without_a_grade_is_a_failure_and_not_zero(server: JudgeServer) -> None:
    server.reply = lambda content: {"a": "Mark: 11", "b": "no idea", "c": "Mark: 10"}[content.split()[3]]
    assert judge_of(server)(["q"] * 3, ["a", "b", "c"]) == [None, None, 1.0]
    replace = Composite({"judge": judge_of(server)}, {"judge": 1.0}, Guard(on_failure="replace", failure_value=-1.0))
    scores = replace(["q"] * 3, ["a", "b", "c"])
    assert scores.total == [-1.0, -1.0, 1.0] and scores.failed == [True, True, False]


def test_requests_to_a_busy_server_are_retried(server: JudgeServer) -> None:
    server.codes = [429, 503, 200]
    assert judge_of(server)(["q"], ["c"]) == [pytest.approx(6 / 9)]
    assert len(server.requests) == 3
    server.codes = [500] * 9
    with pytest.raises(ServerError, match=r"answers HTTP 500 .*, after 4 tries"):
        judge_of(server)(["q"], ["c"])
    server.codes, server.requests = [400], []
    with pytest.raises(ServerError, match="answers HTTP 400"):
        judge_of(server)(["q"], ["c"])
    assert len(server.requests) == 1, "a request that is wrong stays wrong"


def test_other_answers_and_no_server(server: JudgeServer) -> None:
    server.reply = lambda content: b"<html>"
    with pytest.raises(ServerError, match="not a chat completion: b'<html>'"):
        judge_of(server)(["q"], ["c"])
    with pytest.raises(ServerError, match=r"127\.0\.0\.1:9"):
        judge_of(server, url="http://127.0.0.1:9", timeout=0.5)(["q"], ["c"])


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(
    server: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "hush")
    judge = judge_of(server, api_key_variable="JUDGE_KEY")
    judge(["q"], ["c"])
    assert server.keys == ["Bearer hush"]
    server.codes = [302]
    with pytest.raises(ServerError) as caught:
        judge(["q"], ["c"])
    assert "hush" not in str(caught.value)
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(ValueError, match="export JUDGE_KEY=KEY"):
        judge_of(server, api_key_variable="JUDGE_KEY")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"template": "{prompt}"}, r"\{completion\} is not in it"),
        ({"marks": [5, 5]}, "takes the lowest and the highest"),
        ({"verdict": "Mark"}, "takes a group for the mark"),
        ({"url": "localhost:8000"}, "takes an address like http://localhost:8000"),
    ],
)
def test_settings_that_cannot_be(server: JudgeServer, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        judge_of(server, **changes)
