"""Public benchmarks of a saved model, through lm-evaluation-harness, and MT-Bench (`python -m gkd_rl.evaluate`).

Read `settings.py`, `suites.py`, `harness.py`, then `mt_bench.py`.
"""

__all__: list[str] = []
