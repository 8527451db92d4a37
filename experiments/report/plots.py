"""PNG and SVG files of every figure of every task, as the page shows it when it opens, by matplotlib.

`write_plots` goes over the figures; each kind of figure has one function in `KINDS`, which returns whether the runs
have the data for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from experiments.report.figures import (
    AFTER,
    BEFORE,
    TEACHER,
    Level,
    RunEntry,
    finished,
    first_of,
    groups_of,
    level,
    lines_of,
    measure,
    metrics_of,
    pareto_front,
)
from experiments.report.payload import unpacked

HALF_LIVES = 40  # of smoothing in the longest run
MOST_BANDS = 12
Styles = dict[str, dict[str, Any]]
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b8569b", "#c58a00", "#56b4e9", "#555b61", "#7d8a00")
DASHES = ("-", "--", ":", "-.")
MARKS = "os^Dv P"
LETTER_INCHES, HANDLE_INCHES, LINE_INCHES = 0.075, 0.6, 0.19  # of the legend, at 9 points
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ececE8",
    "lines.linewidth": 1.5,
    "legend.frameon": False,
    "savefig.dpi": 200,
    "svg.fonttype": "none",
    "svg.hashsalt": "gkd_rl",
    "text.parse_math": False,
}
Drawing = Callable[[Canvas, dict[str, Any], Sequence[RunEntry], dict[str, Any]], bool]


def write_plots(data: dict[str, Any], folder: Path) -> list[Path]:
    """Write TASK_FIGURE.png and .svg for every figure that the runs have data for.

    Args:
        data: a `payload`.
        folder: created if it does not exist.

    Returns:
        The PNG files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with mpl.rc_context(STYLE):
        for place, task in enumerate(data["tasks"]):
            runs = [run for run in data["runs"] if run["task"] == place]
            page = {"styles": styles(groups_of(runs)), "label": axis_label}
            for figure in data["figures"]:
                canvas = Canvas(layout="constrained")
                if not KINDS[figure["kind"]](canvas, figure, runs, page):
                    continue
                _add_legend(canvas)
                path = folder / f"{re.sub(r'[^a-z0-9]+', '_', task['label'].lower()).strip('_')}_{figure['key']}.png"
                canvas.savefig(path)
                canvas.savefig(path.with_suffix(".svg"), metadata={"Date": None})
                written.append(path)
    return written


def styles(labels: Sequence[str] | dict[str, Any]) -> Styles:
    """Label -> colour and dash of its lines."""
    return {
        label: {"color": COLOURS[i % len(COLOURS)], "ls": DASHES[i // len(COLOURS) % len(DASHES)], "label": label}
        for i, label in enumerate(labels)
    }


def axis_label(key: str) -> str:
    """A metric's name and unit."""
    about = measure(key)
    return about["label"] + (f" ({about['unit']})" if about["unit"] else "")


def _add_legend(canvas: Canvas) -> None:
    """One legend below all plots, each name once."""
    pairs = [pair for axes in canvas.axes for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    names = {label: handle for handle, label in reversed(pairs)}
    if names:
        labels = list(dict.fromkeys(label for _, label in pairs))
        width = LETTER_INCHES * max(map(len, labels)) + HANDLE_INCHES
        columns = max(1, int(canvas.get_figwidth() / width))
        canvas.set_figheight(canvas.get_figheight() + LINE_INCHES * -(-len(labels) // columns))
        canvas.legend([names[label] for label in labels], labels, loc="outside lower left", ncols=columns)


def curves(canvas: Canvas, figure: dict[str, Any], runs: Sequence[RunEntry], page: dict[str, Any]) -> bool:
    """Small plots over the training step, smoothed as on the page: mean over seeds, lowest to highest seed."""
    available = {key for run in runs for key in run["curves"]["metrics"]}
    keys = [key for wanted in figure["panels"] if (key := first_of(wanted, available))]
    if not keys:
        return False
    rows = -(-len(keys) // 2)
    canvas.set_size_inches(9, 2.9 * rows)
    for place, key in enumerate(keys):
        axes = canvas.add_subplot(rows, 2 if len(keys) > 1 else 1, place + 1)
        groups = groups_of(runs)
        for label, own in groups.items():
            _curve(axes, own, key, page["styles"][label], band=len(groups) <= MOST_BANDS)
        axes.set_xlabel("training step")
        axes.set_title(page["label"](key))
    return True


def _curve(axes: Axes, runs: Sequence[RunEntry], key: str, style: dict[str, Any], *, band: bool) -> None:
    """One group's line, and a band from its lowest to its highest seed."""
    found = [(steps, values[0]) for run in runs if (pair := decoded(run, key)) for steps, values in [pair]]
    if not found:
        return
    shortest = min(found, key=lambda pair: pair[0][-1])[0]
    half_life = shortest[-1] / HALF_LIVES
    seeds = np.stack([np.interp(shortest, steps, smoothed(steps, values, half_life)) for steps, values in found])
    axes.plot(shortest, seeds.mean(0), **style)
    if band and len(found) > 1:
        axes.fill_between(shortest, seeds.min(0), seeds.max(0), color=style["color"], alpha=0.13, lw=0)


def decoded(run: RunEntry, key: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Steps (n,) and values (1 or 3, n) of a run's curve; None if it has none."""
    packed = run["curves"]["metrics"].get(key)
    if packed is None:
        return None
    grid = run["curves"]["grids"][packed[0]]
    where = grid["steps"]
    steps = np.array(where) if isinstance(where, list) else where["start"] + where["by"] * np.arange(where["count"])
    return steps, unpacked(packed[1:], steps.size, grid["whole"])


def smoothed(steps: np.ndarray, values: np.ndarray, half_life: float) -> np.ndarray:
    """Exponential moving average with this half-life in steps, with bias correction."""
    kept = 0.5 ** (np.diff(steps, prepend=steps[0]) / half_life)
    out, total, weight = np.empty(values.size), 0.0, 0.0
    for i, (value, keep) in enumerate(zip(values, kept, strict=True)):
        total, weight = keep * total + value, keep * weight + 1
        out[i] = total / weight
    return out


def profile(canvas: Canvas, figure: dict[str, Any], runs: Sequence[RunEntry], page: dict[str, Any]) -> bool:
    """Divergences by the position of the token, mean over seeds."""
    keys = sorted({key for run in runs for key in run["profiles"]})
    canvas.set_size_inches(7, 3.6 * max(1, len(keys)))
    for place, key in enumerate(keys):
        axes = canvas.add_subplot(len(keys), 1, place + 1)
        for label, own in groups_of(finished(runs)).items():
            lists = [run["profiles"][key] for run in own if key in run["profiles"]]
            if lists:
                reached = min(map(len, lists))  # positions that all seeds have
                table = np.array([values[:reached] for values in lists], dtype=float)  # None becomes NaN
                axes.plot(np.arange(1, table.shape[1] + 1), np.nanmean(table, axis=0), **page["styles"][label])
        axes.set_xlabel("position in the completion (tokens)")
        axes.set_title(page["label"](key))
    return bool(keys)


def lengths(canvas: Canvas, figure: dict[str, Any], runs: Sequence[RunEntry], page: dict[str, Any]) -> bool:
    """Share of the held-out rows by number of words."""
    groups = {label: own for label, own in groups_of(runs).items() if any(run["lengths"] for run in own)}
    if not groups:
        return False
    canvas.set_size_inches(7, 3.6)
    axes = canvas.add_subplot()
    anchors = {"reference": ":", BEFORE: "--", TEACHER: "-"}
    sets = [(name, runs, name, {"color": "#666", "ls": dash, "lw": 1}) for name, dash in anchors.items()]
    sets += [(label, own, AFTER, page["styles"][label]) for label, own in groups.items()]
    for label, own, model, style in sets:
        pairs = np.array([pair for run in own for pair in run["lengths"].get(model, [])])
        if pairs.size:
            counts = np.bincount(pairs[:, 0], weights=pairs[:, 1])
            words = np.arange(pairs[:, 0].min(), counts.size)
            axes.step(words, counts[words] / counts.sum(), where="mid", **{**style, "label": label})
    axes.set_xlabel("words in the completion")
    axes.set_title("share of the held-out rows")
    return True


def scatter(canvas: Canvas, figure: dict[str, Any], runs: Sequence[RunEntry], page: dict[str, Any]) -> bool:
    """Two metrics, a point for each group with intervals, anchors and the Pareto front."""
    metrics = metrics_of(runs)
    x = first_of([*figure["x"], *sorted(metrics)], metrics)
    y = first_of([key for key in [*figure["y"], *sorted(metrics)] if key != x], metrics)
    if x is None or y is None:
        return False
    canvas.set_size_inches(7, 4.4)
    axes = canvas.add_subplot(xlabel=axis_label(x), title=axis_label(y))
    lines, found = lines_of(figure, runs), []
    for place, (label, groups) in enumerate(lines.items()):
        points = {}
        for name, own in groups.items():
            across, up = level(finished(own), AFTER, x), level(finished(own), AFTER, y)
            if across and up:
                points[name] = (across, up, own[0]["settings"].get(figure["along"]))
        style = {"color": COLOURS[place % len(COLOURS)], "marker": MARKS.replace(" ", "")[place % 6]}
        if len(points) > 1:
            axes.plot(*zip(*((a.mean, b.mean) for a, b, _ in points.values()), strict=True), color=style["color"], lw=1)
        for across, up, along in points.values():
            _point(axes, across, up, **style, label=label)
            text = f"{along:g}" if len(points) > 1 and along is not None else ""
            axes.annotate(text, (across.mean, up.mean), xytext=(5, 5), textcoords="offset points", fontsize=8)
        found += [(across.mean, up.mean) for across, up, _ in points.values()]
    for model, marker in ((BEFORE, "x"), (TEACHER, "*")):
        across, up = level(finished(runs), model, x), level(finished(runs), model, y)
        if across and up:
            _point(axes, across, up, color="#555b61", marker=marker, label=model)
    _draw_front(axes, np.array(found), [-1 if measure(key)["better"] == "lower" else 1 for key in (x, y)])
    return bool(found)


def _point(axes: Any, across: Level, up: Level, **style: Any) -> None:
    """A marker with error bars."""
    axes.errorbar(across.mean, up.mean, xerr=across.bars, yerr=up.bars, ls="none", ms=6, elinewidth=1, **style)


def _draw_front(axes: Any, points_NX: np.ndarray, signs: list[int]) -> None:
    """A dashed step line through the points that no other point dominates."""
    if len(points_NX):
        front = points_NX[pareto_front(points_NX * signs)]
        front = front[np.argsort(signs[0] * front[:, 0])]
        axes.step(*front.T, where="pre", color="#555b61", ls="--", lw=1, label="Pareto front")


def sweep(canvas: Canvas, figure: dict[str, Any], runs: Sequence[RunEntry], page: dict[str, Any]) -> bool:
    """A metric along one setting."""
    y = first_of(figure["y"], metrics_of(runs)) or first_of(sorted(metrics_of(runs)), metrics_of(runs))
    lines = lines_of(figure, finished(runs))
    table = {}
    for label, groups in lines.items():
        pairs = [(own[0]["settings"].get(figure["along"]), level(own, AFTER, y or "")) for own in groups.values()]
        kept = [(x, up) for x, up in pairs if x is not None and up is not None]
        if len({x for x, _ in kept}) >= figure["least"]:
            table[label] = kept
    if not table:
        return False
    canvas.set_size_inches(7, 4)
    axes = canvas.add_subplot(xlabel=figure["along"].replace("_", " "), title=axis_label(str(y)))
    if figure["along"] == "train_rows":
        axes.set_xscale("log")
    for label, style in styles(table).items():
        xs, ups = zip(*table[label], strict=True)
        axes.errorbar(
            xs, [up.mean for up in ups], yerr=np.hstack([up.bars for up in ups]), marker="o", elinewidth=1, **style
        )
    return True


def heat(canvas: Canvas, figure: dict[str, Any], runs: Sequence[RunEntry], page: dict[str, Any]) -> bool:
    """Means by divergence and lambda, of the largest set of runs whose other settings agree."""
    own = [run for run in finished(runs) if run["settings"]["divergence"] != "cross entropy"]
    sets: dict[str, list[RunEntry]] = {}
    for run in own:
        sets.setdefault(run["lines"][figure["key"]], []).append(run)
    y = first_of(figure["y"], metrics_of(runs))
    if not sets or y is None:
        return False
    largest = max(sets.values(), key=len)
    columns = sorted({run["settings"]["divergence"] for run in largest})
    rows = sorted({run["settings"]["lmbda"] for run in largest}, reverse=True)
    means = np.full((len(rows), len(columns)), np.nan)
    for i, lmbda in enumerate(rows):
        for j, name in enumerate(columns):
            cell = [
                one for one in largest if (one["settings"]["lmbda"], one["settings"]["divergence"]) == (lmbda, name)
            ]
            found = level(cell, AFTER, y)
            means[i, j] = np.nan if found is None else found.mean
    if min(means.shape) < figure["least"] or np.isfinite(means).sum() <= max(means.shape):
        return False
    canvas.set_size_inches(1.6 + 1.2 * len(columns), 1.2 + 0.6 * len(rows))
    axes = canvas.add_subplot(title=axis_label(y))
    axes.grid(visible=False)
    picture = axes.imshow(means, cmap="cividis", aspect="auto")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), [f"lambda = {lmbda:g}" for lmbda in rows])
    middle = np.nanmean([np.nanmin(means), np.nanmax(means)])
    for (i, j), value in np.ndenumerate(means):
        colour = "white" if value < middle else "black"
        axes.text(j, i, "-" if np.isnan(value) else f"{value:.3g}", ha="center", va="center", color=colour)
    canvas.colorbar(picture, ax=axes)
    return True


def cost_bars(canvas: Canvas, figure: dict[str, Any], runs: Sequence[RunEntry], page: dict[str, Any]) -> bool:
    """Seconds by phase, stacked."""
    groups = groups_of(finished(runs))
    keys = list(dict.fromkeys(key for run in runs for key in run["cost"] if key.startswith("time/")))
    keys = [key for key in keys if key != "time/total"]
    if not groups or not keys:
        return False
    canvas.set_size_inches(7, 1.1 + 0.32 * len(groups))
    axes = canvas.add_subplot(xlabel="seconds")
    left = np.zeros(len(groups))
    for key, style in styles(keys).items():
        width = np.array([np.mean([run["cost"].get(key, 0.0) for run in own]) for own in groups.values()])
        axes.barh(list(groups), width, left=left, color=style["color"], label=key.removeprefix("time/"), height=0.7)
        left += width
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    return True


KINDS: dict[str, Drawing] = {
    "scatter": scatter,
    "curves": curves,
    "heat": heat,
    "sweep": sweep,
    "profile": profile,
    "lengths": lengths,
    "bars": cost_bars,
}
