"use strict";
// The data: decoding curves, the runs that match the filter, and the groups and lines that they form.

const DATA = JSON.parse(document.getElementById("data").textContent);
const BEFORE = "student before",
  AFTER = "student after",
  CHANGE = "after - before",
  TEACHER = "teacher";
const LEVELS = 65535;
DATA.runs.forEach((run, place) => {
  run.place = place;
});

const state = { task: 0, query: "", values: new Map(), hidden: new Set() };
const listeners = [];

function changed() {
  listeners.forEach((redraw) => redraw());
}

function taskRuns() {
  return DATA.runs.filter((run) => run.task === state.task);
}

/** Values of a run for the filter: short name -> value. */
function facets(run) {
  const found = { group: run.group, seed: run.seed, status: run.status };
  for (const key of ["alpha", "divergence", "lmbda", "train_rows", "temperature"]) found[key] = run.settings[key];
  return found;
}

/** Whether a run matches one term of the query: `-term`, `key=value`, `key<number`, `key>number`, or part of its text. */
function matches(run, term) {
  if (term.length > 1 && term[0] === "-") return !matches(run, term.slice(1));
  const parts = /^([\w.]+)(<=|>=|<|>|=)(.+)$/.exec(term);
  if (parts) {
    const value = facets(run)[parts[1]] ?? settingOf(run, parts[1]);
    if (value !== undefined && value !== null) {
      const [left, right] = [Number(value), Number(parts[3])];
      if (parts[2] === "=") return String(value).toLowerCase() === parts[3] || (left === right && parts[3] !== "");
      if (parts[2] === "<") return left < right;
      if (parts[2] === ">") return left > right;
      return parts[2] === "<=" ? left <= right : left >= right;
    }
  }
  return `${run.name} ${run.group} ${run.settings.divergence} ${run.status}`.toLowerCase().includes(term);
}

/** A setting that differs between the runs of the task, as on the command line. */
function settingOf(run, key) {
  const by = DATA.tasks[run.task].differing[key];
  return by === undefined ? undefined : by[run.group];
}

function shownRuns() {
  const terms = state.query.toLowerCase().split(/\s+/).filter(Boolean);
  return taskRuns().filter((run) => {
    if (state.hidden.has(run.place)) return false;
    const own = facets(run);
    for (const [key, off] of state.values) if (off.has(String(own[key]))) return false;
    return terms.every((term) => matches(run, term));
  });
}

function finished(runs) {
  return runs.filter((run) => run.values[AFTER]);
}

/** Distinct labels in a fixed order: by their lowest alpha, then by name; the index is the colour. */
function ordered(runs, labelOf) {
  const alphas = new Map();
  for (const run of runs) {
    const alpha = run.settings.alpha ?? 2;
    const key = labelOf(run);
    alphas.set(key, Math.min(alphas.get(key) ?? Infinity, alpha));
  }
  return [...alphas.keys()].sort(
    (a, b) => alphas.get(a) - alphas.get(b) || a.localeCompare(b, "en", { numeric: true }),
  );
}

/** Groups (runs that differ in the seed only) with their runs; colours do not change with the filter. */
function groupsOf(runs) {
  const order = ordered(taskRuns(), (run) => run.group);
  const found = order.map((label, colour) => ({ label, colour, runs: runs.filter((run) => run.group === label) }));
  return found.filter((group) => group.runs.length);
}

/** Lines of a figure: groups that differ only in the setting that varies along the line, in its order. */
function linesOf(figure, runs) {
  const lineOf = (run) => run.lines[figure.key];
  const order = ordered(taskRuns(), lineOf);
  return order
    .map((label, colour) => {
      const own = runs.filter((run) => lineOf(run) === label);
      const points = groupsOf(own).map((group) => ({ ...group, along: group.runs[0].settings[figure.along] ?? null }));
      points.sort((a, b) => (a.along ?? 0) - (b.along ?? 0));
      return { label, colour, points, initial: own.some((run) => run.settings.initial_student) };
    })
    .filter((line) => line.points.length);
}

const decodedCurves = new Map();

/** A run's curve: steps, and for each the mean, lowest and highest value of its bucket; null if it has none. */
function curve(run, key) {
  const name = `${run.place} ${key}`;
  if (!decodedCurves.has(name)) decodedCurves.set(name, decode(run, key));
  return decodedCurves.get(name);
}

function decode(run, key) {
  const packed = run.curves.metrics[key];
  if (!packed) return null;
  const grid = run.curves.grids[packed[0]];
  const steps = stepsOf(grid),
    count = steps.length,
    rows = grid.whole ? 1 : 3;
  const [low, high, text] = packed.slice(1);
  const values = new Float64Array(rows * count).fill(low);
  if (text) {
    const bytes = atob(text),
      step = (high - low) / LEVELS;
    for (let i = 0; i < values.length; i++)
      values[i] = low + (bytes.charCodeAt(2 * i) + 256 * bytes.charCodeAt(2 * i + 1)) * step;
  }
  const part = (row) => values.subarray(row * count, (row + 1) * count);
  return { steps, whole: grid.whole, mean: part(0), low: part(rows === 3 ? 1 : 0), high: part(rows === 3 ? 2 : 0) };
}

function stepsOf(grid) {
  if (!grid.at)
    grid.at = Array.isArray(grid.steps)
      ? Float64Array.from(grid.steps)
      : Float64Array.from({ length: grid.steps.count }, (_, i) => grid.steps.start + i * grid.steps.by);
  return grid.at;
}

/** A run's cost on an axis (steps, student_tokens, teacher_tokens, seconds) at each of these steps. */
function spentAt(run, axis, steps) {
  if (axis === "steps") return steps;
  const spent = curve(run, axis);
  return spent ? steps.map((step) => interpolated(spent.steps, spent.mean, step)) : null;
}

/** Metrics of a model over these runs, by name. */
function metricsOf(runs, model) {
  return [...new Set(runs.flatMap((run) => Object.keys(run.values[model] ?? {})))].sort();
}

function curveMetrics(runs) {
  return [...new Set(runs.flatMap((run) => Object.keys(run.curves.metrics)))].filter((key) => !(key in AXES)).sort();
}

const AXES = {
  steps: "training step",
  student_tokens: "student tokens trained on",
  teacher_tokens: "teacher tokens generated or scored",
  seconds: "seconds of training",
};

function measure(key) {
  return DATA.measures[key] ?? { label: key, unit: "", better: "higher" };
}

function labelOf(key) {
  return measure(key).label;
}

function axisLabel(key, change) {
  const { label, unit } = measure(key);
  return (change ? "change in " : "") + label + (unit ? ` (${unit})` : "");
}

function firstOf(wanted, available) {
  return wanted.find((key) => available.includes(key)) ?? null;
}
