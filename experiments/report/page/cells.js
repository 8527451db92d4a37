// Plots of areas: heat maps of two settings, and bars of costs.

/** Sets of runs that differ in divergence and lambda only, by the label of their other settings; the largest first. */
function heatSlices(figure, runs) {
  const slices = new Map();
  for (const run of finished(runs)) {
    if (run.settings.divergence === "cross entropy") continue;
    const label = run.lines[figure.key];
    if (!slices.has(label)) slices.set(label, []);
    slices.get(label).push(run);
  }
  const count = (found, ...keys) => new Set(found.map((run) => keys.map((key) => run.settings[key]).join(" "))).size;
  const sides = (found) => [count(found, "lmbda"), count(found, "divergence")];
  return [...slices]
    .map(([label, found]) => ({ label, runs: found, sides: sides(found), cells: count(found, "lmbda", "divergence") }))
    .filter((slice) => Math.min(...slice.sides) >= figure.least && slice.cells > Math.max(...slice.sides))
    .sort((a, b) => b.runs.length - a.runs.length);
}

function heat(figure, runs, choice, width) {
  const slices = heatSlices(figure, runs);
  if (!slices.length) return null;
  const plots = slices
    .slice(0, 4)
    .map((slice) => heatPlot(figure, slice, choice.y, width))
    .filter(Boolean);
  if (!plots.length) return null;
  const note =
    slices.length > 4
      ? `${slices.length - 4} more sets of runs that differ in other settings are not drawn: filter for one.`
      : null;
  return { plots, after: html("div", {}, scaleKey(), note ? html("p", { class: "caption" }, note) : null) };
}

function heatPlot(figure, slice, key, width) {
  const columns = ["forward KL", "JSD(0.1)", "JSD(0.5)", "JSD(0.9)", "reverse KL"];
  const found = [...new Set(slice.runs.map((run) => run.settings.divergence))];
  const order = (name) => (columns.includes(name) ? columns.indexOf(name) : columns.length);
  found.sort((a, b) => order(a) - order(b) || a.localeCompare(b, "en", { numeric: true }));
  const rows = [...new Set(slice.runs.map((run) => run.settings.lmbda))].sort((a, b) => b - a);
  const cells = rows.map((lmbda) =>
    found.map((name) =>
      overSeeds(
        slice.runs.filter((run) => run.settings.lmbda === lmbda && run.settings.divergence === name),
        AFTER,
        key,
      ),
    ),
  );
  const values = cells
    .flat()
    .filter(Boolean)
    .map((cell) => cell.mean);
  if (!values.length) return null;
  const low = Math.min(...values),
    high = Math.max(...values);
  const left = 62,
    top = 44,
    side = Math.min(120, (width - left - 6) / found.length),
    tall = 46;
  const total = left + side * found.length + 6;
  const root = svg("svg", {
    class: "plot",
    width: total,
    height: top + tall * rows.length + 8,
    viewBox: `0 0 ${total} ${top + tall * rows.length + 8}`,
    role: "img",
    tabindex: 0,
    "aria-label": `${figure.title}: ${axisLabel(key)}. Arrow keys read its cells.`,
  });
  root.append(
    svg(
      "text",
      { class: "axis", x: 2, y: 12 },
      cut(`${axisLabel(key)}${slice.label === "all runs" ? "" : `; ${slice.label}`}`, total / 6.4),
    ),
  );
  const points = [],
    labels = svg("g", { class: "ticks" });
  found.forEach((name, j) =>
    labels.append(
      svg("text", { x: left + side * (j + 0.5), y: top - 8, "text-anchor": "middle" }, cut(name, side / 6.4)),
    ),
  );
  rows.forEach((lmbda, i) => {
    labels.append(
      svg(
        "text",
        { x: left - 8, y: top + tall * (i + 0.5) + 4, "text-anchor": "end" },
        `λ = ${trimmed(Number(lmbda).toFixed(3))}`,
      ),
    );
    found.forEach((name, j) => {
      const cell = cells[i][j],
        x = left + side * j,
        y = top + tall * i;
      const share = cell && high > low ? (cell.mean - low) / (high - low) : 0.5;
      const area = svg("rect", {
        class: cell ? "cell" : "cell none",
        x: x + 1,
        y: y + 1,
        width: side - 2,
        height: tall - 2,
      });
      if (cell) area.style.setProperty("--share", `${(share * 100).toFixed(1)}%`);
      root.append(
        area,
        svg(
          "text",
          {
            class: share > 0.5 ? "value high" : "value",
            x: x + side / 2,
            y: y + tall / 2 + 4,
            "text-anchor": "middle",
          },
          cell ? shown(cell.mean) : "–",
        ),
      );
      if (cell)
        points.push({
          x: x + side / 2,
          y: y + tall / 2,
          box: [x, x + side, y, y + tall],
          set: null,
          lines: () => [`${name}, λ = ${lmbda}`, `${labelOf(key)}: ${estimateText(cell)}`],
        });
    });
  });
  root.append(labels);
  tips(root, points);
  return root;
}

function scaleKey() {
  return html("p", { class: "scale" }, "lowest ", html("span", { class: "ramp", "aria-hidden": "true" }), " highest");
}

const COSTS = { time: "seconds", flops: "FLOPs, estimated", tokens: "tokens" };
const NOT_PARTS = ["time/total"];

/** Stacked bars of each group's mean cost by phase. */
function costBars(figure, runs, choice, width) {
  const groups = groupsOf(finished(runs)),
    prefix = `${choice.cost}/`;
  const keys = [...new Set(groups.flatMap((group) => group.runs.flatMap((run) => Object.keys(run.cost))))].filter(
    (key) => key.startsWith(prefix) && !NOT_PARTS.includes(key),
  );
  const part = (group, key) => mean(group.runs.map((run) => run.cost[key] ?? 0));
  const bars = groups.map((group) => ({ group, parts: keys.map((key) => part(group, key)) }));
  const totals = bars.map((bar) => bar.parts.reduce((sum, value) => sum + value, 0));
  const high = Math.max(...totals);
  if (!keys.length || !(high > 0)) return null;
  const used = keys.filter((_, k) => bars.some((bar) => bar.parts[k] > high * 0.002));
  const longest = Math.max(...groups.map((group) => group.label.length));
  const narrow = width < 560,
    left = narrow ? 8 : Math.min(230, longest * 6.6 + 14),
    tall = narrow ? 44 : 26;
  const height = 10 + tall * groups.length + 40;
  const px = (value) => left + (value / high) * (width - left - 66);
  const root = svg("svg", {
    class: "plot",
    width,
    height,
    viewBox: `0 0 ${width} ${height}`,
    role: "img",
    tabindex: 0,
    "aria-label": `${figure.title}. Arrow keys read its bars.`,
  });
  const labels = svg("g", { class: "ticks" }),
    grid = svg("g", { class: "grid" }),
    points = [];
  const places = ticks(0, high, Math.max(2, (width - left) / 110));
  for (const value of places) {
    grid.append(svg("line", { x1: px(value), x2: px(value), y1: 4, y2: height - 36 }));
    labels.append(
      svg("text", { x: px(value), y: height - 22, "text-anchor": "middle" }, tickText(value, places[1] ?? 1)),
    );
  }
  root.append(
    grid,
    labels,
    svg(
      "text",
      { class: "axis", x: (left + width - 66) / 2, y: height - 4, "text-anchor": "middle" },
      COSTS[choice.cost],
    ),
  );
  bars.forEach(({ group, parts }, i) => {
    const y = 4 + tall * i + (narrow ? 18 : 4);
    labels.append(
      svg(
        "text",
        narrow ? { x: left, y: y - 5 } : { x: left - 8, y: y + 13, "text-anchor": "end" },
        cut(group.label, narrow ? width / 6.6 : 34),
      ),
    );
    let from = 0;
    keys.forEach((key, k) => {
      if (!parts[k]) return;
      const box = [px(from), px(from + parts[k]), y, y + 18],
        at = used.indexOf(key);
      root.append(
        svg(
          "g",
          { class: colourClass(at < 0 ? COLOURS - 1 : at), "data-set": key.slice(prefix.length) },
          svg("rect", { class: "area", x: box[0], y, width: Math.max(0.5, box[1] - box[0]), height: 18 }),
        ),
      );
      points.push({
        x: (box[0] + box[1]) / 2,
        y: y + 9,
        box,
        set: key.slice(prefix.length),
        lines: () => [
          group.label,
          `${key.slice(prefix.length).replace(/_/g, " ")}: ${shown(parts[k])} ${COSTS[choice.cost]}`,
          `${shown((100 * parts[k]) / totals[i])}% of ${shown(totals[i])}`,
        ],
      });
      from += parts[k];
    });
    labels.append(svg("text", { x: px(totals[i]) + 6, y: y + 13 }, shown(totals[i])));
  });
  tips(root, points, 12);
  return {
    plots: [root],
    legend: legend(used.map((key, i) => ({ label: key.slice(prefix.length), colour: i, box: true }))),
  };
}
