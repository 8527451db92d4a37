"""Public benchmarks of a saved model: lm-evaluation-harness's tasks, ScienceQA and MT-Bench."""
