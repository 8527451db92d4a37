// Figures: their controls, drawing and captions, and the list of figures that the runs have no data for.

const DRAW = { scatter, curves: curvesFigure, heat, sweep, profile, lengths, bars: costBars };
const HOW = {
  scatter:
    "Bars: 95% bootstrap intervals over seeds (over the held-out rows if there is one seed). Ringed points are on the Pareto front.",
  curves: () =>
    `Lines: means over seeds; bands: from the lowest to the highest seed (not drawn for more than ${MOST_BANDS} groups). Curves of more than ${3 * DATA.points} values are drawn from ${DATA.points} buckets that keep mean, lowest and highest value.`,
  heat: "Numbers: means over seeds.",
  sweep:
    "Bars: 95% bootstrap intervals over seeds (over the held-out rows if there is one seed). Lines join runs whose other settings agree.",
  profile: "Means over seeds.",
  lengths:
    "All seeds of a group together. Grey: the reference, the student before and the teacher. The last bin counts all longer completions.",
  bars: "",
};
const drawn = new Map();
let pageWidth = 800; // read once for all figures: each access makes the browser compute the layout

/** The selections of a figure; a selection is kept as long as the runs have it. */
function choiceOf(figure, runs) {
  const kept = drawn.get(figure.key).choice,
    done = finished(runs),
    there = metricsOf(done, AFTER);
  const keep = (name, found) => {
    if (kept[name] === undefined || !found.includes(kept[name])) return true;
    return false;
  };
  if (["scatter", "heat", "sweep"].includes(figure.kind)) {
    if (keep("y", there)) kept.y = firstOf([...figure.y, ...there.filter((key) => key !== kept.x)], there);
    if (keep("x", there)) kept.x = firstOf([...figure.x, ...there], there);
    if (kept.x === kept.y && figure.kind === "scatter")
      kept.y =
        firstOf(
          figure.y.filter((key) => key !== kept.x),
          there,
        ) ??
        there.find((key) => key !== kept.x) ??
        null;
  }
  if (figure.kind === "curves") {
    const curvesThere = curveMetrics(runs);
    kept.axis ??= "steps";
    kept.halfLife ??= defaultHalfLife(runs);
    kept.panels ??= figure.panels.map(() => null);
    kept.panels = kept.panels.map((key, i) =>
      key && curvesThere.includes(key) ? key : firstOf(figure.panels[i], curvesThere),
    );
  }
  if (figure.kind === "bars") kept.cost ??= figure.y[0];
  return kept;
}

function longestRun(runs) {
  return Math.max(0, ...runs.map((run) => curve(run, "steps")?.mean.at(-1) ?? 0));
}

function defaultHalfLife(runs) {
  return Math.round(longestRun(runs) / 40);
}

function select(label, options, value, onchange) {
  const box = html("select", { onchange: (event) => onchange(event.target.value) });
  for (const [group, entries] of options) {
    const made = entries.map(([key, text]) => html("option", { value: key, selected: key === value }, text));
    box.append(...(group ? [html("optgroup", { label: group }, ...made)] : made));
  }
  return html("label", {}, html("span", {}, label), box);
}

/** Options of a selection of metrics, greedy and sampled separately. */
function metricOptions(keys) {
  const entry = (key) => [key, labelOf(key)];
  const [sampled, other] = [
    keys.filter((key) => key.startsWith("sampled/")),
    keys.filter((key) => !key.startsWith("sampled/")),
  ];
  return sampled.length && other.length
    ? [
        ["", other.map(entry)],
        ["on sampled completions", sampled.map(entry)],
      ]
    : [["", keys.map(entry)]];
}

function controlsOf(figure, runs, choice, redraw) {
  const there = metricsOf(finished(runs), AFTER);
  const set = (name) => (value) => {
    choice[name] = value;
    redraw();
  };
  if (figure.kind === "scatter") {
    const box = html("input", {
      type: "checkbox",
      checked: choice.change,
      onchange: (event) => {
        choice.change = event.target.checked;
        redraw();
      },
    });
    return [
      select("across", metricOptions(there), choice.x, set("x")),
      select("up", metricOptions(there), choice.y, set("y")),
      html("label", { class: "tick" }, box, html("span", {}, "as change from the student before")),
    ];
  }
  if (figure.kind === "heat" || figure.kind === "sweep")
    return [select("metric", metricOptions(there), choice.y, set("y"))];
  if (figure.kind === "bars") return [select("in", [["", Object.entries(COSTS)]], choice.cost, set("cost"))];
  return figure.kind === "curves" ? curveControls(figure, runs, choice, redraw) : [];
}

function curveControls(figure, runs, choice, redraw) {
  const most = Math.max(1, Math.round(longestRun(runs) / 4));
  const text = () => (choice.halfLife ? `half-life ${choice.halfLife} steps` : "none");
  const output = html("output", {}, text());
  const slider = html("input", {
    type: "range",
    min: 0,
    max: most,
    value: Math.min(choice.halfLife, most),
    oninput: (event) => {
      choice.halfLife = Number(event.target.value);
      output.textContent = text();
      redraw(true);
    },
  });
  const axes_ = Object.entries(AXES).filter(
    ([axis]) => axis === "steps" || runs.some((run) => axis in run.curves.metrics),
  );
  const found = [
    select("against", [["", axes_]], choice.axis, (value) => {
      choice.axis = value;
      redraw(true);
    }),
    html("label", {}, html("span", {}, "smoothing"), slider, output),
  ];
  if (!figure.controls) return found;
  const keys = curveMetrics(runs);
  choice.choose = (key, i) =>
    select(`metric of plot ${i + 1}`, [["", keys.map((one) => [one, axisLabel(one)])]], key, (value) => {
      choice.panels[i] = value;
      redraw(true);
    });
  return found;
}

/** Draw a figure, and return whether the runs have data for it; `plotsOnly` keeps its controls, so that a slider can be dragged. */
function drawFigure(figure, plotsOnly = false) {
  const place = drawn.get(figure.key),
    runs = shownRuns();
  const choice = choiceOf(figure, runs);
  const width = Math.max(280, pageWidth);
  if (!plotsOnly)
    place.controls.replaceChildren(...controlsOf(figure, runs, choice, (only = false) => drawFigure(figure, only)));
  const found = runs.length ? DRAW[figure.kind](figure, runs, choice, width) : null;
  place.width = width;
  place.controls.hidden = !found;
  const how = typeof HOW[figure.kind] === "function" ? HOW[figure.kind]() : HOW[figure.kind];
  place.body.replaceChildren(
    ...(found
      ? [
          html("div", { class: `plots${found.grid === 2 ? " two" : ""}` }, ...found.plots),
          found.legend ?? "",
          found.after ?? "",
        ]
      : [html("p", { class: "lacks" }, `Not drawn: no selected run has the data. It needs ${figure.lacks}.`)]),
  );
  place.caption.textContent = found ? `${figure.caption} ${how}`.trim() : "";
  return found !== null;
}

/** Create the figures that the task's runs have data for, numbered, and the list of the others with what they need. */
function layFigures(parent, missing) {
  parent.replaceChildren();
  drawn.clear();
  pageWidth = parent.clientWidth;
  let number = 0;
  const absent = [];
  for (const figure of DATA.figures) {
    const place = {
      choice: {},
      controls: html("div", { class: "controls" }),
      body: html("div", { class: "body" }),
      caption: html("p", { class: "caption" }),
    };
    drawn.set(figure.key, place);
    const count = html("span", { class: "number" }, `Figure ${number + 1}. `);
    const title = html("h3", { id: `title-${figure.key}` }, count, figure.title);
    const section = html(
      "section",
      { class: "figure", id: `figure-${figure.key}`, "aria-labelledby": `title-${figure.key}` },
      title,
      place.controls,
      place.body,
      place.caption,
    );
    parent.append(section);
    if (drawFigure(figure)) number += 1;
    else {
      absent.push(figure);
      drawn.delete(figure.key);
      section.remove();
    }
  }
  missing.replaceChildren(
    ...absent.map((figure) => html("li", {}, html("b", {}, figure.title), ` needs ${figure.lacks}.`)),
  );
  missing.closest("section").hidden = !absent.length;
}

function redrawFigures() {
  for (const figure of DATA.figures) if (drawn.has(figure.key)) drawFigure(figure);
}

/** Redraw after the page's width has changed. */
function refitFigures() {
  pageWidth = document.getElementById("figures").clientWidth;
  for (const figure of DATA.figures) {
    const place = drawn.get(figure.key);
    if (place && Math.abs(place.width - pageWidth) > 2) drawFigure(figure, true);
  }
}
