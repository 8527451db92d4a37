"""A sweep on the command line, and its report.

Two runs of one sweep, alpha = 0 (reward only) and alpha = 1 (distillation only), in folders below `multirun/`.
`experiments.report` then reads all runs of the folder and writes one HTML page that needs no network: trade-off,
curves, intervals, and completions of the runs side by side.
"""

import subprocess
import sys
from pathlib import Path

TINY = [
    "scale.threads=1",
    "task.train_size=200",
    "task.test_size=20",
    "task.max_completion_tokens=12",
    "student.sft.steps=30",
    "teacher.sft.steps=30",
    "trainer.steps=5",
    "trainer.prompts_per_step=8",
    "evaluation.rollout_prompts=8",
    "evaluation.self_bleu_prompts=0",
    "tracking=none",
]


def main() -> None:
    """Run the sweep, then write report.html beside it."""
    settings = ["-m", "experiment=xsum_rl", "reward=faithfulness", "alpha=0,1", *TINY]
    subprocess.run([sys.executable, "-m", "gkd_rl.run", *settings, "hydra.sweep.dir=multirun/example"], check=True)

    report = Path("multirun/example/report.html")
    subprocess.run([sys.executable, "-m", "experiments.report", "multirun/example", "--out", str(report)], check=True)
    print(f"open {report} in a browser")


if __name__ == "__main__":
    main()
