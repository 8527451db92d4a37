"""Entry point: `python -m gkd_rl.evaluate model=FOLDER suite=gsm8k,mmlu` evaluates a model on benchmarks.

Exit status 0: done; 1: the model, the data or a server failed; 2: the settings are refused.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gkd_rl.cli.single_run import find_config_dir, message
from gkd_rl.errors import BenchmarkError, ConfigError, GkdRlError
from gkd_rl.evaluation.benchmarks.settings import MT_BENCH, BenchmarkConfig, read_settings

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM

    from gkd_rl.evaluation.benchmarks.mt_bench import Judge, Question

DEFAULTS = find_config_dir() / "benchmark.yaml"


def main(arguments: list[str]) -> int:
    """Run the benchmarks that `arguments` name, print the table, and return the exit status."""
    if {"-h", "--help"} & set(arguments):
        sys.stdout.write(f"python -m gkd_rl.evaluate model=FOLDER suite=NAMES ...\n\n{DEFAULTS.read_text('utf-8')}")
        return 0
    try:
        config = read_settings(arguments, DEFAULTS)
        if importlib.util.find_spec("lm_eval") is None:
            raise BenchmarkError('Benchmarks run through lm-evaluation-harness: type `pip install "gkd_rl[eval]"`.')
        table, folder = run(config)
    except GkdRlError as error:
        sys.stderr.write(message(error))
        return 2 if isinstance(error, ConfigError) else 1
    sys.stdout.write(f"{table}{folder}\n")
    return 0


def run(config: BenchmarkConfig) -> tuple[str, Path]:
    """Load suites and judge, then the model, evaluate it and write the report.

    Settings, data and servers are checked before the model is loaded.

    Returns:
        The table, and the folder of the results.

    Raises:
        GkdRlError: the model, the data or the judge cannot be used.
    """
    from gkd_rl.evaluation.benchmarks import harness
    from gkd_rl.evaluation.benchmarks.harness import table, write_report
    from gkd_rl.evaluation.benchmarks.suites import load_suites

    start = time.perf_counter()
    named = [name for name in config.suites if name != MT_BENCH]
    with tempfile.TemporaryDirectory() as scratch:
        suites = load_suites(named, config.data, config.num_fewshot, config.allow_code_execution, Path(scratch))
    judged = _questions_and_judge(config) if MT_BENCH in config.suites else None
    lm = harness.load(config)
    folder = _folder(config)
    results = harness.evaluate(lm, suites, config) if suites.tasks else {}
    if judged is not None:
        write_report(folder, config, results, None, time.perf_counter() - start)  # kept if the judge fails
    mt_bench = None if judged is None else _mt_bench(lm, config, *judged, folder)
    write_report(folder, config, results, mt_bench, time.perf_counter() - start)
    return table(config, suites.names, results, mt_bench), folder


def _questions_and_judge(config: BenchmarkConfig) -> tuple[list[Question], Judge]:
    """Questions and judge of MT-Bench; the judge has answered a test request."""
    from gkd_rl.evaluation.benchmarks.mt_bench import build_judge, read_questions

    place = str(Path(config.data) / MT_BENCH) if isinstance(config.data, str) else str(config.data[MT_BENCH])
    questions = read_questions(place, config.limit)
    judge = build_judge(config.mt_bench.judge)
    judge.check()
    return questions, judge


def _mt_bench(
    lm: HFLM, config: BenchmarkConfig, questions: list[Question], judge: Judge, folder: Path
) -> dict[str, Any]:
    """Generate answers, have them graded, and average the grades; answers are written before the judge is called."""
    from gkd_rl.evaluation.benchmarks.mt_bench import generate_answers, summarise
    from gkd_rl.outputs.json_files import write_json

    answers = generate_answers(lm, questions, config.mt_bench.max_answer_tokens, config.seed or 0)
    rows = [{"question": question, "answers": given} for question, given in zip(questions, answers, strict=True)]
    write_json(folder / "mt_bench_answers.json", rows)
    verdicts = judge.grade(questions, answers)
    for row, both in zip(rows, verdicts, strict=True):
        row["verdicts"] = both
    write_json(folder / "mt_bench_answers.json", rows)
    return summarise(questions, [[one["grade"] for one in both] for both in verdicts])


def _folder(config: BenchmarkConfig) -> Path:
    """The folder of the results: `output`, or a new one beside the model."""
    if config.output is not None:
        folder = Path(config.output).expanduser()
    else:
        model = Path(config.model).expanduser()
        beside = model.absolute().parent if model.exists() else Path("outputs") / config.model.replace("/", "_")
        folder = beside / "benchmarks" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S_%f")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
