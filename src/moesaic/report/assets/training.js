// Figures of a run: curves of the whole model, and of each router, over the stages of training.
const TITLES = {
  loss: "Loss, nats per token", "eval/kl": "KL(dense || MoE), nats per token", grad_norm: "Norm of the gradient", learning_rate: "Learning rate", tokens_per_second: "Tokens per second",
  "router/health/entropy": "Router entropy / ln E", "router/health/top1": "Mean highest probability", "router/health/load_cv": "Load: coefficient of variation", "router/health/dead": "Dead experts",
};
const panelOf = (name) => (name === "eval/loss" ? "loss" : name);

function stageMarks(run) {
  let from = 0;
  const bands = run.stages.map((stage, i) => {
    const band = { from: from * run.steps, to: stage.until * run.steps, odd: i % 2, number: i + 1 };
    from = stage.until;
    return band;
  });
  return [
    Plot.rect(bands.filter((band) => !band.odd), { x1: "from", x2: "to", fill: "currentColor", fillOpacity: 0.06 }),
    bands.length > 1 ? Plot.text(bands, { x: (band) => (band.from + band.to) / 2, frameAnchor: "top", text: (band) => String(band.number), dy: -11, fill: "currentColor", fillOpacity: 0.65, fontSize: 11 }) : null,
  ];
}

function stageWords(run) {
  if (run.stages.length < 2) return null;
  const words = run.stages.map((stage, i) => `${i + 1}, to step ${whole(Math.round(stage.until * run.steps))}: ${stage.frozen.length ? `${stage.frozen.join(", ")} frozen` : "all train"}`);
  return el("span", { class: "key" }, `Stages ${words.join("; ")}`);
}

function curvesFigure({ id, title, caption, layered }) {
  const run = data.run;
  const own = run.curves.filter((curve) => Boolean(curve.layer) === layered);
  if (!own.length) return null;
  const pointsOf = (curve) => { const values = unpacked(curve.values); return unpacked(curve.steps).map((step, i) => ({ step, value: values[i], name: curve.name, layer: curve.layer })); };
  const rows = () => ({ columns: ["curve", "layer", "step", "value"], rows: own.flatMap((curve) => pointsOf(curve).map(({ step, value }) => [curve.name, curve.layer, step, value])) });
  const draw = (name, width) => {
    const curves = own.filter((curve) => panelOf(curve.name) === name);
    const points = curves.flatMap(pointsOf).filter(({ value }) => value != null);
    const path = models[0].layers[state.layer].path;
    const [ink, second] = INK();
    const tone = (layer, own) => (layered ? (layer === path ? ink : "currentColor") : own === "eval/loss" ? second : ink);
    const lines = d3.groups(points, (p) => p.name, (p) => p.layer).flatMap(([own, layers]) => layers.map(([layer, given]) => Plot.line(given, {
      x: "step", y: "value", stroke: tone(layer, own), strokeWidth: layered && layer !== path ? 0.75 : 1.75, strokeOpacity: layered && layer !== path ? 0.25 : 1, marker: given.length < 40 && !layered ? "dot" : null,
    })));
    return plotted({
      width, height: 200, marginLeft: 54, marginTop: 28, marginBottom: 36, ariaLabel: name,
      x: { label: "step", domain: [0, run.steps || 1], ticks: Math.max(2, width / 90), tickFormat: "~s" }, y: { label: null, grid: true, nice: true, ticks: 4, tickFormat: "~g" },
      marks: [
        ...stageMarks(run), ...lines,
        Plot.tip(points, Plot.pointer({ x: "step", y: "value", title: (p) => `${p.name}${p.layer ? `\n${visible(p.layer)}` : ""}\nstep ${whole(p.step)}: ${short(p.value)}`, fill: "var(--card)" })),
      ],
    });
  };
  return figure({
    id, title, caption, rows, layered, height: 260,
    draw: (body) => {
      const shown = [...new Set(own.map((curve) => panelOf(curve.name)))];
      const places = shown.map((name) => el("div", { class: "panel" }, el("h4", {}, TITLES[name] ?? visible(name))));
      const [ink, second] = INK();
      const key = (text, color) => el("span", { class: "key" }, el("i", { style: `color:${color}` }), text);
      const keys = layered ? [key("chosen layer", ink), key("other layers", "currentColor")] : [key("training", ink), key("held out", second)];
      body.replaceChildren(el("p", {}, keys, stageWords(run)), el("div", { class: "panels" }, places));
      places.forEach((place, i) => place.append(draw(shown[i], place.clientWidth)));
    },
  });
}

function trainingFigures() {
  if (!data.run) return [];
  return [
    curvesFigure({ id: "curves", title: "Training", layered: false, caption: "What the run logged, by optimizer step; numbers above a panel are the stages. Held-out loss above training loss that grows apart: the model memorises." }),
    curvesFigure({ id: "router-curves", title: "Routers during training", layered: true, caption: "A line per layer; the chosen layer stands out. Falling entropy: the router makes up its mind; rising load variation or dead experts: it collapses." }),
  ].filter(Boolean);
}
