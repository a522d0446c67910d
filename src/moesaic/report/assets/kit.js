// Elements, theme, tooltip, downloads, and the figure: drawn when it comes near the screen, and again when what it shows changes.
const state = { layer: 0, only: null };
const figures = [];

function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(key, value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value != null) made.setAttribute(key, value);
  }
  made.append(...children.flat().filter((child) => child != null)); // strings become text nodes, never markup
  return made;
}

const isDark = () => getComputedStyle(document.documentElement).colorScheme === "dark";
const INK = () => (isDark() ? ["#7cc0f4", "#f0a35e"] : ["#0072b2", "#c24e00"]); // of the first and the second model
const HUES = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#c9bb0e", "#8c8c8c"]; // Okabe and Ito, yellow and black made to show on both grounds
const SYMBOLS = ["circle", "square", "triangle", "diamond", "star", "cross", "wye", "asterisk"];
const hue = (expert) => HUES[expert % 8];
const look = (expert) => `e h${expert % 8} u${Math.floor(expert / 8) % 8}`;
const sequential = (t) => d3.interpolateCividis(t);
function diverging() {
  const stops = isDark() ? ["#f6a24b", "#7f4d12", "#23282f", "#5a4b96", "#c3b8ee"] : ["#9a4a05", "#f0b069", "#f6f5f3", "#a99fd0", "#472080"];
  return d3.piecewise(d3.interpolateLab, stops);
}

const tip = document.getElementById("tip");
function showTip(target, text) {
  const box = target.getBoundingClientRect();
  tip.textContent = text;
  tip.hidden = false;
  const own = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(box.left, innerWidth - own.width - 4))}px`;
  tip.style.top = `${box.top - own.height - 6 > 4 ? box.top - own.height - 6 : box.bottom + 6}px`;
}
const hideTip = () => (tip.hidden = true);
const experts = (found) => found.map((one) => `expert ${one.expert}${one.weight == null ? "" : ` · ${one.weight.toFixed(2)}`}`).join("\n");

function save(name, blob) {
  const link = el("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function csv({ columns, rows }) {
  const cell = (value) => {
    if (value == null) return "";
    if (typeof value === "number") return String(value);
    const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [columns, ...rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

// All drawings of a figure, where they stand, as one SVG that needs no style sheet.
function picture(body) {
  const frame = body.getBoundingClientRect();
  const style = getComputedStyle(body);
  const ground = getComputedStyle(body.closest("figure")).backgroundColor;
  const made = d3.create("svg").attr("xmlns", "http://www.w3.org/2000/svg").attr("width", frame.width).attr("height", frame.height)
    .attr("style", `color:${style.color};font-family:system-ui,sans-serif`);
  made.append("rect").attr("width", "100%").attr("height", "100%").attr("fill", ground);
  for (const title of body.querySelectorAll("h4, .key, .tok, .word")) {
    const box = title.getBoundingClientRect();
    const own = getComputedStyle(title);
    const [x, y] = [box.left - frame.left, box.top - frame.top];
    if (title.classList.contains("tok")) {
      made.append("rect").attr("x", x).attr("y", y).attr("width", box.width).attr("height", box.height).attr("fill", own.backgroundColor);
    }
    made.append("text").attr("x", x).attr("y", y + box.height * 0.75).attr("font-size", own.fontSize).attr("font-weight", own.fontWeight)
      .attr("fill", own.color).attr("xml:space", "preserve").text(title.textContent);
  }
  for (const drawing of body.querySelectorAll("svg")) {
    if (drawing.parentElement.closest("svg")) continue;
    const box = drawing.getBoundingClientRect();
    const copy = drawing.cloneNode(true);
    for (const [key, value] of [["x", box.left - frame.left], ["y", box.top - frame.top], ["width", box.width], ["height", box.height]]) copy.setAttribute(key, value);
    made.node().append(copy);
  }
  return new XMLSerializer().serializeToString(made.node()).replaceAll("var(--plot-background)", ground);
}

function savePng(name, text, body) {
  const { width, height } = body.getBoundingClientRect();
  const image = new Image();
  image.onload = () => {
    const canvas = el("canvas", { width: Math.ceil(width * 2), height: Math.ceil(height * 2) });
    const context = canvas.getContext("2d");
    context.scale(2, 2);
    context.drawImage(image, 0, 0);
    canvas.toBlob((blob) => save(name, blob), "image/png");
  };
  image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(text);
}

function table({ columns, rows }, longest = 500) {
  const cells = (row) => row.map((value) => el("td", { class: typeof value === "number" ? "number" : null }, value == null ? "" : typeof value === "number" ? String(value) : visible(value)));
  const made = el("table", {}, el("thead", {}, el("tr", {}, columns.map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, rows.slice(0, longest).map((row) => el("tr", {}, cells(row)))));
  const rest = rows.length > longest ? el("p", { class: "note" }, `The first ${whole(longest)} of ${whole(rows.length)} rows; the CSV file has all.`) : null;
  return [el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "data table" }, made), rest];
}

// One figure. draw(body): fills it. rows(): its data. layered: it shows the chosen layer. only: it shows the chosen expert.
// pictured: it can be saved as a picture. height: kept free until it is drawn, in pixels.
function figure({ id, title, caption, draw, rows, controls = [], layered = false, only = false, pictured = true, height = 240 }) {
  const body = el("div", { class: "body", style: `min-height:${height}px` });
  const file = () => (layered ? `${id}-layer-${models[0].layers[state.layer].number}` : id);
  const button = (text, what, act) => el("button", { type: "button", class: what, "aria-label": `${title}: download ${text}`, click: () => { one.fresh(); act(); } }, text);
  const buttons = [button("CSV", "csv", () => save(`${file()}.csv`, new Blob([csv(rows())], { type: "text/csv;charset=utf-8" })))];
  if (pictured) {
    buttons.push(button("SVG", "svg", () => save(`${file()}.svg`, new Blob([picture(body)], { type: "image/svg+xml" }))));
    buttons.push(button("PNG", "png", () => savePng(`${file()}.png`, picture(body), body)));
  }
  const held = el("details", {}, el("summary", {}, "Data"));
  const fill = () => { if (held.open) held.replaceChildren(held.firstChild, ...table(rows()).filter(Boolean)); };
  held.addEventListener("toggle", fill);
  const frame = el("figure", { id, "aria-label": title },
    el("div", { class: "head" }, el("h3", {}, title, layered ? el("span", { class: "mark" }, " · chosen layer") : null), controls, buttons),
    body, el("figcaption", {}, caption), held);
  const one = {
    frame, body, layered, only, near: false, dirty: true, width: 0,
    fresh() {
      if (!this.dirty) return;
      this.dirty = false;
      this.width = body.clientWidth;
      const focus = body.contains(document.activeElement) ? document.activeElement.dataset.focus : null;
      draw(body);
      if (focus) body.querySelector(`[data-focus="${focus}"]`)?.focus({ preventScroll: true }); // who uses keys stays where they were
      body.style.minHeight = ""; // its place was kept until now
      fill();
    },
    changed() {
      this.dirty = true;
      if (this.near) this.fresh();
    },
  };
  figures.push(one);
  return one;
}

const changed = (which) => figures.filter(which).forEach((one) => one.changed());
const select = (label, options, act) => {
  const made = el("select", { change: () => act(made.value) }, options.map(([value, text]) => el("option", { value }, text)));
  return el("label", {}, label, made);
};

// The same drawing of each model, side by side where there are two.
function sides(body, draw) {
  const made = models.map((model, i) => el("div", { class: "side" }, models.length > 1 ? el("h4", {}, visible(names[i])) : null));
  body.replaceChildren(el("div", { class: models.length > 1 ? "sides" : "" }, made));
  const drawn = made.map((side, i) => draw(models[i], layerOf(models[i], state.layer), side.clientWidth, i));
  made.forEach((side, i) => side.append(...[drawn[i]].flat().filter(Boolean)));
}

// One figure a frame, so that scrolling never waits for several.
function drawNext() {
  const next = figures.find((one) => one.near && one.dirty);
  if (!next) return;
  next.fresh();
  requestAnimationFrame(drawNext);
}

function watchFigures() {
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const one = figures.find((each) => each.frame === entry.target);
      one.near = entry.isIntersecting;
    }
    drawNext();
  }, { rootMargin: "500px" });
  figures.forEach((one) => seen.observe(one.frame));
  let waiting = 0;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => changed((one) => one.body.clientWidth !== one.width), 150);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => changed(() => true));
}

function setTheme(theme) {
  const words = { system: "as the system", light: "light", dark: "dark" };
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  document.getElementById("theme").textContent = `Theme: ${words[theme]}`;
  changed(() => true);
}
