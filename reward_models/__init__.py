"""Rewards: callables `(prompts, completions, **columns) -> list[float | None]`, higher is better.

The signature is that of trl's GRPO rewards, so those drop in. Nothing here imports gkd_rl: a reward can be tried on any
text. `Composite` adds them up and refuses a reward that is None, not finite, or one too few.
"""
