"""Checkpoints that cannot be used, through the command line: one message that helps, before a run makes its folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import MakeModel, MakeTokenizer, configured, with_adapter
from gguf_writer import GGUF_SIZE, write_gguf
from transformers import PreTrainedTokenizerFast

from gkd_rl import run
from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.models.loading import save_model

GSM8K = ["experiment=gsm8k_rl", "scale=single_gpu", "task.data_files={train: train.jsonl, test: test.jsonl}"]
GSM8K += ["student.chat=false", "teacher.chat=false", "teacher.quantization=none"]
XSUM = ["experiment=xsum_rl", "student.architecture=null", "student.sft=null", "teacher.architecture=null"]
XSUM += ["teacher.sft=null"]
Refuse = Callable[..., str]
Damage = Callable[[Path], object]  # what happens to a folder


@pytest.fixture(scope="module")
def checkpoints(
    make_model: MakeModel,
    make_tokenizer: MakeTokenizer,
    few_words: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Folders that are whole: llama, t5, other (a Llama with another word), adapter (of a Llama), gguf."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def llama() -> HiddenStateModel:
        return make_model(few_words, lively=True, model_type="llama", **GGUF_SIZE)

    other = make_tokenizer("a b c d f")
    save_model(folder / "llama", llama().model, few_words, "")
    save_model(folder / "t5", make_model(few_words).model, few_words, "")
    save_model(folder / "other", make_model(other, model_type="llama").model, other, "")
    save_model(folder / "adapter", with_adapter(llama(), 1), few_words, "")
    (folder / "gguf").mkdir()
    few_words.save_pretrained(folder / "gguf")
    write_gguf(folder / "gguf" / "tiny.gguf", llama().model)
    return folder


@pytest.fixture
def work(checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to start the command in, with its own copy of the checkpoints elsewhere."""
    shutil.copytree(checkpoints, tmp_path / "models")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("GKD_RL_CACHE", str(tmp_path / "work" / "cache"))
    return tmp_path / "work"


@pytest.fixture
def refuse(work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """`refuse("alpha=0.5")`: the one message of a command that ends before the run begins and writes nothing."""

    def main() -> None:
        pytest.fail("the run began")

    def start(*arguments: str) -> str:
        monkeypatch.setattr(run, "main", main)
        monkeypatch.setattr(run, "check_command_line", lambda *_: [configured(*arguments)])  # as it composes them
        monkeypatch.setattr(sys, "argv", ["gkd_rl.run", *arguments])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        before = sorted(work.parent.rglob("*"))
        with pytest.raises(SystemExit) as ended:
            run.cli()
        assert ended.value.code == 1
        assert sorted(work.parent.rglob("*")) == before, "a refused command left something behind"
        shown = capsys.readouterr()
        assert shown.out == "" and "Traceback" not in shown.err
        (message,) = shown.err.splitlines()
        return message

    return start


def broken(name: str, text: bytes | str) -> Damage:
    """A file with another content."""
    return lambda folder: (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def without(*names: str) -> Damage:
    """Files that are gone."""
    return lambda folder: [(folder / name).unlink() for name in names]


def halved(name: str) -> Damage:
    """A file whose copy stopped half-way."""

    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return change


def pickled(folder: Path) -> None:
    """Weights as torch pickles them."""
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def sharded(text: str) -> Damage:
    """An index in place of the weights."""

    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(text)

    return change


def emptied(folder: Path) -> None:
    """A folder with nothing in it."""
    shutil.rmtree(folder)
    folder.mkdir()


def run_folder(folder: Path) -> None:
    """The folder of a run, with the model inside it."""
    folder.rename(folder.with_name("inner"))
    folder.mkdir()
    folder.with_name("inner").rename(folder / "model")


def baseless(text: str) -> Damage:
    """An adapter whose base is not beside it."""

    def change(folder: Path) -> None:
        shutil.rmtree(folder / "base")
        (folder / "adapter_config.json").write_text(text)

    return change


SHARDS = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}})
# the checkpoint, what happens to it, and what the message says beside {key}.path={folder}
DAMAGE: dict[str, tuple[str, Damage, list[str]]] = {
    "no folder": ("llama", shutil.rmtree, ["there is no folder", "to a folder that exists or to a Hub id"]),
    "an empty folder": ("llama", emptied, ["no config.json", "to a folder with config.json and model.safetensors"]),
    "a run's folder": ("llama", run_folder, ["no config.json", "Set {key}.path to {folder}/model"]),
    "a folder of GGUF files": ("gguf", lambda folder: None, ["It has tiny.gguf: set {key}.path to {folder}/tiny.gguf"]),
    "a configuration that is no JSON": ("llama", broken("config.json", "{no"), ["not a valid JSON", "Set {key}.path"]),
    "a configuration of nothing": ("llama", broken("config.json", "{}"), ["model_type", "Set {key}.path to"]),
    "another model": ("llama", broken("config.json", '{"model_type": "bert"}'), ["model_type=bert", "of type t5"]),
    "corrupt weights": ("llama", broken("model.safetensors", b"abc"), ["model.safetensors is damaged", "copy"]),
    "half of the weights": ("llama", halved("model.safetensors"), ["not fully covered", "copy the checkpoint again"]),
    "no weights": ("llama", without("model.safetensors"), ["no model.safetensors", "Set {key}.path to"]),
    "pickled weights": ("llama", pickled, ["are pickled", "Set {key}.use_safetensors=false"]),
    "absent shards": ("llama", sharded(SHARDS), ["2 of 2 files", "first is model-00001-of-00002", "copy"]),
    "an index that is no JSON": ("llama", sharded("{no"), ["model.safetensors.index.json is damaged", "copy"]),
    "an index of nothing": ("llama", sharded("[]"), ["model.safetensors.index.json is damaged", "copy"]),
    "no tokenizer": ("llama", without("tokenizer.json", "tokenizer_config.json"), ["no tokenizer", "{key}.tokenizer"]),
    "a tokenizer that is no JSON": ("llama", broken("tokenizer.json", "{no"), ["no tokenizer", "Set {key}.tokenizer"]),
    "an adapter that is no JSON": ("adapter", broken("adapter_config.json", "{no"), ["adapter_config.json is damaged"]),
    "an adapter without a base": ("adapter", baseless("{}"), ["names no base model", "base_model_name_or_path"]),
    "an adapter that is a list": ("adapter", baseless("[]"), ["names no base model", "base_model_name_or_path"]),
    "an adapter whose base is gone": (
        "adapter",
        baseless('{"base_model_name_or_path": "/no/such/base"}'),
        ["base /no/such/base is not there", "base_model_name_or_path of {folder}/adapter_config.json"],
    ),
    "an adapter without weights": ("adapter", without("adapter_model.safetensors"), ["1 of 1 files", "copy"]),
    "an adapter of damaged weights": ("adapter", broken("adapter_model.safetensors", b"abc"), ["is damaged", "copy"]),
    "an adapter of a damaged base": ("adapter", halved("base/model.safetensors"), ["model.safetensors is damaged"]),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint(name: str, refuse: Refuse, work: Path) -> None:
    kind, damage, parts = DAMAGE[name]
    whole, folder = work.parent / "models" / "llama", work.parent / "models" / "broken"
    shutil.copytree(work.parent / "models" / kind, folder)
    damage(folder)
    for key, other in (("student", "teacher"), ("teacher", "student")):
        message = refuse(*GSM8K, f"{key}.path={folder}", f"{other}.path={whole}")
        assert message.startswith(f"{key}.path={folder}")
        for part in parts:
            assert part.format(key=key, folder=folder) in message


@pytest.mark.parametrize("share", [0.01, 0.5, 0.95])
def test_a_gguf_file_that_is_cut_short(share: float, refuse: Refuse, work: Path) -> None:
    file = work.parent / "models" / "gguf" / "tiny.gguf"
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    message = refuse(*GSM8K, f"student.path={file}", f"teacher.path={work.parent}/models/llama")
    assert message.startswith(f"student.path={file}: no model could be loaded (")
    assert "Copy tiny.gguf again if it is cut short" in message


# what is typed ({m} stands for the checkpoints), and what the message says
PAIRS: dict[str, tuple[list[str], list[str]]] = {
    "different tokenizers": (
        [*GSM8K, "student.path={m}/llama", "teacher.path={m}/other"],
        ["student.path={m}/llama", "teacher.path={m}/other", "'e' is id 7 of the student", "Set teacher.path"],
    ),
    "a decoder-only student of a seq2seq teacher": (
        [*GSM8K, "student.path={m}/llama", "teacher.path={m}/t5"],
        ["student.path={m}/llama is decoder-only", "teacher.path={m}/t5 is an encoder-decoder", "set teacher.path"],
    ),
    "a seq2seq student of a decoder-only teacher": (
        [*XSUM, "student.path={m}/t5", "teacher.path={m}/llama"],
        ["student.path={m}/t5 is an encoder-decoder", "teacher.path={m}/llama is decoder-only", "set teacher.path"],
    ),
    "a decoder-only student of the embedded teacher": (
        ["experiment=xsum_rl", "student.architecture=null", "student.sft=null", "student.path={m}/llama"],
        ["student.path={m}/llama is decoder-only", "teacher.architecture is an encoder-decoder", "set teacher.path"],
    ),
    "a chat template of a seq2seq model": (
        [*XSUM, "student.path={m}/t5", "teacher.path={m}/t5", "student.chat=true"],
        ["student.chat=true", "student.path={m}/t5 is an encoder-decoder", "Set student.chat=false"],
    ),
    "no chat template": (
        [*GSM8K, "student.path={m}/llama", "teacher.path={m}/llama", "teacher.chat=true"],
        ["teacher.chat=true", "no chat template", "Set teacher.chat=false, or teacher.tokenizer"],
    ),
    "layers that a decoder-only model does not have": (
        [*GSM8K, "student.path={m}/llama", "teacher.path={m}/llama", "student.keep_layers=[0,7]"],
        ["student.keep_layers=[0, 7]", "has 2 layers", "0 to 1"],
    ),
    "layers that a seq2seq model does not have": (
        [*XSUM, "student.path={m}/t5", "teacher.path={m}/t5", "student.keep_layers=[0,7]"],
        ["student.keep_layers=[0, 7]", "has 1 layers in each stack"],
    ),
    "a Hub id out of reach": (
        [*GSM8K, "student.path=some/model", "teacher.path={m}/llama"],
        ["student.path=some/model", "couldn't connect", "Set student.path to a folder"],
    ),
    "a revision out of reach": (
        [*GSM8K, "student.path={m}/llama", "teacher.path=some/model", "teacher.revision=v9"],
        ["teacher.path=some/model", "Set teacher.revision=v9 to a branch, tag or commit", "or to null"],
    ),
    "a tokenizer that is not there": (
        [*GSM8K, "student.path={m}/llama", "teacher.path={m}/llama", "student.tokenizer=./none"],
        ["student.tokenizer=./none", "there is no folder"],
    ),
    "a GGUF file that is not there": (
        [*GSM8K, "student.path={m}/gguf", "student.gguf_file=none.gguf", "teacher.path={m}/llama"],
        ["student.gguf_file=none.gguf", "it has tiny.gguf", "Set student.gguf_file"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_checkpoints_that_do_not_go_together(name: str, refuse: Refuse, work: Path) -> None:
    arguments, parts = PAIRS[name]
    message = refuse(*(one.replace("{m}", str(work.parent / "models")) for one in arguments))
    for part in parts:
        assert part.replace("{m}", str(work.parent / "models")) in message


@pytest.mark.parametrize("experiment", ["gsm8k_rl", "xsum_rl"])
def test_an_8_bit_teacher_without_bitsandbytes(
    experiment: str, refuse: Refuse, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    models = [f"{key}.path={work.parent}/models/llama" for key in ("student", "teacher")] if "gsm" in experiment else []
    message = refuse(
        f"experiment={experiment}",
        "scale=single_gpu",
        "student.chat=false",
        "teacher.chat=false",
        "teacher.quantization=int8",
        *models,
    )
    assert message.startswith("teacher.quantization=int8 needs bitsandbytes, which cannot be imported")
    assert "pip install bitsandbytes, or set teacher.quantization=none" in message


@pytest.mark.parametrize("student", ["llama", "adapter", "gguf/tiny.gguf"])
def test_what_goes_together_starts(student: str, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[bool] = []
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr(run, "main", lambda: begun.append(True))
    models = [f"student.path={work.parent}/models/{student}", f"teacher.path={work.parent}/models/llama"]
    tokenizer = [f"student.tokenizer={work.parent}/models/gguf"] if "gguf" in student else []
    rows = work.parent / "rows.jsonl"
    rows.write_text('{"question": "a", "answer": "b #### 1"}\n', encoding="utf-8")
    files = [f"task.data_files={{train: {rows}, validation: {rows}, test: {rows}}}"]
    typed = [*(one for one in GSM8K if "data_files" not in one), *files, *models, *tokenizer]
    monkeypatch.setattr(sys, "argv", ["gkd_rl.run", *typed])
    run.cli()
    assert begun == [True]
    assert not list(work.iterdir())


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_command_shows_nothing_else(work: Path) -> None:
    """In a process of its own, with whatever the libraries print; the last of three jobs is the wrong one."""
    folders = ",".join(f"{work.parent}/models/{name}" for name in ("llama", "adapter", "t5"))
    arguments = ["-m", *GSM8K, f"student.path={work.parent}/models/llama", f"teacher.path={folders}"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "gkd_rl.run", *arguments], cwd=work, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1), done.stderr
    assert "set teacher.path to a model of the student's kind" in done.stderr
    assert not list(work.iterdir())
