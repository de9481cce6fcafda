// The page's only script. The data block holds, for each picture, the similarity of every patch to every word; from it,
// the temperature and the bins, every map is computed here, by the same formula as in monoclip.py:
//   p = softmax(similarity / temperature),  depth = sum_k p_k * bin_k [m],  both averaged over the picture and its mirror.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const { words, temperature, bins } = data.reading;
const LONG_SIDE = 272;  // px of a drawn map; the page scales it
const state = { temperature, bins: [...bins], descending: false };
const byId = (id) => document.getElementById(id);

// --- Reading the data -----------------------------------------------------------------------------------------------

function bytes(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

function uint16(base64) {
  const view = new DataView(bytes(base64).buffer);
  return Uint16Array.from({ length: view.byteLength / 2 }, (_, i) => view.getUint16(2 * i, true));
}

// IEEE 754 half precision: sign, 5 bits of exponent, 10 bits of fraction.
function float16(base64) {
  return Float64Array.from(uint16(base64), (bits) => {
    const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
    if (exponent === 0) return sign * fraction * 2 ** -24;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  });
}

const table = bytes(data.colours);  // 256 RGB triples, from near to far
for (const image of data.images) {
  image.similarity = float16(image.similarity);  // (views, K, h, w), the mirror turned back
  image.truthOfPatch = image.truth && Float64Array.from(uint16(image.truth.patches), (mm) => mm / 1000);  // (h, w) [m]
  image.truthMap = image.truth && Float64Array.from(uint16(image.truth.map), (mm) => mm / 1000);  // 0: not measured
}

// --- The method -----------------------------------------------------------------------------------------------------

// The K probabilities of one patch, averaged over the views; at any temperature they sum to 1.
function probabilities(image, patch, out) {
  const K = words.length, cells = image.grid[0] * image.grid[1];
  out.fill(0);
  for (let view = 0; view < image.views; view++) {
    let sum = 0, best = -Infinity;
    const start = view * K * cells + patch;
    for (let k = 0; k < K; k++) best = Math.max(best, image.similarity[start + k * cells]);
    const weights = new Array(K);
    for (let k = 0; k < K; k++) {
      weights[k] = Math.exp((image.similarity[start + k * cells] - best) / state.temperature);
      sum += weights[k];
    }
    for (let k = 0; k < K; k++) out[k] += weights[k] / sum / image.views;
  }
  return out;
}

// Depth of every patch [m], row by row.
function patchDepths(image) {
  const depth = new Float64Array(image.grid[0] * image.grid[1]), p = new Float64Array(words.length);
  for (let patch = 0; patch < depth.length; patch++) {
    probabilities(image, patch, p);
    for (let k = 0; k < p.length; k++) depth[patch] += p[k] * state.bins[k];
  }
  return depth;
}

// Bilinear between the patches, corners on corners (align_corners=True), row by row.
function upsampled(depth, [h, w], [height, width]) {
  const out = new Float64Array(height * width);
  const columns = Array.from({ length: width }, (_, x) => (width > 1 ? (x * (w - 1)) / (width - 1) : 0));
  for (let y = 0; y < height; y++) {
    const v = height > 1 ? (y * (h - 1)) / (height - 1) : 0;
    const top = Math.min(Math.floor(v), h - 1), bottom = Math.min(top + 1, h - 1), b = v - top;
    for (let x = 0; x < width; x++) {
      const left = Math.min(Math.floor(columns[x]), w - 1), right = Math.min(left + 1, w - 1), r = columns[x] - left;
      out[y * width + x] =
        (1 - b) * ((1 - r) * depth[top * w + left] + r * depth[top * w + right]) +
        b * ((1 - r) * depth[bottom * w + left] + r * depth[bottom * w + right]);
    }
  }
  return out;
}

// --- Drawing --------------------------------------------------------------------------------------------------------

const range = () => [Math.min(...state.bins), Math.max(...state.bins)];
const metres = (value, digits = 2) => `${value.toFixed(digits)} m`;
const percent = (value) => `${Math.round(100 * value)} %`;

function colourIndex(depth, [near, far]) {
  return 3 * Math.round(255 * Math.min(1, Math.max(0, (depth - near) / Math.max(far - near, 1e-6))));
}

function paint(canvas, values, blank) {
  const context = canvas.getContext("2d"), pixels = context.createImageData(canvas.width, canvas.height);
  const limits = range();
  for (let i = 0; i < values.length; i++) {
    const index = colourIndex(values[i], limits);
    for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = table[index + c];
    pixels.data[4 * i + 3] = blank && values[i] === 0 ? 0 : 255;
  }
  context.putImageData(pixels, 0, 0);
}

function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "rect", "line", "text", "path"].includes(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function drawMap(card) {
  const { image, mapCanvas, truthCanvas } = card;
  card.depth = patchDepths(image);
  card.map = upsampled(card.depth, image.grid, [mapCanvas.height, mapCanvas.width]);
  paint(mapCanvas, card.map);
  if (truthCanvas) paint(truthCanvas, image.truthMap, true);  // again, because its colours follow the bins
}

// Bars of the words over their depths, with the predicted and the true depth as lines.
function drawChart(card) {
  const { image, patch } = card, [, w] = image.grid;
  const p = probabilities(image, patch, new Float64Array(words.length));
  const predicted = card.depth[patch], truth = image.truthOfPatch ? image.truthOfPatch[patch] : 0;
  const [near, far] = range(), pad = Math.max(0.06 * (far - near), 0.02);
  const left = 34, right = 352, top = 12, base = 150;
  const x = (depth) => left + ((right - left) * (depth - near + pad)) / (far - near + 2 * pad);
  const y = (share) => base - (base - top) * share;
  const svg = make("svg", { viewBox: "0 0 360 236", role: "img" });
  for (const share of [0, 0.5, 1]) {
    svg.append(make("line", { class: "axis", x1: left, x2: right, y1: y(share), y2: y(share) }));
    svg.append(make("text", { class: "faint", x: left - 4, y: y(share) + 3, "text-anchor": "end" }, percent(share)));
  }
  state.bins.forEach((bin, k) => {
    const index = colourIndex(bin, [near, far]), middle = x(bin);
    const bar = make("rect", { class: "bar", x: middle - 7, width: 14, y: y(p[k]), height: base - y(p[k]) });
    bar.style.fill = `rgb(${table[index]}, ${table[index + 1]}, ${table[index + 2]})`;
    bar.append(make("title", {}, `${words[k]}, ${metres(bin)}: ${percent(p[k])}`));
    const short = words[k].length > 18 ? `${words[k].slice(0, 17)}…` : words[k];
    const label = { x: middle, y: base + 12, "text-anchor": "end", transform: `rotate(-38 ${middle} ${base + 12})` };
    svg.append(bar, make("text", label, short));
  });
  const mark = (kind, depth) => {
    const at = Math.min(right, Math.max(left, x(depth)));
    svg.append(make("line", { class: kind, x1: at, x2: at, y1: top, y2: base }));
    if (x(depth) > right) svg.append(make("text", { class: kind, x: right, y: top - 2, "text-anchor": "end" }, "beyond →"));
    if (x(depth) < left) svg.append(make("text", { class: kind, x: left, y: top - 2 }, "← nearer"));
  };
  if (truth) mark("true", truth);
  mark("predicted", predicted);
  const place = `row ${Math.floor(patch / w) + 1}, column ${(patch % w) + 1}`;
  const answers = [...p.keys()].sort((a, b) => p[b] - p[a]).map((k) => `${words[k]} ${percent(p[k])}`).join(", ");
  svg.setAttribute("aria-label", `What the patch answers: ${answers}`);
  card.chart.replaceChildren(svg);
  const key = [make("span", {}, place), make("span", { class: "predicted" }, make("b", {}, `predicted ${metres(predicted)}`))];
  if (image.truth) key.push(make("span", { class: "true" }, make("b", {}, truth ? `true ${metres(truth)}` : "true: not measured")));
  key.push(make("span", { class: "hidden" }, answers));
  card.key.replaceChildren(...key);
}

function choose(card, patch) {
  const [h, w] = card.image.grid;
  card.patch = patch;
  for (const box of card.boxes) {
    box.style.left = `${(100 * (patch % w)) / w}%`;
    box.style.top = `${(100 * Math.floor(patch / w)) / h}%`;
    box.style.width = `${100 / w}%`;
    box.style.height = `${100 / h}%`;
  }
  drawChart(card);
}

// --- Cards ----------------------------------------------------------------------------------------------------------

function drawnSize([height, width]) {
  const scale = LONG_SIDE / Math.max(height, width);
  return [Math.max(1, Math.round(height * scale)), Math.max(1, Math.round(width * scale))];
}

function makeCard(image, number) {
  const [height, width] = drawnSize(image.size), [h, w] = image.grid;
  const picture = make("img", { src: `data:image/jpeg;base64,${image.jpeg}`, alt: "", width: image.size[1], height: image.size[0] });
  const mapCanvas = make("canvas", { width, height });
  const truthCanvas = image.truth && make("canvas", { width: image.truth.size[1], height: image.truth.size[0] });
  const card = { image, number, mapCanvas, truthCanvas, boxes: [], patch: 0 };
  card.key = make("div", { class: "key", "aria-live": "polite" });
  card.chart = make("div");
  const panels = make("div", { class: image.truth ? "panels with-truth" : "panels" });
  panels.style.setProperty("--columns", truthCanvas ? 4 : 3);
  for (const [title, content] of [["picture", picture], ["true depth; blank: not measured", truthCanvas], ["predicted depth", mapCanvas]]) {
    if (!content) continue;
    const box = make("div", { class: "box" }), frame = make("div", { class: "frame" }, content, box);
    card.boxes.push(box);
    listen(card, frame);
    if (content === mapCanvas) {
      frame.tabIndex = 0;
      frame.setAttribute("role", "application");
      frame.setAttribute("aria-roledescription", "depth map");
      frame.setAttribute("aria-label", `${image.name}: ${h} rows and ${w} columns of patches; the arrow keys choose one`);
    }
    panels.append(make("figure", {}, frame, make("figcaption", {}, title)));
  }
  panels.append(make("div", { class: "chart" }, card.key, card.chart));
  const heading = make("header", {}, make("h2", {}, image.name));
  if (image.scene && image.scene !== ".") heading.append(make("span", { class: "quiet" }, image.scene));
  for (const [name, value] of Object.entries(image.metrics)) {
    heading.append(make("span", { class: "quiet" }, `${name} ${value === null ? "–" : value.toFixed(3)}`));
  }
  card.element = make("article", { class: "card", "aria-label": image.name }, heading, panels);
  return card;
}

function listen(card, frame) {
  const [h, w] = card.image.grid;
  const point = (event) => {
    const area = frame.getBoundingClientRect();
    const column = Math.floor(((event.clientX - area.left) / area.width) * w);
    const row = Math.floor(((event.clientY - area.top) / area.height) * h);
    const patch = Math.min(h - 1, Math.max(0, row)) * w + Math.min(w - 1, Math.max(0, column));
    if (patch !== card.patch) choose(card, patch);
  };
  frame.addEventListener("pointermove", point);
  frame.addEventListener("pointerdown", point);
  frame.addEventListener("keydown", (event) => {
    const row = Math.floor(card.patch / w), column = card.patch % w;
    const moves = {
      ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1], ArrowUp: [row - 1, column], ArrowDown: [row + 1, column],
      Home: [row, 0], End: [row, w - 1], PageUp: [0, column], PageDown: [h - 1, column],
    };
    if (!(event.key in moves)) return;
    event.preventDefault();
    const [r, c] = moves[event.key];
    choose(card, Math.min(h - 1, Math.max(0, r)) * w + Math.min(w - 1, Math.max(0, c)));
  });
}

// --- Controls -------------------------------------------------------------------------------------------------------

const sliders = [];
let pending = 0;

function redraw() {
  pending = 0;
  const [near, far] = range();
  byId("near").textContent = metres(near);
  byId("far").textContent = metres(far);
  byId("legend").setAttribute("aria-label", `Colours from ${metres(near)} (bright) to ${metres(far)} (dark)`);
  for (const card of cards) {
    drawMap(card);
    drawChart(card);
  }
  const changed = state.temperature !== temperature || state.bins.some((bin, k) => bin !== bins[k]);
  byId("reset").disabled = !changed;
  byId("changed").textContent = changed ? "Maps and bars follow your sliders; the metrics are still those of the run." : "";
}

function schedule() {
  if (!pending) pending = requestAnimationFrame(redraw);
}

function addSlider(name, unit, initial, attributes, toValue, fromValue, set) {
  const input = make("input", { type: "range", step: "any", id: `slider-${sliders.length}`, ...attributes }), output = make("output");
  const show = (value) => {
    output.textContent = unit ? metres(value) : value.toPrecision(3);
    input.setAttribute("aria-valuetext", output.textContent);
  };
  input.addEventListener("input", () => {
    set(toValue(input.valueAsNumber));
    show(toValue(input.valueAsNumber));
    schedule();
  });
  const reset = () => {
    input.value = fromValue(initial);
    set(initial);
    show(initial);
  };
  reset();
  sliders.push(reset);
  byId("sliders").append(make("label", { class: "slider", for: input.id }, make("span", {}, name), output, input));
}

function sortCards() {
  const key = byId("sort").value, sign = state.descending ? -1 : 1;
  const value = (card) => (key.startsWith("metric:") ? card.image.metrics[key.slice(7)] : card.image[key]);
  const order = [...cards].sort((a, b) => {
    const u = value(a), v = value(b);
    if (key === "run" || u === v) return sign * (a.number - b.number);
    if (u === null || v === null) return u === null ? 1 : -1;  // without a value: last, in both directions
    return sign * (typeof u === "string" ? u.localeCompare(v, "en", { numeric: true }) : u - v);
  });
  byId("cards").append(...order.map((card) => card.element));
}

function makeControls() {
  const metrics = Object.keys(data.images[0]?.metrics ?? {}).map((name) => [`metric:${name}`, name]);
  for (const [value, name] of [["run", "order of the run"], ["name", "image"], ["scene", "scene"], ...metrics]) {
    byId("sort").append(make("option", { value }, name));
  }
  byId("sort").addEventListener("change", sortCards);
  byId("direction").addEventListener("click", () => {
    state.descending = !state.descending;
    byId("direction").textContent = state.descending ? "↓ descending" : "↑ ascending";
    sortCards();
  });
  byId("reset").addEventListener("click", () => {
    sliders.forEach((reset) => reset());
    schedule();
  });
  const middle = Math.log10(temperature);
  addSlider("temperature", "", temperature, { min: middle - 2, max: middle + 2 }, (v) => 10 ** v, Math.log10, (v) => (state.temperature = v));
  const deepest = Math.max(10, 1.5 * Math.max(...bins)), same = (v) => v;
  words.forEach((word, k) => addSlider(word, "m", bins[k], { min: 0.1, max: deepest }, same, same, (v) => (state.bins[k] = v)));
  const ramp = byId("ramp").getContext("2d");
  for (let i = 0; i < 256; i++) {
    ramp.fillStyle = `rgb(${table[3 * i]}, ${table[3 * i + 1]}, ${table[3 * i + 2]})`;
    ramp.fillRect(i, 0, 1, 1);
  }
  if (matchMedia("(max-width: 40rem)").matches) byId("sliders-box").open = false;
}

function makeHeader() {
  byId("title").textContent = data.title;
  byId("notes").textContent = data.notes.join(" · ");
  byId("prompt").textContent = `Each patch is asked: ${data.reading.prompts.join(", ")}.`;
  if (!data.metrics) return byId("metrics").remove();
  const { columns, rows } = data.metrics;
  byId("metrics").append(
    make("thead", {}, make("tr", {}, make("th"), ...columns.map((name) => make("th", { scope: "col" }, name)))),
    make("tbody", {}, ...rows.map(([name, values]) =>
      make("tr", {}, make("th", { scope: "row" }, name), ...values.map((v) => make("td", {}, v === null ? "–" : v.toFixed(3)))))));
}

const cards = data.images.map(makeCard);
makeHeader();
makeControls();
sortCards();
for (const card of cards) {
  const [h, w] = card.image.grid;
  drawMap(card);
  choose(card, Math.floor(h / 2) * w + Math.floor(w / 2));
}
redraw();
window.depthclip = { state, cards, redraw };  // for the browser's console: cards[i].depth is a map of patches [m]
