"""Settings of `python -m gkd_rl.evaluate`: schema, command line, checks, and what the setting `data` selects.

`read_settings` reports all problems at once and imports nothing slow. `local_source` translates `data` into fields of a
task definition of lm-evaluation-harness, which then reads local files in place of a data set on the Hub.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gkd_rl.config.choices import Dtype, number
from gkd_rl.config.launch import processes
from gkd_rl.config.validation import describe_setting, not_a_setting, wrong_values
from gkd_rl.errors import ConfigError, DataError

MT_BENCH = "mt_bench"
FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}  # ending -> name of the loader in `datasets`
SPLIT_KEYS = ("training_split", "validation_split", "test_split", "fewshot_split")  # of a task definition


@dataclass
class JudgeConfig:
    """The model that grades answers of MT-Bench, behind an OpenAI-compatible server."""

    url: str | None = MISSING
    model: str | None = MISSING
    api_key_variable: str | None = MISSING
    prompts: str | None = MISSING
    max_tokens: int = number(1)
    timeout: float = number(0, open_low=True)
    parallel: int = number(1)


@dataclass
class MtBenchConfig:
    """Settings of MT-Bench."""

    max_answer_tokens: int = number(1)
    judge: JudgeConfig = field(default_factory=JudgeConfig)


@dataclass
class BenchmarkConfig:
    """Settings of the command; values and comments are in conf/benchmark.yaml."""

    model: str = MISSING
    suite: str = MISSING
    data: Any = MISSING
    limit: int | None = number(1)
    batch_size: int = number(1)
    num_fewshot: int | None = number(0)
    dtype: Dtype | None = MISSING
    device: str | None = MISSING
    chat: bool = MISSING
    seed: int | None = number(0)
    allow_code_execution: bool = MISSING
    output: str | None = MISSING
    mt_bench: MtBenchConfig = field(default_factory=MtBenchConfig)

    @property
    def suites(self) -> list[str]:
        """The names in `suite`, each once."""
        return list(dict.fromkeys(name.strip() for name in self.suite.split(",")))


def read_settings(arguments: list[str], defaults: Path) -> BenchmarkConfig:
    """The settings of a command line.

    Args:
        arguments: KEY=VALUE each.
        defaults: conf/benchmark.yaml.

    Raises:
        ConfigError: with all problems.
    """
    settings = OmegaConf.merge(OmegaConf.structured(BenchmarkConfig), OmegaConf.load(defaults))
    problems = []
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        if not key or not equals:
            problems.append(f"{argument} cannot be read: a setting is KEY=VALUE, e.g. suite=gsm8k.")
            continue
        try:
            settings = OmegaConf.merge(settings, OmegaConf.from_dotlist([argument]))
        except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
            problems.append(_refused(argument, error))
    config = OmegaConf.to_object(settings) if not OmegaConf.missing_keys(settings) else None
    if config is None:
        problems += [_missing(key) for key in sorted(OmegaConf.missing_keys(settings))]
    else:
        assert isinstance(config, BenchmarkConfig)
        problems += [*wrong_values(config), *_contradictions(config)]
    if problems or config is None:
        raise ConfigError(problems)
    return config


def _missing(key: str) -> str:
    return f"{key} has no value: {key} takes {describe_setting(key, BenchmarkConfig)}."


def _refused(argument: str, error: Exception) -> str:
    """The message for a key that does not exist, or a value of another type."""
    key, _, value = argument.partition("=")
    takes = describe_setting(key, BenchmarkConfig)
    if isinstance(error, yaml.YAMLError):
        return f"{argument} is not readable YAML: {' '.join(str(error).split())}."
    return f"{argument} is not allowed: {key} takes {takes}." if takes else not_a_setting(key, value, set(_keys()))


def _keys(schema: Any = BenchmarkConfig, prefix: str = "") -> Iterator[str]:
    """Every dotted key of the schema."""
    for item in fields(schema):
        yield prefix + item.name
        if callable(item.default_factory) and is_dataclass(item.default_factory):
            yield from _keys(item.default_factory, f"{prefix}{item.name}.")


def _contradictions(config: BenchmarkConfig) -> Iterator[str]:
    """Messages about settings that contradict each other."""
    if not all(config.suites):
        yield f"suite={config.suite} has an empty name: suite takes names with commas, e.g. gsm8k,mmlu."
    if not (config.data is None or isinstance(config.data, str | dict)):
        yield f"data={config.data}: data takes a folder or a mapping of suites, e.g. data.gsm8k.test=test.jsonl."
    if isinstance(config.data, dict):
        for name in sorted(set(map(str, config.data)) - set(config.suites)):
            yield f"data.{name} belongs to no selected suite: suite={config.suite}."
    if config.output is not None and _exists_with_content(Path(config.output).expanduser()):
        yield f"output={config.output} exists and is not empty: output takes a folder that is new or empty."
    if processes() > 1:
        yield f"{processes()} processes were launched: benchmarks take one. Start them without accelerate launch."
    if MT_BENCH in config.suites:
        yield from _judge_problems(config)


def _judge_problems(config: BenchmarkConfig) -> Iterator[str]:
    judge = config.mt_bench.judge
    for name in ("url", "model"):
        if getattr(judge, name) is None:
            example = "http://127.0.0.1:8000" if name == "url" else "the model's name on the server"
            yield f"suite=mt_bench needs a judge: set mt_bench.judge.{name}, e.g. {example}."
    if config.data is None or (isinstance(config.data, dict) and MT_BENCH not in config.data):
        yield "suite=mt_bench takes its questions from a file: set data.mt_bench to FastChat's question.jsonl."
    if judge.api_key_variable is not None and not os.environ.get(judge.api_key_variable):
        yield (
            f"mt_bench.judge.api_key_variable={judge.api_key_variable}: there is no such environment variable; export "
            "it, or set null for a server without keys."
        )


def _exists_with_content(path: Path) -> bool:
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


def local_source(
    suite: str, data: str | dict[str, Any], task: Mapping[str, Any], num_fewshot: int | None
) -> dict[str, Any] | None:
    """Fields of a task definition that make the task read local files.

    Args:
        suite: name in the setting `suite`.
        data: a folder with one folder for each suite; or suite -> file (the evaluated split), folder, or mapping of
            splits to files. A folder may be a copy of a repository on the Hub: file names start with the split, and
            there may be one folder for each configuration of the data set.
        task: the task definition of the harness.
        num_fewshot: the setting.

    Returns:
        The fields; None if `data` is a mapping without this suite, whose rows then come from the Hub.

    Raises:
        DataError: a file of the evaluated split or of the few-shot split is missing, or formats are unknown or mixed.
    """
    if isinstance(data, dict) and suite not in data:
        return None
    location = str(Path(data) / suite) if isinstance(data, str) else data[suite]
    evaluated = task.get("test_split") or task.get("validation_split") or "test"
    files = _files(suite, location, task, evaluated)
    formats = {FORMATS[file.suffix] for file in files.values()}
    if len(formats) > 1:
        raise DataError(f"data.{suite}: {', '.join(map(str, files.values()))}: all files of a suite take one format.")
    few_shot = _few_shot_split(task)
    if _shots(task, num_fewshot) > 0 and few_shot is not None and few_shot not in files:
        raise DataError(
            f"suite={suite} has {_shots(task, num_fewshot)} examples in its prompts, from its split {few_shot}, and "
            f"data.{suite} has {', '.join(files)} only: add data.{suite}.{few_shot}, or set num_fewshot=0."
        )
    absent = {key: None for key in SPLIT_KEYS if task.get(key) not in files}
    return {
        "dataset_path": formats.pop(),
        "dataset_name": None,
        "custom_dataset": None,
        "dataset_kwargs": {"data_files": {split: str(file) for split, file in files.items()}},
        **absent,
    }


def _few_shot_split(task: Mapping[str, Any]) -> str | None:
    """The split of the few-shot examples; None if the definition contains them."""
    own = task.get("fewshot_config") or {}
    if "split" in own or task.get("fewshot_split"):
        return own.get("split") or task["fewshot_split"]
    return None if "samples" in own else task.get("training_split") or task.get("validation_split")


def _shots(task: Mapping[str, Any], num_fewshot: int | None) -> int:
    """Number of few-shot examples; the harness keeps a 0 of the definition whatever `num_fewshot` is."""
    own = task.get("num_fewshot")
    return 0 if own == 0 else num_fewshot if num_fewshot is not None else own or 0


def _files(suite: str, location: Any, task: Mapping[str, Any], evaluated: str) -> dict[str, Path]:
    """Split -> file, the evaluated split included."""
    if isinstance(location, dict):
        files = {str(split): Path(str(file)).expanduser() for split, file in location.items()}
    else:
        path = Path(str(location)).expanduser().absolute()
        files = _in_folder(path, task, evaluated) if path.is_dir() else {evaluated: path}
    for split, file in files.items():
        if file.suffix not in FORMATS:
            raise DataError(f"data.{suite}={file}: a file ends in {', '.join(FORMATS)}.")
        if not file.is_file():
            raise DataError(f"data.{suite}={file}: there is no such file for split {split}.")
    if evaluated not in files:
        raise DataError(
            f"data.{suite}={location} has no file of the split {evaluated}, which is evaluated: set "
            f"data.{suite}.{evaluated} to a file, or name a file in the folder {evaluated}.jsonl."
        )
    return {split: file.absolute() for split, file in files.items()}


def _in_folder(folder: Path, task: Mapping[str, Any], evaluated: str) -> dict[str, Path]:
    """Split -> the file whose name starts with it; a single file is the evaluated split."""
    name = task.get("dataset_name")
    inner = folder / str(name)
    if name is not None and inner.is_dir():
        folder = inner
    found = sorted(file for file in folder.iterdir() if file.suffix in FORMATS)
    splits = dict.fromkeys(str(task[key]) for key in SPLIT_KEYS if task.get(key)) or {evaluated: None}
    files: dict[str, Path] = {}
    for split in splits:
        of_split = [file for file in found if re.match(rf"{re.escape(split)}(?![a-z])", file.name)]
        if len(of_split) > 1:
            raise DataError(f"{folder} has several files of split {split}: {', '.join(one.name for one in of_split)}.")
        if of_split:
            files[split] = of_split[0]
    return {evaluated: found[0]} if not files and len(found) == 1 else files
