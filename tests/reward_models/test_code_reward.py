"""The reward that runs code: off unless allowed explicitly, and 1 for code that passes its tests only."""

from __future__ import annotations

import pytest

from reward_models.code.sandbox import CodeExecution, code_of
from reward_models.score import load_reward


def test_it_is_off_unless_allowed() -> None:
    for value in (False, 1, "true"):
        with pytest.raises(ValueError, match=r"type reward\.components\.code\.allow_code_execution=true"):
            CodeExecution(value)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="allow_code_execution=False"):
        load_reward("code_execution")


def test_what_passes_and_what_does_not() -> None:
    completions = [
        "Here it is:\n```python\ndef double(x):\n    return 2 * x\n```\nGood luck!",
        "def double(x):\n    return x + x\n",
        "def double(x):\n    return x ** 2\n",
        "I cannot do that.",
        "import os\ndef double(x):\n    os._exit(0)\n",
        "```python\ndef double(x): return 0\n```\nno, rather\n```\ndef double(x): return 2 * x\n",
    ]
    reward = CodeExecution(True, seconds=3)
    scores = reward([""] * 6, completions, tests=["assert double(3) == 6\nassert double(-1) == -2"] * 6)
    assert scores == [1.0, 1.0, 0.0, 0.0, 0.0, 1.0]


def test_code_that_continues_its_prompt() -> None:
    reward = CodeExecution(True, continues_prompt=True, seconds=3)
    prompt = 'def triple(x):\n    """Three times x."""\n'
    assert reward([prompt] * 2, ["    return 3 * x\n", "    return x\n"], tests=["assert triple(2) == 6"] * 2) == [
        1.0,
        0.0,
    ]


def test_the_last_block_is_the_code() -> None:
    assert code_of("a\n```py\none\n```\n```\ntwo\n```") == "two\n"
    assert code_of("plain") == "plain"
