// Plots of points: a trade-off of two metrics with its Pareto front, and a metric along one setting.

/** Estimates of two metrics of a line's groups that have both. */
function tradePoints(line, xKey, yKey, model) {
  return line.points.flatMap((group) => {
    const x = overSeeds(finished(group.runs), model, xKey),
      y = overSeeds(finished(group.runs), model, yKey);
    return x && y ? [{ x: x.mean, y: y.mean, ex: x, ey: y, along: group.along, group: group.label, line }] : [];
  });
}

/** Teacher and student before, as levels or as changes from the student before. */
function anchorsOf(runs, xKey, yKey, change) {
  const done = finished(runs);
  const pair = (name, shape, x, y) => (x && y ? [{ name, shape, x: x.mean, y: y.mean, ex: x, ey: y }] : []);
  const start = { mean: 0, low: null, high: null, n: 0 };
  const before = change ? [start, start] : [overSeeds(done, BEFORE, xKey), overSeeds(done, BEFORE, yKey)];
  const teacher = change
    ? [teacherChange(done, xKey), teacherChange(done, yKey)]
    : [overSeeds(done, TEACHER, xKey), overSeeds(done, TEACHER, yKey)];
  return [...pair("student before (SFT)", "cross", ...before), ...pair("teacher", "star", ...teacher)];
}

function scatter(figure, runs, choice, width) {
  const model = choice.change ? CHANGE : AFTER;
  const lines = linesOf(figure, runs)
    .map((line) => Object.assign(line, { found: tradePoints(line, choice.x, choice.y, model) }))
    .filter((line) => line.found.length);
  const points = lines.flatMap((line) => line.found);
  if (!points.length) return null;
  const anchors = anchorsOf(runs, choice.x, choice.y, choice.change);
  const all = [...points, ...anchors];
  const reach = (part) => all.flatMap((one) => [one[part], one[`e${part}`].low, one[`e${part}`].high]);
  const [xLow, xHigh] = range(reach("x"), 0.08),
    [yLow, yHigh] = range(reach("y"), 0.1);
  const height = Math.min(460, Math.max(300, width * 0.56));
  const plot = axes({
    width,
    height,
    name: figure.title,
    x: { low: xLow, high: xHigh, label: axisLabel(choice.x, choice.change) },
    y: { low: yLow, high: yHigh, label: axisLabel(choice.y, choice.change) },
  });
  const signs = [choice.x, choice.y].map((key) => (measure(key).better === "lower" ? -1 : 1));
  const front = paretoFront(points, ...signs);
  plot.layer.append(svg("path", { class: "front", d: pathOf(staircase(front, signs, plot)) }));
  const tipsOf = [];
  for (const line of lines) {
    const part = svg("g", { class: `${colourClass(line.colour)}`, "data-set": line.label });
    const route = line.found.filter((one) => one.along !== null);
    if (route.length > 1)
      part.append(svg("path", { class: "line thin", d: pathOf(route.map((one) => [plot.px(one.x), plot.py(one.y)])) }));
    for (const one of line.found) {
      const at = [plot.px(one.x), plot.py(one.y)];
      part.append(
        ...bars(plot, one),
        mark(MARKS[line.colour % MARKS.length], ...at, 5, { class: front.includes(one) ? "mark best" : "mark" }),
      );
      tipsOf.push({
        x: at[0],
        y: at[1],
        set: line.label,
        lines: () => [
          one.group,
          `${labelOf(choice.y)}: ${estimateText(one.ey)}`,
          `${labelOf(choice.x)}: ${estimateText(one.ex)}`,
          front.includes(one) ? "on the Pareto front" : "not on the Pareto front",
        ],
      });
    }
    plot.layer.append(part);
  }
  for (const one of anchors) {
    const at = [plot.px(one.x), plot.py(one.y)];
    plot.layer.append(svg("g", { class: "anchor" }, ...bars(plot, one), mark(one.shape, ...at, 5, { class: "mark" })));
    tipsOf.push({
      x: at[0],
      y: at[1],
      set: one.name,
      lines: () => [
        one.name,
        `${labelOf(choice.y)}: ${estimateText(one.ey.n ? one.ey : { mean: 0 })}`,
        `${labelOf(choice.x)}: ${estimateText(one.ex.n ? one.ex : { mean: 0 })}`,
      ],
    });
  }
  const short = figure.along === "temperature" ? "τ" : "α";
  const labels = [
    ...points.map((one) => ({ x: plot.px(one.x), y: plot.py(one.y), text: labelled(one, lines, short) })),
    ...anchors.map((one) => ({ x: plot.px(one.x), y: plot.py(one.y), text: one.name })),
  ];
  plot.layer.append(...placedLabels(labels, plot.box));
  tips(plot.root, tipsOf);
  const entries = lines.map((line) => ({
    label: line.label + (line.initial ? " (RLEF*: regularised towards the initial student)" : ""),
    colour: line.colour,
    shape: MARKS[line.colour % MARKS.length],
  }));
  entries.push(...anchors.map((one) => ({ label: one.name, plain: true, shape: one.shape, colour: 0 })), {
    label: "Pareto front",
    plain: true,
    line: true,
    dash: "5 4",
    colour: 0,
  });
  return {
    plots: [plot.root],
    legend: legend(entries),
    after: figure.key === "tradeoff" ? volumes(lines, all, signs) : null,
  };
}

/** The label of a point: the setting on a line of several points, else the group's name. */
function labelled(one, lines, short) {
  const several = one.line.found.length > 1;
  if (several && one.along !== null) return `${short} ${trimmed(Number(one.along).toFixed(3))}`;
  return lines.length > 12 ? "" : cut(one.group, 30);
}

function bars(plot, one) {
  const [x, y] = [plot.px(one.x), plot.py(one.y)];
  const found = [];
  if (Number.isFinite(one.ex.low ?? NaN))
    found.push(svg("line", { class: "bar", x1: plot.px(one.ex.low), x2: plot.px(one.ex.high), y1: y, y2: y }));
  if (Number.isFinite(one.ey.low ?? NaN))
    found.push(svg("line", { class: "bar", x1: x, x2: x, y1: plot.py(one.ey.low), y2: plot.py(one.ey.high) }));
  return found;
}

/** The border of the area that the front dominates. */
function staircase(front, [signX, signY], plot) {
  const edgeX = signX > 0 ? plot.box.left : plot.box.right,
    edgeY = signY > 0 ? plot.box.bottom : plot.box.top;
  const found = [];
  front.forEach((one, i) => {
    const x = plot.px(one.x),
      y = plot.py(one.y);
    found.push([i ? found.at(-1)[0] : edgeX, y], [x, y]);
  });
  if (found.length) found.push([found.at(-1)[0], edgeY]);
  return found;
}

/** Labels beside their points, each at the first of eight places where it covers neither a point nor another label. */
function placedLabels(labels, box) {
  const taken = labels.map((label) => [label.x - 7, label.x + 7, label.y - 7, label.y + 7]);
  const free = (area) =>
    area[0] >= box.left &&
    area[1] <= box.right &&
    area[2] >= box.top - 8 &&
    area[3] <= box.bottom &&
    taken.every((one) => area[1] < one[0] || area[0] > one[1] || area[3] < one[2] || area[2] > one[3]);
  return labels
    .filter((label) => label.text)
    .flatMap((label) => {
      const size = label.text.length * 6.3;
      const places = [
        [9, -9],
        [9, 18],
        [-9 - size, -9],
        [-9 - size, 18],
        [12, 4],
        [-12 - size, 4],
        [-size / 2, -13],
        [-size / 2, 22],
      ];
      const found = places
        .map(([dx, dy]) => [label.x + dx, label.x + dx + size, label.y + dy - 11, label.y + dy + 3])
        .find(free);
      if (!found) return [];
      taken.push(found);
      return [svg("text", { class: "word", x: found[0], y: found[3] - 3 }, label.text)];
    });
}

/** The hypervolume of each line and of all together, as shares of the bounding box of all points. */
function volumes(lines, all, signs) {
  const ends = (part, sign) => {
    const values = all.map((one) => one[part]).sort((a, b) => sign * (a - b));
    return [values[0], values.at(-1)];
  };
  const [wx, bx] = ends("x", signs[0]),
    [wy, by] = ends("y", signs[1]);
  const share = (points) => hypervolume(points, ...signs, { x: wx, y: wy }, { x: bx, y: by });
  const rows = lines.map((line) => [line.label, line.found.length, share(line.found)]);
  rows.push(["all together", rows.reduce((sum, row) => sum + row[1], 0), share(lines.flatMap((line) => line.found))]);
  return html(
    "details",
    { class: "aside" },
    html("summary", {}, "Hypervolume"),
    html(
      "table",
      { class: "numbers" },
      html(
        "thead",
        {},
        html("tr", {}, ...["", "points", "share of the box"].map((heading) => html("th", { scope: "col" }, heading))),
      ),
      html(
        "tbody",
        {},
        ...rows.map((row) =>
          html(
            "tr",
            {},
            html("th", { scope: "row" }, row[0]),
            html("td", {}, String(row[1])),
            html("td", { class: "volume" }, shown(row[2])),
          ),
        ),
      ),
    ),
    html(
      "p",
      { class: "caption" },
      "The area that a line's points dominate, as a share of the box from the worst to the best value drawn on each axis, teacher and student before included. It compares the lines of this figure only.",
    ),
  );
}

function sweep(figure, runs, choice, width) {
  const lines = linesOf(figure, finished(runs))
    .map((line) => ({
      ...line,
      found: line.points
        .map((group) => ({ x: group.along, group: group.label, e: overSeeds(group.runs, AFTER, choice.y) }))
        .filter((one) => one.e && one.x !== null),
    }))
    .filter((line) => new Set(line.found.map((one) => one.x)).size >= figure.least);
  if (!lines.length) return null;
  const places = [...new Set(lines.flatMap((line) => line.found.map((one) => one.x)))].sort((a, b) => a - b);
  const log = figure.along === "train_rows";
  const edge = log ? (places.at(-1) / places[0]) ** 0.06 : 0;
  const [xLow, xHigh] = log ? [places[0] / edge, places.at(-1) * edge] : range(places);
  const [yLow, yHigh] = range(
    lines.flatMap((line) => line.found.flatMap((one) => [one.e.mean, one.e.low, one.e.high])),
  );
  const label = log ? "training prompts (log scale)" : "lambda: share of steps on student data";
  const plot = axes({
    width,
    height: Math.min(400, Math.max(280, width * 0.5)),
    name: figure.title,
    x: { low: xLow, high: xHigh, label, log, at: places, text: (value) => value.toLocaleString("en-US") },
    y: { low: yLow, high: yHigh, label: axisLabel(choice.y) },
  });
  const tipsOf = [];
  for (const line of lines) {
    const part = svg("g", { class: colourClass(line.colour), "data-set": line.label });
    part.append(
      svg("path", {
        class: "line",
        "stroke-dasharray": dashOf(line.colour),
        d: pathOf(line.found.map((one) => [plot.px(one.x), plot.py(one.e.mean)])),
      }),
    );
    for (const one of line.found) {
      const at = [plot.px(one.x), plot.py(one.e.mean)];
      if (Number.isFinite(one.e.low ?? NaN))
        part.append(
          svg("line", { class: "bar", x1: at[0], x2: at[0], y1: plot.py(one.e.low), y2: plot.py(one.e.high) }),
        );
      part.append(mark(MARKS[line.colour % MARKS.length], ...at, 4.5, { class: "mark" }));
      tipsOf.push({
        x: at[0],
        y: at[1],
        set: line.label,
        lines: () => [one.group, `${labelOf(choice.y)}: ${estimateText(one.e)}`],
      });
    }
    plot.layer.append(part);
  }
  tips(plot.root, tipsOf);
  return {
    plots: [plot.root],
    legend: legend(
      lines.map((line) => ({
        label: line.label,
        colour: line.colour,
        line: true,
        shape: MARKS[line.colour % MARKS.length],
      })),
    ),
  };
}
