"""A reward, a task, a divergence, a study: each is added by the files that CONTRIBUTING.md names, and by no others.

They are added to a copy of the tree, and the commands that a user would type are run there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SMALL = (
    *("preset=embedded/xsum", "student.sft.steps=2", "teacher.sft.steps=2", "student.sft.batch_size=4"),
    *("teacher.sft.batch_size=4", "trainer.steps=2", "trainer.prompts_per_step=2", "rollout.per_prompt=2"),
    *("evaluation.rollout_prompts=2", "evaluation.self_bleu_prompts=0", "evaluation.bootstrap_samples=100"),
    *("tracking=none", "scale.threads=1", "save_model=false"),
)
TASK = '''"""Copying: the shortest task there is."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from gkd_rl.data.embedded.tokenizer import word_tokenizer
from gkd_rl.types import Example


class Copying:
    """The reference is the prompt."""

    def __init__(self, words: Sequence[str], max_prompt_tokens: int, max_completion_tokens: int) -> None:
        self.words, self.max_prompt_tokens, self.max_completion_tokens = (
            list(words),
            max_prompt_tokens,
            max_completion_tokens,
        )

    def examples(self, split: str) -> list[Example]:
        """One example a word."""
        return [Example(word, word, {"length": len(word)}) for word in self.words]

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """One token a word."""
        return word_tokenizer(self.words)
'''
REWARD = '''"""A reward that reads a column of its task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class AsLong:
    """1 for a completion of the length that the row names."""

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], *, length: Sequence[int], **columns: Any
    ) -> list[float]:
        """Score completions."""
        return [float(len(text) == count) for text, count in zip(completions, length, strict=True)]
'''
DIVERGENCE = '''

@_named(DivergenceName.chi_square)
def chi_square(teacher: Tensor, student: Tensor, parameter: float | None = None) -> Tensor:
    """Neyman's χ²: Σ_v (P - Q)² / Q of log-probabilities (..., V), shape (...)."""
    p, q = teacher.exp(), student.exp()
    return ((p - q) ** 2 / q.clamp(min=1e-6)).sum(dim=-1)
'''
STUDY = '''"""Do more rollouts a prompt help?"""

from __future__ import annotations

from experiments.study import Study
from experiments.study.runner import main

STUDY = Study(
    name="more_rollouts",
    question="do more rollouts a prompt help?",
    expected="a little.",
    conditions={"two": ("experiment=gkd", "rollout.per_prompt=2"), "four": ("experiment=gkd", "rollout.per_prompt=4")},
    seeds=(0,),
    metrics={"rouge2": "ROUGE-2"},
    claims=lambda results: [],
)

if __name__ == "__main__":
    main(STUDY)
'''


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what commands run from."""
    for folder in ("gkd_rl", "reward_models", "experiments", "conf"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "results"))
    return tmp_path


def add(tree: Path, name: str, text: str) -> None:
    """A new file; that CONTRIBUTING.md names it is part of the promise."""
    kind = re.sub(r"/\w+\.(py|yaml)$", r"/NAME.\1", name)
    assert kind in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), f"CONTRIBUTING.md does not name {kind}"
    assert not (tree / name).exists()
    (tree / name).write_text(text, encoding="utf-8")


def run(tree: Path, *arguments: str) -> str:
    """A command in the tree; what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1", "GKD_RL_CACHE": str(tree / "cache")}
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=tree, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_task_and_a_reward_are_one_file_and_one_yaml_each(tree: Path) -> None:
    add(tree, "gkd_rl/data/tasks/copying.py", TASK)
    add(tree, "reward_models/text/as_long.py", REWARD)
    settings = "words: [a, bb, ccc, dddd]\nmax_prompt_tokens: 4\nmax_completion_tokens: 4\n"
    add(tree, "conf/task/copying.yaml", f"_target_: gkd_rl.data.tasks.copying.Copying\n{settings}")
    target = "reward_models.text.as_long.AsLong"
    component = f"components: {{as_long: {{_target_: {target}}}}}\nweights: {{as_long: 1.0}}\njudge: null\n"
    add(tree, "conf/reward/as_long.yaml", component)
    own = ("experiment=rl_gkd", "task=copying", "reward=as_long", f"hydra.run.dir={tree / 'run'}")
    run(tree, "gkd_rl.run", *own, *SMALL)
    results = json.loads((tree / "run" / "eval.json").read_text(encoding="utf-8"))
    assert 0 <= results["student after"]["reward/as_long"]["mean"] <= 1
    assert len((tree / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 2


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_divergence_is_a_name_a_function_and_one_yaml(tree: Path) -> None:
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for name in ("gkd_rl/config/choices.py", "gkd_rl/losses/divergences.py"):
        assert name in contributing
    choices = tree / "gkd_rl" / "config" / "choices.py"
    text = choices.read_text(encoding="utf-8")
    member = '    cross_entropy = "cross_entropy"\n'
    assert text.count(member) == 1
    choices.write_text(text.replace(member, f'{member}    chi_square = "chi_square"\n'), encoding="utf-8")
    divergences = tree / "gkd_rl" / "losses" / "divergences.py"
    text = divergences.read_text(encoding="utf-8")
    place = text.index("\n\ndef cross_entropy(")
    divergences.write_text(text[:place] + DIVERGENCE.rstrip("\n") + text[place:], encoding="utf-8")
    existing = (ROOT / "conf" / "divergence" / "forward_kl.yaml").read_text(encoding="utf-8")
    add(tree, "conf/divergence/chi_square.yaml", existing.replace("forward_kl", "chi_square"))
    own = ("experiment=gkd", "divergence=chi_square", "task.train_size=40", "task.test_size=4")
    run(tree, "gkd_rl.run", *own, f"hydra.run.dir={tree / 'run'}", *SMALL)
    steps = (tree / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert all(json.loads(step)["divergence"] > 0 for step in steps)


@pytest.mark.exhaustive
def test_a_study_is_one_file(tree: Path) -> None:
    add(tree, "experiments/studies/more_rollouts.py", STUDY)
    plan = run(tree, "experiments.studies.more_rollouts", "--plan", "--folder", str(tree / "runs"))
    assert "2 runs" in plan, plan
