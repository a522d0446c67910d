// Figures of what experts read: tokens of each expert, texts, pictures, sound.
function shareTip(node, text) {
  for (const event of ["pointerenter", "focus", "click"]) node.addEventListener(event, () => showTip(node, text()));
  for (const event of ["pointerleave", "blur"]) node.addEventListener(event, hideTip);
}

// A button per expert in its colours; pressing one shows it alone.
function legend(number) {
  const buttons = d3.range(number).map((expert) => el("button", { type: "button", class: look(expert), "aria-pressed": String(state.only === expert), "data-focus": `expert ${expert}`, "aria-label": `only expert ${expert}`, click: () => setOnly(state.only === expert ? null : expert) }, String(expert)));
  return el("div", { class: "legend", role: "group", "aria-label": "Experts; press one to see it alone" }, buttons);
}

function setOnly(expert) {
  if (state.only === expert) return;
  state.only = expert;
  changed((one) => one.only);
}

const tokenClass = (found) => {
  if (!found.length) return "tok off";
  const [first] = state.only == null ? found : found.filter((one) => one.expert === state.only);
  return first ? `tok ${look(first.expert)}` : "tok off";
};

// Tokens in the colours of their experts; arrow keys walk through them.
function tokenLine(sample, place) {
  const spans = sample.tokens.map((token, i) => {
    const found = chosen(sample, place, i);
    const span = el("span", { class: tokenClass(found), tabindex: i ? -1 : 0, "data-expert": found[0]?.expert, "data-focus": `token ${i}` }, visible(token), el("sub", {}, found[0] ? String(found[0].expert) : ""));
    shareTip(span, () => `${visible(token)}\n${experts(found)}`);
    return span;
  });
  const walk = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10 }[event.key];
    const next = spans[spans.indexOf(event.target) + (step ?? NaN)];
    if (!next) return;
    event.preventDefault();
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  };
  return el("div", { class: "tokens", dir: "auto", keydown: walk, role: "group", "aria-label": "tokens by expert" }, spans);
}

function textsFigure() {
  if (!models.some((model) => model.sample.texts.length)) return null;
  const own = models.find((model) => model.sample.texts.length).sample.texts;
  let text = 0;
  let numbers = false;
  const rows = () => ({
    columns: ["model", "layer", "text", "position", "token", "rank", "expert", "weight"],
    rows: models.flatMap((model, m) => {
      const place = layerOf(model, state.layer);
      const sample = model.sample.texts[text];
      if (!sample) return [];
      return sample.tokens.flatMap((token, i) => chosen(sample, place, i).map((one, rank) => [names[m], model.layers[place].number, sample.title, i, token, rank, one.expert, one.weight]));
    }),
  });
  const draw = (model, place) => {
    const sample = model.sample.texts[text];
    if (!sample || !sample.experts[place]) return el("p", { class: "note" }, "No tokens of this layer.");
    const line = tokenLine(sample, place);
    line.classList.toggle("no-numbers", !numbers);
    return line;
  };
  const box = el("input", { type: "checkbox", change: () => { numbers = box.checked; made.changed(); } });
  const made = figure({
    id: "texts", title: "Text, coloured by expert", rows, layered: true, only: true, height: 280,
    caption: "Each token has the colour and the underline of the expert with the highest weight; hover, tap or walk by arrow keys to see all of them. Colours repeat after 8 experts, underlines tell them apart.",
    controls: [select("Text", own.map((one, i) => [i, visible(one.title)]), (value) => { text = Number(value); made.changed(); }), el("label", {}, box, "numbers")],
    draw: (body) => {
      sides(body, draw);
      body.prepend(legend(d3.max(models, (model) => model.layers[layerOf(model, state.layer)].experts)));
    },
  });
  return made;
}

function tokensFigure() {
  if (!models.some((model) => model.layers.some((layer) => layer.top_tokens))) return null;
  const of = (model) => {
    const layer = model.layers[layerOf(model, state.layer)];
    const tops = layer.top_tokens;
    if (!tops) return d3.range(layer.experts).map(() => []);
    const [words, shares, counts] = [tops.words, tops.shares, tops.counts].map(unpacked);
    return split(words.map((word, i) => ({ text: model.words[word], share: shares[i], count: counts[i] })), unpacked(tops.lengths));
  };
  const rows = () => ({
    columns: ["model", "layer", "expert", "rank", "token", "share", "count"],
    rows: models.flatMap((model, m) => of(model).flatMap((tokens, expert) => tokens.map((one, rank) => [names[m], model.layers[layerOf(model, state.layer)].number, expert, rank, one.text, one.share, one.count]))),
  });
  const draw = (model, place) => {
    const layer = model.layers[place];
    const [load, peak, dense] = [layer.load, layer.peak, layer.dense_similarity].map(unpacked);
    const columns = [["expert", (e) => el("span", { class: `chip ${look(e)}` }, String(e))], ["load", (e) => short(load[e])]];
    if (peak) columns.push(["peak", (e) => short(peak[e])]);
    if (dense) columns.push(["cosine to dense", (e) => short(dense[e])]);
    const tokens = of(model);
    if (tokens.some((each) => each.length)) columns.push(["most typical tokens", (e, tokens) => (tokens[e] ?? []).map((one) => {
      const chip = el("span", { class: "chip" }, visible(one.text));
      shareTip(chip, () => `${visible(one.text)}\nchosen in ${short(one.share)} of ${whole(one.count)} occurrences`);
      return chip;
    })]);
    const shown = d3.range(layer.experts).filter((e) => state.only == null || state.only === e);
    const body = shown.map((e) => el("tr", {}, columns.map(([name, cell]) => el("td", { class: name === "most typical tokens" ? "wide" : null }, cell(e, tokens)))));
    return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "experts and their tokens" },
      el("table", {}, el("thead", {}, el("tr", {}, columns.map(([name]) => el("th", { scope: "col" }, name)))), el("tbody", {}, body)));
  };
  return figure({
    id: "experts", title: "Experts and their tokens", rows, layered: true, only: true, pictured: false, height: 400,
    caption: "Tokens that each expert is sent, the most typical first; load is the share of assignments, peak the largest absolute output. Hover a token for the share of its occurrences that chose the expert.",
    draw: (body) => sides(body, draw),
  });
}

function imagesFigure() {
  if (!models.some((model) => model.sample.images.length)) return null;
  const patches = (sample, place) => {
    const count = sample.grid[0] * sample.grid[1];
    const first = Math.max(0, positions(sample, place) - count); // what stands before the patches: class and register tokens
    return d3.range(Math.min(count, positions(sample, place))).map((i) => ({ row: Math.floor(i / sample.grid[1]), column: i % sample.grid[1], found: chosen(sample, place, i + first) }));
  };
  const rows = () => ({
    columns: ["model", "layer", "picture", "row", "column", "rank", "expert", "weight"],
    rows: models.flatMap((model, m) => { const place = layerOf(model, state.layer); return model.sample.images.flatMap((sample) => patches(sample, place).flatMap(({ row, column, found }) => found.map((one, rank) => [names[m], model.layers[place].number, sample.title, row, column, rank, one.expert, one.weight]))); }),
  });
  const map = (sample, place) => {
    const [height, width] = sample.grid.map((side) => (side * 240) / Math.max(...sample.grid));
    const [h, w] = [height / sample.grid[0], width / sample.grid[1]];
    const svg = d3.create("svg").attr("width", width).attr("height", height).attr("viewBox", [0, 0, width, height]).attr("role", "img").attr("aria-label", `patches of ${visible(sample.title)} by expert`);
    if (sample.png) svg.append("image").attr("href", sample.png).attr("width", width).attr("height", height).attr("preserveAspectRatio", "none");
    for (const { row, column, found } of patches(sample, place)) {
      const one = state.only == null ? found[0] : found.find((each) => each.expert === state.only);
      const rect = svg.append("rect").attr("x", column * w).attr("y", row * h).attr("width", w).attr("height", h).attr("class", "patch")
        .attr("fill", one ? hue(one.expert) : "#000").attr("fill-opacity", one ? 0.5 : 0.6).attr("stroke", "#fff").attr("stroke-opacity", 0.35).attr("stroke-width", 0.5);
      shareTip(rect.node(), () => `row ${row}, column ${column}\n${experts(found)}`);
    }
    return el("div", { class: "panel" }, el("h4", {}, visible(sample.title)), svg.node());
  };
  return figure({
    id: "images", title: "Picture patches by expert", rows, layered: true, only: true, height: 280,
    caption: "Each patch has the colour of the expert with the highest weight; hover it for all of them (colours repeat after 8 experts). Regions of one colour: the expert knows a texture, an object or a place.",
    draw: (body) => {
      sides(body, (model, place) => el("div", { class: "panels" }, model.sample.images.map((sample) => map(sample, place))));
      if (!models.some((model) => model.sample.texts.length)) body.prepend(legend(models[0].layers[state.layer].experts));
    },
  });
}

function audioFigure() {
  if (!models.some((model) => model.sample.audio.length)) return null;
  const spans = (sample, place) => { const count = positions(sample, place); return d3.range(count).map((i) => ({ from: (i * sample.seconds) / count, to: ((i + 1) * sample.seconds) / count, found: chosen(sample, place, i) })); };
  const rows = () => ({
    columns: ["model", "layer", "recording", "from", "to", "token", "rank", "expert", "weight"],
    rows: models.flatMap((model, m) => { const place = layerOf(model, state.layer); return model.sample.audio.flatMap((sample) => spans(sample, place).flatMap(({ from, to, found }, i) => found.map((one, rank) => [names[m], model.layers[place].number, sample.title, ...(reads(sample, place) ? [null, null, sample.tokens[i]] : [from, to, null]), rank, one.expert, one.weight]))); }),
  });
  const reads = (sample, place) => sample.tokens.length > 0 && positions(sample, place) === sample.tokens.length; // a layer of the decoder
  const line = (sample, place, width) => {
    if (reads(sample, place)) return el("div", {}, el("h4", {}, visible(sample.title)), tokenLine(sample, place));
    const wave = unpacked(sample.wave).map((peak, i, all) => ({ at: ((i + 0.5) * sample.seconds) / all.length, peak: Math.abs(peak) }));
    const high = d3.max(wave, ({ peak }) => peak) || 1;
    const given = spans(sample, place);
    const one = ({ found }) => (state.only == null ? found[0] : found.find((each) => each.expert === state.only));
    return el("div", {}, el("h4", {}, visible(sample.title)), plotted({
      width, height: 130, marginLeft: 10, marginBottom: 34, ariaLabel: `time line of ${visible(sample.title)} by expert`,
      x: { label: "seconds", domain: [0, sample.seconds] }, y: { axis: null, domain: [-1.9, 1] },
      marks: [
        Plot.areaY(wave, { x: "at", y1: ({ peak }) => -peak / high, y2: ({ peak }) => peak / high, fill: "currentColor", fillOpacity: 0.35 }),
        Plot.rect(given, { x1: "from", x2: "to", y1: -1.8, y2: -1.15, fill: (span) => (one(span) ? hue(one(span).expert) : "none"), title: ({ from, to, found }) => `${short(from)} to ${short(to)} s\n${experts(found)}`, tip: { fill: "var(--card)" } }),
      ],
    }));
  };
  return figure({
    id: "audio", title: "Sound by expert", rows, layered: true, only: true, height: 160,
    caption: "Above, how loud the recording is; below, the expert with the highest weight at each moment. Hover the strip for all of them (colours repeat after 8 experts). In layers of a decoder, the tokens that it reads.",
    draw: (body) => {
      sides(body, (model, place, width) => model.sample.audio.map((sample) => line(sample, place, width)));
      if (!models.some((model) => model.sample.texts.length)) body.prepend(legend(models[0].layers[state.layer].experts));
    },
  });
}
