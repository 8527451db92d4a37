"""Where a step's time goes: seconds of each phase, beside the FLOPs that its work needs (`cost.py`)."""

from __future__ import annotations

from collections.abc import Mapping

TERA = 1e12


def profile_lines(totals: Mapping[str, float], steps: int, seconds: float) -> list[str]:
    """A table of phases, the longest first.

    Args:
        totals: time/PHASE in seconds and flops/PHASE, summed over steps.
        steps: how many.
        seconds: that these steps took in all; what no phase has is "everything else".
    """
    spent = {name.removeprefix("time/"): value for name, value in totals.items() if name.startswith("time/")}
    spent = {name: value for name, value in spent.items() if name != "total"}
    spent["everything else"] = seconds - sum(spent.values())
    lines = [f"where a step's time goes: {seconds / steps:.3g} s, the mean of {steps} steps"]
    lines.append(f"{'phase':<16}{'seconds':>10}{'share':>8}{'TFLOP':>10}{'TFLOP/s':>10}")
    for name, value in sorted(spent.items(), key=lambda item: -item[1]):
        flops = totals.get(f"flops/{name}")
        work = "" if flops is None else f"{flops / steps / TERA:>10.3g}{flops / value / TERA:>10.3g}"
        lines.append(f"{name:<16}{value / steps:>10.3g}{value / seconds:>8.1%}{work}".rstrip())
    return lines
