"""A first run from Python: settings in, results out.

`run_experiment` takes the overrides of the command line, writes the same run folder and returns the results. This run
is the paper's objective at alpha = 0.5 on generated news, at sizes of half a minute on one core: far too short to learn
much. Without the overrides of `TINY` it takes some minutes.
"""

from gkd_rl import ConfigError, run_experiment

TINY = [
    "scale.threads=1",
    "task.train_size=200",
    "task.test_size=20",
    "student.sft.steps=30",
    "teacher.sft.steps=30",
    "trainer.steps=5",
    "evaluation.rollout_prompts=8",
    "evaluation.self_bleu_prompts=0",
    "tracking=none",
]


def main() -> None:
    """Refuse a wrong setting, then run."""
    try:
        run_experiment(["alpha=2"])
    except ConfigError as error:
        print(f"refused before anything was written: {error}\n")

    results = run_experiment(["experiment=xsum_rl", "reward=faithfulness", "alpha=0.5", *TINY])

    change = results.changes()["sampled/divergence"]
    print(f"\ndivergence to the teacher, after - before: {change.mean:.3f} [{change.low:.3f}, {change.high:.3f}]")
    print(f"objective: {results.objective(alpha=0.5):.3f}")
    print(f"first completion: {results.predictions()[0]['student after']}")
    print(f"run folder: {results.folder}")


if __name__ == "__main__":
    main()
