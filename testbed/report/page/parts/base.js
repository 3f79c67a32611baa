// What all scripts of the page use: numbers out of text, colours out of the style, words for times.

const ARRAYS = {u8: Uint8Array, u16: Uint16Array, u32: Uint32Array, f32: Float32Array};

function unpack(packed) {
  const text = atob(packed.data), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return new ARRAYS[packed.type](bytes.buffer);
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

// A colour of the style as a canvas takes it: the style knows light and dark, the canvas does not.
const probe = element("span", {hidden: true});
let colours = new Map();
function colour(name) {
  if (!colours.has(name)) {
    if (!probe.isConnected) document.body.append(probe);
    probe.style.color = `var(--${name})`;
    colours.set(name, getComputedStyle(probe).color);
  }
  return colours.get(name);
}
const forgetColours = () => { colours = new Map(); };
const clientColour = number => colour(`client${number % 8}`);

function faded(text, alpha) {
  const numbers = text.match(/[\d.]+/g).slice(0, 3);
  return `rgba(${numbers.join(",")},${alpha})`;
}

function digits(value) {
  const size = Math.abs(value);
  return size >= 100 ? value.toFixed(0) : size >= 10 ? value.toFixed(1) : value.toFixed(2);
}

// Microseconds as people say them, with a sign where they are a distance.
function duration(us) {
  const size = Math.abs(us);
  if (size >= 1e6) return `${digits(us / 1e6)} s`;
  if (size >= 1e3) return `${digits(us / 1e3)} ms`;
  return `${Math.round(us)} µs`;
}
// A power of ten of milliseconds.
const power = ms => ms >= 1000 ? `${Math.round(ms / 1e3)} s` : ms >= 1 ? `${Math.round(ms)} ms` : `${Math.round(ms * 1e3)} µs`;
const signed = us => (us < 0 ? "−" : "+") + duration(Math.abs(us));
const many = count => count.toLocaleString("en");

function rate(bytes, us) {
  const bits = bytes * 8e6 / Math.max(us, 1);
  if (bits >= 1e9) return `${digits(bits / 1e9)} Gbit/s`;
  if (bits >= 1e6) return `${digits(bits / 1e6)} Mbit/s`;
  return `${digits(bits / 1e3)} kbit/s`;
}

// A canvas as sharp as the screen; returns its context, in CSS pixels, cleared.
function prepared(canvas, width, height) {
  const ratio = Math.min(3, Math.max(window.devicePixelRatio || 1, 2));
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.height = `${height}px`;
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif";
function write(context, text, x, y, {size = 12, align = "left", fill = "ink", weight = 400, most} = {}) {
  context.font = `${weight} ${size}px ${FONT}`;
  context.textAlign = align;
  context.textBaseline = "middle";
  context.fillStyle = fill.startsWith("rgb") ? fill : colour(fill);
  let shown = text;
  if (most) while (shown.length > 1 && context.measureText(shown).width > most) shown = shown.slice(0, -2) + "…";
  context.fillText(shown, x, y);
  return context.measureText(shown).width;
}

function lowerBound(array, value, from = 0, to = array.length) {
  while (from < to) {
    const middle = (from + to) >> 1;
    if (array[middle] < value) from = middle + 1; else to = middle;
  }
  return from;
}
