// Counts what `select` would keep at other thresholds: the rules in their order, over rows that come best first.
"use strict";
const data = JSON.parse(document.getElementById("rows").textContent);
const read = (name, kind) => new kind(Uint8Array.from(atob(data.columns[name]), c => c.charCodeAt(0)).buffer);
const frames = read("frames", Uint16Array), velocity = read("velocity", Float32Array);
const length = read("length", Uint16Array), frozen = read("frozen", Uint8Array);
const difference = read("difference", Float32Array), probability = read("probability", Float32Array);
const tried = read("tried", Uint8Array); // of which rows there are values of columns without a rule; empty: of all
const gaps = read("gaps", Uint8Array);
const rules = data.rules.map(rule => ({...rule, values: read(rule.key, rule.kind === "flag" ? Uint8Array : Float32Array)}));
const span = read("span", Uint32Array), group = read("group", Uint32Array); // empty where no rows share one
const concept = read("concept", Uint32Array); // the same
const marks = numbers => new Uint8Array(numbers.reduce((a, b) => Math.max(a, b), 0) + 1);
const spans = marks(span), groups = marks(group);
const taken = (marks, number) => Boolean(number) && (marks[number] === 1 || !(marks[number] = 1));
const field = name => document.querySelector(`input[type=number][data-rule="${name}"]`);
const bound = (rule, name) => field(`select.rules.${rule.name}.${name}`)?.value ?? "";
const words = n => n.toLocaleString("en-US");
let least = null; // a probability, where the number to keep follows from one

function counted() {
  const [shortest, longest, slowest, largest] =
    ["frames.min", "frames.max", "select.min_velocity", "select.max_rgb_diff"].map(name => Math.fround(field(name).value));
  const n = {frozen: 0, too_short: 0, too_long: 0, unmeasured: 0, static: 0, cut_inside: 0};
  const active = [];
  for (const rule of rules) {
    const [low, high] = [bound(rule, "min"), bound(rule, "max")];
    if (rule.kind !== "flag" && low === "" && high === "") continue;
    active.push({...rule, low: low === "" ? -Infinity : Math.fround(low), high: high === "" ? Infinity : Math.fround(high)});
    n[rule.name] = 0;
  }
  Object.assign(n, {near_duplicate: 0, same_span: 0, concept_full: 0});
  const fewer = tried.length && active.some(rule => rule.kind === "trial");
  const unlike = [];
  let rows = 0, passed = 0, left = 0, likely = 0, at = -1;
  spans.fill(0);
  groups.fill(0);
  for (let i = 0; i < data.rows; i++) {
    if (!tried.length || tried[i]) at++;
    else if (fewer) continue;
    rows++;
    if (frozen[i]) n.frozen++;
    else if (frames[i] < shortest) n.too_short++;
    else if (length[i] > longest) n.too_long++;
    else if (Number.isNaN(velocity[i])) n.unmeasured++;
    else if (velocity[i] < slowest) n.static++;
    else if (difference[i] > largest) n.cut_inside++;
    else {
      const reason = broken(active, i, at) || (gaps[i] ? "unmeasured" : "");
      if (reason) {
        n[reason]++;
        continue;
      }
      passed++;
      if (taken(groups, group[i])) n.near_duplicate++;
      else if (taken(spans, span[i])) n.same_span++;
      else unlike.push(i);
    }
  }
  const cap = data.cap < 1 ? Math.max(1, Math.floor(data.cap * unlike.length + 1e-9)) : data.cap * rows / data.of;
  const held = {};
  for (const i of unlike) {
    held[concept[i]] = (held[concept[i]] ?? 0) + 1;
    if (concept[i] && held[concept[i]] > cap) n.concept_full++;
    else {
      left++;
      if (least !== null && probability[i] >= Math.fround(least)) likely++;
    }
  }
  return {n, rows, passed, left, likely};
}

// The reason for which rules on columns drop row i, which is row `at` of those that were tried; "" where none does.
function broken(active, i, at) {
  for (const rule of active) {
    const value = rule.values[rule.kind === "trial" ? at : i];
    if (rule.kind === "flag" ? value === 2 : Number.isNaN(value)) return "unmeasured";
    if (rule.kind === "flag" ? value : value < rule.low || value > rule.high) return rule.name;
  }
  return "";
}

function update() {
  const inputs = [...document.querySelectorAll("input[type=number][data-rule]")];
  const [shortest, longest] = [field("frames.min"), field("frames.max")];
  const ordered = rule => bound(rule, "min") === "" || bound(rule, "max") === "" || +bound(rule, "min") <= +bound(rule, "max");
  const sound = inputs.every(i => i.checkValidity()) && +shortest.value <= +longest.value && rules.every(ordered);
  document.getElementById("would").hidden = !sound;
  document.getElementById("wrong").hidden = sound;
  document.getElementById("command").hidden = !sound;
  if (!sound) return;
  const {n, rows, passed, left, likely} = counted();
  const scale = data.of / (rows || 1), count = field("select.count"), sampled = rows < data.of;
  document.getElementById("sampled").textContent = sampled ? `estimated from ${words(rows)} of ${words(data.of)} scenes` : "";
  if (least !== null) count.value = Math.round(likely * scale);
  const byFraction = count.value === "" && data.fraction !== null;
  const limit = byFraction ? Math.floor(data.fraction * passed * scale + 1e-9) : count.value === "" ? Infinity : +count.value;
  const kept = Math.min(Math.round(left * scale), limit);
  const dropped = {...n, not_selected: left - kept / scale};
  document.getElementById("would-keep").textContent = sampled ? `about ${words(kept)}` : words(kept);
  document.getElementById("would-drop").textContent = Object.entries(dropped)
    .map(([reason, m]) => [reason, Math.round(m * scale)]).filter(([, m]) => m).map(([reason, m]) => `${reason} ${words(m)}`).join(" · ");
  // Rules on columns are all there as they were; what is changed of them goes over that.
  const changed = i => !("optional" in i.dataset) || i.value !== String(data.settings[i.dataset.rule] ?? "");
  const chosen = inputs.filter(changed).map(i => `${i.dataset.rule}=${i.value === "" ? "null" : i.value}`);
  const fixed = byFraction ? data.fixed : data.fixed.replace(/select\.fraction=\S+/, "select.fraction=null");
  document.getElementById("command").textContent = [data.command, data.ruled, ...chosen, fixed].filter(Boolean).join(" ");
  for (const slider of document.querySelectorAll("input[type=range]")) draw(slider);
}

// A slider runs along its histogram's axis, in thousandths of it.
function draw(slider) {
  const {rule, low, high, log, left, right, side, shift} = slider.dataset;
  const off = rule !== "probability" && field(rule).value === "";
  const value = rule === "probability" ? least ?? 0 : +field(rule).value + +shift;
  const at = ((+log ? Math.log10(value) : value) - low) / (high - low);
  const place = Math.min(Math.max(at, 0), 1), x = +left + place * (right - left);
  slider.value = 1000 * place;
  const svg = slider.closest("figure").querySelector("svg"), shade = svg.querySelector(`rect[data-rule="${rule}"]`);
  const end = +side < 0 ? +left - 10 : +right + 10;
  shade.setAttribute("x", Math.min(x, end));
  shade.setAttribute("width", off ? 0 : Math.abs(end - x));
  const line = svg.querySelector(`line[data-rule="${rule}"]`);
  line.setAttribute("x1", x);
  line.setAttribute("x2", x);
  const text = svg.querySelector(`text[data-rule="${rule}"]`), shown = rule === "probability" ? value : field(rule).value;
  line.setAttribute("visibility", off ? "hidden" : "visible");
  text.textContent = off ? `${rule} off` : at < 0 ? `← ${rule} ${shown}` : at > 1 ? `${rule} ${shown} →` : `${rule} ${shown}`;
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
  for (const input of document.querySelectorAll("input[type=number][data-rule]"))
    input.value = data.settings[input.dataset.rule] ?? "";
  update();
});
document.getElementById("whatif").hidden = false;
for (const dial of document.querySelectorAll(".dial")) dial.hidden = false;
document.getElementById("reset").click();
