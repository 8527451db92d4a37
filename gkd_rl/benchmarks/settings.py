"""Settings of the benchmarks: schema, command line, and every problem of them at once. Imports nothing slow."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gkd_rl.choices import Dtype
from gkd_rl.config import number
from gkd_rl.errors import ConfigError
from gkd_rl.launched import processes
from gkd_rl.setting_words import describe_setting
from gkd_rl.validation import not_a_setting, wrong_values

MT_BENCH = "mt_bench"


@dataclass
class JudgeConfig:
    """The model that grades answers, behind an OpenAI-compatible server."""

    url: str | None = MISSING
    model: str | None = MISSING
    api_key_variable: str | None = MISSING
    prompts: str | None = MISSING
    max_tokens: int = number(1)
    timeout: float = number(0, open_low=True)
    parallel: int = number(1)


@dataclass
class MtBenchConfig:
    """MT-Bench's answers and their judge."""

    max_answer_tokens: int = number(1)
    judge: JudgeConfig = field(default_factory=JudgeConfig)


@dataclass
class BenchmarkConfig:
    """What is evaluated on what."""

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
    """The settings that a command line asks for.

    Args:
        arguments: KEY=VALUE each.
        defaults: conf/benchmark.yaml.

    Raises:
        ConfigError: with every problem.
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
    """The sentence for a key that does not exist, or a value of another type."""
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
    """Settings that need one another."""
    if not all(config.suites):
        yield f"suite={config.suite} has an empty name: suite takes names with commas, e.g. gsm8k,mmlu."
    if not (config.data is None or isinstance(config.data, str | dict)):
        yield f"data={config.data}: data takes a folder or a mapping of suites, e.g. data.gsm8k.test=test.jsonl."
    if isinstance(config.data, dict):
        for name in sorted(set(map(str, config.data)) - set(config.suites)):
            yield f"data.{name} is the data of no suite that is asked for: suite={config.suite}."
    if config.output is not None and _holds_something(Path(config.output).expanduser()):
        yield f"output={config.output} is there already and not empty: output takes a folder that is new or empty."
    if processes() > 1:
        yield f"{processes()} processes were launched: benchmarks take one. Start them without accelerate launch."
    if MT_BENCH in config.suites:
        yield from _without_judge(config)


def _without_judge(config: BenchmarkConfig) -> Iterator[str]:
    judge = config.mt_bench.judge
    for name in ("url", "model"):
        if getattr(judge, name) is None:
            example = "http://127.0.0.1:8000" if name == "url" else "the name that the server knows it by"
            yield f"suite=mt_bench needs a judge: set mt_bench.judge.{name}, e.g. {example}."
    if config.data is None or (isinstance(config.data, dict) and MT_BENCH not in config.data):
        yield "suite=mt_bench takes its questions from a file: set data.mt_bench to FastChat's question.jsonl."
    if judge.api_key_variable is not None and not os.environ.get(judge.api_key_variable):
        yield (
            f"mt_bench.judge.api_key_variable={judge.api_key_variable}: there is no such variable; export it, "
            "or set null for a server without keys."
        )


def _holds_something(place: Path) -> bool:
    return place.is_file() or (place.is_dir() and any(place.iterdir()))
