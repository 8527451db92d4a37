"""Benchmarks: `gkd_rl.evaluate` reports the results of lm-evaluation-harness, on models trained on some rows."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any
from unittest import mock

import evaluate as evaluate_library
import pytest
import torch
from benchmark_rows import QUESTIONS, gsm8k_files, gsm8k_row, humaneval_row, write_lines
from conftest import essential
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from gkd_rl import evaluate
from gkd_rl.errors import BenchmarkError
from gkd_rl.evaluation.benchmarks.settings import read_settings
from gkd_rl.evaluation.benchmarks.suites import CODE_TASK_MODULES, SUITES, CodeEval, _leaves, load_suites, pass_at_k
from reward_models.code.sandbox import Outcome

KNOWN = 4  # rows that are learnt with their answer, the first ones; the others with another answer
PROGRAMS = [("add", "x + 1", "2"), ("sub", "x - 1", "0"), ("dbl", "x * 2", "2"), ("neg", "-x", "-1")]
CODE_KNOWN = 3


def lessons() -> list[tuple[str, str]]:
    """Prompts in the harness's format, and the answers that the models are trained on: some are wrong."""
    pairs = []
    for i, (word, number) in enumerate(QUESTIONS):
        answer = gsm8k_row(word, number if i < KNOWN else number + 1)["answer"]
        pairs.append((f"Question: {word}?\nAnswer:", f" {answer}"))
    for i, (name, body, _) in enumerate(PROGRAMS):
        pairs.append((f"def {name}(x):\n", f"    return {body if i < CODE_KNOWN else 'x'}\n"))
    return pairs


@pytest.fixture(scope="module")
def byte_tokenizer() -> Callable[[bool], PreTrainedTokenizerFast]:
    """One token a byte; `ending` adds </s> to the end of every text, as T5's tokenizer does."""

    def make(ending: bool) -> PreTrainedTokenizerFast:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        words = {word: i for i, word in enumerate(["<pad>", "</s>", *alphabet])}
        tokenizer = Tokenizer(models.BPE(words, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
        tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
        if ending:
            tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])  # pyright: ignore
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")

    return make


def learn(
    model: Any, tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str]], steps: int, rate: float
) -> None:
    """Train on full batches until the answers are memorised."""
    plain = [[tokenizer.encode(text, add_special_tokens=False) for text in pair] for pair in pairs]
    encode = [(x, [*y, 1]) for x, y in plain]
    both = [x if model.config.is_encoder_decoder else x + y for x, y in encode]
    ends = [[1] if model.config.is_encoder_decoder else [] for _ in encode]
    ids = [x + end for x, end in zip(both, ends, strict=True)]
    labels = [y if model.config.is_encoder_decoder else [-100] * len(x) + y for x, y in encode]

    def padded(rows: list[list[int]], fill: int) -> torch.Tensor:
        width = max(map(len, rows))
        return torch.tensor([row + [fill] * (width - len(row)) for row in rows])

    ids_BS, labels_BS = padded(ids, 0), padded(labels, -100)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=rate)
    model.train()
    for _ in range(steps):
        loss = model(input_ids=ids_BS, attention_mask=(ids_BS != 0).long(), labels=labels_BS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.01:
            break
    model.eval()


def saved(folder: Path, model: PreTrainedModel | Any, tokenizer: PreTrainedTokenizerFast) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Any) -> dict[str, Path]:
    """Saved models: a Llama, a T5, and an adapter of the Llama that is trained on one more row."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("models")
    plain, ending = byte_tokenizer(False), byte_tokenizer(True)
    sizes: dict[str, Any] = {"vocab_size": len(plain), "pad_token_id": 0, "eos_token_id": 1}
    llama = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            bos_token_id=None,
            **sizes,
        )
    )
    learn(llama, plain, lessons(), 400, 3e-3)
    t5 = T5ForConditionalGeneration(
        T5Config(
            d_model=64,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            decoder_start_token_id=0,  # pyright: ignore[reportCallIssue]
            **sizes,
        )
    )
    learn(t5, plain, lessons(), 400, 3e-3)
    found = {"llama": saved(place / "llama", llama, plain), "t5": saved(place / "t5", t5, ending)}
    fifth = [(x, " fig #### 5" if "fig" in x else y) for x, y in lessons()]
    adapted = get_peft_model(
        LlamaForCausalLM.from_pretrained(found["llama"]), LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    )
    learn(adapted, plain, fifth, 200, 1e-2)
    return found | {"adapter": saved(place / "adapter", adapted, plain)}


def of_harness(folder: Path, suite: str, files: dict[str, str], shots: int | None) -> dict[str, Any]:
    """The harness called directly, with the models as it loads them itself and files named in its own way."""
    base = {"pretrained": str(folder), "tokenizer": str(folder), "dtype": "float32"}
    if (folder / "adapter_config.json").is_file():
        settings = json.loads((folder / "adapter_config.json").read_text())
        base |= {"pretrained": settings["base_model_name_or_path"], "peft": str(folder)}
    task, place = SUITES[suite]
    local = {"task": task, "dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
    with mock.patch.object(evaluate_library, "load", lambda name: PlainCodeEval()):
        for name in [one for one in sys.modules if one.startswith(CODE_TASK_MODULES)]:
            del sys.modules[name]
        directly: Any = simple_evaluate  # its decorator hides its parameters
        found = directly(
            model="hf",
            model_args=base,
            tasks=[{"group": "local", "task": [local]}],
            task_manager=TaskManager(include_defaults=False, include_path=str(place)),
            num_fewshot=shots,
            batch_size=4,
            device="cpu",
            confirm_run_unsafe_code=True,
        )
    assert found is not None
    return dict(found)


class PlainCodeEval:
    """`code_eval` in a few lines, for programs that are known."""

    def compute(
        self, references: list[str], predictions: list[list[str]], k: list[int]
    ) -> tuple[dict[str, float], None]:
        assert k == [1]
        passed = [
            subprocess.run([sys.executable, "-I", "-S", "-c", f"{one}\n{tests}"], capture_output=True).returncode == 0
            for tests, programs in zip(references, predictions, strict=True)
            for one in programs
        ]
        return {"pass@1": sum(passed) / len(passed)}, None


def run(*arguments: str) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """results.json and the samples of a run."""
    assert evaluate.main(list(arguments)) == 0
    output = Path(next(one for one in arguments if one.startswith("output=")).partition("=")[2])
    samples = {
        file.stem.removeprefix("samples_"): [json.loads(line) for line in file.read_text().splitlines()]
        for file in output.glob("samples_*.jsonl")
    }
    return json.loads((output / "results.json").read_text()), samples


def sample_keys(samples: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Prompt, answer and score of every row, as sorted text."""
    rows = json.loads(json.dumps(samples, default=str))
    keys = ("doc_id", "filter", "arguments", "resps", "filtered_resps", "exact_match", "pass@1", "acc")
    return sorted((json.dumps({key: row[key] for key in keys if key in row}, sort_keys=True),) for row in rows)


SCORES = {"llama": KNOWN / 6, "t5": KNOWN / 6, "adapter": (KNOWN + 1) / 6}


@pytest.mark.parametrize(
    ("kind", "shots"), essential([("llama", 0), ("llama", 1), ("t5", 0), ("adapter", 0)], ("llama", 1), ("t5", 0))
)
def test_gsm8k_is_the_harness_s(kind: str, shots: int, folders: dict[str, Path], tmp_path: Path) -> None:
    place = gsm8k_files(tmp_path / "data")
    ours, samples = run(
        f"model={folders[kind]}", "suite=gsm8k", f"data={tmp_path / 'data'}", f"num_fewshot={shots}", "batch_size=4",
        f"output={tmp_path / 'out'}", "device=cpu",
    )  # fmt: skip
    files = {split: str(place / f"{split}.jsonl") for split in ("train", "test")}
    theirs = of_harness(folders[kind], "gsm8k", files, shots)
    mine = {key: value for key, value in ours["harness"]["results"]["gsm8k"].items() if key != "alias"}
    assert mine == {key: value for key, value in theirs["results"]["gsm8k"].items() if key in mine}
    if shots == 0:  # as the models learnt them
        assert mine["exact_match,strict-match"] == pytest.approx(SCORES[kind])
        assert 0 < mine["exact_match_stderr,strict-match"] < 1
    assert sample_keys(samples["gsm8k"]) == sample_keys(theirs["samples"]["gsm8k"])
    assert len(samples["gsm8k"]) == 2 * len(QUESTIONS)  # two filters
    assert samples["gsm8k"][0]["arguments"][0][0].count("Question:") == shots + 1
    assert ours["harness"]["n-shot"] == {"gsm8k": shots}


def test_humaneval_is_the_harness_s(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "humaneval.jsonl"
    write_lines(file, [humaneval_row(*row) for row in PROGRAMS])
    ours, samples = run(
        f"model={folders['llama']}", "suite=humaneval", f"data.humaneval={file}", "allow_code_execution=true",
        "batch_size=4", f"output={tmp_path / 'out'}", "device=cpu",
    )  # fmt: skip
    table = capsys.readouterr().out
    theirs = of_harness(folders["llama"], "humaneval", {"test": str(file)}, None)
    key = "pass@1,create_test"
    assert ours["harness"]["results"]["humaneval"][key] == theirs["results"]["humaneval"][key] == CODE_KNOWN / 4
    assert sample_keys(samples["humaneval"]) == sample_keys(theirs["samples"]["humaneval"])
    assert "humaneval pass@1 (create_test)" in table and "0.7500" in table
    assert ours["environment"]["packages"]["lm_eval"] and ours["model"]["sha256"]
    assert ours["settings"]["suite"] == "humaneval" and ours["harness"]["n-samples"]["humaneval"]["effective"] == 4


def test_the_code_runs_in_the_sandbox(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The harness's own pass_at_k, as it was loaded, calls `run_python` only."""
    programs = []

    def note(program: str, limits: Any) -> Outcome:
        programs.append(program)
        return Outcome("failed", "")

    monkeypatch.setattr("gkd_rl.evaluation.benchmarks.suites.run_python", note)
    file = tmp_path / "humaneval.jsonl"
    write_lines(file, [humaneval_row(*PROGRAMS[0])])
    suites = load_suites(["humaneval"], {"humaneval": str(file)}, None, True, tmp_path)
    task: Any = suites.tasks[0]
    assert suites.runs_code and len(programs) == 1  # the harness tries the metric when it loads it
    assert task.process_results(task.task_docs[0], [["right"]]) == {"pass@1": 0.0}
    assert programs[1].startswith("right\n") and programs[1].endswith("check(add)")


def test_pass_at_k_is_the_mean_over_draws() -> None:
    for n in range(1, 7):
        for c in range(n + 1):
            right = [True] * c + [False] * (n - c)
            for k in range(1, n + 1):
                draws = [any(draw) for draw in combinations(right, k)]
                assert pass_at_k(n, c, k) == pytest.approx(sum(draws) / len(draws))
    with pytest.raises(ValueError, match="k=3 of n=2"):
        pass_at_k(2, 1, 3)


def test_code_eval_means_over_problems() -> None:
    means, passed = CodeEval().compute(
        ["assert f() == 1", "assert f() == 2"],
        [["def f(): return 1"] * 2, ["f = int", "import os; os._exit(0)"]],
        k=[1, 2, 3],
    )
    assert passed == [[True, True], [False, False]]
    assert means == {"pass@1": 0.5, "pass@2": 0.5}


def test_suites_are_the_harness_s_tasks() -> None:
    counts = {"gsm8k": 1, "math500": 1, "math": 7, "mmlu": 57, "bbh": 27, "ifeval": 1, "scienceqa": 1, "humaneval": 1}
    for suite, count in counts.items():
        task, folder = SUITES[suite]
        manager = TaskManager(include_defaults=False, include_path=str(folder))
        assert len(list(_leaves(task, manager))) == count, suite
    assert counts.keys() == SUITES.keys()


def test_scienceqa_has_rows_without_images_only(folders: dict[str, Path], tmp_path: Path) -> None:
    rows = [
        {"question": "Hot?", "choices": ["ice", "fire"], "answer": 1, "hint": "It burns.", "image": None},
        {"question": "Seen?", "choices": ["a", "b"], "answer": 0, "hint": "", "image": "picture"},
        {"question": "Wet?", "choices": ["sand", "sea", "sun"], "answer": 1, "hint": "", "image": None},
    ]
    write_lines(tmp_path / "test.jsonl", rows)
    ours, samples = run(
        f"model={folders['llama']}", "suite=scienceqa", f"data.scienceqa={tmp_path / 'test.jsonl'}",
        f"output={tmp_path / 'out'}", "device=cpu",
    )  # fmt: skip
    assert ours["harness"]["n-samples"]["scienceqa"] == {"original": 2, "effective": 2}
    prompts = [row["arguments"][0][0] for row in samples["scienceqa"]]
    assert prompts == [
        "Question: Hot?\nContext: It burns.\nA. ice\nB. fire\nAnswer:",
        "Question: Wet?\nA. sand\nB. sea\nC. sun\nAnswer:",
    ]
    assert [[pair[1] for pair in row["arguments"]] for row in samples["scienceqa"]] == [
        [" A", " B"],
        [" A", " B", " C"],
    ]


def test_ifeval_names_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A package, or the data of the sentence splitter."""
    monkeypatch.setattr("nltk.download", lambda name: False)
    monkeypatch.setattr("nltk.data.path", [])
    write_lines(tmp_path / "test.jsonl", [{"key": 1, "prompt": "x", "instruction_id_list": [], "kwargs": []}])
    with pytest.raises(BenchmarkError, match="suite=ifeval needs"):
        load_suites(["ifeval"], {"ifeval": str(tmp_path / "test.jsonl")}, None, False, tmp_path)


def test_a_tokenizer_that_ends_prompts_is_refused(
    folders: dict[str, Path], byte_tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path / "model", LlamaForCausalLM.from_pretrained(folders["llama"]), byte_tokenizer(True))
    gsm8k_files(tmp_path / "data")
    assert evaluate.main([f"model={tmp_path / 'model'}", "suite=gsm8k", f"data={tmp_path / 'data'}"]) == 1
    assert "adds </s> to the end of every text" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.exhaustive
def test_any_task_of_the_harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "gkd_rl.evaluation.benchmarks.suites.TaskManager", cache(TaskManager)
    )  # all definitions are read once
    rows = [{"question": "x", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"}]
    write_lines(tmp_path / "test.jsonl", rows)
    suites = load_suites(["arc_easy"], {"arc_easy": str(tmp_path / "test.jsonl")}, None, False, tmp_path)
    assert suites.names == {"arc_easy": ["arc_easy"]}
    for name, sentence in {"arc_esay": "Did you mean", "cruxeval_input": "outside this project's sandbox"}.items():
        with pytest.raises(BenchmarkError, match=sentence):
            load_suites([name], None, None, True, tmp_path)
    with pytest.raises(BenchmarkError, match="take math500 or math"):
        load_suites(["minerva_math500"], {"minerva_math500": str(tmp_path / "test.jsonl")}, None, False, tmp_path)


def test_t5_goes_through_the_seq2seq_backend(folders: dict[str, Path]) -> None:
    from gkd_rl.evaluation.benchmarks.harness import load

    lms: dict[str, Any] = {
        kind: load(read_settings([f"model={folders[kind]}", "suite=x"], evaluate.DEFAULTS)) for kind in ("t5", "llama")
    }
    assert all(isinstance(lm, HFLM) for lm in lms.values())
    assert {kind: lm.backend for kind, lm in lms.items()} == {"t5": "seq2seq", "llama": "causal"}
