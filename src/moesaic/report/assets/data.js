// The data of the page: numbers unpacked as they are needed, models, layers.
const data = JSON.parse(document.getElementById("data").textContent);
const models = data.models;
const KINDS = { i1: [Int8Array, -128], i2: [Int16Array, -32768], i4: [Int32Array, -2147483648] };
const kept = new WeakMap();

// Numbers as moesaic.report.packing writes them; null where there is none.
function unpacked(pack) {
  if (!pack) return null;
  if (pack.kind === "plain") return pack.values;
  if (!kept.has(pack)) {
    const [Kind, empty] = KINDS[pack.kind];
    const bytes = Uint8Array.from(atob(pack.bytes), (c) => c.charCodeAt(0));
    const scale = 10 ** pack.decimals;
    kept.set(pack, Array.from(new Kind(bytes.buffer), (whole) => (whole === empty ? null : whole / scale)));
  }
  return kept.get(pack);
}

// A packed matrix as a function of row and column.
function matrix(pack) {
  const size = pack.rows;
  if (pack.full) {
    const full = unpacked(pack.full);
    const columns = full.length / size;
    return { size, columns, at: (i, j) => full[i * columns + j] };
  }
  const diagonal = unpacked(pack.diagonal);
  const upper = unpacked(pack.upper);
  const at = (i, j) => {
    if (i === j) return diagonal[i];
    const [low, high] = i < j ? [i, j] : [j, i];
    return upper[low * size - (low * (low + 1)) / 2 + (high - low - 1)];
  };
  return { size, columns: size, at };
}

// Lists of unequal length that were packed one after the other.
function split(flat, lengths) {
  let from = 0;
  return lengths.map((length) => flat.slice(from, (from += length)));
}

// The experts of one position of a sample: [{expert, weight}], the heaviest first.
function chosen(sample, layer, position) {
  const experts = sample.experts[layer];
  if (!experts) return [];
  const ids = unpacked(experts);
  const weights = sample.weights[layer] ? unpacked(sample.weights[layer]) : null;
  const found = [];
  for (let k = position * experts.k; k < (position + 1) * experts.k && k < ids.length; k++) {
    found.push({ expert: ids[k], weight: weights ? weights[k] : null });
  }
  return weights ? found.sort((a, b) => b.weight - a.weight) : found;
}

const positions = (sample, layer) => (sample.experts[layer] ? unpacked(sample.experts[layer]).length / sample.experts[layer].k : 0);

// The layer of another model that stands beside a layer of the first: of the same number, else at the same place.
function layerOf(model, place) {
  const number = models[0].layers[place].number;
  const same = model.layers.findIndex((one) => one.number === number);
  return same >= 0 ? same : Math.min(place, model.layers.length - 1);
}

const names = models.map((model, i) => (models.length > 1 && models[0].model === models[1].model ? `${model.model} (${"AB"[i]})` : model.model));
const whole = d3.format(",");
const short = (value) => (value == null ? "none" : Math.abs(value) >= 1e5 || (value && Math.abs(value) < 1e-3) ? value.toExponential(2) : String(+value.toPrecision(4)));

// Text as it can be seen: what is invisible, or would turn the text around it, is named instead.
function visible(text) {
  return String(text)
    .replace(/\n/g, "⏎")
    .replace(/\t/g, "⇥")
    .replace(/[\u0000-\u001f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)))
    .replace(/[\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g, (c) => `⟨U+${c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
}
