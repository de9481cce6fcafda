// The page's only script. The data block holds, for each picture, the similarity of every patch to every phrase, and the
// true depth where there is one. From it, the words, their bins and the temperature, all is computed here, by formulas
// whose originals are in Python:
//   monoclip.py         p = softmax(similarity / temperature),  depth = sum_k p_k * bin_k [m],  averaged over the picture
//                       and its mirror; between the patches bilinear
//   calculate_error.py  delta1 ... 3, abs_rel, log10 and rmse over the counted pixels, as in its errors_of_maps
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const { phrases, presets } = data, [near, far] = data.scale, [minDepth, maxDepth] = data.limits;  // [m]
const LONG_SIDE = 272;  // px of a drawn map without a true depth; the page scales it
const LARGEST_ERROR = 0.5;  // of the true depth, where the colours of the error map end
const LIVE = ["delta1", "delta2", "delta3", "abs_rel", "log10", "rmse"];
const byId = (id) => document.getElementById(id);
const phone = matchMedia("(max-width: 40rem), (max-height: 30rem)");
const placeOf = new Map(phrases.map((phrase, i) => [phrase, i]));

// Words are places in `phrases`; with `uniform`, every word has the same weight, whatever the temperature.
const settingsOf = (reading) => ({
  words: reading.depth_classes.map((word) => placeOf.get(word)), bins: [...reading.bin_list], temperature: reading.temperature, uniform: false,
});
const runs = settingsOf(presets.run);
const state = settingsOf(presets.run);
const isChanged = () => JSON.stringify(state) !== JSON.stringify(runs);

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
  image.measured = await unpacked(image.truth.map, width);  // (H, W) [mm], 0: not measured
  const leftOut = await unpacked(image.truth.left_out, width);
  image.counted = image.measured.map((mm, i) => (leftOut[i] ? 0 : mm));  // (H, W) [mm], 0: does not count
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
  return out;
}

// The metrics of one map [m] against the counted pixels; null where none counts. `errors`, if given, becomes
// pred / gt - 1 of each pixel, NaN where it does not count.
function metricsOf(counted, map, errors) {
  let count = 0, within1 = 0, within2 = 0, within3 = 0, relative = 0, squares = 0, logs = 0, product = 1;
  if (errors) errors.fill(NaN);
  for (let i = 0; i < counted.length; i++) {
    if (!counted[i] || !(map[i] > minDepth)) continue;  // Official quirk: pixels predicted at 1 mm or less do not count
    const gt = Math.min(Math.max(counted[i] / 1000, minDepth), maxDepth), pred = Math.min(map[i], maxDepth);
    const ratio = pred / gt, larger = ratio < 1 ? 1 / ratio : ratio;
    count++;
    if (larger < 1.25 ** 1) within1++;
    if (larger < 1.25 ** 2) within2++;
    if (larger < 1.25 ** 3) within3++;
    relative += Math.abs(ratio - 1);
    squares += (pred - gt) * (pred - gt);
    product *= larger;  // the sum of logarithms is the logarithm of the product: one for many pixels
    if (product > 1e200) {
      logs += Math.log10(product);
      product = 1;
    }
    if (errors) errors[i] = ratio - 1;
  }
  if (!count) return Object.fromEntries(LIVE.map((name) => [name, null]));
  logs += Math.log10(product);
  const delta = { delta1: within1 / count, delta2: within2 / count, delta3: within3 / count };
  return { ...delta, abs_rel: relative / count, log10: logs / count, rmse: Math.sqrt(squares / count) };
}

// --- Drawing --------------------------------------------------------------------------------------------------------

const metres = (value, digits = 2) => `${value.toFixed(digits)} m`;
const percent = (value) => `${Math.round(100 * value)}\u00a0%`;
const decimals = (value) => (typeof value === "number" ? value.toFixed(3) : "–");

// 256 colours as the 32-bit pixels of a canvas: evenly between the stops, [r, g, b] each.
function colourTable(stops) {
  const rgba = new Uint8ClampedArray(4 * 256);
  for (let i = 0; i < 256; i++) {
    const at = (i / 255) * (stops.length - 1), first = Math.min(Math.floor(at), stops.length - 2);
    for (let c = 0; c < 3; c++) rgba[4 * i + c] = stops[first][c] + (at - first) * (stops[first + 1][c] - stops[first][c]);
    rgba[4 * i + 3] = 255;
  }
  return new Uint32Array(rgba.buffer);
}

const rgb = bytes(data.colours);  // 256 triples, from near to far
const DEPTH = colourTable(Array.from({ length: 256 }, (_, i) => [...rgb.subarray(3 * i, 3 * i + 3)]));
const SHARE = colourTable([[18, 14, 45], [150, 40, 110], [245, 125, 60], [253, 240, 170]]);  // 0 % to 100 %
const ERROR = colourTable([[20, 70, 160], [110, 165, 220], [247, 247, 247], [240, 140, 110], [165, 15, 35]]);  // too near, right, too far
const sheets = new Map();  // an ImageData for each size of canvas, used by all

// Values between `low` and `high` in the colours of the table; NaN, and 0 if `blank`, leave what is behind the canvas.
function paint(canvas, values, colours, low, high, blank = false) {
  const size = `${canvas.width}x${canvas.height}`, context = canvas.getContext("2d");
  if (!sheets.has(size)) sheets.set(size, context.createImageData(canvas.width, canvas.height));
  const pixels = new Uint32Array(sheets.get(size).data.buffer), scale = 255 / Math.max(high - low, 1e-6);
  for (let i = 0; i < pixels.length; i++) {
    const at = (values[i] - low) * scale + 0.5;
    pixels[i] = at !== at || (blank && !values[i]) ? 0 : colours[at < 0 ? 0 : at > 255 ? 255 : at | 0];
  }
  context.putImageData(sheets.get(size), 0, 0);
}

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const onScale = (depth) => Math.min(1, Math.max(0, (depth - near) / Math.max(far - near, 1e-6)));

function colourOf(depth) {
  const i = 3 * Math.round(255 * onScale(depth));
  return `rgb(${rgb[i]}, ${rgb[i + 1]}, ${rgb[i + 2]})`;
}

// Everything of a card that follows from the settings.
function update(card) {
  const { image } = card;
  card.stale = false;
  card.answers = answersOf(image, state);
  card.depth = patchDepths(card.answers, state.bins);
  upsample(card.depth, image.grid, card.size, card.map);
  paint(card.mapCanvas, card.map, DEPTH, near, far);
  if (image.truth) {
    card.live = metricsOf(image.counted, card.map, card.errors);
    paint(card.errorCanvas, card.errors, ERROR, -LARGEST_ERROR, LARGEST_ERROR);
  }
  if (card.liveRow) {
    card.liveRow.hidden = !isChanged();
    card.columns.forEach((name, i) => (card.liveRow.cells[i + 1].textContent = decimals(card.live[name])));
  }
  drawWords(card);
  drawChart(card);
}

// One small map for each word, and one of the entropy: 1 where all words are answered alike.
function drawWords(card) {
  const K = state.words.length, [h, w] = card.image.grid, cells = h * w;
  while (card.words.children.length > K + 1) card.words.lastChild.remove();
  while (card.words.children.length < K + 1) {
    const frame = make("div", { class: "frame" }, make("canvas", { width: w, height: h }), make("div", { class: "box" }));
    card.words.append(make("figure", {}, frame, make("figcaption")));
  }
  const entropy = new Float64Array(cells);
  const show = (figure, text, values) => {
    paint(figure.querySelector("canvas"), values, SHARE, 0, 1);
    figure.lastChild.textContent = `${text} ${percent(values.reduce((sum, v) => sum + v, 0) / cells)}`;
  };
  state.words.forEach((word, k) => {
    const share = card.answers.subarray(k * cells, (k + 1) * cells);
    for (let i = 0; i < cells; i++) if (share[i] > 0 && K > 1) entropy[i] -= (share[i] * Math.log(share[i])) / Math.log(K);
    show(card.words.children[k], phrases[word], share);
  });
  show(card.words.lastChild, "CLIP is unsure here (entropy)", entropy);
}

// What one patch answers: a bar for each word, from near to far, and the depths on the scale of the colours.
function drawChart(card) {
  const { image, patch } = card, [h, w] = image.grid, truth = image.truth ? image.truthOfPatch[patch] : 0;
  const words = state.words.map((word, k) => ({ name: phrases[word], bin: state.bins[k], share: card.answers[k * h * w + patch] }));
  const rows = [...words].sort((a, b) => a.bin - b.bin).map(({ name, bin, share }) => {
    const bar = make("span", { class: "bar" });
    bar.style.width = `${100 * share}%`;
    bar.style.background = colourOf(bin);
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
  key.push(said("predicted", `predicted ${metres(card.depth[patch])}${beyond(card.depth[patch])}`));
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

function drawnSize([height, width]) {
  const scale = LONG_SIDE / Math.max(height, width);
  return [Math.max(1, Math.round(height * scale)), Math.max(1, Math.round(width * scale))];
}

function makeCard(image, number) {
  const [h, w] = image.grid, size = image.truth ? image.size : drawnSize(image.size);
  const canvas = () => make("canvas", { height: size[0], width: size[1] });
  const picture = make("img", { src: `data:image/jpeg;base64,${image.jpeg}`, alt: "", height: image.size[0], width: image.size[1] });
  const card = { image, number, size, map: new Float32Array(size[0] * size[1]), patch: Math.floor(h / 2) * w + Math.floor(w / 2) };
  card.mapCanvas = canvas();
  const contents = [["picture", picture], ["predicted depth", card.mapCanvas]], limit = percent(LARGEST_ERROR);
  if (image.truth) {
    card.errors = new Float32Array(card.map.length);
    card.truthCanvas = canvas();
    card.errorCanvas = canvas();
    contents.push(["true depth; hatched: not measured", card.truthCanvas]);
    contents.push([`error: blue −${limit}, too near; red +${limit}, too far`, card.errorCanvas]);
  }
  const maps = make("div", { class: "maps" });
  for (const [title, content] of contents) {
    const frame = make("div", { class: "frame" }, content, make("div", { class: "box" }));
    if (content === card.mapCanvas) {
      frame.tabIndex = 0;
      frame.setAttribute("role", "application");
      frame.setAttribute("aria-roledescription", "depth map");
      frame.setAttribute("aria-label", `${image.name}: ${h} rows and ${w} columns of patches; the arrow keys choose one`);
    }
    maps.append(make("figure", {}, frame, make("figcaption", {}, title)));
  }
  card.key = make("div", { class: "key", "aria-live": "polite" });
  card.chart = make("div", { role: "img" });
  card.words = make("div", { class: "small" });
  const heading = make("header", {}, make("h2", {}, image.name));
  if (image.scene && image.scene !== ".") heading.append(make("span", { class: "quiet" }, image.scene));
  card.element = make("article", { class: "card", "aria-label": image.name }, heading);
  card.columns = Object.keys(image.metrics);
  if (image.truth && !card.columns.length) card.columns = LIVE;
  if (card.columns.length) {
    const table = makeTable(card.columns, [["this run", card.columns.map((name) => image.metrics[name])]]);
    card.runRow = table.rows[1];
    if (image.truth) {
      card.liveRow = makeRow(["these settings", card.columns.map(() => null)], "live");
      table.tBodies[0].append(card.liveRow);
    }
    card.element.append(make("div", { class: "scroll" }, table));
  }
  const panels = make("div", { class: "panels" }, maps, make("div", { class: "chart" }, card.key, card.chart));
  card.element.append(panels, card.words);
  card.element.style.setProperty("--maps", contents.length);
  card.element.style.setProperty("--aspect", image.size[1] / image.size[0]);
  listen(card);
  choose(card, card.patch);
  return card;
}

function makeRow([name, values], kind = "") {
  return make("tr", { class: kind }, make("th", { scope: "row" }, name), ...values.map((value) => make("td", {}, decimals(value))));
}

function makeTable(columns, rows) {
  const head = make("tr", {}, make("td"), ...columns.map((name) => make("th", { scope: "col" }, name)));
  return make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows.map((row) => makeRow(row))));
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
const later = window.requestIdleCallback ?? ((work) => setTimeout(work, 1));

// What the user sees is drawn at once; the other cards follow one by one, and then the means over all of them.
function redraw() {
  frame = 0;
  showSettings();
  for (const card of cards) card.stale = card.ready;
  showMeans();
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
  later(() => {
    waiting = false;
    const card = cards.find((card) => card.stale);
    if (card) update(card);
    finish();
  }, { timeout: 100 });
}

const liveRows = [];  // of the table at the top: this run's and these settings' means over the pictures of the page

function showMeans() {
  if (!liveRows.length) return;
  const scored = cards.filter((card) => card.image.truth), done = scored.every((card) => card.ready && !card.stale);
  const mean = (values) => (values.every((v) => typeof v === "number") ? values.reduce((sum, v) => sum + v, 0) / values.length : null);
  liveRows[1].hidden = !isChanged();
  [...liveRows[0].cells].slice(1).forEach((cell, i) => {
    const name = Object.keys(Object.values(data.metrics)[0])[i], live = liveRows[1].cells[i + 1];
    cell.textContent = done ? decimals(mean(scored.map(({ image, own }) => image.metrics[name] ?? own[name]))) : "…";
    live.textContent = done ? decimals(mean(scored.map((card) => card.live[name]))) : "…";
  });
  const above = liveRows[0].parentElement.rows[0];  // where the page has all pictures, both say the same
  liveRows[0].hidden = [...above.cells].every((cell, i) => !i || cell.textContent === liveRows[0].cells[i].textContent);
}

// --- Controls -------------------------------------------------------------------------------------------------------

function showSettings() {
  const changed = isChanged(), [before, after] = data.prompt;
  byId("changed").textContent = changed ? "Changed: the rows of “these settings” follow, those of “this run” stay." : "";
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
  const deepest = Math.max(10, ...Object.values(presets).flatMap((preset) => preset.bin_list.map((bin) => 1.5 * bin)));
  byId("words").replaceChildren(...state.words.map((word, k) => {
    const box = make("input", { class: "phrase", list: "phrases", autocomplete: "off", spellcheck: "false", id: `word-${k}` });
    const slider = make("input", { type: "range", step: "any", min: 0.1, max: deepest, id: `bin-${k}` });
    const output = make("output"), remove = make("button", { type: "button", id: `remove-${k}` }, "×");
    const show = () => {
      const name = phrases[state.words[k]];
      output.textContent = metres(state.bins[k]);
      box.setAttribute("aria-label", `word ${k + 1}`);
      slider.setAttribute("aria-label", `depth of ${name}`);
      slider.setAttribute("aria-valuetext", output.textContent);
      remove.setAttribute("aria-label", `remove ${name}`);
    };
    const take = () => {
      const typed = box.value.trim(), place = placeOf.get(typed) ?? placeOf.get(typed.toLowerCase());
      if (place === undefined) return false;
      state.words[k] = place;
      say("");
      show();
      schedule();
      return true;
    };
    box.value = phrases[word];
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
      schedule();
    });
    remove.addEventListener("click", () => {
      state.words.splice(k, 1);
      state.bins.splice(k, 1);
      makeWords();
      byId(`word-${Math.min(k, state.words.length - 1)}`).focus();
    });
    show();
    return make("div", { class: "word" }, box, slider, output, remove);
  }));
  say("");
  schedule();
}

function makeControls() {
  const metrics = Object.keys(data.images[0]?.metrics ?? {}).map((name) => [`metric:${name}`, name]);
  const scenes = data.images.some((image) => image.scene && image.scene !== ".") ? [["scene", "scene"]] : [];
  for (const [value, name] of [["run", "order of the run"], ["name", "image"], ...scenes, ...metrics]) {
    byId("sort").append(make("option", { value }, name));
  }
  let descending = false;
  const sort = () => sortCards(byId("sort").value, descending);
  byId("sort").addEventListener("change", sort);
  byId("direction").addEventListener("click", () => {
    descending = !descending;
    byId("direction").textContent = descending ? "↓ descending" : "↑ ascending";
    sort();
  });
  for (const [name, preset] of Object.entries(presets)) {
    byId(`preset-${name}`).addEventListener("click", () => {
      Object.assign(state, settingsOf(preset));
      makeWords();
    });
  }
  byId("reversed").addEventListener("click", () => {
    state.bins.reverse();
    makeWords();
  });
  byId("equal").addEventListener("click", () => {
    state.uniform = !state.uniform;
    schedule();
  });
  byId("add").addEventListener("click", () => {
    const free = phrases.findIndex((_, i) => !state.words.includes(i));
    state.bins.push(state.bins.reduce((sum, bin) => sum + bin, 0) / state.bins.length);
    state.words.push(Math.max(0, free));
    makeWords();
    byId(`word-${state.words.length - 1}`).focus();
  });
  const middle = Math.log10(presets.run.temperature);
  byId("temperature").min = middle - 2;
  byId("temperature").max = middle + 2;
  byId("temperature").addEventListener("input", (event) => {
    Object.assign(state, { temperature: 10 ** event.target.valueAsNumber, uniform: false });
    schedule();
  });
  byId("phrases").append(...[...placeOf.keys()].map((value) => make("option", { value })));
  makeWords();
}

function makePlaces() {
  const style = document.documentElement.style, stops = Array.from({ length: 17 }, (_, i) => colourOf(near + (i / 16) * (far - near)));
  style.setProperty("--colours", `linear-gradient(90deg, ${stops.join(", ")})`);
  byId("near").textContent = `near ≤ ${metres(near)}`;
  byId("far").textContent = `≥ ${metres(far)} far`;
  byId("legend").setAttribute("aria-label", `Colours from ${metres(near)} and nearer (bright) to ${metres(far)} and farther (dark)`);
  const measure = () => style.setProperty("--bar", `${byId("controls").offsetHeight}px`);
  new ResizeObserver(measure).observe(byId("controls"));
  byId("panel").open = !phone.matches;
  byId("panel").addEventListener("toggle", () => {  // on a phone, the map that was looked at stays in view above the panel
    if (!phone.matches || !byId("panel").open) return;
    measure();
    const distance = (card) => Math.abs(card.mapCanvas.getBoundingClientRect().top - innerHeight / 4);
    const nearest = cards.reduce((a, b) => (distance(b) < distance(a) ? b : a), cards[0]);
    nearest?.mapCanvas.parentElement.scrollIntoView({ block: "nearest" });
  });
  const remember = (open) => {
    try {
      if (open === undefined) return localStorage.getItem("depthclip-help") !== "closed";
      localStorage.setItem("depthclip-help", open ? "open" : "closed");
    } catch { /* a browser that keeps nothing shows the help each time */ }
    return true;
  };
  byId("help").open = remember();
  byId("help").addEventListener("toggle", () => remember(byId("help").open));
  byId("help-close").addEventListener("click", () => {
    byId("help").open = false;
    byId("help").firstElementChild.focus();
  });
}

function sortCards(key, descending) {
  const sign = descending ? -1 : 1;
  const value = (card) => (key.startsWith("metric:") ? card.image.metrics[key.slice(7)] : card.image[key]);
  const order = [...cards].sort((a, b) => {
    const u = value(a), v = value(b);
    if (key === "run" || u === v) return sign * (a.number - b.number);
    if (u === null || v === null) return u === null ? 1 : -1;  // without a value: last, in both directions
    return sign * (typeof u === "string" ? u.localeCompare(v, "en", { numeric: true }) : u - v);
  });
  byId("cards").append(...order.map((card) => card.element));
}

function makeHeader() {
  byId("title").textContent = data.title;
  byId("notes").textContent = data.notes.join(" · ");
  const rows = Object.entries(data.metrics), count = data.images.filter((image) => image.truth).length;
  if (!rows.length) return byId("metrics").remove();
  const columns = Object.keys(rows[0][1]), blank = columns.map(() => null);
  const table = makeTable(columns, rows.map(([name, row]) => [name, columns.map((column) => row[column])]));
  if (count) {
    const pictures = count === 1 ? "the picture" : `the ${count} pictures`;
    liveRows.push(makeRow([`this run, ${pictures} on this page`, blank]), makeRow([`these settings, ${pictures} on this page`, blank], "live"));
    table.tBodies[0].append(...liveRows);
  }
  table.id = "metrics";
  byId("metrics").replaceWith(table);
}

// --- Start ----------------------------------------------------------------------------------------------------------

async function start() {
  for (const card of cards) {
    const { image } = card;
    await unpack(image);
    if (image.truth) {
      const depth = patchDepths(answersOf(image, runs), runs.bins);
      card.own = metricsOf(image.counted, upsample(depth, image.grid, card.size, card.map));
      card.columns.forEach((name, i) => (card.runRow.cells[i + 1].textContent = decimals(image.metrics[name] ?? card.own[name])));
      paint(card.truthCanvas, image.measured, DEPTH, 1000 * near, 1000 * far, true);
    }
    card.ready = true;
    update(card);
  }
  finish();
}

const cards = data.images.map(makeCard);
makeHeader();
makePlaces();
sortCards("run", false);
makeControls();
const ready = start().catch((error) => {
  say(`The page's data cannot be read (${error.message}); a newer browser may help.`);
  throw error;
});
window.depthclip = { state, cards, redraw, ready };  // for the browser's console: cards[i].depth is a map of patches [m]
