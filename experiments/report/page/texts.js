// The sample browser: one prompt with the completions of every selected run.

const browser = { source: "held_out", at: 0, search: "" };

function browserRows() {
  const task = DATA.tasks[state.task],
    places = new Set(shownRuns().map((run) => String(run.place)));
  const words = browser.search.toLowerCase();
  return (task?.[browser.source] ?? []).filter((row) => {
    const there = Object.keys(row.cells).filter((place) => places.has(place));
    if (!there.length) return false;
    if (!words) return true;
    const all = [
      row.prompt,
      row.reference,
      ...there.flatMap((place) =>
        Object.entries(row.cells[place])
          .filter(([key]) => key !== "reward")
          .map(([, text]) => text),
      ),
    ];
    return all.some((text) => text !== null && DATA.texts[text].text.toLowerCase().includes(words));
  });
}

/** A text with its unsupported claims marked; marks are elements around text nodes, so that no text becomes markup. */
function shownText(place) {
  const entry = DATA.texts[place],
    parts = [];
  let from = 0;
  for (const [start, end] of entry.spans ?? []) {
    parts.push(
      entry.text.slice(from, start),
      html("mark", { title: "not supported by the article" }, entry.text.slice(start, end)),
    );
    from = end;
  }
  parts.push(entry.text.slice(from));
  if (entry.left_out)
    parts.push(
      html("span", { class: "left-out" }, ` … ${entry.left_out.toLocaleString("en-US")} more characters are left out`),
    );
  return html("bdi", { class: "text" }, ...parts.filter((part) => part !== ""));
}

/** Completions of a row with their models and runs, in display order; equal completions of a model share an entry. */
function completionsOf(row) {
  const found = new Map();
  const add = (source, model, place, reward) => {
    const key = `${model === AFTER ? 1 : 0} ${place} ${reward ?? ""}`;
    if (!found.has(key)) found.set(key, { model, place, reward, sources: [] });
    found.get(key).sources.push(source);
  };
  for (const group of groupsOf(shownRuns())) {
    for (const run of group.runs) {
      const { reward, ...cells } = row.cells[String(run.place)] ?? {};
      for (const [model, place] of Object.entries(cells))
        add(model === AFTER || browser.source === "training" ? { run } : { run, model }, model, place, reward);
    }
  }
  const rank = (entry) =>
    [TEACHER, BEFORE].indexOf(entry.model) + (entry.model === AFTER || browser.source === "training" ? 10 : 0);
  return [...found.values()].sort((a, b) => rank(a) - rank(b));
}

/** `RL, seeds 1, 2`: the sources of a completion by group. */
function sourceText(entry) {
  const runs = entry.sources.map((one) => one.run);
  const seeds = (found) => {
    const all = [...new Set(found.map((run) => run.seed))];
    return `seed${all.length > 1 ? "s" : ""} ${all.join(", ")}`;
  };
  if (entry.model === TEACHER) return entry.sources.length > 1 ? "teacher" : `teacher (${runs[0].name})`;
  if (entry.model === BEFORE) return `student before, ${seeds(runs)}`;
  const groups = [...new Set(runs.map((run) => run.group))];
  const tail = browser.source === "training" && entry.model !== "student" ? ` (from the ${entry.model})` : "";
  return groups.map((group) => `${group}, ${seeds(runs.filter((run) => run.group === group))}`).join("; ") + tail;
}

function drawBrowser() {
  const rows = browserRows(),
    place = document.getElementById("samples");
  browser.at = Math.max(0, Math.min(browser.at, rows.length - 1));
  document.getElementById("sample-count").textContent = rows.length ? `${browser.at + 1} of ${rows.length}` : "none";
  document.getElementById("sample-back").disabled = browser.at <= 0;
  document.getElementById("sample-next").disabled = browser.at >= rows.length - 1;
  if (!rows.length) {
    place.replaceChildren(
      html(
        "p",
        { class: "lacks" },
        browser.search
          ? "No stored row of the selected runs contains this text."
          : "The selected runs have no such texts (predictions.jsonl, samples.jsonl).",
      ),
    );
    return;
  }
  const row = rows[browser.at];
  const line = (source, body, note, extra = "", colour = null) =>
    html(
      "tr",
      { class: extra },
      html(
        "th",
        { scope: "row" },
        colour === null ? null : html("span", { class: `dot ${colourClass(colour)}`, "aria-hidden": "true" }),
        source,
      ),
      html("td", {}, body),
      html("td", { class: "note" }, note ?? ""),
    );
  const colours = new Map(groupsOf(taskRuns()).map((group) => [group.label, group.colour]));
  const lines = completionsOf(row).map((entry) => {
    const note = [DATA.texts[entry.place].note, entry.reward === undefined ? null : `reward ${shown(entry.reward)}`]
      .filter(Boolean)
      .join("; ");
    const own = ![TEACHER, BEFORE].includes(entry.model);
    return line(
      sourceText(entry),
      shownText(entry.place),
      note,
      own ? "own" : "other",
      own ? colours.get(entry.sources[0].run.group) : null,
    );
  });
  const where = browser.source === "held_out" ? `row ${row.row}` : `step ${row.step}`;
  const prompt =
    row.prompt === null
      ? html("span", { class: "lacks" }, "not stored: predictions.jsonl of these runs has no prompts")
      : shownText(row.prompt);
  place.replaceChildren(
    html(
      "table",
      { class: "samples" },
      html(
        "tbody",
        {},
        line(`prompt (${where})`, prompt, "", "given"),
        line("reference", shownText(row.reference), DATA.texts[row.reference].note, "given"),
        ...lines,
      ),
    ),
  );
}

function browserControls() {
  const move = (by) => () => {
    browser.at += by;
    drawBrowser();
  };
  const task = DATA.tasks[state.task];
  const sources = [
    ["held_out", "held-out rows, greedy"],
    ["training", "training samples"],
  ].filter(([key]) => task?.[key].length);
  if (!sources.some(([key]) => key === browser.source)) browser.source = sources[0]?.[0] ?? "held_out";
  browser.at = 0;
  const again = (name) => (value) => {
    browser[name] = value;
    browser.at = 0;
    drawBrowser();
  };
  document
    .getElementById("sample-controls")
    .replaceChildren(
      select("texts", [["", sources]], browser.source, again("source")),
      html(
        "span",
        { class: "steps" },
        html("button", { id: "sample-back", "aria-label": "row before", onclick: move(-1) }, "‹"),
        html("output", { id: "sample-count" }),
        html("button", { id: "sample-next", "aria-label": "next row", onclick: move(1) }, "›"),
      ),
      html(
        "label",
        {},
        html("span", {}, "rows with"),
        html("input", {
          type: "search",
          id: "sample-search",
          value: browser.search,
          placeholder: "any text",
          oninput: (event) => again("search")(event.target.value),
        }),
      ),
    );
}
