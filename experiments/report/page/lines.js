// Plots of lines: learning curves, divergence by position, and lengths.

const COMMON_POSITIONS = 160;
const MOST_BANDS = 12;

/** A group's curve: mean, lowest and highest value over seeds at common positions of the axis. */
function groupCurve(group, key, axis, halfLife) {
  const seeds = group.runs.flatMap((run) => {
    const found = curve(run, key);
    const xs = found && spentAt(run, axis, found.steps);
    if (!xs || xs.length < 2) return [];
    const middle = smoothed(found.steps, found.mean, halfLife);
    return [{ run, xs, mean: middle, low: halfLife ? middle : found.low, high: halfLife ? middle : found.high }];
  });
  if (!seeds.length) return null;
  const first = seeds[0].xs;
  const same = seeds.every(
    (one) => one.xs.length === first.length && one.xs.every((x, i) => Math.abs(x - first[i]) <= 1e-9 * Math.abs(x)),
  );
  const low = Math.max(...seeds.map((one) => one.xs[0])),
    high = Math.min(...seeds.map((one) => one.xs.at(-1)));
  if (!same && low >= high) return null;
  const xs = same
    ? first
    : Float64Array.from({ length: COMMON_POSITIONS }, (_, i) => low + ((high - low) * i) / (COMMON_POSITIONS - 1));
  const at = (one, part, i) => (same ? one[part][i] : interpolated(one.xs, one[part], xs[i]));
  const line = {
    xs,
    mean: new Float64Array(xs.length),
    low: new Float64Array(xs.length),
    high: new Float64Array(xs.length),
    seeds: seeds.length,
  };
  for (let i = 0; i < xs.length; i++) {
    line.mean[i] = mean(seeds.map((one) => at(one, "mean", i)));
    line.low[i] = Math.min(...seeds.map((one) => at(one, "low", i)));
    line.high[i] = Math.max(...seeds.map((one) => at(one, "high", i)));
  }
  return line;
}

/** One small plot of a metric; null if no run has it. */
function curvePlot(key, groups, axis, halfLife, width, height) {
  const found = groups
    .map((group) => ({ group, line: groupCurve(group, key, axis, halfLife) }))
    .filter((one) => one.line);
  if (!found.length) return null;
  const bands = found.length <= MOST_BANDS;
  const left = Math.min(...found.map(({ line }) => line.xs[0])),
    right = Math.max(...found.map(({ line }) => line.xs.at(-1)));
  const [yLow, yHigh] = range(
    found.flatMap(({ line }) => [...(bands ? line.low : line.mean), ...(bands ? line.high : [])]),
    0.04,
  );
  const plot = axes({
    width,
    height,
    name: `${labelOf(key)} over training`,
    zero: true,
    x: { low: Math.min(left, right * 0.02), high: right, label: AXES[axis] },
    y: { low: yLow, high: yHigh, label: axisLabel(key) },
  });
  const points = [];
  for (const { group, line } of found) {
    const part = svg("g", { class: colourClass(group.colour), "data-set": group.label });
    const along = [...line.xs].map((x, i) => [plot.px(x), i]);
    if (bands && line.high.some((value, i) => value > line.low[i])) {
      const top = along.map(([x, i]) => [x, plot.py(line.high[i])]),
        floor = along.map(([x, i]) => [x, plot.py(line.low[i])]).reverse();
      part.append(svg("path", { class: "band", d: `${pathOf([...top, ...floor])}z` }));
    }
    part.append(
      svg("path", {
        class: "line",
        "stroke-dasharray": dashOf(group.colour),
        d: pathOf(along.map(([x, i]) => [x, plot.py(line.mean[i])])),
      }),
    );
    plot.layer.append(part);
    const every = Math.max(1, Math.floor(line.xs.length / 60));
    for (let i = line.xs.length - 1; i >= 0; i -= every) {
      points.push({
        x: plot.px(line.xs[i]),
        y: plot.py(line.mean[i]),
        set: group.label,
        lines: () => curveText(group, key, axis, line, i),
      });
    }
  }
  tips(plot.root, points.reverse(), 60);
  return plot.root;
}

function curveText(group, key, axis, line, i) {
  const spread = line.high[i] > line.low[i] ? [`from ${shown(line.low[i])} to ${shown(line.high[i])}`] : [];
  const seeds = line.seeds > 1 ? `mean of ${line.seeds} seeds` : "one seed";
  return [
    group.label,
    `${labelOf(key)}: ${shown(line.mean[i])} (${seeds})`,
    ...spread,
    `${AXES[axis]}: ${shown(line.xs[i])}`,
  ];
}

function curvesFigure(figure, runs, choice, width) {
  const groups = groupsOf(runs);
  const columns = width >= 640 ? 2 : 1,
    each = (width - (columns - 1) * 24) / columns;
  const keys = choice.panels.filter(Boolean);
  const plots = keys.flatMap((key, i) => {
    const root = curvePlot(key, groups, choice.axis, choice.halfLife, each, Math.max(200, each * 0.52));
    return root ? [html("div", { class: "small" }, choice.choose?.(key, i), root)] : [];
  });
  if (!plots.length) return null;
  const drawn = groups.filter((group) => group.runs.some((run) => keys.some((key) => key in run.curves.metrics)));
  return {
    plots,
    grid: columns,
    legend: legend(drawn.map((group) => ({ label: group.label, colour: group.colour, line: true }))),
  };
}

function profile(figure, runs, choice, width) {
  const keys = [...new Set(runs.flatMap((run) => Object.keys(run.profiles)))].sort();
  if (!keys.length) return null;
  const columns = width >= 640 && keys.length > 1 ? 2 : 1,
    each = (width - (columns - 1) * 24) / columns;
  const groups = groupsOf(finished(runs));
  const plots = keys.map((key) => {
    const lines = groups
      .map((group) => ({ group, values: meanByPosition(group.runs.map((run) => run.profiles[key]).filter(Boolean)) }))
      .filter((one) => one.values.length);
    const [low, high] = range(lines.flatMap((one) => one.values));
    const longest = Math.max(...lines.map((one) => one.values.length));
    const plot = axes({
      width: each,
      height: Math.max(220, Math.min(360, each * 0.5)),
      name: labelOf(key),
      zero: true,
      x: { low: 1, high: Math.max(2, longest), label: "position in the completion (tokens)" },
      y: { low, high, label: axisLabel(key) },
    });
    const points = [];
    for (const { group, values } of lines) {
      const at = values.map((value, i) => [plot.px(i + 1), value === null ? NaN : plot.py(value)]);
      plot.layer.append(
        svg(
          "g",
          { class: colourClass(group.colour), "data-set": group.label },
          svg("path", { class: "line", "stroke-dasharray": dashOf(group.colour), d: pathOf(at) }),
        ),
      );
      at.forEach(([x, y], i) => {
        if (Number.isFinite(y))
          points.push({
            x,
            y,
            set: group.label,
            lines: () => [group.label, `${labelOf(key)}: ${shown(values[i])}`, `position ${i + 1}`],
          });
      });
    }
    tips(plot.root, points);
    return plot.root;
  });
  return {
    plots,
    grid: columns,
    legend: legend(groups.map((group) => ({ label: group.label, colour: group.colour, line: true }))),
  };
}

function meanByPosition(lists) {
  const reached = lists.length ? Math.min(...lists.map((list) => list.length)) : 0; // positions that all seeds have
  return Array.from({ length: reached }, (_, i) => {
    const there = lists.map((list) => list[i]).filter((value) => Number.isFinite(value));
    return there.length ? mean(there) : null;
  });
}

/** Shares of the rows by number of words, for the models of each group; the last bin counts all longer ones. */
function lengths(figure, runs, choice, width) {
  const groups = groupsOf(runs.filter((run) => Object.keys(run.lengths).length));
  if (!groups.length) return null;
  const everyone = groups.flatMap((group) => group.runs);
  const sets = [
    ...["reference", BEFORE, TEACHER].map((model) => ({
      label: model,
      plain: true,
      counts: summed(everyone, model),
      dash: { reference: "1 3", [BEFORE]: "6 4", [TEACHER]: null }[model],
    })),
    ...groups.map((group) => ({
      label: group.label,
      colour: group.colour,
      counts: summed(group.runs, AFTER),
      dash: dashOf(group.colour),
    })),
  ].filter((set) => set.counts.size);
  const lengthsThere = sets.flatMap((set) => [...set.counts.keys()]);
  const longest = Math.max(...sets.map((set) => quantileOfWords(set.counts, 0.995)), 1),
    shortest = Math.min(...lengthsThere, longest - 1);
  const bin = Math.max(1, Math.ceil((longest - shortest) / 40));
  for (const set of sets) set.shares = shares(set.counts, shortest, longest, bin);
  const [, high] = range(
    sets.flatMap((set) => set.shares.map((one) => one[1])),
    0.05,
  );
  const plot = axes({
    width,
    height: Math.min(360, Math.max(260, width * 0.4)),
    name: figure.title,
    x: {
      low: shortest,
      high: Math.max(longest, shortest + 1) + bin,
      label: `words in the completion${bin > 1 ? ` (bins of ${bin})` : ""}`,
    },
    y: { low: 0, high, label: "share of the held-out rows" },
  });
  const points = [];
  for (const set of sets) {
    const at = set.shares.flatMap(([from, share]) => [
      [plot.px(from), plot.py(share)],
      [plot.px(from + bin), plot.py(share)],
    ]);
    const part = svg("g", { class: set.plain ? "anchor" : colourClass(set.colour), "data-set": set.label });
    part.append(svg("path", { class: set.plain ? "line thin" : "line", "stroke-dasharray": set.dash, d: pathOf(at) }));
    plot.layer.append(part);
    set.shares.forEach(([from, share], i) => {
      const last = i === set.shares.length - 1;
      points.push({
        x: plot.px(from + bin / 2),
        y: plot.py(share),
        set: set.label,
        lines: () => [
          set.label,
          `${shown(100 * share)}% of the rows`,
          last ? `${from} words or more` : bin > 1 ? `${from} to ${from + bin - 1} words` : `${from} words`,
        ],
      });
    });
  }
  tips(plot.root, points);
  return {
    plots: [plot.root],
    legend: legend(
      sets.map((set) => ({ label: set.label, colour: set.colour ?? 0, plain: set.plain, line: true, dash: set.dash })),
    ),
  };
}

function summed(runs, model) {
  const counts = new Map();
  for (const run of runs)
    for (const [words, rows] of run.lengths[model] ?? []) counts.set(words, (counts.get(words) ?? 0) + rows);
  return counts;
}

/** The quantile of the number of words: this share of the rows has at most as many. */
function quantileOfWords(counts, share) {
  const total = [...counts.values()].reduce((sum, rows) => sum + rows, 0);
  let seen = 0;
  for (const [words, rows] of [...counts].sort((a, b) => a[0] - b[0]))
    if ((seen += rows) >= share * total) return words;
  return 0;
}

function shares(counts, shortest, longest, bin) {
  const total = [...counts.values()].reduce((sum, rows) => sum + rows, 0);
  const bins = new Float64Array(Math.floor((longest - shortest) / bin) + 1);
  for (const [words, rows] of counts) bins[Math.floor((Math.min(words, longest) - shortest) / bin)] += rows / total;
  return [...bins].map((share, i) => [shortest + i * bin, share]);
}
