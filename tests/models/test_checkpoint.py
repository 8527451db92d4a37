"""Model folders are whole or absent, and a cache key changes with everything that the model depends on."""

from __future__ import annotations

import os
import shutil
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeExamples, MakeModel, MakeTokenizer
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedTokenizerFast

from gkd_rl.config import Config, ModelConfig
from gkd_rl.generation.codec import TextCodec
from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.models.checkpoint import folder_digest
from gkd_rl.models.loading import save_model
from gkd_rl.pipeline import cache as checkpoint
from gkd_rl.pipeline.cache import cache_key, model_key, rows_digest, source_digest, supervised_cache
from gkd_rl.run import find_config_dir
from gkd_rl.types import Example


@pytest.fixture
def model(make_model: MakeModel, few_words: PreTrainedTokenizerFast) -> HiddenStateModel:
    return make_model(few_words)


class Interrupted(RuntimeError):
    """Whatever ends a save in its middle."""


def interrupt(*_: Any, **__: Any) -> None:
    raise Interrupted


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_saved_folder_is_what_transformers_loads(
    model: HiddenStateModel, few_words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder = tmp_path / "deep" / "er" / "model"
    save_model(folder, model.model, few_words, "# Card\n")
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(contents(folder))
    assert (folder / "README.md").read_text(encoding="utf-8") == "# Card\n"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755  # others may read it, unlike a temporary folder
    assert os.listdir(folder.parent) == ["model"]
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == few_words.get_vocab()
    loaded = AutoModelForSeq2SeqLM.from_pretrained(folder).state_dict()
    assert all(loaded[name].equal(value) for name, value in model.model.state_dict().items())


@pytest.mark.parametrize("moment", ["weights", "tokenizer", "card", "rename"])
def test_an_interrupted_save_leaves_nothing(
    moment: str,
    model: HiddenStateModel,
    few_words: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    owner, name = {
        "weights": (model.model, "save_pretrained"),
        "tokenizer": (few_words, "save_pretrained"),
        "card": (Path, "write_text"),
        "rename": (os, "replace"),
    }[moment]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupt)
        with pytest.raises(Interrupted):
            save_model(tmp_path / "model", model.model, few_words, "card")
    assert os.listdir(tmp_path) == []
    save_model(tmp_path / "model", model.model, few_words, "card")  # and the next one succeeds
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("moment", ["weights", "tokenizer", "card"])
def test_an_interrupted_save_leaves_the_folder_that_was_there(
    moment: str,
    model: HiddenStateModel,
    few_words: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save_model(tmp_path / "model", model.model, few_words, "first")
    before = contents(tmp_path / "model")
    owner, name = {
        "weights": (model.model, "save_pretrained"),
        "tokenizer": (few_words, "save_pretrained"),
        "card": (Path, "write_text"),
    }[moment]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupt)
        with pytest.raises(Interrupted):
            save_model(tmp_path / "model", model.model, few_words, "second")
    assert os.listdir(tmp_path) == ["model"]
    assert contents(tmp_path / "model") == before


def test_a_second_save_replaces_the_first_altogether(
    model: HiddenStateModel, few_words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    save_model(tmp_path / "model", model.model, few_words, "first")
    (tmp_path / "model" / "left_over.bin").write_bytes(b"old")
    save_model(tmp_path / "model", model.model, few_words, "second")
    assert (tmp_path / "model" / "README.md").read_text(encoding="utf-8") == "second"
    assert "left_over.bin" not in contents(tmp_path / "model")
    assert os.listdir(tmp_path) == ["model"]


def test_the_cache_key_changes_with_every_fact() -> None:
    facts: dict[str, Any] = {
        "model": {"seed": 0, "architecture": {"d_model": 16}, "sft": {"steps": 10, "learning_rate": 1e-3}},
        "task": {"seed": 0, "train_size": 100},
        "vocabulary": [["a", 3], ["b", 4]],
        "threads": 1,
    }
    variants = [
        facts | {"threads": 2},
        facts | {"vocabulary": [["a", 4], ["b", 3]]},
        facts | {"task": {"seed": 1, "train_size": 100}},
        facts | {"task": {"seed": 0, "train_size": 101}},
        facts | {"model": facts["model"] | {"seed": 1}},
        facts | {"model": facts["model"] | {"architecture": {"d_model": 17}}},
        facts | {"model": facts["model"] | {"sft": {"steps": 11, "learning_rate": 1e-3}}},
        facts | {"model": facts["model"] | {"sft": {"steps": 10, "learning_rate": 2e-3}}},
        facts | {"more": None},
        {name: value for name, value in facts.items() if name != "threads"},
    ]
    keys = {cache_key(**one) for one in [facts, *variants]}
    assert len(keys) == len(variants) + 1
    assert all(len(key) == 16 and key.isalnum() for key in keys)
    assert cache_key(**dict(reversed(facts.items()))) == cache_key(**facts)


def test_the_cache_key_changes_with_the_source_that_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = Path(checkpoint.__file__).parents[1]
    copy = tmp_path / "gkd_rl"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    real = source_digest()
    monkeypatch.setattr(checkpoint, "__file__", str(copy / "pipeline" / "cache.py"))
    assert source_digest() == real
    key = cache_key(a=1)
    for name in ("run.py", "outputs/tracking.py", "outputs/tables.py", "cli/command_line.py"):
        (copy / name).write_text("# changed\n", encoding="utf-8")
    assert source_digest() == real, "a file that cannot change the weights throws the cache away"
    for name in (
        *("training/trainer.py", "losses/fused_head.py", "data/embedded/news.py", "data/tasks/xsum.py"),
        *("pipeline/build.py", "a_new_file.py", "losses/a_new_file.py"),
    ):
        before = source_digest()
        with (copy / name).open("a", encoding="utf-8") as file:
            file.write("# changed\n")
        assert source_digest() != before, f"{name} may change the weights and is not in the key"
    assert cache_key(a=1) != key


def test_the_cache_key_changes_with_the_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    before = source_digest()
    for library in ("torch", "transformers", "tokenizers"):
        real = checkpoint.version
        monkeypatch.setattr(
            checkpoint, "version", lambda name, one=library, known=real: "0.0" if name == one else known(name)
        )
        assert source_digest() != before, library
        monkeypatch.setattr(checkpoint, "version", real)
    assert source_digest() == before


def test_the_digest_of_rows_changes_with_every_row() -> None:
    rows = [Example("a", "b", {}), Example("c", "d", {})]
    variants = [
        rows,
        rows[:1],
        rows[::-1],
        [Example("a", "x", {}), rows[1]],
        [Example("x", "b", {}), rows[1]],
        [Example("ab", "", {}), rows[1]],
        [rows[0], Example("c", "d ", {})],
    ]
    assert len({rows_digest(one) for one in variants}) == len(variants)
    assert rows_digest(iter(rows)) == rows_digest(rows)


def test_the_digest_of_a_folder_changes_with_its_files(tmp_path: Path) -> None:
    assert folder_digest(None) is None
    assert folder_digest("google-t5/t5-small") is None
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    seen = {folder_digest(str(tmp_path))}
    assert seen == {folder_digest(str(tmp_path))}
    (tmp_path / "model.safetensors").write_bytes(b"Weights")
    seen.add(folder_digest(str(tmp_path)))
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    seen.add(folder_digest(str(tmp_path)))
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    seen.add(folder_digest(str(tmp_path)))
    assert len(seen) == 4
    assert None not in seen


def test_a_supervised_model_has_a_folder_of_its_own_for_all_that_decides_its_weights(
    make_tokenizer: MakeTokenizer, make_examples: MakeExamples, tmp_path: Path
) -> None:
    def folder(
        *overrides: str, words: str = "a b c d e", limits: tuple[int, int] = (20, 8), rows: int = 8, **changes: Any
    ) -> Path:
        with initialize_config_dir(str(find_config_dir()), version_base="1.3"):
            config = OmegaConf.to_object(compose("config", [f"cache_dir={tmp_path}", *overrides]))
        assert isinstance(config, Config)
        model: ModelConfig = replace(config.student, **changes)
        codec = TextCodec(make_tokenizer(words), *limits, torch.device("cpu"))
        return supervised_cache(config, model_key(model, codec, make_examples(rows)))

    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "model.safetensors").write_bytes(b"weights")
    path = str(tmp_path / "checkpoint")
    folders = [
        folder(),
        folder("student.sft.steps=7"),
        folder("student.sft.learning_rate=0.5"),
        folder("student.sft.optimizer=adafactor"),
        folder("student.architecture.d_model=48"),
        folder("seed=5"),
        folder(words="b a c d e"),
        folder(limits=(21, 8)),
        folder(limits=(20, 9)),
        folder(rows=9),
        folder(path=path),
    ]
    (tmp_path / "checkpoint" / "model.safetensors").write_bytes(b"others")
    folders.append(folder(path=path))
    assert len(set(folders)) == len(folders)
    assert all(one.is_relative_to(tmp_path) for one in folders)
    # what a run does later, with the same supervised model
    assert folder("alpha=0.25", "trainer.steps=3", "divergence=reverse_kl", "name=other") == folders[0]
