// The page of `python -m src.export format=web`: a picture becomes a square and an answer as in
// src/data/cache.py, src/data/decoding.py and src/deployment/predict.py. It loads files of its own
// folder and sends nothing.
import * as ort from "./onnxruntime.js";

const INPUT = "pictures", OUTPUT = "probabilities"; // of the ONNX file
const QUERIES = 200, WARM_UP = 20;
const STRIPE = 256; // rows of a picture at a time: phones limit the size of a canvas
const SMALLEST = 2 ** -126; // probabilities are at least this, as float32
const DARK = 32, BITS = 22; // darker than this is a rim; of Pillow's weights
const BILINEAR = { radius: 1, weigh: (x) => Math.max(0, 1 - Math.abs(x)) };
const BOX = { radius: 0.5, weigh: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) };

const part = (id) => document.getElementById(id);
const make = (tag, textContent = "") => Object.assign(document.createElement(tag), { textContent });
const percent = (p) => `${(100 * p).toFixed(1)}%`;
let session, page, about; // of ONNX Runtime; model.json; its description
let pixels, stream; // the square on the page; the camera
const drawn = () => new Promise((resolve) => setTimeout(resolve)); // the page is drawn

// Geometry

/** Weights of each of `size` pixels for a line of `length` pixels, as whole numbers. */
function weights(length, size, { radius, weigh }) {
  const scale = length / size, stretch = Math.max(scale, 1), support = radius * stretch;
  return Array.from({ length: size }, (_, pixel) => {
    const center = (pixel + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support + 0.5));
    const last = Math.min(length, Math.trunc(center + support + 0.5));
    const taps = [];
    for (let x = first; x < last; x++) taps.push(weigh((x - center + 0.5) * (1 / stretch)));
    const sum = taps.reduce((a, b) => a + b, 0);
    return { first, taps: taps.map((tap) => Math.floor((tap / sum) * 2 ** BITS + 0.5)) };
  });
}

/** Resample lines whose pixels lie `step` apart, from one array to another. */
function resample(from, into, lines, table, channels) {
  for (let line = 0; line < lines; line++) {
    table.forEach(({ first, taps }, pixel) => {
      for (let channel = 0; channel < channels; channel++) {
        let index = line * from.line + first * from.step + channel, sum = 2 ** (BITS - 1);
        for (const tap of taps) {
          sum += from.values[index] * tap;
          index += from.step;
        }
        into.values[line * into.line + pixel * into.step + channel] = sum >> BITS;
      }
    });
  }
}

/** A box of a picture, resized as by Pillow, which may take columns first: a level may differ. */
function resize(picture, box, width, height, filter, grey = false) {
  const channels = grey ? 1 : 3, line = width * channels;
  const narrow = new Uint8Array(box.height * line);
  const across = weights(box.width, width, filter), down = weights(box.height, height, filter);
  const canvas = new OffscreenCanvas(box.width, Math.min(STRIPE, box.height));
  const context = canvas.getContext("2d", { willReadFrequently: true }); // in memory, not a GPU's
  for (let top = 0; top < box.height; top += STRIPE) {
    const rows = Math.min(STRIPE, box.height - top);
    context.fillStyle = "#fff"; // behind transparent parts
    context.fillRect(0, 0, box.width, rows);
    context.drawImage(picture, -box.left, -box.top - top);
    let values = context.getImageData(0, 0, box.width, rows).data, step = 4;
    if (grey) [values, step] = [luminance(values), 1];
    const into = { values: narrow.subarray(top * line), line, step: channels };
    resample({ values, line: box.width * step, step }, into, rows, across, channels);
  }
  const values = new Uint8Array(height * line);
  const columns = { line: channels, step: line };
  resample({ values: narrow, ...columns }, { values, ...columns }, width, down, channels);
  return values;
}

/** Grey of RGBA pixels by ITU-R 601, as Pillow rounds it. */
function luminance(values) {
  const grey = new Uint8Array(values.length / 4);
  for (let i = 0; i < values.length; i += 4) {
    grey[i / 4] = (values[i] * 19595 + values[i + 1] * 38470 + values[i + 2] * 7471 + 0x8000) >> 16;
  }
  return grey;
}

/** The box without the dark rim of a dermatoscope; see `crop_corners` in Python. */
function withoutRim(picture, whole) {
  const bright = Array.from(resize(picture, whole, 100, 100, BOX, true), (grey) => grey > DARK);
  const places = bright.flatMap((is, place) => (is ? [place] : []));
  const ends = [(place) => Math.floor(place / 100), (place) => place % 100].map((axis) => {
    const along = places.map(axis);
    return [Math.min(...along), Math.max(...along)];
  });
  for (let inset = 0; places.length && inset <= 16; inset++) {
    const [[top, bottom], [left, right]] = ends.map(([low, high]) => {
      const cut = Math.trunc(((high - low) * inset) / 100);
      return [low + cut, high - cut];
    });
    const corners = [top, bottom].flatMap((y) => [bright[100 * y + left], bright[100 * y + right]]);
    const count = corners.filter(Boolean).length, more = inset > 0 ? 1 : 0;
    if (count < 4 && !(inset === 0 && count > 2)) continue;
    const share = (side, place) => Math.floor((side * place) / 100);
    const x = share(whole.width, left + more), y = share(whole.height, top + more);
    const width = share(whole.width, right + 1 - more) - x;
    return { left: x, top: y, width, height: share(whole.height, bottom + 1 - more) - y };
  }
  return whole;
}

/** Whole number next to `x`; halves become even, as in Python. */
function round(x) {
  return Math.abs(x % 1) === 0.5 ? 2 * Math.round(x / 2) : Math.round(x);
}

/** Colours as if under white light, by the Minkowski norm of each channel with p = 6. */
function shadesOfGrey(values) {
  const light = [0, 1, 2].map((channel) => {
    let sum = 0;
    for (let i = channel; i < values.length; i += 3) sum += values[i] ** 6;
    return Math.max((sum / (values.length / 3)) ** (1 / 6), 1);
  });
  const white = Math.sqrt(light.reduce((sum, x) => sum + x * x, 0) / 3);
  return values.map((value, i) => Math.min(255, round(value * (white / light[i % 3]))));
}

/** A picture as the square that the model takes: RGB, (size, size, 3). */
export function square(picture, size, geometry) {
  const [shape, ...cleaning] = geometry.split("+");
  let box = { left: 0, top: 0, width: picture.width, height: picture.height };
  if (cleaning.includes("crop_corners")) box = withoutRim(picture, box);
  let [width, height] = [size, size];
  if (shape === "center_crop") {
    const side = Math.min(box.width, box.height);
    const left = box.left + Math.floor((box.width - side) / 2);
    const top = box.top + Math.floor((box.height - side) / 2);
    box = { left, top, width: side, height: side };
  } else if (shape === "pad") {
    const scale = size / Math.max(box.width, box.height);
    [width, height] = [box.width, box.height].map((side) => Math.max(1, round(side * scale)));
  }
  const values = resize(picture, box, width, height, BILINEAR);
  const padded = new Uint8Array(size ** 2 * 3); // black where there is no picture
  const [left, top] = [width, height].map((side) => Math.floor((size - side) / 2));
  for (let y = 0; y < height; y++) {
    padded.set(values.subarray(y * width * 3, (y + 1) * width * 3), ((top + y) * size + left) * 3);
  }
  return cleaning.includes("shades_of_grey") ? shadesOfGrey(padded) : padded;
}

// Answer

/** Probabilities of a square, as the model gives them. */
async function infer(values) {
  const tensor = new ort.Tensor("uint8", values, [1, about.image_size, about.image_size, 3]);
  return Array.from((await session.run({ [INPUT]: tensor }))[OUTPUT].data);
}

function showAnswer(raw) {
  const { classes, decision, offsets, rule } = about;
  if (!raw.every(Number.isFinite)) throw new Error("the model gives no number for it");
  const logs = raw.map((p) => Math.log(Math.max(p, SMALLEST)));
  const scores = logs.map((log, label) => log + (offsets[label] ?? 0));
  const top = scores.indexOf(Math.max(...scores)), temperature = decision?.temperature;
  let shown = raw;
  if (temperature) {
    const powers = logs.map((log) => Math.exp((log - Math.max(...logs)) / temperature));
    const sum = powers.reduce((a, b) => a + b);
    shown = powers.map((power) => power / sum);
  }
  part("class").textContent =
    `Class: ${classes[top]}, ${rule === "argmax" ? "most probable" : `by the rule ${rule}`}`;
  part("decision").textContent = "No decision";
  part("reason").textContent = "The model stores no threshold.";
  if (decision) {
    const p = raw[classes.indexOf(decision.positive)], is = p >= decision.threshold;
    part("decision").textContent = `Decision: ${is ? "" : "not "}${decision.positive}`;
    part("reason").textContent =
      `${decision.positive} from a probability of ${decision.threshold.toPrecision(4)} on, ` +
      `uncalibrated; it is ${p.toPrecision(4)} here. Chosen for ${decision.aim}.`;
  }
  part("calibration").textContent = temperature
    ? `Calibrated on validation, temperature ${temperature.toPrecision(3)}.`
    : "Not calibrated: the model stores no temperature.";
  const order = classes.map((_, label) => label).sort((a, b) => shown[b] - shown[a]);
  part("classes").replaceChildren(...order.map((label) => {
    const row = make("tr"), bar = make("td"), meter = make("meter");
    row.className = label === top ? "top" : "";
    Object.assign(meter, { value: shown[label], title: classes[label] });
    bar.append(meter);
    row.append(make("th", classes[label]), bar, make("td", percent(shown[label])));
    return row;
  }));
  part("answer").dataset.confidence = shown[top];
  part("answer").hidden = false;
  markUnsure();
}

function markUnsure() {
  const confidence = Number(part("answer").dataset.confidence), below = Number(part("below").value);
  part("unsure").hidden = !(confidence < below);
  part("unsure").textContent = `Unsure: its confidence is ${percent(confidence)}.`;
}

function showSquare(values) {
  const canvas = part("square"), image = new ImageData(about.image_size, about.image_size);
  // without the opacity, three of four
  image.data.forEach((_, i) => image.data[i] = i % 4 === 3 ? 255 : values[i - (i >> 2)]);
  [canvas.width, canvas.height] = [image.width, image.height];
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** Classify a picture file or what a video shows; `name` is shown. */
async function classify(source, name) {
  part("answer").hidden = true;
  const picture = await createImageBitmap(source, { imageOrientation: "from-image" });
  pixels = square(picture, about.image_size, about.geometry);
  picture.close();
  showSquare(pixels);
  part("caption").textContent = `${name}, as the model sees it. It stays on this device.`;
  showAnswer(await infer(pixels));
}

/** Run `work` with all controls disabled; an error is shown as the status. */
async function busy(status, work) {
  const focused = document.activeElement;
  part("controls").disabled = part("measure").disabled = true;
  part("status").textContent = status;
  await drawn();
  try {
    await work();
    part("status").textContent = "";
  } catch (error) {
    part("status").textContent = `That did not work: ${error.message}`;
  }
  part("controls").disabled = part("measure").disabled = !session;
  focused?.focus?.();
}

// Camera

/** Show the camera, or stop it. */
async function switchCamera() {
  if (stream) {
    stream.getTracks().forEach((track) => track.stop());
    stream = null;
  } else if (!navigator.mediaDevices) {
    throw new Error("browsers give a camera to https and localhost only; choose a picture");
  } else {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    part("video").srcObject = stream;
    await part("video").play();
  }
  part("video").hidden = part("take").hidden = !stream;
  part("camera").textContent = stream ? "Stop the camera" : "Use the camera";
}

// Measurement

/** Time single-stream inferences and offer the result as a file for src.benchmark join=. */
async function measure() {
  const times = [], picture = pixels ?? new Uint8Array(about.image_size ** 2 * 3).fill(128);
  for (let query = -WARM_UP; query < QUERIES; query++) {
    const began = performance.now();
    await infer(picture);
    if (query >= 0) times.push(performance.now() - began);
    if (query % 10 === 0) {
      part("speed").textContent = `${Math.max(query, 0)} of ${QUERIES} ...`;
      await drawn();
    }
  }
  const sorted = [...times].sort((a, b) => a - b), total = times.reduce((a, b) => a + b);
  const percentile = (share) => { // linear, as NumPy's
    const place = share * (QUERIES - 1), low = Math.floor(place);
    return sorted[low] + (place - low) * (sorted[low + 1] - sorted[low]);
  };
  const [p50_ms, p90_ms, p99_ms] = [0.5, 0.9, 0.99].map(percentile);
  const cpu = part("device").value.trim() || "device", name = cpu.replace(/[^\w.-]+/g, "_");
  const { model, run_id, precision } = about, label = `${model} ${run_id.slice(0, 8)}`;
  const written = new Date().toISOString().slice(0, 19);
  let step = 0; // of the browser's clock, ms
  for (const now = performance.now(); step === 0;) step = performance.now() - now;
  const figures = {
    p50_ms, p90_ms, p99_ms, mean_ms: total / QUERIES, queries: QUERIES, seconds: total / 1000,
    size_mb: page.size_mb, ratio: 1, ratio_low: 1, ratio_high: 1,
  };
  const result = {
    kind: "paretoderm benchmark", version: 1, written: `${written}+00:00`,
    device: {
      name, cpu, cores: navigator.hardwareConcurrency, machine: navigator.platform,
      memory_gb: navigator.deviceMemory ?? null, // browsers round it, and say at most 8
      system: navigator.userAgent, python: "none", emulation: "",
    },
    threads: 1, batch: 1, reference: label,
    conditions: { queries: QUERIES, warm_up: WARM_UP, photograph: pixels ? "a picture" : "grey" },
    notes: [`WebAssembly in a browser, whose clock has steps of ${step.toPrecision(2)} ms.`],
    rows: [{
      label, runtime: "web", run_id, model, precision, version: page.runtime.split("@")[1],
      reason: "", energy_absent: "browsers have no counter", figures,
    }],
  };
  const [p50, p90, p99] = [p50_ms, p90_ms, p99_ms].map((ms) => ms.toPrecision(3));
  part("speed").textContent = `p50 ${p50} ms, p90 ${p90} ms, p99 ${p99} ms`;
  URL.revokeObjectURL(part("save").href);
  part("save").href = URL.createObjectURL(new Blob([JSON.stringify(result, null, 1)]));
  part("save").download = `benchmark_${name}_t1_b1_${written.replace(/[-:]/g, "")}.json`;
  part("saving").hidden = false;
}

// Start

async function load(name) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`${name} cannot be loaded (${response.status})`);
  return response;
}

/** ONNX Runtime's program, unpacked; a server may have told the browser to unpack it. */
async function runtime() {
  const blob = await (await load("onnxruntime.wasm.gz")).blob();
  const [first, second] = new Uint8Array(await blob.slice(0, 2).arrayBuffer());
  if (first !== 0x1f || second !== 0x8b) return blob.arrayBuffer();
  const unpacked = blob.stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(unpacked).arrayBuffer();
}

async function start() {
  page = await (await load("model.json")).json();
  about = page.description;
  part("notice").textContent = about.notice;
  part("model").textContent = `${about.model}, trained on ${about.data}`;
  part("below").value = page.unsure_below;
  part("device").value = /Android|iPhone|iPad|Windows|Mac|Linux/.exec(navigator.userAgent) ?? "";
  const facts = {
    Input: `${about.image_size} x ${about.image_size} px, ${about.geometry}`,
    Classes: about.classes.join(", "),
    Weights: `${about.precision}, ${page.size_mb.toPrecision(3)} MB`,
    Split: about.split,
    Licence: about.licence,
    Run: about.run_id,
    Runtime: page.runtime,
  };
  for (const [name, fact] of Object.entries(facts)) {
    part("about").append(make("dt", name), make("dd", fact));
  }
  ort.env.wasm.numThreads = 1; // more need headers that few servers send
  ort.env.wasm.wasmBinary = await runtime();
  const model = new Uint8Array(await (await load("model.onnx")).arrayBuffer());
  session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
}

part("below").addEventListener("input", markUnsure);
part("file").addEventListener("change", ({ target: { files: [file] } }) => {
  if (file) busy("Classifying ...", () => classify(file, file.name));
});
part("camera").addEventListener("click", () => busy("", switchCamera));
part("take").addEventListener("click", () => {
  busy("Classifying ...", () => classify(part("video"), "The camera's picture"));
});
part("measure").addEventListener("click", () => busy("Measuring ...", measure));
await busy("Loading the model ...", start);
