"""The doctor finds every fault that is planted into a run, and none in a sound one or in the shipped experiments."""

from __future__ import annotations

import json
import random
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LLAMA, essential
from safetensors.torch import load_file, save_file
from torch.optim import Adam
from transformers import PreTrainedTokenizerFast

from gkd_rl.data.embedded.news import generate
from gkd_rl.doctor import main
from gkd_rl.generation.codec import ChatTemplate, TextCodec
from gkd_rl.losses.fused_head import FusedHead
from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.models.loading import build_model, save_model
from gkd_rl.planning import checks
from gkd_rl.planning.checks import CheckResult, summary
from gkd_rl.run import find_config_dir
from gkd_rl.types import Example, Projection
from reward_models.models import judge as openai_server

CPU = torch.device("cpu")
WORDS = "a b c d e <user> <bot>"
TEMPLATE = (
    "{% for turn in messages %}{{ ('<user> ' if turn.role == 'user' else ' <bot> ') + turn.content }}"
    "{% if turn.role != 'user' %} </s>{% endif %}{% endfor %}{% if add_generation_prompt %} <bot>{% endif %}"
)


def rows(count: int, seed: int) -> list[dict[str, str]]:
    """Documents of a, b and c, and summaries of d and e that have nothing to do with them."""
    words = random.Random(seed)
    return [
        {"document": " ".join(words.choices("abc", k=6)), "summary": " ".join(words.choices("de", k=3))}
        for _ in range(count)
    ]


def taught(tokenizer: PreTrainedTokenizerFast) -> HiddenStateModel:
    """A model that knows summaries in a chat, and answers in a's without one."""
    torch.manual_seed(0)
    model = HiddenStateModel(build_model({**LLAMA, "hidden_size": 32}, tokenizer, 0, torch.float32, "teacher"))
    forms = [
        TextCodec(tokenizer, 32, 8, CPU, decoder_only=True, chat=chat)
        for chat in (ChatTemplate(tokenizer, "teacher.chat"), None)
    ]
    optimizer, head = Adam(model.parameters(), lr=1e-2), FusedHead(None)
    for step in range(80):
        for codec, answer in zip(forms, (None, "a a a"), strict=True):
            some = [Example(row["document"], answer or row["summary"], {}) for row in rows(16, step)]
            rollout = codec.references(some)
            terms = head(Projection(model(rollout), model.head()), None, rollout.ids_BT, rollout.mask_BT)
            (-terms.logp_BT[rollout.mask_BT].mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Any) -> Path:
    """`teacher` knows the data, `student` is drawn at random; data files beside them."""
    folder = tmp_path_factory.mktemp("work")
    tokenizer = make_tokenizer(WORDS)
    tokenizer.chat_template = TEMPLATE
    save_model(folder / "teacher", taught(tokenizer).model, tokenizer, "")
    save_model(folder / "student", build_model(LLAMA, tokenizer, 1, torch.float32, "student"), tokenizer, "")
    for split, seed in (("train", 100), ("test", 101)):
        text = "".join(json.dumps(row) + "\n" for row in rows(40, seed))
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return folder


def sound(work: Path) -> list[str]:
    names = {"train": "train", "validation": "test", "test": "test"}
    files = ", ".join(f"{split}: {work / name}.jsonl" for split, name in names.items())
    models = [f"{key}.path={work / key}" for key in ("student", "teacher")]
    chats = ["student.chat=true", "teacher.chat=true", "teacher.dtype=float32"]
    sizes = ["task.max_prompt_tokens=32", "task.max_completion_tokens=8", f"cache_dir={work / 'cache'}"]
    data = ["reward=rouge", "task.data=files", f"task.data_files={{{files}}}"]
    return ["experiment=xsum_rl", "student=checkpoint", "teacher=checkpoint", *models, *chats, *sizes, *data]


def closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def with_teacher(work: Path, folder: Path, change: Any) -> list[str]:
    """The teacher's folder, copied and changed."""
    shutil.copytree(work / "teacher", folder / "teacher")
    change(folder / "teacher")
    return [f"teacher.path={folder / 'teacher'}"]


def _other_words(folder: Path) -> None:
    file = folder / "tokenizer.json"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace('"a"', '"swap"').replace('"b"', '"a"').replace('"swap"', '"b"'), encoding="utf-8")


def _other_end(folder: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps(settings | {"eos_token_id": 7}), encoding="utf-8")
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(settings | {"eos_token": "e"}), encoding="utf-8")


def _endless(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    key = "lm_head.weight" if "lm_head.weight" in weights else "model.embed_tokens.weight"
    weights[key][1] *= -1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def faults(work: Path, folder: Path) -> dict[str, tuple[str, list[str]]]:
    """Name -> the check that has to fail, and what plants the fault."""
    (folder / "bad.parquet").write_bytes(b"PAR1 and no more")
    files = "{train: FILE, validation: FILE, test: FILE}".replace("FILE", str(folder / "bad.parquet"))
    plain = ["student.chat=false", "teacher.chat=false"]
    swapped = [f"student.path={work / 'teacher'}", f"teacher.path={work / 'student'}"]
    judge = "reward.components.judge.server"
    endpoint = [
        f"teacher.endpoint.url={closed_port()}",
        "teacher.endpoint.model=m",
        "teacher=endpoint",
        "teacher.path=null",
    ]
    return {
        "wrong template": ("template", plain),
        "another end": ("tokenizers", [*plain, *with_teacher(work, folder / "end", _other_end)]),
        "no end": ("ends", with_teacher(work, folder / "endless", _endless)),
        "another vocabulary": ("tokenizers", with_teacher(work, folder / "words", _other_words)),
        "a teacher that is worse": ("teacher", swapped),
        "a reward that cannot read the data": ("reward", ["reward=exact_match"]),
        "a constant reward": (
            "reward",
            [
                "+reward.components.length={_target_: reward_models.text.form.LengthPenalty, shortest: 1, longest: 40}",
                "reward.weights.rouge=0",
                "+reward.weights.length=1",
            ],
        ),
        "texts that are cut": ("lengths", ["task.max_completion_tokens=2"]),
        "a full disk": ("disk", ["cache_dir=/proc/none"]),
        "no memory": ("memory", ["scale.memory_gib=0.01"]),
        "a damaged data file": ("data", [f"task.data_files={files}"]),
        "no data file": ("data", ["task.data_files=null"]),
        "no Hub": ("hub", ["teacher.path=nobody/nothing"]),
        "an emulated type": ("precision", ["student.dtype=bfloat16"]),
        "no judge": ("reward", ["reward=judge", f"{judge}.url={closed_port()}", f"{judge}.model=m"]),
        "no teacher's server": ("endpoint", endpoint),
        "no device": ("devices", ["teacher.device=cuda:9"]),
        "no checkpoint": ("checkpoints", [f"teacher.path={folder / 'nowhere'}"]),
    }


NAMES = [
    "wrong template", "another end", "no end", "another vocabulary", "a teacher that is worse",
    "a reward that cannot read the data", "a constant reward",
    "texts that are cut", "a full disk", "no memory", "a damaged data file", "no data file", "no Hub",
    "an emulated type", "no judge", "no teacher's server", "no device", "no checkpoint",
]  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_server, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr("gkd_rl.data.embedded.claims.generate", lambda split, size, seed: generate(split, 8, seed))
    monkeypatch.setattr(checks, "slowdown", lambda device: 9.0)
    monkeypatch.setattr(checks.constants, "HF_HUB_OFFLINE", True)


def states(said: str) -> dict[str, set[str]]:
    """Check -> its states."""
    found: dict[str, set[str]] = {}
    for line in said.splitlines():
        if line.startswith(("ok ", "failed ", "unknown ")):
            state, check = line.split()[:2]
            found.setdefault(check, set()).add(state)
    return found


def test_a_sound_run_has_no_finding(work: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    status, said = main(sound(work)), capsys.readouterr().out
    checks = (
        "settings devices precision hub checkpoints data tokenizers lengths reward template ends teacher disk memory"
    )
    assert states(said) == {check: {"ok"} for check in checks.split()}, said
    assert status == 0 and said.splitlines()[-1] == "16 checks, 0 failed"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("composed_once")
@pytest.mark.parametrize("name", NAMES)
def test_a_planted_fault_is_found(
    name: str, work: Path, tmp_path: Path, request: pytest.FixtureRequest, capsys: Any
) -> None:
    check, overrides = faults(work, tmp_path)[name]
    if check not in ("disk", "memory"):
        request.getfixturevalue("without_memory")
    typed = {text.partition("=")[0]: text for text in [*sound(work), *overrides]}  # each setting once
    status, said = main(list(typed.values())), capsys.readouterr().out
    assert status == 1, said
    assert "failed" in states(said)[check], said
    assert name != "a constant reward" or "cannot tell them apart" in " ".join(said.split()), said
    assert check in said.splitlines()[-1].partition("failed (")[2]


def test_no_other_fault_is_left_out(work: Path, tmp_path: Path) -> None:
    assert list(faults(work, tmp_path)) == NAMES


@pytest.mark.usefixtures("composed_once", "without_memory")
def test_large_weights_are_left_alone_unless_they_are_asked_for(work: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(checks, "SMALL_BYTES", 10)
    assert main(sound(work)) == 0
    said = capsys.readouterr().out
    assert states(said)["teacher"] == {"unknown"} and "--weights reads them" in said
    assert main([*sound(work), "--weights"]) == 0
    assert states(capsys.readouterr().out)["teacher"] == {"ok"}


EXPERIMENTS = sorted(path.stem for path in (find_config_dir() / "experiment").glob("*.yaml"))
PLANNED = ("wmt_rl", "gsm8k_rl", "instruct_rl")  # one of each family; test_doctor.py plans xsum_rl


@pytest.mark.slow
@pytest.mark.usefixtures("composed_once")
@pytest.mark.parametrize("name", essential(EXPERIMENTS, "gsm8k_rl", "supervised_kd", "rlef", "sft"))
def test_nothing_speaks_against_a_shipped_experiment(
    name: str, tmp_path: Path, request: pytest.FixtureRequest, capsys: Any
) -> None:
    if name not in PLANNED:
        request.getfixturevalue("without_memory")
    small = ["task.train_size=200", "task.test_size=20", f"cache_dir={tmp_path}"]
    status, said = main([f"experiment={name}", *small]), capsys.readouterr().out
    assert status == 0, said
    assert all("failed" not in found for found in states(said).values())


def test_the_last_line_counts() -> None:
    found = [CheckResult("a", "ok", ""), CheckResult("b", "failed", ""), CheckResult("c", "unknown", "")]
    assert summary(found) == "3 checks, 1 failed (b), 1 not made (c)"
