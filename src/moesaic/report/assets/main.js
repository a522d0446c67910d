// Puts the page together, and connects its controls.
const parts = [
  ["certificate-part", "Certificate", certificateFigures()],
  ["load-part", "Load", [loadFigure()]],
  ["routing-part", "Routing by layer", [measuresFigure(), confidenceFigure()]],
  ["experts-part", "Experts", [...matrixFigures()]],
  ["content-part", "What they read", [textsFigure(), imagesFigure(), audioFigure(), tokensFigure(), groupsFigure()]],
  ["geometry-part", "Router geometry", [geometryFigure()]],
  ["training-part", "Training", trainingFigures()],
].map(([id, title, made]) => [id, title, made.filter(Boolean)]).filter(([, , made]) => made.length);

const main = document.getElementById("report");
const contents = document.getElementById("contents");
for (const [id, title, made] of parts) {
  main.append(el("section", { id, "aria-label": title }, el("h2", {}, title), el("div", { class: id === "experts-part" && models.length === 1 ? "pair" : null }, made.map((one) => one.frame))));
  contents.append(el("a", { href: `#${id}` }, title));
}

function heading() {
  document.getElementById("name").textContent = names.map(visible).join("  against  ");
  const [model] = models;
  const layers = model.layers;
  const number = (key) => { const [low, high] = d3.extent(layers, (layer) => layer[key]); return low === high ? String(low) : `${low} to ${high}`; };
  const read = model.data ? `, seen on ${whole(model.data.tokens ?? 0)} tokens of ${visible(model.data.name ?? "data")}` : "";
  document.getElementById("facts").textContent = `${layers.length} layers of ${number("experts")} experts, ${number("top_k")} chosen for a token${read}.`;
  const left = models.flatMap((one, i) => (one.left_out.length ? [`${models.length > 1 ? `${visible(names[i])}: ` : ""}${one.left_out.join("; ")}`] : []));
  document.getElementById("left-out").textContent = left.length ? `Left out, to keep the page under 3 MB: ${left.join(". ")}. The .json file beside it has them.` : "";
}

const slider = el("input", { type: "range", id: "layer", min: 0, max: models[0].layers.length - 1, value: 0, step: 1, input: () => setLayer(Number(slider.value)) });
const shownLayer = el("output", { for: "layer" });
const shownPath = el("span", { class: "path" });

function setLayer(place) {
  state.layer = Math.max(0, Math.min(models[0].layers.length - 1, place));
  const layer = models[0].layers[state.layer];
  slider.value = state.layer;
  slider.setAttribute("aria-valuetext", `layer ${layer.number}`);
  shownLayer.textContent = `${layer.number} (${state.layer + 1} of ${models[0].layers.length})`;
  shownPath.textContent = visible(layer.path);
  remember();
  changed((one) => one.layered);
}

// What the reader had set, kept over a reload of a page that follows a run.
const KEY = `moesaic-report ${names.join(" ")}`;
function remember() {
  try { sessionStorage.setItem(KEY, JSON.stringify({ layer: state.layer, theme })); } catch { /* no storage for files in this browser */ }
}
function remembered() {
  try { return JSON.parse(sessionStorage.getItem(KEY)) ?? {}; } catch { return {}; }
}

const THEMES = ["system", "light", "dark"];
let theme = THEMES.includes(remembered().theme) ? remembered().theme : "system";
document.getElementById("theme").addEventListener("click", () => {
  theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  setTheme(theme);
  remember();
});
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "[") setLayer(state.layer - 1);
  if (event.key === "]") setLayer(state.layer + 1);
  if (event.key === "Escape") { hideTip(); setOnly(null); }
});
addEventListener("scroll", hideTip, { passive: true });

document.getElementById("layers").append(
  el("label", { for: "layer" }, "Layer"), slider,
  el("button", { type: "button", "aria-label": "layer before", click: () => setLayer(state.layer - 1) }, "−"),
  el("button", { type: "button", "aria-label": "layer after", click: () => setLayer(state.layer + 1) }, "+"), shownLayer, shownPath);
heading();
setTheme(theme);
setLayer(Number.isInteger(remembered().layer) ? remembered().layer : 0);
watchFigures();
document.documentElement.dataset.ready = "true";
