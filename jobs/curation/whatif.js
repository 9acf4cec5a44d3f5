// Counts what `select` would keep at other thresholds: the rules in their order, over rows that come best first.
"use strict";
const data = JSON.parse(document.getElementById("rows").textContent);
const read = (name, kind) => new kind(Uint8Array.from(atob(data.columns[name]), c => c.charCodeAt(0)).buffer);
const frames = read("frames", Uint16Array), velocity = read("velocity", Float32Array);
const length = read("length", Uint16Array), frozen = read("frozen", Uint8Array);
const difference = read("difference", Float32Array), probability = read("probability", Float32Array);
const span = read("span", Uint32Array), group = read("group", Uint32Array); // empty where no rows share one
const concept = read("concept", Uint32Array); // the same
const marks = numbers => new Uint8Array(numbers.reduce((a, b) => Math.max(a, b), 0) + 1);
const spans = marks(span), groups = marks(group);
const taken = (marks, number) => Boolean(number) && (marks[number] === 1 || !(marks[number] = 1));
const field = name => document.querySelector(`input[type=number][data-rule="${name}"]`);
const words = n => n.toLocaleString("en-US");
const sampled = data.rows < data.of;
let least = null; // a probability, where the number to keep follows from one

function counted() {
  const [shortest, longest, slowest, largest] =
    ["frames.min", "frames.max", "select.min_velocity", "select.max_rgb_diff"].map(name => Math.fround(field(name).value));
  const n = {frozen: 0, too_short: 0, too_long: 0, unmeasured: 0, static: 0, cut_inside: 0, near_duplicate: 0, same_span: 0, concept_full: 0};
  const unlike = [];
  let passed = 0, left = 0, likely = 0;
  spans.fill(0);
  groups.fill(0);
  for (let i = 0; i < data.rows; i++) {
    if (frozen[i]) n.frozen++;
    else if (frames[i] < shortest) n.too_short++;
    else if (length[i] > longest) n.too_long++;
    else if (Number.isNaN(velocity[i])) n.unmeasured++;
    else if (velocity[i] < slowest) n.static++;
    else if (difference[i] > largest) n.cut_inside++;
    else {
      passed++;
      if (taken(groups, group[i])) n.near_duplicate++;
      else if (taken(spans, span[i])) n.same_span++;
      else unlike.push(i);
    }
  }
  const cap = data.cap < 1 ? Math.max(1, Math.floor(data.cap * unlike.length + 1e-9)) : data.cap * data.rows / data.of;
  const held = {};
  for (const i of unlike) {
    held[concept[i]] = (held[concept[i]] ?? 0) + 1;
    if (concept[i] && held[concept[i]] > cap) n.concept_full++;
    else {
      left++;
      if (least !== null && probability[i] >= Math.fround(least)) likely++;
    }
  }
  return {n, passed, left, likely};
}

function update() {
  const inputs = [...document.querySelectorAll("input[type=number][data-rule]")];
  const [shortest, longest] = [field("frames.min"), field("frames.max")];
  const sound = inputs.every(i => i.checkValidity()) && +shortest.value <= +longest.value;
  document.getElementById("would").hidden = !sound;
  document.getElementById("wrong").hidden = sound;
  document.getElementById("command").hidden = !sound;
  if (!sound) return;
  const scale = data.of / (data.rows || 1), count = field("select.count");
  const {n, passed, left, likely} = counted();
  if (least !== null) count.value = Math.round(likely * scale);
  const byFraction = count.value === "" && data.fraction !== null;
  const limit = byFraction ? Math.floor(data.fraction * passed * scale + 1e-9) : count.value === "" ? Infinity : +count.value;
  const kept = Math.min(Math.round(left * scale), limit);
  const dropped = {...n, not_selected: left - kept / scale};
  document.getElementById("would-keep").textContent = sampled ? `about ${words(kept)}` : words(kept);
  document.getElementById("would-drop").textContent = Object.entries(dropped)
    .map(([reason, m]) => [reason, Math.round(m * scale)]).filter(([, m]) => m).map(([reason, m]) => `${reason} ${words(m)}`).join(" · ");
  const chosen = inputs.map(i => `${i.dataset.rule}=${i.value === "" ? "null" : i.value}`);
  const fixed = byFraction ? data.fixed : data.fixed.replace(/select\.fraction=\S+/, "select.fraction=null");
  document.getElementById("command").textContent = [data.command, ...chosen, fixed].join(" ");
  for (const slider of document.querySelectorAll("input[type=range]")) draw(slider);
}

// A slider runs along its histogram's axis, in thousandths of it.
function draw(slider) {
  const {rule, low, high, log, left, right, side, shift} = slider.dataset;
  const value = rule === "probability" ? least ?? 0 : +field(rule).value + +shift;
  const at = ((+log ? Math.log10(value) : value) - low) / (high - low);
  const place = Math.min(Math.max(at, 0), 1), x = +left + place * (right - left);
  slider.value = 1000 * place;
  const svg = slider.closest("figure").querySelector("svg"), shade = svg.querySelector(`rect[data-rule="${rule}"]`);
  const end = +side < 0 ? +left - 10 : +right + 10;
  shade.setAttribute("x", Math.min(x, end));
  shade.setAttribute("width", Math.abs(end - x));
  const line = svg.querySelector(`line[data-rule="${rule}"]`);
  line.setAttribute("x1", x);
  line.setAttribute("x2", x);
  const text = svg.querySelector(`text[data-rule="${rule}"]`), shown = rule === "probability" ? value : field(rule).value;
  text.textContent = at < 0 ? `← ${rule} ${shown}` : at > 1 ? `${rule} ${shown} →` : `${rule} ${shown}`;
  text.setAttribute("x", at < 0.5 ? x + 3 : x - 3);
  text.setAttribute("text-anchor", at < 0.5 ? "start" : "end");
}

document.addEventListener("input", ({target}) => {
  const {rule, low, high, log, shift} = target.dataset;
  if (!rule) return;
  if (target.type === "range") {
    const at = +low + target.value / 1000 * (high - low) - (+log ? 0 : +shift);
    const value = +(+log ? 10 ** at : at).toPrecision(3);
    if (rule === "probability") least = value;
    else field(rule).value = +shift ? Math.round(value) : value;
  } else if (rule === "select.count") least = null;
  update();
});
document.getElementById("reset").addEventListener("click", () => {
  least = null;
  for (const [name, value] of Object.entries(data.settings)) field(name).value = value ?? "";
  update();
});
if (sampled) document.getElementById("sampled").textContent = `estimated from ${words(data.rows)} of ${words(data.of)} scenes`;
document.getElementById("whatif").hidden = false;
for (const dial of document.querySelectorAll(".dial")) dial.hidden = false;
document.getElementById("reset").click();
