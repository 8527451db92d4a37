// Tables: the runs, sorted and selected, and the settings that differ between them.

const table = { sort: "name", down: false, model: AFTER, columns: null };

/** Columns of the run table: { key, label, value(run), text(run) }. */
function columnsOf(runs) {
  const there = metricsOf(finished(runs), table.model);
  const wanted = table.columns ?? [
    "rouge2",
    "bleu",
    "reward",
    "judge_minus_reward",
    "completion_tokens",
    "sampled/reward",
    "sampled/divergence",
    "self_bleu",
  ];
  const fixed = [
    { key: "name", label: "run", value: (run) => run.name },
    { key: "group", label: "group", value: (run) => run.group },
    { key: "seed", label: "seed", value: (run) => run.seed },
    { key: "status", label: "status", value: (run) => run.status },
  ];
  const metrics = wanted
    .filter((key) => there.includes(key))
    .map((key) => ({
      key,
      label: labelOf(key),
      metric: true,
      value: (run) => run.values[table.model]?.[key]?.[0] ?? null,
      text: (run) => shown(run.values[table.model]?.[key]?.[0] ?? null),
      title: (run) => {
        const one = run.values[table.model]?.[key];
        return one
          ? `${axisLabel(key)}: ${estimateText({ mean: one[0], low: one[1], high: one[2], n: one[3], over: "rows" })}`
          : null;
      },
    }));
  const seconds = {
    key: "seconds",
    label: "seconds",
    metric: true,
    value: (run) => run.cost["time/total"] ?? null,
    text: (run) => shown(run.cost["time/total"] ?? null),
  };
  return [...fixed, ...metrics, seconds];
}

function drawTable() {
  const runs = taskRuns(),
    columns = columnsOf(runs),
    left = new Set(shownRuns());
  const sorting = columns.find((column) => column.key === table.sort) ?? columns[0];
  const rows = runs
    .filter((run) => left.has(run) || state.hidden.has(run.place))
    .sort((a, b) => compared(sorting.value(a), sorting.value(b)) * (table.down ? -1 : 1) || a.place - b.place);
  const heading = columns.map((column) => {
    const way = column === sorting ? (table.down ? "descending" : "ascending") : "none";
    const click = () => {
      table.down = column === sorting ? !table.down : Boolean(column.metric);
      table.sort = column.key;
      drawTable();
      document.querySelector(`#runs th[data-key="${CSS.escape(column.key)}"] button`)?.focus();
    };
    return html(
      "th",
      { scope: "col", "aria-sort": way, "data-key": column.key, class: column.metric ? "metric" : "" },
      html(
        "button",
        { onclick: click },
        column.label.replaceAll("-", "\u2011"),
        html("span", { class: "arrow", "aria-hidden": "true" }, way === "none" ? "" : table.down ? " ↓" : " ↑"),
      ),
    );
  });
  const body = rows.map((run) => {
    const box = html("input", {
      type: "checkbox",
      checked: left.has(run),
      "aria-label": `show ${run.name}`,
      onchange: (event) => {
        if (event.target.checked) state.hidden.delete(run.place);
        else state.hidden.add(run.place);
        changed();
      },
    });
    const cells = columns.map((column) =>
      html(
        "td",
        {
          class: column.metric ? "metric" : "",
          title: column.title?.(run) ?? (column.key === "status" ? run.error : null),
        },
        column.text ? column.text(run) : String(column.value(run) ?? "–"),
      ),
    );
    return html("tr", { class: left.has(run) ? "" : "off" }, html("td", {}, box), ...cells);
  });
  document
    .getElementById("runs")
    .replaceChildren(
      html(
        "thead",
        {},
        html("tr", {}, html("th", { scope: "col" }, html("span", { class: "unseen" }, "shown")), ...heading),
      ),
      html("tbody", {}, ...body),
    );
}

/** Numbers by size, text alphabetically, absent values last. */
function compared(a, b) {
  if (a === null || a === undefined) return b === null || b === undefined ? 0 : 1;
  if (b === null || b === undefined) return -1;
  return typeof a === "number" && typeof b === "number"
    ? a - b
    : String(a).localeCompare(String(b), "en", { numeric: true });
}

function tableControls() {
  const models = [AFTER, CHANGE, BEFORE, TEACHER].filter((model) => taskRuns().some((run) => run.values[model]));
  const keys = metricsOf(finished(taskRuns()), AFTER);
  const boxes = keys.map((key) => {
    const on = columnsOf(taskRuns()).some((column) => column.key === key);
    const flip = (event) => {
      const now = columnsOf(taskRuns())
        .filter((column) => column.metric && column.key !== "seconds")
        .map((column) => column.key);
      table.columns = event.target.checked ? [...now, key] : now.filter((one) => one !== key);
      drawTable();
    };
    return html(
      "label",
      { class: "tick" },
      html("input", { type: "checkbox", checked: on, onchange: flip }),
      html("span", {}, labelOf(key)),
    );
  });
  document.getElementById("table-controls").replaceChildren(
    select(
      "numbers of the",
      [["", models.map((model) => [model, { [CHANGE]: "change, after − before" }[model] ?? model])]],
      table.model,
      (value) => {
        table.model = value;
        drawTable();
      },
    ),
    html("details", { class: "chooser" }, html("summary", {}, "Columns"), html("div", {}, ...boxes)),
  );
}

/** Settings that differ between the selected groups, one row each. */
function drawDifferences() {
  const groups = groupsOf(shownRuns()).map((group) => group.label),
    by = DATA.tasks[state.task]?.differing ?? {};
  const keys = Object.keys(by).filter((key) => new Set(groups.map((group) => by[key][group])).size > 1);
  const section = document.getElementById("differences");
  if (!keys.length) {
    section.replaceChildren(
      html("p", { class: "lacks" }, "The selected runs differ in their seeds only."),
    );
    return;
  }
  const head = html(
    "tr",
    {},
    html("th", { scope: "col" }, "setting"),
    ...groups.map((group) => html("th", { scope: "col" }, group)),
  );
  const rows = keys.map((key) =>
    html("tr", {}, html("th", { scope: "row" }, key), ...groups.map((group) => html("td", {}, by[key][group] ?? "–"))),
  );
  section.replaceChildren(
    html(
      "div",
      { class: "wide", tabindex: 0, role: "region", "aria-label": "settings that differ" },
      html("table", { class: "settings" }, html("thead", {}, head), html("tbody", {}, ...rows)),
    ),
  );
}
