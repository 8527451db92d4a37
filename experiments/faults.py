"""Runs that are killed and resumed: are they bit for bit the runs that were not?

    python -m experiments.faults                # 20 runs, two kills each
    python -m experiments.faults --runs 8       # one of each kind

Each run is a command in its own process, killed twice with SIGKILL: at a random second, in a step, or while it writes a
checkpoint (recognised by the temporary folder). Then the command is repeated, alternately with resume=auto and as
resume=FOLDER, until it ends. metrics.jsonl (without times), samples.jsonl, eval.json (without times and memory) and the
weights have to equal those of the undisturbed run. Exit status 1: one does not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gkd_rl.outputs.json_files import write_json
from gkd_rl.outputs.run_record import environment_record

ROOT = Path(__file__).resolve().parents[1]
STEPS, EVERY = 24, 3
SMALL = (
    *("task.train_size=200", "task.test_size=8", "student.sft.steps=3", "teacher.sft.steps=3"),
    *("student.sft.batch_size=8", "teacher.sft.batch_size=8", "tracking=none", "trainer.log_every=2"),
    *("trainer.prompts_per_step=4", "rollout.per_prompt=2", "trainer.diagnose_every=4", "trainer.warmup_steps=2"),
    *("evaluation.rollout_prompts=8", "evaluation.self_bleu_prompts=2", "evaluation.bootstrap_samples=100"),
    *("task.max_completion_tokens=16", "scale.threads=1"),
    *(f"trainer.steps={STEPS}", f"trainer.checkpoint_every={EVERY}"),
)
NEWS, WORD_PROBLEMS = ("experiment=xsum_rl", "reward=faithfulness"), ("experiment=gsm8k_rl",)
PPO = ("policy_gradient=ppo", "policy_gradient.epochs=2", "policy_gradient.value.hidden_size=16")
SWITCH = ("alpha_schedule=switch", "alpha=0.2", "alpha_schedule.start=0.9", "alpha_schedule.until=0.5")
CASES = {
    "T5, dropout, accumulation": (*NEWS, "student.architecture.dropout_rate=0.1", "trainer.micro_batch_size=3"),
    "decoder-only, accumulation": (*WORD_PROBLEMS, "trainer.micro_batch_size=3"),
    "T5, LoRA with dropout": (*NEWS, "adapter=lora", "adapter.dropout=0.1"),
    "decoder-only, LoRA": (*WORD_PROBLEMS, "adapter=lora"),
    "T5, PPO, two epochs, value head": (*NEWS, *PPO),
    "decoder-only, PPO, two epochs, value head, LoRA": (*WORD_PROBLEMS, *PPO, "adapter=lora"),
    "T5, switch schedule": (*NEWS, *SWITCH),
    "decoder-only, switch schedule, half on references": (
        *WORD_PROBLEMS,
        *SWITCH,
        "lmbda=0.5",
        "+student.architecture.attention_dropout=0.1",
    ),
}
MOMENTS = ("in a checkpoint's write", "in a step", "at any second")
NEVER = "never: it had ended"
LIMIT = 900.0  # seconds after which a command counts as hung


@dataclass
class Outcome:
    """One disturbed run.

    Attributes:
        case: key of CASES.
        kills: when it was killed.
        lost: steps that were repeated.
        differences: files that differ from the undisturbed run's.
        seconds: from the first start to the end.
    """

    case: str
    kills: list[str] = field(default_factory=list)
    lost: int = 0
    differences: list[str] = field(default_factory=list)
    seconds: float = 0.0


def start(folder: Path, cache: Path, overrides: tuple[str, ...]) -> subprocess.Popen[bytes]:
    """Start the command of a run; its output is appended to `folder`.log."""
    variables = {"GKD_RL_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with folder.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "gkd_rl.run", *overrides],
            env=os.environ | variables,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def first_command(case: str, folder: Path) -> tuple[str, ...]:
    """Overrides of a run without resume."""
    return (*CASES[case], *SMALL, f"hydra.run.dir={folder}")


def steps_taken(folder: Path) -> int:
    """Complete lines of metrics.jsonl."""
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def changed_at(folder: Path) -> int:
    """Modification time of metrics.jsonl, 0 without the file."""
    path = folder / "metrics.jsonl"
    return path.stat().st_mtime_ns if path.exists() else 0


def wait_for(moment: str, folder: Path, usual: float, draw: random.Random, process: subprocess.Popen[bytes]) -> str:
    """Wait until the process is to be killed, at the latest before its last step; return when that is."""
    begun, already, unchanged = time.monotonic(), steps_taken(folder), changed_at(folder)
    seconds, step = draw.uniform(0, usual), draw.randint(min(already + 1, STEPS - 1), STEPS - 1)
    nth, pause = draw.randint(1, 3), draw.uniform(0, 0.1)
    seen: set[str] = set()
    while process.poll() is None and time.monotonic() - begun < LIMIT:
        if moment == MOMENTS[2] and time.monotonic() - begun > seconds:
            return f"after {seconds:.1f} s"
        if changed_at(folder) != unchanged and steps_taken(folder) >= (step if moment == MOMENTS[1] else STEPS - 1):
            time.sleep(pause)
            return f"after step {steps_taken(folder)}"
        if moment == MOMENTS[0]:
            seen |= {path.name for path in (folder / "checkpoints").glob(".writing-*")}
            if len(seen) >= nth:
                return f"in checkpoint write {nth}"
        time.sleep(0.0005 if moment == MOMENTS[0] else 0.005)  # a write takes some 30 ms
    return NEVER


def disturbed(number: int, folder: Path, cache: Path, usual: float, seed: int) -> Outcome:
    """One run that is killed twice and resumed until it ends."""
    case = list(CASES)[number % len(CASES)]
    outcome, draw, begun = Outcome(case), random.Random(f"{seed} {number}"), time.monotonic()
    typed = first_command(case, folder)
    for attempt in range(3):
        by_folder = attempt > 0 and number % 2 == 1 and (folder / "command.json").is_file()
        process = start(folder, cache, (f"resume={folder}",) if by_folder else (*typed, "resume=auto"))
        if attempt == 2:
            status = process.wait(LIMIT)
            if status != 0:
                outcome.differences.append(f"it ended with status {status}, see {folder.with_suffix('.log')}")
            break
        when = wait_for(MOMENTS[(number + attempt) % len(MOMENTS)], folder, usual, draw, process)
        process.kill()
        if process.wait() == 0:
            outcome.kills.append(NEVER)
            break
        incomplete = any((folder / "checkpoints").glob(".writing-*"))
        outcome.kills.append(f"{when}{' (half-written)' if incomplete else ''}")
        whole = sorted(path.name for path in (folder / "checkpoints").glob("step-*"))
        outcome.lost += steps_taken(folder) - (int(whole[-1][5:]) if whole else 0)
    outcome.seconds = time.monotonic() - begun
    return outcome


def content(folder: Path) -> dict[str, Any]:
    """What has to be equal."""

    def without_times(values: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if not key.startswith("time/")}

    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    results = json.loads((folder / "eval.json").read_text(encoding="utf-8"))
    results["cost"] = without_times(results["cost"])
    del results["memory"]
    weights = {path.name: path.read_bytes() for path in sorted((folder / "model").rglob("*.safetensors"))}
    samples = (folder / "samples.jsonl").read_bytes()
    return {
        "metrics.jsonl": [without_times(json.loads(line)) for line in lines],
        "samples.jsonl": samples,
        "eval.json": results,
        **weights,
    }


def compare(outcome: Outcome, folder: Path, undisturbed: Path) -> None:
    """Add every file that differs to the outcome."""
    if outcome.differences:
        return
    one, other = content(folder), content(undisturbed)
    outcome.differences += [name for name in one.keys() | other.keys() if one.get(name) != other.get(name)]


def lines_of(outcomes: list[Outcome]) -> Iterator[str]:
    """One line for each run."""
    widest = max(map(len, CASES))
    for number, one in enumerate(outcomes):
        verdict = "identical" if not one.differences else f"NOT identical: {', '.join(sorted(one.differences))}"
        facts = f"{one.seconds:5.0f} s  {one.lost:2d} steps repeated  {verdict}"
        yield f"{number:3d}  {one.case:{widest}s}  {facts}  killed {'; '.join(one.kills)}"


def main() -> None:
    """Command line: run, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="disturbed runs")
    parser.add_argument("--workers", type=int, default=2, help="commands at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--out", type=Path, help="JSON file for the outcomes")
    parser.add_argument("--folder", type=Path, default=None, help="keeps all runs; default: a temporary folder")
    options = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        place = (options.folder or Path(temporary)).absolute()
        place.mkdir(parents=True, exist_ok=True)
        used = list(CASES)[: options.runs]
        with ThreadPoolExecutor(options.workers) as pool:

            def undisturbed(number: int) -> float:
                start_time, folder = time.monotonic(), place / f"undisturbed-{number}"
                if start(folder, place / "cache", first_command(used[number], folder)).wait(LIMIT) != 0:
                    raise SystemExit(f"the undisturbed run failed: {folder.with_suffix('.log').read_text()[-2000:]}")
                return time.monotonic() - start_time

            usual = list(pool.map(undisturbed, range(len(used))))

            def one(number: int) -> Outcome:
                case, folder = number % len(CASES), place / f"disturbed-{number}"
                outcome = disturbed(number, folder, place / "cache", usual[case], options.seed)
                compare(outcome, folder, place / f"undisturbed-{case}")
                return outcome

            outcomes = list(pool.map(one, range(options.runs)))
    sys.stdout.write("\n".join(lines_of(outcomes)) + "\n")
    same = sum(not one.differences for one in outcomes)
    kills = sum(when != NEVER for one in outcomes for when in one.kills)
    minutes = (time.monotonic() - begun) / 60
    sys.stdout.write(f"{same} of {len(outcomes)} runs are identical after {kills} kills, in {minutes:.1f} minutes.\n")
    if options.out is not None:
        settings = {"runs": options.runs, "workers": options.workers, "seed": options.seed, "minutes": minutes}
        rows = [asdict(one) for one in outcomes]
        write_json(options.out, {"rows": rows, "settings": settings, "environment": environment_record()})
    sys.exit(0 if same == len(outcomes) else 1)


if __name__ == "__main__":
    main()
