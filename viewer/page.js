// The page's only script. The data block holds, for each picture, the similarity of every patch to every phrase, and the
// true depth where there is one. From it, the words, their bins and the temperature, all is computed here, by formulas
// whose originals are in Python:
//   monoclip.py         p = softmax(similarity / temperature),  depth = sum_k p_k * bin_k [m],  averaged over the picture
//                       and its mirror; between the patches bilinear;  sigma = sqrt(sum_k p_k * (bin_k - depth)^2) [m]
//   calculate_error.py  delta1 ... 3, abs_rel, log10 and rmse over the counted pixels, as in its errors_of_maps
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const { phrases, presets } = data, [near, far] = data.scale, [minDepth, maxDepth] = data.limits.map(Math.fround);  // [m]
const LONG_SIDE = 272;  // px of a drawn map without a true depth; the page scales it
const LARGEST_ERROR = 0.5;  // of the true depth, where the colours of the error map end
// What the columns and rows of the tables are, by name; an arrow for which way is better.
const EXPLAINED = {
  delta1: "↑ share of pixels whose predicted depth is within a factor of 1.25 of the true depth; higher is better",
  delta2: "↑ share of pixels within a factor of 1.25² = 1.56; higher is better",
  delta3: "↑ share of pixels within a factor of 1.25³ = 1.95; higher is better",
  abs_rel: "↓ mean of |predicted − true| / true; lower is better",
  log10: "↓ mean of |log10 predicted − log10 true|; lower is better",
  rmse: "↓ root of the mean squared error, in metres; lower is better",
  spearman: "↑ how well the order from near to far is right, over patches: 1 is wholly right, 0 is chance; higher is better",
  "uniform weights": "every word has the same share everywhere, so that the picture does not matter",
};
const byId = (id) => document.getElementById(id);
const placeOf = new Map(phrases.map((phrase, i) => [phrase, i]));

// Words are places in `phrases`; with `uniform`, every word has the same weight, whatever the temperature.
const settingsOf = (reading) => ({
  words: reading.depth_classes.map((word) => placeOf.get(word)), bins: [...reading.bin_list], temperature: reading.temperature, uniform: false,
});
const state = settingsOf(presets.run);

// --- Reading the data -----------------------------------------------------------------------------------------------

function bytes(base64) {
  const text = atob(base64), out = new Uint8Array(text.length);
  for (let i = 0; i < out.length; i++) out[i] = text.charCodeAt(i);
  return out;
}

// Undoes `packed` of viewer/page.py: rows of `width` whole numbers of 16 bit.
async function unpacked(base64, width) {
  const stream = new Blob([bytes(base64)]).stream().pipeThrough(new DecompressionStream("deflate"));
  const content = new Uint8Array(await new Response(stream).arrayBuffer()), out = new Uint16Array(content.length / 2);
  for (let i = 0, value = 0; i < out.length; i++) {
    const folded = content[i] | (content[out.length + i] << 8), difference = (folded >> 1) ^ -(folded & 1);
    value = ((i % width ? value : 0) + difference) & 0xffff;
    out[i] = value;
  }
  return out;
}

async function unpack(image) {
  const [height, width] = image.size, [h, w] = image.grid;
  image.similarity = Float32Array.from(await unpacked(image.similarity, w), (v) => v * image.step);  // (views, phrases, h, w)
  if (!image.truth) return;
  const { map, unit } = image.truth;
  image.measured = Float32Array.from(await unpacked(map, width), (v) => v * unit);  // (H, W) [mm], 0: not measured
  const leftOut = await unpacked(image.truth.left_out, width);
  image.counted = image.measured.map((mm, i) => (leftOut[i] ? 0 : mm));  // (H, W) [mm], 0: does not count
  image.sparse = isSparse(image.counted);
  const sum = new Float64Array(h * w), count = new Float64Array(h * w);
  image.measured.forEach((mm, i) => {
    if (!mm) return;
    const patch = Math.floor((Math.floor(i / width) * h) / height) * w + Math.floor(((i % width) * w) / width);
    sum[patch] += mm / 1000;
    count[patch]++;
  });
  image.truthOfPatch = sum.map((s, patch) => (count[patch] ? s / count[patch] : 0));  // (h, w) [m]
}

// --- The method -----------------------------------------------------------------------------------------------------

// The probabilities of the K words in every patch, (K, h, w), averaged over the views.
function answersOf(image, { words, temperature, uniform }) {
  const K = words.length, cells = image.grid[0] * image.grid[1], p = new Float64Array(K * cells);
  if (uniform) return p.fill(1 / K);
  const weights = new Float64Array(K);
  for (let view = 0; view < image.views; view++) {
    for (let cell = 0; cell < cells; cell++) {
      const start = view * phrases.length * cells + cell;
      let best = -Infinity, sum = 0;
      for (let k = 0; k < K; k++) best = Math.max(best, image.similarity[start + words[k] * cells]);
      for (let k = 0; k < K; k++) {
        weights[k] = Math.exp((image.similarity[start + words[k] * cells] - best) / temperature);
        sum += weights[k];
      }
      for (let k = 0; k < K; k++) p[k * cells + cell] += weights[k] / sum / image.views;
    }
  }
  return p;
}

// Depth of every patch [m], (h, w).
function patchDepths(answers, bins) {
  const cells = answers.length / bins.length, depth = new Float64Array(cells);
  bins.forEach((bin, k) => {
    for (let cell = 0; cell < cells; cell++) depth[cell] += answers[k * cells + cell] * bin;
  });
  return depth;
}

// How far apart the depths of a patch's answers lie [m], (h, w).
function sigmas(answers, bins, depth) {
  const cells = depth.length, sigma = new Float64Array(cells);
  bins.forEach((bin, k) => {
    for (let cell = 0; cell < cells; cell++) sigma[cell] += answers[k * cells + cell] * (bin - depth[cell]) ** 2;
  });
  return sigma.map(Math.sqrt);
}

// Bilinear between the patches, corners on corners (align_corners=True), row by row into `out`.
function upsample(depth, [h, w], [height, width], out) {
  const row = new Float64Array(w + 1), left = new Int32Array(width), right = new Float64Array(width);
  for (let x = 0; x < width; x++) {
    const at = width > 1 ? (x * (w - 1)) / (width - 1) : 0;
    left[x] = Math.floor(at);
    right[x] = at - left[x];
  }
  for (let y = 0; y < height; y++) {
    const at = height > 1 ? (y * (h - 1)) / (height - 1) : 0, top = Math.floor(at), bottom = Math.min(top + 1, h - 1);
    for (let i = 0; i < w; i++) row[i] = depth[top * w + i] + (at - top) * (depth[bottom * w + i] - depth[top * w + i]);
    row[w] = row[w - 1];
    for (let x = 0; x < width; x++) out[y * width + x] = row[left[x]] + right[x] * (row[left[x] + 1] - row[left[x]]);
  }
}

// The metrics of one map [m] against the counted pixels; null where none counts. `errors` becomes pred / gt - 1 of
// each pixel, NaN where it does not count. Depths and ratios are rounded to 32 bit, as they are there:
// otherwise 0.8 m for 1 m would count as within 1.25.
function metricsOf(counted, map, errors) {
  let count = 0, within1 = 0, within2 = 0, within3 = 0, relative = 0, squares = 0, logs = 0;
  errors.fill(NaN);
  for (let i = 0; i < counted.length; i++) {
    if (!counted[i] || (data.drops_tiny && !(map[i] > minDepth))) continue;  // Official quirk of NYU, at 1 mm
    const gt = Math.min(Math.fround(counted[i] / 1000), maxDepth), pred = Math.max(minDepth, Math.min(map[i], maxDepth));
    const ratio = Math.fround(pred / gt), larger = Math.max(ratio, Math.fround(gt / pred));
    count++;
    if (larger < 1.25 ** 1) within1++;
    if (larger < 1.25 ** 2) within2++;
    if (larger < 1.25 ** 3) within3++;
    relative += Math.abs(ratio - 1);
    squares += (pred - gt) * (pred - gt);
    logs += Math.log10(larger);
    errors[i] = ratio - 1;
  }
  if (!count) return { delta1: null, delta2: null, delta3: null, abs_rel: null, log10: null, rmse: null };
  const delta = { delta1: within1 / count, delta2: within2 / count, delta3: within3 / count };
  return { ...delta, abs_rel: relative / count, log10: logs / count, rmse: Math.sqrt(squares / count) };
}

// --- Drawing --------------------------------------------------------------------------------------------------------

const metres = (value) => `${value.toFixed(2)} m`;
const percent = (value) => `${Math.round(100 * value)}\u00a0%`;
const decimals = (value) => value?.toFixed(3) ?? (value === null ? "–" : "");  // "": what the page does not compute

// The 256 colours of each map as pixels of a canvas: in the bytes of each, red, green, blue, and 255 for opaque.
const [DEPTH, SHARE, ERROR] = ["depth", "share", "error"].map((name) => bytes(data.colours[name])).map((rgb) => (
  Uint32Array.from({ length: 256 }, (_, i) => rgb[3 * i] | (rgb[3 * i + 1] << 8) | (rgb[3 * i + 2] << 16) | (255 << 24))));

// Values between `low` and `high` in the colours of the table; NaN, and 0 if `blank`, leave what is behind the canvas.
function paint(canvas, values, colours, low, high, blank = false) {
  const context = canvas.getContext("2d"), sheet = context.createImageData(canvas.width, canvas.height);
  const pixels = new Uint32Array(sheet.data.buffer), scale = 255 / Math.max(high - low, 1e-6);
  for (let i = 0; i < pixels.length; i++) {
    const at = (values[i] - low) * scale + 0.5;
    pixels[i] = at !== at || (blank && !values[i]) ? 0 : colours[at < 0 ? 0 : at > 255 ? 255 : at | 0];
  }
  context.putImageData(sheet, 0, 0);
}

// Whether so few pixels have a value (0 and NaN are none) that they are drawn by `spread`.
const isSparse = (values) => 2 * values.reduce((count, v) => count + (v ? 1 : 0), 0) <= values.length;

// Each value is given to the pixels around it that have none, so that single points can be seen.
function spread(values, width) {
  const reach = 2, out = values.slice();
  values.forEach((value, i) => {
    if (!value) return;
    for (let dx = Math.max(-reach, -(i % width)); dx <= Math.min(reach, width - 1 - (i % width)); dx++) {
      for (let dy = -reach; dy <= reach; dy++) if (!out[i + dy * width + dx]) out[i + dy * width + dx] = value;
    }
  });
  return out;
}

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const onScale = (depth) => Math.min(1, Math.max(0, (depth - near) / Math.max(far - near, 1e-6)));

// The colour at a place from 0 to 1 of a table, and all of its colours as a background.
const colourAt = (colours, at) => `rgb(${new Uint8Array(colours.buffer, 4 * Math.round(255 * at), 3)})`;
const gradient = (colours) => `linear-gradient(90deg, ${Array.from({ length: 17 }, (_, i) => colourAt(colours, i / 16)).join(", ")})`;

// Everything of a card that follows from the settings.
function update(card) {
  const { image } = card;
  card.stale = false;
  card.answers = answersOf(image, state);
  card.depth = patchDepths(card.answers, state.bins);
  card.sigma = sigmas(card.answers, state.bins, card.depth);
  upsample(card.depth, image.grid, card.size, card.map);
  paint(card.mapCanvas, card.map, DEPTH, near, far);
  if (image.truth) {
    card.live = metricsOf(image.counted, card.map, card.errors);
    const errors = image.sparse ? spread(card.errors, image.size[1]) : card.errors;
    paint(card.errorCanvas, errors, ERROR, -LARGEST_ERROR, LARGEST_ERROR);
    fill(card.liveRow, card.live);
  }
  drawWords(card);
  drawChart(card);
}

// One small map for each word; one of the entropy, 1 where all words are answered alike; and one of sigma, from 0 to half
// of the range of the bins, which is the most there is.
function drawWords(card) {
  const K = state.words.length, [h, w] = card.image.grid, cells = h * w;
  while (card.words.children.length > K + 2) card.words.lastChild.remove();
  while (card.words.children.length < K + 2) {
    card.words.append(framed(make("canvas", { width: w, height: h }), ""));
  }
  const entropy = new Float64Array(cells);
  const show = (figure, text, values, largest = 1, said = percent) => {
    paint(figure.querySelector("canvas"), values, SHARE, 0, largest);
    figure.lastChild.textContent = `${text} ${said(values.reduce((sum, v) => sum + v, 0) / cells)}`;
  };
  state.words.forEach((word, k) => {
    const share = card.answers.subarray(k * cells, (k + 1) * cells);
    for (let i = 0; i < cells; i++) if (share[i] > 0 && K > 1) entropy[i] -= (share[i] * Math.log(share[i])) / Math.log(K);
    show(card.words.children[k], phrases[word], share);
  });
  show(card.words.children[K], "CLIP is unsure here (entropy)", entropy);
  const most = (Math.max(...state.bins) - Math.min(...state.bins)) / 2;
  show(card.words.lastChild, "its answers lie apart (sigma)", card.sigma, most, metres);
}

// What one patch answers: a bar for each word, from near to far, and the depths on the scale of the colours.
function drawChart(card) {
  const { image, patch } = card, [h, w] = image.grid, truth = image.truth ? image.truthOfPatch[patch] : 0;
  const words = state.words.map((word, k) => ({ name: phrases[word], bin: state.bins[k], share: card.answers[k * h * w + patch] }));
  const rows = [...words].sort((a, b) => a.bin - b.bin).map(({ name, bin, share }) => {
    const bar = make("span", { class: "bar" });
    bar.style.width = `${100 * share}%`;
    bar.style.background = colourAt(DEPTH, onScale(bin));
    const depth = make("span", { class: "depth" }, metres(bin)), size = make("span", { class: "share" }, percent(share));
    return make("div", { class: "answer" }, make("span", {}, name), depth, make("span", { class: "track" }, bar), size);
  });
  const mark = (kind, depth) => {
    const line = make("i", { class: kind });
    line.style.left = `calc(${100 * onScale(depth)}% - 1.5px)`;
    return line;
  };
  const ruler = make("div", { class: "ruler" }, mark("predicted", card.depth[patch]), ...(truth ? [mark("true", truth)] : []));
  const ends = make("div", { class: "ends" }, make("span", {}, `near, ${metres(near)}`), make("span", {}, `far, ${metres(far)}`));
  const answers = words.sort((a, b) => b.share - a.share).map(({ name, share }) => `${name} ${percent(share)}`).join(", ");
  card.chart.replaceChildren(...rows, ruler, ends);
  card.chart.setAttribute("aria-label", `What the patch answers: ${answers}`);
  const beyond = (depth) => (depth < near ? " (nearer than the colours)" : depth > far ? " (beyond the colours)" : "");
  const said = (kind, text) => make("span", { class: kind }, make("b", {}, text));
  const key = [make("span", {}, `row ${Math.floor(patch / w) + 1}, column ${(patch % w) + 1}`)];
  key.push(said("predicted", `predicted ${metres(card.depth[patch])} ± ${metres(card.sigma[patch])}${beyond(card.depth[patch])}`));
  if (image.truth) key.push(said("true", truth ? `true ${metres(truth)}${beyond(truth)}` : "true: not measured"));
  card.key.replaceChildren(...key, make("span", { class: "hidden" }, answers));
}

function choose(card, patch) {
  const [h, w] = card.image.grid;
  card.patch = patch;
  const box = { left: (patch % w) / w, top: Math.floor(patch / w) / h, width: 1 / w, height: 1 / h };
  for (const [side, share] of Object.entries(box)) card.element.style.setProperty(`--${side}`, `${100 * share}%`);
  if (card.answers) drawChart(card);
}

// --- Cards ----------------------------------------------------------------------------------------------------------

function makeCard(image, number) {
  const [h, w] = image.grid, scale = image.truth ? 1 : LONG_SIDE / Math.max(...image.size);
  const size = image.size.map((side) => Math.max(1, Math.round(side * scale)));
  const card = { image, number, size, map: new Float32Array(size[0] * size[1]), patch: Math.floor(h / 2) * w + Math.floor(w / 2) };
  const rows = [["this run", image.metrics]];
  if (image.truth) rows.push(["these settings", {}, "live"]);
  const metrics = makeTable(Object.keys(image.metrics), rows);
  card.liveRow = metrics.querySelector(".live");
  card.key = make("div", { class: "key", "aria-live": "polite" });
  card.chart = make("div", { role: "img" });
  card.words = make("div", { class: "small" });
  card.place = make("span", { class: "quiet" });
  const maps = makeMaps(card), chart = make("div", { class: "chart" }, card.key, card.chart), aspect = image.size[1] / image.size[0];
  const heading = make("header", {}, make("h2", {}, image.name), card.place, make("div", { class: "scroll" }, metrics));
  card.element = make("article", { class: "card", "aria-label": image.name }, heading, maps, chart, card.words);
  card.element.classList.add(image.truth ? "tested" : "untested", aspect > 2 ? "wide" : "normal");
  card.element.style.setProperty("--aspect", aspect);
  listen(card);
  choose(card, card.patch);
  return card;
}

function makeMaps(card) {
  const { image, size } = card, [h, w] = image.grid, limit = percent(LARGEST_ERROR);
  const canvas = () => make("canvas", { height: size[0], width: size[1] });
  const picture = make("img", { src: `data:image/jpeg;base64,${image.jpeg}`, alt: "", height: image.size[0], width: image.size[1] });
  const label = `${image.name}: ${h} rows and ${w} columns of patches; the arrow keys choose one`;
  const focusable = { tabindex: 0, role: "application", "aria-roledescription": "depth map", "aria-label": label };
  card.mapCanvas = canvas();
  const maps = make("div", { class: "maps" }, framed(picture, "picture: choose a patch"), framed(card.mapCanvas, "predicted depth", focusable));
  if (image.truth) {
    card.errors = new Float32Array(card.map.length);
    card.truthCanvas = canvas();
    card.errorCanvas = canvas();
    const error = framed(card.errorCanvas, "error: blue too near, red too far");
    error.append(make("div", { class: "scale" }, `−${limit}`, make("span", { class: "ramp errors" }), `+${limit}`));
    maps.append(framed(card.truthCanvas, "true depth; hatched: not measured"), error);
  }
  return maps;
}

function framed(content, caption, attributes = {}) {
  const frame = make("div", { class: "frame", ...attributes }, content, make("div", { class: "box" }));
  return make("figure", {}, frame, make("figcaption", {}, caption));
}

// A name in a table: what it means is shown to who points at it or taps it.
function explained(name) {
  if (!EXPLAINED[name]) return name;
  const [arrow] = EXPLAINED[name].match(/^[↑↓]|/), text = EXPLAINED[name].slice(arrow && 2);
  const button = make("button", { type: "button", title: text }, name, make("wbr"), arrow);
  button.addEventListener("click", () => {
    byId("explained").textContent = `${name}: ${text}.`;
    byId("explained").showPopover?.();
  });
  return button;
}

// Each row is a name, the values by column and, perhaps, a class.
function makeTable(columns, rows) {
  const head = make("tr", {}, make("td"), ...columns.map((name) => make("th", { scope: "col" }, explained(name))));
  return make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows.map(([name, values, kind = ""]) => {
    const cells = columns.map((column) => make("td", { "data-column": column }));
    return fill(make("tr", { class: kind }, make("th", { scope: "row" }, explained(name)), ...cells), values);
  })));
}

function fill(row, values) {
  for (const cell of row.querySelectorAll("td")) cell.textContent = decimals(values[cell.dataset.column]);
  return row;
}

function listen(card) {
  const [h, w] = card.image.grid, inside = (value, count) => Math.min(count - 1, Math.max(0, value));
  const point = (event) => {
    const frame = event.target.closest(".frame");
    if (!frame) return;
    const area = frame.getBoundingClientRect();
    const column = Math.floor(((event.clientX - area.left) / area.width) * w);
    const row = Math.floor(((event.clientY - area.top) / area.height) * h);
    const patch = inside(row, h) * w + inside(column, w);
    if (patch !== card.patch) choose(card, patch);
  };
  card.element.addEventListener("pointermove", point);
  card.element.addEventListener("pointerdown", point);
  card.mapCanvas.parentElement.addEventListener("keydown", (event) => {
    const row = Math.floor(card.patch / w), column = card.patch % w;
    const moves = {
      ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1], ArrowUp: [row - 1, column], ArrowDown: [row + 1, column],
      Home: [row, 0], End: [row, w - 1], PageUp: [0, column], PageDown: [h - 1, column],
    };
    if (!(event.key in moves)) return;
    event.preventDefault();
    const [r, c] = moves[event.key];
    choose(card, inside(r, h) * w + inside(c, w));
  });
}

// --- Redrawing ------------------------------------------------------------------------------------------------------

let frame = 0, waiting = false;

// What the user sees is drawn at once; the other cards follow one by one, and then the means over all of them.
function redraw() {
  frame = 0;
  showSettings();
  for (const card of cards) card.stale = card.ready;
  const seen = ({ element }) => {
    const { top, bottom } = element.getBoundingClientRect();
    return bottom > 0 && top < innerHeight;
  };
  cards.filter((card) => card.ready && seen(card)).forEach(update);
  finish();
}

function schedule() {
  if (!frame) frame = requestAnimationFrame(redraw);
}

function finish() {
  if (waiting) return;
  if (!cards.some((card) => card.stale)) return showMeans();
  waiting = true;
  setTimeout(() => {
    waiting = false;
    const card = cards.find((card) => card.stale);
    if (card) update(card);
    finish();
  });
}

function meansOf(columns, rows) {
  const mean = (values) => (values.every((v) => typeof v === "number") ? values.reduce((sum, v) => sum + v, 0) / values.length : null);
  return Object.fromEntries(columns.map((name) => [name, mean(rows.map((row) => row[name]))]));
}

function showMeans() {
  const row = document.querySelector("#metrics .live"), scored = cards.filter((card) => card.image.truth);
  if (row && scored.every((card) => card.live)) fill(row, meansOf(Object.keys(scored[0].live), scored.map((card) => card.live)));
}

// --- Controls -------------------------------------------------------------------------------------------------------

function showSettings() {
  const [before, after] = data.prompt;
  document.body.classList.toggle("changed", JSON.stringify(state) !== JSON.stringify(settingsOf(presets.run)));
  for (const [name, preset] of Object.entries(presets)) {
    const known = preset.depth_classes.every((word) => placeOf.has(word));  // else too long for this run's sentences
    byId(`preset-${name}`).disabled = !known || JSON.stringify(settingsOf(preset)) === JSON.stringify(state);
  }
  byId("equal").setAttribute("aria-pressed", state.uniform);
  byId("temperature").value = Math.log10(state.temperature);
  const text = state.uniform ? "without limit" : state.temperature.toPrecision(3);
  byId("temperature").nextSibling.textContent = text;
  byId("temperature").setAttribute("aria-valuetext", text);
  const prompts = state.words.map((word) => `“${before}${phrases[word]}${after}”`);
  if (data.more_prompts) prompts.push(`and each word in ${data.more_prompts} more sentences`);
  byId("prompt").textContent = `Each patch is asked: ${prompts.join(", ")}.`;
}

function say(text) {
  byId("message").textContent = text;
}

// The rows of words, made anew whenever there is another number of them or all are replaced.
function makeWords() {
  byId("words").replaceChildren(...state.words.map((_, k) => makeWord(k)));
  say("");
  schedule();
}

function makeWord(k) {
  const deepest = Math.max(10, ...Object.values(presets).flatMap((preset) => preset.bin_list.map((bin) => 1.5 * bin)));
  const box = make("input", { class: "phrase", list: "phrases", autocomplete: "off", spellcheck: "false", id: `word-${k}` });
  const slider = make("input", { type: "range", step: "any", min: 0.1, max: deepest, id: `bin-${k}` });
  const output = make("output"), remove = make("button", { type: "button", id: `remove-${k}` }, "×");
  const show = () => {
    const name = phrases[state.words[k]];
    output.textContent = metres(state.bins[k]);
    slider.setAttribute("aria-label", `depth of ${name}`);
    slider.setAttribute("aria-valuetext", output.textContent);
    remove.setAttribute("aria-label", `remove ${name}`);
    schedule();
  };
  const take = () => {
    const typed = box.value.trim(), place = placeOf.get(typed) ?? placeOf.get(typed.toLowerCase());
    if (place === undefined) return false;
    state.words[k] = place;
    say("");
    show();
    return true;
  };
  box.setAttribute("aria-label", `word ${k + 1}`);
  box.value = phrases[state.words[k]];
  slider.value = state.bins[k];
  remove.disabled = state.words.length === 1;
  box.addEventListener("focus", () => box.select());
  box.addEventListener("input", take);
  box.addEventListener("change", () => {
    if (take()) return;
    if (box.value) say(`“${box.value}” is none of the ${phrases.length} phrases that this page carries; empty the box to see them all.`);
    box.value = phrases[state.words[k]];
  });
  slider.addEventListener("input", () => {
    state.bins[k] = slider.valueAsNumber;
    show();
  });
  remove.addEventListener("click", () => {
    state.words.splice(k, 1);
    state.bins.splice(k, 1);
    makeWords();
    byId(`word-${Math.min(k, state.words.length - 1)}`).focus();
  });
  show();
  return make("div", { class: "word" }, box, slider, output, remove);
}

function makeSettings() {
  const on = (id, event, work) => byId(id).addEventListener(event, work);
  for (const [name, preset] of Object.entries(presets)) {
    byId(`preset-${name}`).hidden = false;  // those of outdoors are offered where depth is that large
    on(`preset-${name}`, "click", () => {
      Object.assign(state, settingsOf(preset));
      makeWords();
    });
  }
  on("reversed", "click", () => {
    state.bins.reverse();
    makeWords();
  });
  on("equal", "click", () => {
    state.uniform = !state.uniform;
    schedule();
  });
  on("add", "click", () => {
    const free = phrases.findIndex((_, i) => !state.words.includes(i));
    state.bins.push(state.bins.reduce((sum, bin) => sum + bin, 0) / state.bins.length);
    state.words.push(Math.max(0, free));
    makeWords();
    byId(`word-${state.words.length - 1}`).focus();
  });
  const middle = Math.log10(presets.run.temperature);
  byId("temperature").min = middle - 2;
  byId("temperature").max = middle + 2;
  on("temperature", "input", (event) => {
    Object.assign(state, { temperature: 10 ** event.target.valueAsNumber, uniform: false });
    schedule();
  });
  byId("carried").textContent = `A word's box offers the ${phrases.length} phrases that this page carries; --phrases FILE makes a page with others.`;
  byId("phrases").append(...[...placeOf.keys()].map((value) => make("option", { value })));
  makeWords();
}

// The best and the worst picture, by delta1 of the run, come first unless another order is chosen.
function makeSorting() {
  const hasScenes = data.images.some(({ scene }) => scene && scene !== "."), delta1 = ({ image }) => image.metrics.delta1;
  const ranked = cards.filter((card) => Number.isFinite(delta1(card))).sort((a, b) => delta1(b) - delta1(a));
  const [best, worst] = [ranked[0], ranked.at(-1)], orders = {};
  if (ranked.length > 1) {
    orders["best and worst first"] = (card) => (card === best ? -2 : card === worst ? -1 : card.number);
    orders["best first"] = (card) => (ranked.includes(card) ? ranked.indexOf(card) : null);
    best.place.textContent = "best of this page, by delta1";
    worst.place.textContent = "worst of this page, by delta1";
  }
  orders["order of the run"] = (card) => card.number;
  orders.name = (card) => card.image.name;
  if (hasScenes) orders.scene = (card) => card.image.scene;
  for (const metric of Object.keys(data.images[0]?.metrics ?? {})) orders[metric] = (card) => card.image.metrics[metric];
  byId("sort").append(...Object.keys(orders).map((name) => make("option", {}, name)));
  let sign = 1;
  const sort = () => sortCards(orders[byId("sort").value], sign);
  byId("sort").addEventListener("change", sort);
  byId("direction").addEventListener("click", () => {
    sign = -sign;
    byId("direction").setAttribute("aria-pressed", sign < 0);
    sort();
  });
  sort();
}

function sortCards(value, sign) {
  const order = [...cards].sort((a, b) => {
    const u = value(a), v = value(b);
    if (u === v) return sign * (a.number - b.number);
    if (u === null || v === null) return u === null ? 1 : -1;  // without a value: last, in both directions
    return sign * (typeof u === "string" ? u.localeCompare(v, "en", { numeric: true }) : u - v);
  });
  byId("cards").append(...order.map((card) => card.element));
}

function makePlaces() {
  const { style } = document.documentElement;
  style.setProperty("--colours", gradient(DEPTH));
  style.setProperty("--errors", gradient(ERROR));
  byId("near").textContent = `near ≤ ${metres(near)}`;
  byId("far").textContent = `≥ ${metres(far)} far`;
  const measure = () => style.setProperty("--bar", `${byId("controls").offsetHeight}px`);
  new ResizeObserver(measure).observe(byId("controls"));
  byId("panel").addEventListener("toggle", () => {  // the map that was looked at stays in view beside the panel
    measure();
    const card = document.elementFromPoint(innerWidth / 2, innerHeight / 4)?.closest(".card");
    card?.querySelector("[tabindex]").scrollIntoView({ block: "nearest" });
  });
}

function makeHeader() {
  const rows = Object.entries(data.metrics), scored = data.images.filter((image) => image.truth), count = scored.length;
  if (!count) document.querySelectorAll(".scored").forEach((element) => element.remove());
  if (!rows.length) return [byId("metrics"), byId("means")].forEach((element) => element.remove());
  const columns = Object.keys(rows[0][1]);
  if (count) {
    const means = meansOf(columns, scored.map((image) => image.metrics));
    const all = columns.every((name) => decimals(means[name]) === decimals(rows[0][1][name]));  // the run's are on this page
    const which = all ? "" : `, the ${count} on this page`;
    if (!all) rows.push([`this run${which}`, means]);
    rows.push([`these settings${which}`, {}, "live"]);
  }
  const table = makeTable(columns, rows);
  table.id = "metrics";
  byId("metrics").replaceWith(table);
}

// --- Start ----------------------------------------------------------------------------------------------------------

async function start() {
  for (const card of cards) {
    const { image } = card;
    await unpack(image);
    if (image.truth) {
      const measured = isSparse(image.measured) ? spread(image.measured, image.size[1]) : image.measured;
      paint(card.truthCanvas, measured, DEPTH, 1000 * near, 1000 * far, true);
    }
    card.ready = true;
    update(card);
  }
  finish();
}

const cards = data.images.map(makeCard);
makeHeader();
makePlaces();
makeSorting();
makeSettings();
// In the browser's console, cards[i].depth is a map of patches [m], and `state` can be changed before redraw().
const ready = start().catch((error) => {
  say(`The page's data cannot be read (${error.message}); a newer browser may help.`);
  throw error;
});
