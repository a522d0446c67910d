// Figures of numbers: load, measures by layer, confidence, experts by experts, groups, geometry, certificate.
const MEASURES = [
  ["entropy", "Router entropy / ln E", "1 is uniform"],
  ["top1", "Mean highest probability", "0 to 1"],
  ["margin", "Highest less second probability", "0 to 1"],
  ["load_cv", "Load: coefficient of variation", "0 is balanced"],
  ["max_violation", "Highest load / fair share − 1", "0 is balanced"],
  ["information", "Information of the expert on the group", "nats"],
  ["diversity", "Diversity of the experts' last linears", "0 is copies"],
  ["router_condition", "Condition number of the router", "1 is orthogonal rows"],
];
const KIND_OF_MATRIX = {
  matched: "cosine of weights, neurons matched",
  plain: "cosine of weights, as they lie",
  output_cosine: "cosine of outputs",
  cka: "linear CKA of outputs",
};
const plotted = (options) => Plot.plot({ style: { background: "transparent", fontSize: "12px", overflow: "visible" }, ...options });
const wholeTick = (value) => (Number.isInteger(value) ? String(value) : "");
// Every nth of so many ticks that they don't touch.
const ticks = (values, room) => values.filter((_, i) => i % Math.max(1, Math.ceil(values.length / Math.max(2, room))) === 0);

function loadFigure() {
  const groups = [...new Set(models.flatMap((model) => model.layers.flatMap((layer) => Object.keys(layer.load_by_group))))];
  let group = "";
  const loads = (layer) => (group ? unpacked(layer.load_by_group[group]) ?? [] : unpacked(layer.load));
  const cells = (model) => model.layers.flatMap((layer) => loads(layer).map((load, expert) => ({ layer: layer.number, expert, load, fair: load * layer.experts, path: layer.path, isDead: !group && (layer.dead ?? []).includes(expert) })));
  const rows = () => ({
    columns: ["model", "layer", "path", "group", "expert", "load"],
    rows: models.flatMap((model, i) => cells(model).map((cell) => [names[i], cell.layer, cell.path, group || "all", cell.expert, cell.load])),
  });
  const draw = (model, _, width) => {
    const given = cells(model);
    const numbers = model.layers.map((layer) => layer.number);
    const ids = d3.range(d3.max(model.layers, (layer) => layer.experts));
    const step = Math.max(8, Math.min(26, 640 / numbers.length));
    return plotted({
      width, height: Math.round(numbers.length * step + 90), marginLeft: 46, marginTop: 46, ariaLabel: "load by layer and expert",
      x: { domain: ids, type: "band", label: "expert", ticks: ticks(ids, width / 34), axis: "top", padding: 0.04 },
      y: { domain: numbers, type: "band", label: "layer", ticks: ticks(numbers, (numbers.length * step) / 18), padding: 0.04 },
      color: { type: "diverging-log", pivot: 1, domain: [1 / 8, 8], clamp: true, interpolate: diverging() },
      marks: [
        Plot.cell(given, { x: "expert", y: "layer", fill: (cell) => Math.max(cell.fair, 1e-3) }),
        Plot.text(given.filter((cell) => cell.isDead), { x: "expert", y: "layer", text: () => "×", fill: "currentColor", pointerEvents: "none" }),
        Plot.tip(given, Plot.pointer({ x: "expert", y: "layer", title: (cell) => `layer ${cell.layer}, expert ${cell.expert}\nload ${short(cell.load)}\n${short(cell.fair)} × the fair share`, fill: "var(--card)" })),
      ],
    });
  };
  const ramp = () => Plot.legend({ width: 260, color: { type: "diverging-log", pivot: 1, domain: [1 / 8, 8], interpolate: diverging(), label: "load / fair share" }, marginLeft: 12, marginRight: 12, ticks: [1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8], tickFormat: (x) => (x < 1 ? `1/${Math.round(1 / x)}` : String(Math.round(x))) });
  const made = figure({
    id: "load", title: "Load of each expert", rows, height: 480,
    caption: "Each row is a layer, each cell an expert's share of the assignments. Neutral: its fair share; towards purple busier, towards brown idler, on a logarithmic scale; × is dead, with less than 1 % of its fair share.",
    controls: groups.length ? [select("Tokens of", [["", "all groups"], ...groups.map((name) => [name, visible(name)])], (value) => { group = value; made.changed(); })] : [],
    draw: (body) => { sides(body, draw); body.append(ramp()); },
  });
  return made;
}

function measuresFigure() {
  const shown = MEASURES.filter(([key]) => models.some((model) => model.layers.some((layer) => layer[key] != null)));
  const rows = () => ({
    columns: ["model", "layer", "path", ...MEASURES.map(([key]) => key)],
    rows: models.flatMap((model, i) => model.layers.map((layer) => [names[i], layer.number, layer.path, ...MEASURES.map(([key]) => layer[key])])),
  });
  const panel = ([key, title, unit]) => {
    const place = el("div", { class: "panel" }, el("h4", {}, title));
    return [place, (width) => {
      const points = models.flatMap((model, i) => model.layers.filter((layer) => layer[key] != null).map((layer) => ({ layer: layer.number, value: layer[key], model: i })));
      const ink = INK();
      return plotted({
        width, height: 170, marginLeft: 48, marginBottom: 34, ariaLabel: title,
        x: { label: "layer", type: "linear", tickFormat: wholeTick, ticks: Math.min(8, models[0].layers.length) },
        y: { label: unit, grid: true, nice: true, ticks: 4, type: key === "router_condition" && d3.min(points, (p) => p.value) > 0 ? "log" : "linear", tickFormat: key === "router_condition" ? "~g" : undefined },
        marks: [
          models.map((_, i) => Plot.line(points.filter((p) => p.model === i), { x: "layer", y: "value", stroke: ink[i], strokeWidth: 1.75, strokeDasharray: i ? "5 3" : null })),
          Plot.dot(points, { x: "layer", y: "value", fill: (p) => ink[p.model], r: 2.2 }),
          Plot.tip(points, Plot.pointerX({ x: "layer", y: "value", title: (p) => `${models.length > 1 ? `${visible(names[p.model])}\n` : ""}layer ${p.layer}: ${short(p.value)}`, fill: "var(--card)" })),
        ],
      });
    }];
  };
  return figure({
    id: "measures", title: "Entropy, confidence and balance by layer", rows, height: 400,
    caption: "One point per layer, never an average over layers. Low entropy with a high top probability: the router is sure; load measures near 0: the experts share the work.",
    draw: (body) => {
      const made = shown.map(panel);
      body.replaceChildren(keyOfModels() ?? "", el("div", { class: "panels" }, made.map(([place]) => place)));
      made.forEach(([place, drawing]) => place.append(drawing(place.clientWidth)));
    },
  });
}

function keyOfModels() {
  if (models.length < 2) return null;
  return el("p", {}, names.map((name, i) => el("span", { class: "key" }, el("i", { style: `color:${INK()[i]};border-top-style:${i ? "dashed" : "solid"}` }), visible(name))));
}

function confidenceFigure() {
  const bins = (layer) => (unpacked(layer.confidence_histogram) ?? []).map((value, i, all) => ({ from: i / all.length, to: (i + 1) / all.length, value }));
  const rows = () => ({
    columns: ["model", "layer", "from", "to", "value"],
    rows: models.flatMap((model, i) => { const layer = model.layers[layerOf(model, state.layer)]; return bins(layer).map((bin) => [names[i], layer.number, bin.from, bin.to, bin.value]); }),
  });
  return figure({
    id: "confidence", title: "How sure the router is", rows, layered: true, height: 200,
    caption: "Tokens by their highest expert probability. Mass at the left: the router hardly prefers anyone; at the right: it has decided.",
    draw: (body) => sides(body, (model, place, width, i) => {
      const given = bins(model.layers[place]);
      const total = d3.sum(given, (bin) => bin.value);
      return plotted({
        width, height: 200, marginLeft: 52, marginBottom: 36, ariaLabel: "histogram of the highest probability",
        x: { label: "highest probability", domain: [0, 1] }, y: { label: Math.abs(total - 1) < 0.02 ? "share of tokens" : "tokens", grid: true, ticks: 4 },
        marks: [Plot.rectY(given, { x1: "from", x2: "to", y: "value", fill: INK()[i], inset: 0.5, title: (bin) => `${bin.from} to ${bin.to}: ${short(bin.value)}`, tip: { fill: "var(--card)" } }), Plot.ruleY([0])],
      });
    }),
  });
}

function matrixFigure({ id, title, caption, kinds, offDiagonal }) {
  let kind = kinds[0][0];
  const packOf = (model) => model.layers[layerOf(model, state.layer)].matrices[kind];
  const cells = (pack) => {
    const { size, columns, at } = matrix(pack);
    return d3.range(size).flatMap((i) => d3.range(columns).map((j) => ({ i, j, value: at(i, j) })));
  };
  const rows = () => ({
    columns: ["model", "layer", "kind", "expert", "other", "value"],
    rows: models.flatMap((model, m) => (packOf(model) ? cells(packOf(model)).map(({ i, j, value }) => [names[m], model.layers[layerOf(model, state.layer)].number, kind, i, j, value]) : [])),
  });
  const made = figure({
    id, title, caption, rows, layered: true, height: 420,
    controls: kinds.length > 1 ? [select("Measure", kinds, (value) => { kind = value; made.changed(); })] : [],
    draw: (body) => {
      const all = models.map((model) => (packOf(model) ? cells(packOf(model)) : null));
      const apart = all.flatMap((one) => one ?? []).filter(({ i, j, value }) => i !== j && value != null).map(({ value }) => value);
      const domain = offDiagonal ? [0, d3.max(apart) || 1] : [Math.min(0, d3.min(apart) ?? 0), 1];
      const color = { domain, clamp: true, interpolate: sequential, label: offDiagonal ? "share of tokens" : KIND_OF_MATRIX[kind] };
      sides(body, (model, place, width, m) => {
        if (!all[m]) return el("p", { class: "note" }, "Not measured for this layer, or left out of the page for its size; see the .json file.");
        const size = Math.min(width, 460);
        const ids = d3.range(packOf(model).rows);
        const edges = [-0.5, ids.length - 0.5];
        const text = ({ i, j, value }) => (i === j && offDiagonal ? `expert ${i}\nchosen by ${short(value)} of tokens` : `experts ${i} and ${j}\n${short(value)}`);
        return plotted({
          width: size, height: size, marginLeft: 40, marginTop: 40, marginRight: 4, marginBottom: 4, ariaLabel: title,
          x: { domain: edges, label: "expert", axis: "top", ticks: ticks(ids, size / 30) },
          y: { domain: edges, label: "expert", ticks: ticks(ids, size / 22), reverse: true }, color,
          marks: [
            // One image: a rectangle for each pair of 64 experts would halt scrolling.
            Plot.raster(all[m].map(({ i, j, value }) => (offDiagonal && i === j ? NaN : value ?? NaN)), { width: ids.length, height: ids.length, x1: edges[0], x2: edges[1], y1: edges[0], y2: edges[1], imageRendering: "pixelated" }),
            Plot.tip(all[m], Plot.pointer({ x: "j", y: "i", title: text, fill: "var(--card)" })),
          ],
        });
      });
      const error = d3.max(models, (model) => model.layers[layerOf(model, state.layer)].matching_error ?? 0);
      if (kind === "matched" && error > 0) body.append(el("p", { class: "note" }, `Neurons are matched approximately here: a cosine may be up to ${short(error)} higher.`));
      if (apart.length) body.append(Plot.legend({ width: 260, marginLeft: 14, marginRight: 14, color }));
    },
  });
  return made;
}

function matrixFigures() {
  const has = (kind) => models.some((model) => model.layers.some((layer) => layer.matrices[kind]));
  const kinds = Object.entries(KIND_OF_MATRIX).filter(([kind]) => has(kind));
  const made = [];
  if (kinds.length) made.push(matrixFigure({ id: "similarity", title: "How alike the experts are", kinds,
    caption: "Each cell compares two experts of the layer; bright is alike. Neurons matched: before comparing, the neurons of one are put in the order of the other, so that a permuted copy counts as a copy." }));
  if (has("coactivation")) made.push(matrixFigure({ id: "coactivation", title: "Experts chosen together", kinds: [["coactivation", ""]], offDiagonal: true,
    caption: "Each cell is the share of tokens that chose both experts; bright pairs work together. The diagonal is left blank: hover it for how often an expert is chosen at all." }));
  return made;
}

function groupsFigure() {
  if (!models.some((model) => model.layers.some((layer) => Object.keys(layer.load_by_group).length))) return null;
  const cells = (layer) => Object.entries(layer.load_by_group).flatMap(([group, load]) => unpacked(load).map((share, expert) => ({ group, expert, share, fair: share * layer.experts })));
  const rows = () => ({
    columns: ["model", "layer", "group", "expert", "load"],
    rows: models.flatMap((model, i) => { const layer = model.layers[layerOf(model, state.layer)]; return cells(layer).map((cell) => [names[i], layer.number, cell.group, cell.expert, cell.share]); }),
  });
  return figure({
    id: "groups", title: "Which languages, domains or classes go where", rows, layered: true,
    caption: "Each row is a group of the data, each cell an expert's share of the group's assignments against its fair share. A row of its own pattern: the layer tells this group apart.",
    draw: (body) => sides(body, (model, place, width) => {
      const layer = model.layers[place];
      const given = cells(layer);
      const ids = d3.range(layer.experts);
      const groups = Object.keys(layer.load_by_group);
      const label = (group) => { const text = visible(group); return text.length > 16 ? `${text.slice(0, 15)}…` : text; };
      return plotted({
        width, height: groups.length * 22 + 60, marginLeft: 118, marginTop: 40, marginBottom: 6, ariaLabel: "load by group and expert",
        x: { domain: ids, type: "band", label: "expert", axis: "top", ticks: ticks(ids, width / 40), padding: 0.04 },
        y: { domain: groups, type: "band", label: null, tickFormat: label, padding: 0.04 },
        color: { type: "diverging-log", pivot: 1, domain: [1 / 8, 8], clamp: true, interpolate: diverging() },
        marks: [
          Plot.cell(given, { x: "expert", y: "group", fill: (cell) => Math.max(cell.fair, 1e-3) }),
          Plot.tip(given, Plot.pointer({ x: "expert", y: "group", title: (cell) => `${visible(cell.group)}, expert ${cell.expert}\nload ${short(cell.share)}, ${short(cell.fair)} × the fair share`, fill: "var(--card)" })),
        ],
      });
    }),
  });
}

function geometryFigure() {
  if (!models.some((model) => model.layers.some((layer) => layer.geometry))) return null;
  const pairs = (flat) => d3.range(flat.length / 2).map((i) => [flat[2 * i], flat[2 * i + 1]]);
  const points = ({ geometry }) => { const ids = unpacked(geometry.experts); const said = unpacked(geometry.words); return pairs(unpacked(geometry.tokens)).map(([x, y], i) => ({ x, y, expert: ids[i], word: said[i] })); };
  const centres = ({ geometry }) => pairs(unpacked(geometry.centroids)).map(([x, y], expert) => ({ x, y, expert }));
  const rows = () => ({
    columns: ["model", "layer", "what", "expert", "x", "y", "token"],
    rows: models.flatMap((model, i) => {
      const layer = model.layers[layerOf(model, state.layer)];
      if (!layer.geometry) return [];
      return [["centroid", centres(layer)], ["token", points(layer)]].flatMap(([what, all]) => all.map(({ x, y, expert, word }) => [names[i], layer.number, what, expert, x, y, word >= 0 ? models[i].words[word] : null]));
    }),
  });
  const axis = (n, share) => `principal component ${n}${share == null ? "" : ` (${Math.round(100 * share)} % of the variance)`}`;
  return figure({
    id: "geometry", title: "Geometry of the router", rows, layered: true, only: true, height: 440,
    caption: "Inputs of the router (dots, coloured by the expert they go to) and its rows (numbers), on the plane that shows most of their spread. Clouds around a number: the expert owns a region.",
    draw: (body) => sides(body, (model, place, width) => {
      const layer = model.layers[place];
      if (!layer.geometry) return el("p", { class: "note" }, "Not measured for this layer.");
      const faint = (expert) => state.only != null && state.only !== expert;
      return plotted({
        width, height: Math.min(460, Math.max(300, width * 0.65)), marginLeft: 48, marginBottom: 40, ariaLabel: "router rows and inputs in two dimensions",
        x: { label: axis(1, layer.geometry.explained?.[0]), ticks: 6 }, y: { label: axis(2, layer.geometry.explained?.[1]), ticks: 5 }, symbol: { domain: d3.range(8), range: SYMBOLS },
        marks: [
          Plot.gridX({ ticks: 6, strokeOpacity: 0.08 }), Plot.gridY({ ticks: 5, strokeOpacity: 0.08 }),
          Plot.dot(points(layer), { x: "x", y: "y", r: 2.5, fill: (p) => hue(p.expert), symbol: (p) => Math.floor(p.expert / 8) % 8, fillOpacity: (p) => (faint(p.expert) ? 0.06 : 0.6) }),
          Plot.text(centres(layer), { x: "x", y: "y", text: (p) => String(p.expert), fontSize: 13, fontWeight: 700, fill: "currentColor", stroke: "var(--card)", strokeWidth: 4, fillOpacity: (p) => (faint(p.expert) ? 0.25 : 1) }),
          Plot.tip(points(layer), Plot.pointer({ x: "x", y: "y", title: (p) => `${p.word < 0 ? "a token" : visible(model.words[p.word])}\nexpert ${p.expert}`, fill: "var(--card)" })),
        ],
      });
    }),
  });
}

function certificateFigures() {
  const said = data.certificate;
  if (!said) return [];
  const facts = [...Object.entries(said.made), ...Object.entries(said.summary)].map(([key, value]) => [key, Array.isArray(value) ? value.join(", ") : String(value)]);
  const made = [figure({
    id: "certificate", title: `Certificate: dense against MoE, ${said.when}`, pictured: false, height: 0,
    rows: () => ({ columns: ["quantity", "value"], rows: facts }),
    caption: Object.keys(said.summary).length ? "What the conversion changed, measured on real data by running both models." : "This model was made without a certificate; `moesaic certify` makes one.",
    draw: (body) => body.replaceChildren(el("table", {}, el("tbody", {}, facts.map(([key, value]) => el("tr", {}, el("th", { scope: "row" }, visible(key)), el("td", {}, visible(value))))))),
  })];
  const layers = said.layers.filter((one) => typeof one.cosine === "number");
  if (layers.length) made.push(figure({
    id: "certificate-layers", title: "How far each layer's output moved", height: 180,
    rows: () => ({ columns: ["layer", "cosine", "norm_ratio"], rows: layers.map((one, i) => [one.layer ?? i, one.cosine, one.norm_ratio]) }),
    caption: "1 − cosine of the layer's output, MoE against dense. 0 is unchanged; a step shows the layer where the change begins.",
    draw: (body) => body.replaceChildren(plotted({
      width: body.clientWidth, height: 180, marginLeft: 64, marginBottom: 36, ariaLabel: "one minus cosine by layer",
      x: { label: "layer", tickFormat: wholeTick, ticks: Math.min(12, layers.length) }, y: { label: "1 − cosine", grid: true, ticks: 4, tickFormat: "~g", zero: true },
      marks: [Plot.lineY(layers, { x: (one, i) => Number(one.layer ?? i), y: (one) => 1 - one.cosine, stroke: INK()[0], marker: "dot", tip: { fill: "var(--card)" } })],
    })),
  }));
  return made;
}
