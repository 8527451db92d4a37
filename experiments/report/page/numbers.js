// Numbers: formatting, intervals over seeds, smoothing, the Pareto front and its hypervolume.

const RESAMPLES = 2000;
const estimates = new Map();

/** Three significant digits, thousands grouped, a real minus sign. */
function shown(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  let text;
  if (size >= 1e6 || (size > 0 && size < 1e-4)) {
    const power = Math.floor(Math.log10(size));
    text = `${trimmed((value / 10 ** power).toFixed(1))}×10${superscript(power)}`;
  } else if (size >= 1000) return grouped(value.toFixed(0));
  else text = value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3);
  return text.replace(/^-/, "−").replace(/^−(0\.?0*)$/, "$1");
}

/** Thousands apart, with a real minus sign. */
function grouped(text) {
  return text.replace(/\B(?=(\d{3})+(?!\d))(?<!\.\d*)/g, ",").replace("-", "−");
}

function trimmed(text) {
  return text.includes(".") ? text.replace(/\.?0+$/, "") : text;
}

function superscript(power) {
  return String(power).replace(/[-0-9]/g, (digit) => (digit === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit]));
}

function mean(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** A repeatable source of numbers in [0, 1) (mulberry32). */
function randomNumbers(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/** Mean with its 95% percentile bootstrap interval over the values, as in gkd_rl.evaluation.uncertainty. */
function estimate(values) {
  const count = values.length;
  if (count === 1) return { mean: values[0], low: null, high: null, n: 1 };
  const random = randomNumbers(0),
    means = new Float64Array(RESAMPLES);
  for (let i = 0; i < RESAMPLES; i++) {
    let sum = 0;
    for (let k = 0; k < count; k++) sum += values[Math.floor(random() * count)];
    means[i] = sum / count;
  }
  means.sort();
  return { mean: mean(values), low: quantile(means, 0.025), high: quantile(means, 0.975), n: count };
}

function quantile(sorted, share) {
  const at = share * (sorted.length - 1),
    below = Math.floor(at);
  return sorted[below] + (at - below) * ((sorted[below + 1] ?? sorted[below]) - sorted[below]);
}

/** A metric of one model: over seeds if there are several runs, else over the held-out rows of the one run. */
function overSeeds(runs, model, key) {
  const found = runs.map((run) => run.values[model]?.[key]).filter(Boolean);
  if (!found.length) return null;
  if (found.length > 1) {
    const name = [model, key, ...runs.map((run) => run.place)].join(" ");
    if (!estimates.has(name)) estimates.set(name, { ...estimate(found.map((one) => one[0])), over: "seeds" });
    return estimates.get(name);
  }
  const [value, low, high, n] = found[0];
  return { mean: value, low, high, n, over: "rows" };
}

/** The difference teacher - student before, over runs. */
function teacherChange(runs, key) {
  const gaps = runs.map((run) => [run.values[TEACHER]?.[key], run.values[BEFORE]?.[key]]).filter(([a, b]) => a && b);
  return gaps.length ? { ...estimate(gaps.map(([a, b]) => a[0] - b[0])), over: "seeds" } : null;
}

function estimateText(one) {
  if (!one) return "–";
  const interval = one.low === null || one.low === undefined ? "" : ` [${shown(one.low)}, ${shown(one.high)}]`;
  const over = one.over ? `, ${one.n.toLocaleString("en-US")} ${one.n === 1 ? one.over.slice(0, -1) : one.over}` : "";
  return shown(one.mean) + interval + over;
}

/** y at x by linear interpolation; x is clamped to the range of the points. */
function interpolated(xs, ys, x) {
  let low = 0,
    high = xs.length - 1;
  if (x <= xs[low]) return ys[low];
  if (x >= xs[high]) return ys[high];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] <= x) low = middle;
    else high = middle;
  }
  const gap = xs[high] - xs[low];
  return gap ? ys[low] + ((x - xs[low]) / gap) * (ys[high] - ys[low]) : ys[high];
}

/** Exponential moving average with this half-life in steps, with bias correction. */
function smoothed(steps, values, halfLife) {
  if (!halfLife) return values;
  const out = new Float64Array(values.length);
  let total = 0,
    weight = 0;
  for (let i = 0; i < values.length; i++) {
    const kept = i ? 0.5 ** ((steps[i] - steps[i - 1]) / halfLife) : 0;
    total = kept * total + values[i];
    weight = kept * weight + 1;
    out[i] = total / weight;
  }
  return out;
}

/** Points that no other point dominates (better on one axis and at least as good on the other); signs are 1 if higher is better. */
function paretoFront(points, signX, signY) {
  const better = (a, b) => {
    const dx = signX * (a.x - b.x),
      dy = signY * (a.y - b.y);
    return dx >= 0 && dy >= 0 && (dx > 0 || dy > 0);
  };
  return points.filter((one) => !points.some((other) => better(other, one))).sort((a, b) => signX * (a.x - b.x));
}

/** Area that points dominate above the corner (worst.x, worst.y), as a share of the box up to (best.x, best.y). */
function hypervolume(points, signX, signY, worst, best) {
  const box = Math.abs((best.x - worst.x) * (best.y - worst.y));
  if (!box) return null;
  let area = 0,
    left = 0;
  for (const one of paretoFront(points, signX, signY)) {
    const width = signX * (one.x - worst.x) - left,
      height = signY * (one.y - worst.y);
    if (width > 0 && height > 0) area += width * height;
    left = Math.max(left, signX * (one.x - worst.x));
  }
  return area / box;
}
