"""alpha of Eq. 5, (1 - alpha) E[r] - alpha E[D], as a function of the step.

The paper keeps alpha constant; the other schedules are additions. Pure Python, because the rules between settings
(`rules.py`) use it to find out which terms of the objective a run has.
"""

from __future__ import annotations

from dataclasses import dataclass

from gkd_rl.config.choices import AlphaSchedule


@dataclass(frozen=True)
class Schedule:
    """alpha over a run of `steps` steps.

    Attributes:
        kind: constant and balanced keep `alpha` (balanced: as the share of the gradient norm); linear interpolates from
            `start` to `alpha` over the run; warmup does so over the first `until` of the run; switch uses `start` for
            the first `until` of the run and `alpha` after it.
        alpha: the setting `alpha`, the value at the last step.
        steps: number of steps of the run.
        start: alpha at the first step, for linear, warmup and switch.
        until: share of the steps after which warmup and switch have reached `alpha`.
    """

    kind: AlphaSchedule
    alpha: float
    steps: int
    start: float | None = None
    until: float | None = None

    def __call__(self, step: int) -> float:
        """Alpha at step `step`, counted from 0."""
        start = self.alpha if self.start is None else self.start
        if self.kind is AlphaSchedule.linear:
            return start + (self.alpha - start) * step / max(self.steps - 1, 1)
        ramp = self.steps * (0.0 if self.until is None else self.until)
        if self.kind is AlphaSchedule.warmup:
            return start + (self.alpha - start) * min(step / ramp, 1.0) if ramp else self.alpha
        if self.kind is AlphaSchedule.switch:
            return start if step < ramp else self.alpha
        return self.alpha

    @property
    def balanced(self) -> bool:
        """Alpha is the share of the gradient norm, not the weight of the term."""
        return self.kind is AlphaSchedule.balanced

    @property
    def has_reward(self) -> bool:
        """Some step has a reward term."""
        return any(self(step) < 1 for step in self._corners())

    @property
    def has_divergence(self) -> bool:
        """Some step has a divergence term."""
        return any(self(step) > 0 for step in self._corners())

    @property
    def reaches_zero(self) -> bool:
        """Some step has no divergence term."""
        return any(self(step) == 0 for step in self._corners())

    def _corners(self) -> set[int]:
        """The first and the last two steps; alpha is monotonic in the step, so its extremes are among these."""
        return {step for step in (0, 1, self.steps - 2, self.steps - 1) if 0 <= step < self.steps}
