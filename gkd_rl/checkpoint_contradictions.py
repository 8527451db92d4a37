"""What the best checkpoint can be chosen by: numbers that the run's steps have."""

from __future__ import annotations

from collections.abc import Iterator

from gkd_rl.config import Config

ALWAYS = ("loss", "entropy", "grad_norm", "completion_tokens", "truncated_share", "repetition")


def check_checkpoints(config: Config) -> Iterator[str]:
    """A best checkpoint without checkpoints, or by a number that no step has."""
    best = config.checkpoint.best
    if best is None:
        return
    if config.trainer.checkpoint_every == 0:
        yield f"checkpoint.best={best} with trainer.checkpoint_every=0: set trainer.checkpoint_every, or best to null."
    rewards = ["reward/mean", *(f"reward/{name}" for name in config.reward.components)]
    known = [*ALWAYS, "divergence", *(rewards if config.reward.components else [])]
    if best not in known:
        yield f"checkpoint.best={best} is not a number of this run's steps: it takes {', '.join(known)}, or null."
