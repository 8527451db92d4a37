"""Rewards: callables `(prompts, completions, **columns) -> list[float | None]`, higher is better.

The signature is that of trl's GRPO rewards, so those drop in. Nothing here imports gkd_rl: a reward can be tried on any
text. A None means "no opinion" and is refused by the composite unless another component speaks for the same row.
"""
