// The page: the filter, the tasks, the theme, printing, and the first drawing.

const THEMES = ["auto", "light", "dark"];
let theme = 0;

function setTheme(place) {
  theme = place;
  if (THEMES[theme] === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = THEMES[theme];
  document.getElementById("theme").textContent = `Theme: ${THEMES[theme]}`;
}

function debounced(action, wait) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(action, wait);
  };
}

/** A checkbox for each value of the settings that differ between the task's runs. */
function layFacets() {
  const runs = taskRuns(),
    parent = document.getElementById("facets");
  const keys = Object.keys(facets(runs[0] ?? { settings: {} }));
  const sets = keys.flatMap((key) => {
    const values = [...new Set(runs.map((run) => String(facets(run)[key])))].sort((a, b) =>
      a.localeCompare(b, "en", { numeric: true }),
    );
    return values.length > 1 && values.length <= 24 ? [facet(key, values)] : [];
  });
  parent.replaceChildren(...sets);
  document.getElementById("facet-box").hidden = !sets.length;
}

function facet(key, values) {
  const flip = (value) => (event) => {
    const off = state.values.get(key) ?? new Set();
    if (event.target.checked) off.delete(value);
    else off.add(value);
    state.values.set(key, off);
    changed();
  };
  const names = { lmbda: "lambda", train_rows: "training prompts" };
  const boxes = values.map((value) =>
    html(
      "label",
      { class: "tick" },
      html("input", {
        type: "checkbox",
        name: `facet-${key}`,
        value,
        checked: !state.values.get(key)?.has(value),
        onchange: flip(value),
      }),
      html("span", {}, value === "null" ? "none" : value),
    ),
  );
  return html("fieldset", {}, html("legend", {}, names[key] ?? key), ...boxes);
}

function showCount() {
  const runs = shownRuns(),
    all = taskRuns();
  document.getElementById("count").textContent =
    runs.length === all.length ? `all ${all.length} runs` : `${runs.length} of ${all.length} runs`;
}

function reset() {
  clearFilter();
  changed();
}

function clearFilter() {
  state.query = "";
  state.values.clear();
  state.hidden.clear();
  document.getElementById("query").value = "";
  layFacets();
}

function openTask(place) {
  state.task = place;
  table.columns = null;
  clearFilter();
  document.getElementById("notice").textContent = DATA.tasks[place]?.notice ?? "";
  layFigures(document.getElementById("figures"), document.getElementById("missing"));
  tableControls();
  browserControls();
  [showCount, drawTable, drawDifferences, drawBrowser].forEach((draw) => draw());
}

function layTasks() {
  const parent = document.getElementById("tasks");
  if (DATA.tasks.length < 2) return;
  parent.append(
    html("legend", { class: "unseen" }, "task"),
    ...DATA.tasks.map((task, place) => {
      const count = DATA.runs.filter((run) => run.task === place).length;
      return html(
        "label",
        {},
        html("input", {
          type: "radio",
          name: "task",
          value: place,
          checked: place === 0,
          onchange: () => openTask(place),
        }),
        html("span", {}, `${task.label} (${count})`),
      );
    }),
  );
}

function layProblems() {
  const parent = document.getElementById("problems");
  parent.closest("section").hidden = !DATA.problems.length;
  parent.replaceChildren(
    ...DATA.problems.map((run) =>
      html("li", {}, html("b", {}, run.name), ` ${run.status}: ${run.error ?? "unknown reason"}`),
    ),
  );
}

function start() {
  const groups = new Set(DATA.runs.map((run) => `${run.task} ${run.group}`)).size;
  document.getElementById("summary").textContent =
    `${DATA.runs.length} runs of ${groups} settings` +
    (DATA.tasks.length > 1
      ? `, ${DATA.tasks.length} tasks. Runs are compared within a task.`
      : `; ${DATA.tasks[0]?.label ?? ""}.`);
  layTasks();
  layProblems();
  openTask(0);
  listeners.push(showCount, redrawFigures, drawTable, drawDifferences, drawBrowser);
  document.getElementById("query").addEventListener(
    "input",
    debounced(() => {
      state.query = document.getElementById("query").value;
      changed();
    }, 120),
  );
  document.getElementById("reset").addEventListener("click", reset);
  document.getElementById("theme").addEventListener("click", () => setTheme((theme + 1) % THEMES.length));
  window.addEventListener("resize", debounced(refitFigures, 150));
  window.addEventListener("beforeprint", () => {
    document.documentElement.classList.add("printing");
    refitFigures();
  });
  window.addEventListener("afterprint", () => {
    document.documentElement.classList.remove("printing");
    refitFigures();
  });
  setTheme(0);
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
}

start();
