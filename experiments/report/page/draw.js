// Drawing: elements, axes, markers, legends, and a tooltip over a plot's points by mouse and arrow keys.

const SVG = "http://www.w3.org/2000/svg";
const COLOURS = 8;
const MARKS = ["circle", "square", "triangle", "diamond", "down", "plus"];

/** An HTML element; text is inserted as text, never as markup. */
function html(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

function colourClass(place) {
  return `c${place % COLOURS}`;
}

/** Lines of the second eight groups are dashed, of the third dotted. */
function dashOf(place) {
  return [null, "6 3", "2 3", "8 3 2 3"][Math.floor(place / COLOURS) % 4];
}

/** Round numbers for ticks, about `count` of them and at least three. */
function ticks(low, high, count) {
  const found = roundPlaces(low, high, Math.max(count, 1));
  return found.length >= 3 || count > 12 ? found : ticks(low, high, count * 1.5);
}

function roundPlaces(low, high, count) {
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 2.5, 5, 10].find((one) => one * power >= raw * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

function tickText(value, step) {
  if (Math.abs(value) < step * 1e-6) return "0";
  if (Math.abs(value) >= 1e6) return shown(value);
  const digits = Math.max(0, Math.min(6, Math.ceil(-Math.log10(step) - 1e-9)));
  const finer = Math.abs(step * 10 ** digits - Math.round(step * 10 ** digits)) > 1e-6 ? 1 : 0;
  return grouped(value.toFixed(digits + finer));
}

/** The range of the values with a margin. */
function range(values, margin = 0.06) {
  let low = Infinity,
    high = -Infinity;
  for (const value of values) {
    if (value === null || value === undefined || !Number.isFinite(value)) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (low > high) return [0, 1];
  const even = high - low <= 1e-9 * Math.max(Math.abs(low), Math.abs(high));
  const gap = even ? Math.abs(high) * 0.2 || 1 : high - low;
  return [low - gap * margin, high + gap * margin];
}

/**
 * Axes of a plot.
 * x and y: { low, high, label, log, at } with `at` the ticks if they are given; returns { root, layer, px, py, box }.
 */
function axes({ width, height, x, y, name, zero = false }) {
  const box = { left: 50, right: width - 14, top: 26, bottom: height - 42 };
  const across = (axis) => (axis.log ? Math.log10 : (value) => value);
  const scale = (axis, from, to) => {
    const turn = across(axis),
      low = turn(axis.low),
      high = turn(axis.high);
    return (value) => from + ((turn(value) - low) / (high - low)) * (to - from);
  };
  const px = scale(x, box.left, box.right),
    py = scale(y, box.bottom, box.top);
  const root = svg("svg", {
    class: "plot",
    width,
    height,
    viewBox: `0 0 ${width} ${height}`,
    role: "img",
    tabindex: 0,
    "aria-label": `${name}. Arrow keys read its points.`,
  });
  const grid = svg("g", { class: "grid" }),
    labels = svg("g", { class: "ticks" });
  const yTicks = y.at ?? ticks(y.low, y.high, Math.max(3, (box.bottom - box.top) / 48));
  for (const value of yTicks) {
    const at = py(value);
    grid.append(svg("line", { x1: box.left, x2: box.right, y1: at, y2: at }));
    labels.append(
      svg("text", { x: box.left - 7, y: at + 4, "text-anchor": "end" }, tickText(value, yTicks[1] - yTicks[0] || 1)),
    );
  }
  const xTicks = x.at ?? ticks(x.low, x.high, Math.max(2, (box.right - box.left) / 90));
  for (const value of xTicks) {
    const at = px(value),
      text = x.text?.(value) ?? tickText(value, Math.abs(xTicks[1] - xTicks[0]) || 1);
    grid.append(svg("line", { class: "tick", x1: at, x2: at, y1: box.bottom, y2: box.bottom + 4 }));
    labels.append(svg("text", { x: at, y: box.bottom + 17, "text-anchor": "middle" }, text));
  }
  const frame = svg(
    "g",
    { class: "frame" },
    svg("line", { x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }),
    zero && y.low < 0 && y.high > 0
      ? svg("line", { class: "zero", x1: box.left, x2: box.right, y1: py(0), y2: py(0) })
      : null,
    svg("text", { class: "axis up", x: 2, y: 12 }, cut(y.label, (width - 8) / 6.4)),
    svg(
      "text",
      { class: "axis", x: (box.left + box.right) / 2, y: height - 6, "text-anchor": "middle" },
      cut(x.label, (box.right - box.left) / 6.2),
    ),
  );
  const layer = svg("g");
  root.append(grid, labels, frame, layer);
  return { root, layer, px, py, box };
}

function cut(text, length) {
  return text.length > length ? `${text.slice(0, Math.max(1, Math.floor(length) - 1))}…` : text;
}

/** A marker of about `size` pixels; shapes distinguish lines where colours do not suffice. */
function mark(shape, x, y, size = 5, extra = {}) {
  const s = size;
  const paths = {
    square: `M${x - s},${y - s}h${2 * s}v${2 * s}h${-2 * s}z`,
    triangle: `M${x},${y - s * 1.25}l${s * 1.2},${s * 2.1}h${-2.4 * s}z`,
    down: `M${x},${y + s * 1.25}l${s * 1.2},${-s * 2.1}h${-2.4 * s}z`,
    diamond: `M${x},${y - s * 1.35}l${s * 1.2},${s * 1.35}l${-s * 1.2},${s * 1.35}l${-s * 1.2},${-s * 1.35}z`,
    plus: `M${x - s * 1.2},${y - s * 0.4}h${s * 0.8}v${-s * 0.8}h${s * 0.8}v${s * 0.8}h${s * 0.8}v${s * 0.8}h${-s * 0.8}v${s * 0.8}h${-s * 0.8}v${-s * 0.8}h${-s * 0.8}z`,
    star: star(x, y, s * 1.7),
    cross: `M${x - s},${y - s}l${2 * s},${2 * s}M${x + s},${y - s}l${-2 * s},${2 * s}`,
  };
  if (shape === "circle") return svg("circle", { cx: x, cy: y, r: s * 1.1, ...extra });
  return svg("path", { d: paths[shape], ...extra });
}

function star(x, y, size) {
  const corner = (i) => {
    const radius = i % 2 ? size * 0.42 : size,
      angle = (Math.PI / 5) * i - Math.PI / 2;
    return `${(x + radius * Math.cos(angle)).toFixed(2)},${(y + radius * Math.sin(angle)).toFixed(2)}`;
  };
  return `M${Array.from({ length: 10 }, (_, i) => corner(i)).join("L")}z`;
}

function pathOf(points) {
  let text = "",
    pen = false;
  for (const [x, y] of points) {
    if (!Number.isFinite(y)) {
      pen = false;
      continue;
    }
    text += `${pen ? "L" : "M"}${x.toFixed(1)},${y.toFixed(1)}`;
    pen = true;
  }
  return text;
}

/** A legend of { label, colour, shape, line, plain }. Pointing at an entry highlights its set in every plot of the figure. */
function legend(entries) {
  const list = html("ul", { class: "legend" });
  for (const entry of entries) {
    const swatch = svg("svg", {
      width: 26,
      height: 12,
      class: `swatch ${entry.plain ? "anchor" : colourClass(entry.colour)}`,
      "aria-hidden": "true",
    });
    if (entry.line)
      swatch.append(
        svg("line", {
          class: "line",
          x1: 1,
          x2: 25,
          y1: 6,
          y2: 6,
          "stroke-dasharray": entry.dash === undefined ? dashOf(entry.colour) : entry.dash,
        }),
      );
    if (entry.box) swatch.append(svg("rect", { class: "area", x: 5, y: 1, width: 16, height: 10 }));
    if (entry.shape) swatch.append(mark(entry.shape, 13, 6, 4, { class: entry.hollow ? "mark hollow" : "mark" }));
    const enter = (set) => () => highlight(list.closest(".figure"), set);
    list.append(
      html(
        "li",
        {
          tabindex: entry.label === null ? null : 0,
          onpointerenter: enter(entry.label),
          onfocus: enter(entry.label),
          onpointerleave: enter(null),
          onblur: enter(null),
        },
        swatch,
        html("span", {}, entry.label),
      ),
    );
  }
  return list;
}

function highlight(figure, set) {
  for (const part of figure?.querySelectorAll("[data-set]") ?? [])
    part.classList.toggle("dim", set !== null && part.dataset.set !== set);
}

const tip = html("div", { id: "tip", role: "status", "aria-live": "polite", hidden: true });
document.body.append(tip);

function showTip(root, point) {
  tip.replaceChildren(...point.lines().map((line, i) => html("div", { class: i ? "" : "first" }, line)));
  tip.hidden = false;
  const frame = root.getBoundingClientRect(),
    size = tip.getBoundingClientRect();
  const scale = frame.width / root.viewBox.baseVal.width;
  const x = frame.left + point.x * scale,
    y = frame.top + point.y * scale;
  const left = x + 14 + size.width > document.documentElement.clientWidth ? x - size.width - 14 : x + 14;
  tip.style.left = `${Math.max(4, left) + window.scrollX}px`;
  tip.style.top = `${Math.max(4, y - size.height - 8) + window.scrollY}px`;
  let ring = root.querySelector(".ring");
  if (!ring) root.append((ring = svg("circle", { class: "ring", r: 8 })));
  ring.setAttribute("cx", point.x);
  ring.setAttribute("cy", point.y);
  highlight(root.closest(".figure"), point.set ?? null);
}

function hideTip(root) {
  tip.hidden = true;
  root.querySelector(".ring")?.remove();
  highlight(root.closest(".figure"), null);
}

/** Tooltips over the points of a plot ({ x, y, lines, set }): the point nearest to the mouse, and by arrow keys. */
function tips(root, points, reach = 40) {
  let at = -1;
  root.addEventListener("pointermove", (event) => {
    const frame = root.getBoundingClientRect(),
      scale = frame.width / root.viewBox.baseVal.width;
    const x = (event.clientX - frame.left) / scale,
      y = (event.clientY - frame.top) / scale;
    let best = -1,
      distance = reach * reach;
    points.forEach((point, i) => {
      const inside = point.box && x >= point.box[0] && x <= point.box[1] && y >= point.box[2] && y <= point.box[3];
      const own = inside ? 0 : (point.x - x) ** 2 + (point.y - y) ** 2;
      if (own < distance) [best, distance] = [i, own];
    });
    at = best;
    if (best >= 0) showTip(root, points[best]);
    else hideTip(root);
  });
  root.addEventListener("pointerleave", () => hideTip(root));
  root.addEventListener("blur", () => hideTip(root));
  root.addEventListener("keydown", (event) => {
    const next = stepped(points, at, event.key);
    if (event.key === "Escape") hideTip(root);
    if (next === null) return;
    event.preventDefault();
    at = next;
    showTip(root, points[at]);
  });
}

/** The next point for an arrow key: left and right within a set, up and down to the next set; null for other keys. */
function stepped(points, at, key) {
  if (!points.length || !["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"].includes(key)) return null;
  if (at < 0) return 0;
  const move = key === "ArrowRight" || key === "ArrowDown" ? 1 : -1;
  if (key === "ArrowLeft" || key === "ArrowRight") {
    const next = at + move;
    return next >= 0 && next < points.length ? next : at;
  }
  for (let next = at + move; next >= 0 && next < points.length; next += move) {
    if (points[next].set !== points[at].set) return next;
  }
  return at;
}
