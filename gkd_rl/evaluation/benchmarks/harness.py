"""Evaluation of a saved model by lm-evaluation-harness, and the report: results.json, samples and a table.

Prompts, few-shot examples, filters and metrics are the harness's; this module loads the model and writes the results.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedConfig
from transformers.utils import logging as transformers_logging

from gkd_rl.errors import BenchmarkError, ModelError
from gkd_rl.evaluation.benchmarks.settings import BenchmarkConfig
from gkd_rl.evaluation.benchmarks.suites import Suites
from gkd_rl.models.checkpoint import folder_digest, locate, read_config
from gkd_rl.models.loading import load_model, load_tokenizer
from gkd_rl.outputs.json_files import JsonLines, write_json
from gkd_rl.outputs.run_record import environment_record
from gkd_rl.outputs.tables import results_table

SEEDS = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")  # of the harness
RESULT_KEYS = ("results", "groups", "n-samples", "n-shot", "versions", "configs", "higher_is_better")
COLUMNS = [("score", "score"), ("stderr", "standard error"), ("n", "rows"), ("shots", "examples in the prompt")]


def load(config: BenchmarkConfig) -> HFLM:
    """The model for the harness, loaded as in a run (an adapter is merged into its base).

    Raises:
        ModelError: it cannot be loaded, or its tokenizer adds an end-of-sequence token to every prompt.
        BenchmarkError: the device is not available.
    """
    transformers_logging.disable_progress_bar()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns about a model that it did not load itself
    path, place = config.model, locate(config.model, None, "model")
    shape, tokenizer = read_config(place), load_tokenizer(place)
    if not shape.is_encoder_decoder and tokenizer("a")["input_ids"][-1:] == [tokenizer.eos_token_id]:  # pyright: ignore
        raise ModelError(
            f"model={path}: its tokenizer adds {tokenizer.eos_token} to the end of every text, which would end prompts "
            "before the answer: save the model with a tokenizer that does not."
        )
    if config.chat and not tokenizer.chat_template:
        raise ModelError(f"chat=true: the tokenizer of model={path} has no chat template. Set chat=false.")
    model = load_model(place, _dtype(config, shape)).to(_device(config))  # pyright: ignore
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=config.batch_size)  # pyright: ignore


def evaluate(lm: HFLM, suites: Suites, config: BenchmarkConfig) -> dict[str, Any]:
    """The results of the harness for every suite, samples included."""
    seeds = {} if config.seed is None else dict.fromkeys(SEEDS, config.seed)
    run: Any = simple_evaluate  # its decorator hides its parameters
    results = run(
        model=lm,
        tasks=suites.tasks,
        task_manager=suites.manager,
        num_fewshot=config.num_fewshot,
        batch_size=config.batch_size,
        limit=config.limit,
        apply_chat_template=config.chat,
        confirm_run_unsafe_code=suites.runs_code,
        **seeds,
    )
    assert results is not None  # it returns None in further processes only
    return dict(results)


def _dtype(config: BenchmarkConfig, shape: PreTrainedConfig) -> torch.dtype:
    """The dtype of the settings, else that of the checkpoint, else float32."""
    if config.dtype is not None:
        return getattr(torch, config.dtype.value)
    return shape.dtype if isinstance(shape.dtype, torch.dtype) else torch.float32


def _device(config: BenchmarkConfig) -> torch.device:
    """The device of the settings, else cuda if available, else cpu.

    Raises:
        BenchmarkError: it is not available.
    """
    name = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise BenchmarkError(f"device={name} is not available: device takes cpu, cuda or cuda:N.") from error


def write_report(
    folder: Path, config: BenchmarkConfig, harness: dict[str, Any], mt_bench: dict[str, Any] | None, seconds: float
) -> None:
    """Write results.json and samples_TASK.jsonl; generated texts are in the latter only.

    Args:
        folder: created if it does not exist.
        config: settings of the benchmarks.
        harness: results of `evaluate`; empty without a suite of the harness.
        mt_bench: results of `mt_bench.summarise`; None without MT-Bench.
        seconds: wall time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for task, samples in harness.get("samples", {}).items():
        lines = JsonLines(folder / f"samples_{task}.jsonl")
        lines.append(samples)
        lines.close()
    environment = environment_record()
    environment["packages"] |= {"lm_eval": version("lm_eval")}
    write_json(
        folder / "results.json",
        {
            "model": {"path": config.model, "sha256": folder_digest(config.model)},
            "settings": config,
            "harness": {key: harness[key] for key in RESULT_KEYS if key in harness},
            "mt_bench": mt_bench,
            "seconds": seconds,
            "environment": environment,
        },
    )


def table(
    config: BenchmarkConfig, names: dict[str, list[str]], harness: dict[str, Any], mt_bench: dict[str, Any] | None
) -> str:
    """The table of all scores, one row a score.

    Args:
        config: settings of the benchmarks.
        names: suite -> names of its results, see `Suites`.
        harness: as in `write_report`.
        mt_bench: as in `write_report`.
    """
    rows = {label: cells for suite in names for name in names[suite] for label, cells in _scores(suite, name, harness)}
    rows |= {} if mt_bench is None else _mt_bench_rows(mt_bench)
    caption = f"lm-evaluation-harness {version('lm_eval')}"
    caption += "" if config.limit is None else f"; the first {config.limit} rows only"
    if mt_bench is not None:
        caption += (
            f"; MT-Bench by {config.mt_bench.judge.model}, of 10, {mt_bench['unreadable']} of {mt_bench['verdicts']} "
            "verdicts unreadable and omitted"
        )
    return results_table(rows, COLUMNS, config.model, caption)


def _scores(suite: str, name: str, harness: dict[str, Any]) -> Iterator[tuple[str, dict[str, str]]]:
    """(row label, cells) of each metric of one task or group."""
    scores = harness["results"][name]
    counts = [count["effective"] for task, count in harness["n-samples"].items() if task in _members(name, harness)]
    shots = sorted({harness["n-shot"][task] for task in _members(name, harness)})
    for key, value in scores.items():
        metric, comma, kind = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        stderr = scores.get(f"{metric}_stderr,{kind}")
        parts = [suite, "" if name == suite else name, metric, "" if kind == "none" else f"({kind})"]
        yield (
            " ".join(part for part in parts if part),
            {
                "score": f"{value:.4f}",
                "stderr": f"{stderr:.4f}" if isinstance(stderr, int | float) else "-",
                "n": str(sum(counts)),
                "shots": ", ".join(map(str, shots)),
            },
        )


def _members(name: str, harness: dict[str, Any]) -> set[str]:
    """The tasks under a group, or the task itself."""
    children = harness.get("group_subtasks", {}).get(name, [])
    return set().union(*(_members(child, harness) for child in children)) if children else {name}


def _mt_bench_rows(mt_bench: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Row label -> cells: turns, categories, and the mean."""
    return {
        f"mt_bench {name}": {
            "score": "-" if cells["mean"] is None else f"{cells['mean']:.2f}",
            "stderr": "-" if cells["stderr"] is None else f"{cells['stderr']:.2f}",
            "n": str(cells["n"]),
            "shots": "0",
        }
        for name, cells in mt_bench["scores"].items()
    }
