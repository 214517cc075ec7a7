// The dashboard: one feed in, drawings out, and a chat beside them. No dependencies, nothing from elsewhere.
// Whatever comes from the server enters the page through textContent.
"use strict";

const $ = (id) => document.getElementById(id);
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const count = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

function el(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function svg(tag, attributes = {}, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

function set(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Three significant figures, no unit.
function short(value) {
  if (value === 0) return "0";
  if (value >= 100) return count.format(value);
  return value >= 10 ? value.toFixed(1) : value.toFixed(2);
}

function milliseconds(value) {
  return value >= 10000 ? `${short(value / 1000)} s` : `${short(value)} ms`;
}

// -- the key: this tab's memory only --------------------------------------------------------------------------

const key = {
  get: () => sessionStorage.getItem("mortice.key") || "",
  set(value) {
    if (value) sessionStorage.setItem("mortice.key", value);
    else sessionStorage.removeItem("mortice.key");
    $("key").value = value;
  },
  headers: () => (key.get() ? { authorization: `Bearer ${key.get()}` } : {}),
};

// -- the feed -------------------------------------------------------------------------------------------------

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function refusal(response) {
  const body = await response.json().catch(() => ({}));
  return new Refused(response.status, body.error?.message || `the server answered ${response.status}`);
}

// Yields {event, data} of a stream of server-sent events. EventSource could not send the token.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const event = { event: "message", data: "" };
      for (const line of part.split("\n")) {
        const colon = line.indexOf(": ");
        if (colon > 0) event[line.slice(0, colon)] = line.slice(colon + 2);
      }
      if (event.data) yield event;
    }
  }
}

let feedAbort = null;
let hurry = () => {}; // ends the wait before the next try

async function watch() {
  for (let wait = 500; ; wait = Math.min(wait * 2, 8000)) {
    feedAbort = new AbortController();
    try {
      const response = await fetch("admin/feed", { headers: key.headers(), signal: feedAbort.signal });
      if (!response.ok) throw await refusal(response);
      $("locked").hidden = true;
      flow.forget();
      latencies.length = 0;
      roles.forget();
      for await (const { event, data } of events(response)) {
        wait = 500;
        if (event === "overview") show(JSON.parse(data));
        else if (event === "happening") flow.happen(JSON.parse(data));
      }
      say("bad", "Connection lost");
    } catch (error) {
      if (error.name === "AbortError") wait = 250;
      else if (error.status === 401) lock(error.message);
      else say("bad", error instanceof Refused ? error.message : "Cannot reach the server");
    }
    document.body.classList.add("stale");
    await new Promise((resolve) => {
      hurry = resolve;
      setTimeout(resolve, wait);
    });
  }
}

function lock(message) {
  say("bad", "Locked");
  set($("locked-why"), message);
  $("locked").hidden = false;
}

function say(className, text) {
  $("link").className = `link ${className}`;
  set($("link-text"), text);
}

// -- the numbers ----------------------------------------------------------------------------------------------

const rates = []; // tokens/s of the last minute
const latencies = []; // [ttft ms, tpot ms or null] of the last requests
const KEEP = 512;

function more(pages) {
  if ($("pages").childElementCount === pages.length) return;
  $("pages").replaceChildren(
    ...pages.map(([title, path]) => {
      const link = document.createElement("a");
      link.href = path.replace(/^\//, "");
      link.textContent = title;
      return link;
    }),
  );
}

function show(overview) {
  document.body.classList.remove("stale");
  const { workers } = overview;
  const ready = overview.state === "ready";
  say(ready ? "ok" : "bad", ready ? `Up ${duration(overview.uptime_s)}` : overview.state);
  set($("model"), overview.model);
  more(overview.pages);
  model = overview.model;
  const num = (role) => workers.filter((worker) => worker.role === role).length;
  const undivided = num("mixed") ? ` + ${num("mixed")} undivided` : "";
  const versions = [...new Set(workers.filter((w) => w.state !== "dead" && w.blocks).map((w) => w.weight_version))];
  const split = num("prefill") ? `${num("prefill")} prefill + ${num("decode")} decode` : `${num("decode") + num("mixed")} colocated`;
  set($("shape"), `${split}${num("prefill") ? undivided : ""}, weights v${versions.join(" and v") || "?"}`);

  rates.push(overview.tokens_per_s);
  if (rates.length > 120) rates.shift();
  set($("rate"), short(overview.tokens_per_s));
  drawSpark();
  set($("inflight"), count.format(overview.num_in_flight));
  const blocks = workers.reduce((sum, worker) => sum + worker.blocks, 0);
  const free = workers.reduce((sum, worker) => sum + worker.free_blocks, 0);
  set($("kv"), blocks ? percent((blocks - free) / blocks) : "–");
  set($("finished"), count.format(overview.num_finished));
  set($("n-done"), count.format(overview.num_finished));
  set($("failed"), overview.num_failed ? `${count.format(overview.num_failed)} failed or stopped` : "");

  latencies.push(...overview.latencies);
  latencies.splice(0, latencies.length - KEEP);
  charts.suit(overview.roles);
  if (overview.latencies.length || !charts.drawn) charts.draw();
  flow.workers(workers);
  roles.show(overview.roles);
  flow.reconcile(overview.flights);
  const asked = overview.num_finished + overview.num_failed + overview.num_in_flight;
  $("empty").hidden = asked > 0;
  set($("curl"), curl());
}

let model = "";

function curl() {
  const body = JSON.stringify({ model, messages: [{ role: "user", content: "Hello" }], stream: true });
  const auth = key.get() ? ' -H "Authorization: Bearer $KEY"' : "";
  return `curl -N ${new URL("v1/chat/completions", location.href)} -H "Content-Type: application/json"${auth} -d '${body.replaceAll("'", "'\\''")}'`;
}

function percent(fraction) {
  const value = fraction * 100;
  return value > 0 && value < 10 ? value.toFixed(1) : count.format(Math.floor(value));
}

function duration(seconds) {
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  const hours = Math.floor(seconds / 3600);
  return hours < 48 ? `${hours} h ${Math.floor((seconds % 3600) / 60)} min` : `${Math.floor(hours / 24)} days`;
}

function drawSpark() {
  const box = $("spark");
  const { width, height } = box.getBoundingClientRect();
  if (!width) return;
  const top = Math.max(...rates, 1);
  const points = rates.map((rate, i) => {
    const x = width - ((rates.length - 1 - i) * width) / 119;
    return `${x.toFixed(1)},${(height - 2 - (rate / top) * (height - 6)).toFixed(1)}`;
  });
  const left = points[0].split(",")[0];
  box.replaceChildren(
    svg("line", { class: "axis", x1: 0, x2: width, y1: height - 1, y2: height - 1 }),
    svg("path", { class: "spark-area", d: `M${left},${height}L${points.join("L")}L${width},${height}Z` }),
    svg("path", { class: "spark-line", d: `M${points.join("L")}` }),
  );
}

// -- TTFT and TPOT against their targets ----------------------------------------------------------------------

const charts = {
  drawn: false,
  of: {},

  make() {
    this.of.ttft = this.one("ttft", "TTFT", "time to first token", 0, 500);
    this.of.tpot = this.one("tpot", "TPOT", "time per output token", 1, 50);
    new ResizeObserver(() => this.draw()).observe($("ttft"));
  },

  one(id, name, words, column, fallback) {
    const chart = { id, name, column, box: svg("svg", { role: "img" }), met: el("b"), rest: el("span"), quantiles: el("span", "q") };
    const stored = Number(localStorage.getItem(`mortice.slo.${id}`));
    chart.target = stored > 0 ? stored : fallback;
    const head = el("div", "head");
    const title = el("h2", "", `${name} `);
    title.id = `${id}-title`;
    title.append(el("span", "", words));
    const label = el("label", "slo", "Target ");
    const input = el("input");
    Object.assign(input, { type: "number", id: `${id}-slo`, min: "0.1", step: "any", value: chart.target });
    input.setAttribute("aria-label", `${name} target in milliseconds`);
    chart.input = input;
    input.addEventListener("input", () => {
      const value = Number(input.value);
      if (!(value > 0)) return;
      chart.target = value;
      localStorage.setItem(`mortice.slo.${id}`, value);
      this.draw();
    });
    label.append(input, " ms");
    head.append(title, label);
    const met = el("div", "met");
    chart.rest.title = `Of the last requests that ended well, ${KEEP} at most`;
    met.append(chart.met, chart.rest, chart.quantiles);
    $(id).append(head, met, chart.box);
    return chart;
  },

  /** What the server's policy works for is the target, until somebody here sets another. */
  suit(limits) {
    for (const [id, chart] of Object.entries(this.of)) {
      const limit = limits[`${id}_ms`];
      if (!limit || limit === chart.target || localStorage.getItem(`mortice.slo.${id}`)) continue;
      chart.target = limit;
      chart.input.value = limit;
      this.drawn = false;
    }
  },

  draw() {
    this.drawn = true;
    for (const chart of Object.values(this.of)) this.drawOne(chart);
    const { ttft, tpot } = this.of;
    const both = latencies.filter(([a, b]) => a <= ttft.target && (b === null || b <= tpot.target)).length;
    set($("both"), latencies.length ? percent(both / latencies.length) : "–");
  },

  drawOne(chart) {
    const { width, height } = chart.box.getBoundingClientRect();
    if (!width) return;
    const values = latencies.map((pair) => pair[chart.column]).filter((v) => v !== null).sort((a, b) => a - b);
    const quantile = (q) => values[Math.min(values.length - 1, Math.ceil(q * values.length) - 1)];
    const met = values.filter((value) => value <= chart.target).length;
    set(chart.met, values.length ? `${percent(met / values.length)} %` : "–");
    set(chart.rest, values.length ? `of ${count.format(values.length)} in time` : "");
    chart.quantiles.replaceChildren();
    for (const q of values.length ? [0.5, 0.95, 0.99] : []) {
      const item = el("span", "", `p${q * 100} `);
      item.append(el("i", "", short(quantile(q))));
      chart.quantiles.append(item);
    }
    if (values.length) chart.quantiles.append("ms");

    const plot = { left: 34, right: width - 4, top: 14, bottom: height - 18 };
    const far = Math.max(chart.target * 1.35, values.length ? quantile(0.99) * 1.12 : 0);
    const x = (value) => plot.left + (Math.min(value, far) / far) * (plot.right - plot.left);
    const y = (fraction) => plot.bottom - fraction * (plot.bottom - plot.top);
    const parts = [];
    for (const fraction of [0, 0.5, 1]) {
      parts.push(svg("line", { class: "axis", x1: plot.left, x2: plot.right, y1: y(fraction), y2: y(fraction) }));
      parts.push(svg("text", { class: "tick", x: plot.left - 6, y: y(fraction) + 4, "text-anchor": "end" }, `${fraction * 100}%`));
    }
    for (const tick of ticks(far, 4)) {
      const unit = tick === 0 ? "0" : milliseconds(tick).replace(/\.0+(?= )/, "");
      parts.push(svg("text", { class: "tick", x: x(tick), y: height - 3, "text-anchor": tick ? "middle" : "start" }, unit));
    }
    if (values.length) {
      const before = steps(values, 0, chart.target, x, y);
      const after = steps(values, chart.target, far, x, y);
      const close = (d, from, to) => `${d}L${to},${plot.bottom}L${from},${plot.bottom}Z`;
      parts.unshift(
        svg("path", { class: "under", d: close(before, x(0), x(chart.target)) }),
        svg("path", { class: "over", d: close(after, x(chart.target), x(far)) }),
      );
      parts.push(svg("path", { class: "curve", d: steps(values, 0, far, x, y) }));
    } else {
      parts.push(svg("text", { class: "none", x: plot.left + 10, y: y(0.5) - 10 }, "No answers yet"));
    }
    const at = x(chart.target);
    const late = at > plot.right - 60;
    parts.push(
      svg("line", { class: "target", x1: at, x2: at, y1: plot.top - 4, y2: plot.bottom }),
      svg("text", { class: "target-name", x: at + (late ? -5 : 5), y: plot.top - 3, "text-anchor": late ? "end" : "start" }, "target"),
    );
    chart.box.setAttribute("aria-label", `Share of requests by ${chart.name}, up to ${milliseconds(far)}`);
    chart.box.replaceChildren(...parts);
  },
};

// The empirical distribution function of sorted values between two places, as a path of steps.
function steps(values, from, to, x, y) {
  let below = values.findIndex((value) => value > from);
  if (below < 0) below = values.length;
  let d = `M${x(from)},${y(below / values.length)}`;
  for (; below < values.length && values[below] <= to; below += 1) {
    d += `H${x(values[below]).toFixed(1)}V${y((below + 1) / values.length).toFixed(1)}`;
  }
  return `${d}H${x(to)}`;
}

function ticks(far, wanted) {
  const rough = far / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough) * power;
  return Array.from({ length: Math.floor((far * 0.97) / step) + 1 }, (_, i) => i * step);
}

// -- roles: who wears what, what load is expected, what was decided and why -----------------------------------------

const KEEP_TURNS = 120;
const DECISIONS = 5;

const roles = {
  turns: [],

  forget() {
    this.turns.length = 0;
  },

  show(state) {
    this.turns.push(...state.turns);
    this.turns.splice(0, this.turns.length - KEEP_TURNS);
    const { division, policy } = state;
    const last = this.turns.at(-1);
    const names = { static: "static: roles stay as they are", reactive: "reactive thresholds", dopd: "DOPD's ratio", mortice: "mortice: the division that carries most" };
    set($("policy"), names[policy] || policy);
    const total = division.prefill + division.decode + division.mixed;
    for (const role of ["prefill", "mixed", "decode"]) {
      const bar = $(`share-${role}`);
      bar.style.flexGrow = division[role];
      bar.hidden = !division[role];
      set(bar, total ? String(division[role]) : "");
    }
    set($("ratio"), ratio(division));
    const asked = last && ratio(last.wanted) !== ratio(division) ? `wanted ${ratio(last.wanted)}` : "";
    const moving = [asked, state.starting ? `${state.starting} starting` : "", state.draining ? `${state.draining} draining` : ""];
    set($("moving"), moving.filter(Boolean).join(", "));
    if (!state.turns.length && this.drawn) return;
    this.drawn = true;
    this.drawLoad();
    this.tell(last);
  },

  // Arrivals of each turn, and what the forecast was ready for.
  drawLoad() {
    const box = $("load");
    const { width, height } = box.getBoundingClientRect();
    if (!width) return;
    const { turns } = this;
    const plot = { left: 34, right: width - 4, top: 8, bottom: height - 18 };
    const expected = turns.filter((turn) => turn.expected_rate !== null);
    const far = Math.max(0.1, ...turns.map((turn) => turn.rate), ...expected.map((turn) => turn.expected_rate)) * 1.1;
    const x = (i) => plot.right - ((turns.length - 1 - i) * (plot.right - plot.left)) / Math.max(20, turns.length - 1);
    const y = (rate) => plot.bottom - (rate / far) * (plot.bottom - plot.top);
    const parts = [];
    for (const tick of ticks(far, 2)) {
      parts.push(svg("line", { class: "axis", x1: plot.left, x2: plot.right, y1: y(tick), y2: y(tick) }));
      parts.push(svg("text", { class: "tick", x: plot.left - 6, y: y(tick) + 4, "text-anchor": "end" }, short(tick)));
    }
    turns.forEach((turn, i) => {
      if (turn.actions.length) parts.push(svg("line", { class: "changed", x1: x(i), x2: x(i), y1: plot.top, y2: plot.bottom }));
    });
    const line = (of) => turns.flatMap((turn, i) => (of(turn) === null ? [] : [`${x(i).toFixed(1)},${y(of(turn)).toFixed(1)}`])).join("L");
    if (turns.length) parts.push(svg("path", { class: "rate", d: `M${line((turn) => turn.rate)}` }));
    if (expected.length) parts.push(svg("path", { class: "expected", d: `M${line((turn) => turn.expected_rate)}` }));
    if (turns.length > 1) {
      const ago = turns.at(-1).t_s - turns[0].t_s;
      parts.push(svg("text", { class: "tick", x: x(0), y: height - 3 }, `${duration(Math.round(ago))} ago`));
    } else parts.push(svg("text", { class: "none", x: plot.left + 10, y: y(far / 2) }, "The first turn of the control loop is still to come"));
    box.setAttribute("aria-label", `Requests a second, ${turns.length} turns of the control loop`);
    box.replaceChildren(...parts);
  },

  // The last turns that changed something or changed their reason.
  tell(last) {
    const told = [];
    for (const turn of [...this.turns].reverse()) {
      const before = told.at(-1);
      if (before && !turn.actions.length && !before.actions.length && words(before.reason) === words(turn.reason)) continue;
      told.push(turn);
      if (told.length === DECISIONS) break;
    }
    $("decisions").replaceChildren(
      ...told.map((turn) => {
        const item = el("li", turn.actions.length ? "did" : "");
        const age = Math.round(last.t_s - turn.t_s);
        item.append(el("span", "age", age ? `${duration(age)} before` : "last turn"));
        item.append(el("b", "", turn.actions.length ? turn.actions.join(", ") : `${ratio(turn.now)} stays`));
        item.append(el("span", "why", turn.reason));
        if (ratio(turn.other) !== ratio(turn.wanted)) item.append(el("span", "other", `next best ${ratio(turn.other)}`));
        for (const doubt of turn.distrusted) item.append(el("span", "other", `not believed: ${doubt}`));
        return item;
      }),
    );
    $("no-decisions").hidden = told.length > 0;
  },
};

const words = (reason) => reason.replace(/[\d.]+/g, "");

// "2P : 3D", "4 undivided", "1P : 2D + 1 undivided"
function ratio({ prefill, decode, mixed }) {
  const cut = prefill || decode ? `${prefill}P : ${decode}D` : "";
  return [cut, mixed ? `${mixed} undivided` : ""].filter(Boolean).join(" + ") || "nobody";
}

// -- the flow: queue, prefill, decode, done -------------------------------------------------------------------

const LEG_MS = 520; // a mark takes so long from node to node, less if more of its way is already known
const SLOT = 13; // pixels between marks in a tray
const FORGET_MS = 1500; // a mark the server no longer knows is taken away after this

const flow = {
  nodes: {}, // by place: {box, tray, more, marks, role, ...}; queue and done too
  marks: new Map(), // by request id
  wires: new Map(), // "from>to" -> path
  frame: 0,

  make() {
    for (const name of ["queue", "done"]) this.nodes[name] = this.node(name, $(`node-${name}`), name);
    new ResizeObserver(() => this.layout()).observe($("stage"));
    document.addEventListener("visibilitychange", () => this.move());
  },

  node(place, box, role) {
    return { place, box, role, tray: box.querySelector(".tray"), more: box.querySelector(".more"), marks: [], seat: null };
  },

  // What the workers are, twice a second.
  workers(list) {
    const colocated = !list.some((worker) => worker.role === "prefill");
    $("stage").classList.toggle("colocated", colocated);
    $("lane-prefill").hidden = colocated;
    document.querySelector(".legend .k-kv").hidden = colocated;
    set($("lane-decode").firstElementChild, colocated ? "Prefill and decode, colocated" : "Decode");
    const lanes = { prefill: 0, decode: 0 };
    let changed = false;
    for (const worker of list) {
      lanes[laneOf(worker.role)] += 1;
      const known = this.nodes[worker.place];
      if (!known) this.addWorker(worker);
      else if (known.coat !== worker.role) this.wear(known, worker.role);
      changed ||= !known || known.coat !== worker.role || known.fresh;
      this.nodes[worker.place].fresh = false;
      this.drawWorker(this.nodes[worker.place], worker);
    }
    const places = new Set(list.map((worker) => worker.place));
    for (const [place, node] of Object.entries(this.nodes)) {
      if (node.load && !places.has(place)) {
        this.removeNode(place);
        changed = true;
      }
    }
    $("stage").classList.toggle("many", Math.max(lanes.prefill, lanes.decode) > 3);
    if (changed) this.layout();
  },

  addWorker({ place, role }) {
    const box = el("div", `node worker ${role}`);
    const name = el("div", "name");
    const parts = { life: el("span"), state: el("em"), load: el("span"), blocks: el("span"), used: el("i", "used"), leased: el("i", "leased") };
    name.append(el("b", "", place), parts.life, parts.state);
    const load = el("div", "load");
    load.append(parts.load, parts.blocks);
    const meter = el("div", "meter");
    meter.append(parts.used, parts.leased);
    box.append(name, el("div", "tray"), el("span", "more"), load, meter);
    $(`lane-${laneOf(role)}`).append(box);
    this.nodes[place] = Object.assign(this.node(place, box, laneOf(role)), parts, { coat: role });
  },

  // A worker changed its role: the box moves to the other lane, and what it has stays with it.
  wear(node, role) {
    node.box.classList.replace(node.coat, role);
    Object.assign(node, { coat: role, role: laneOf(role), fresh: true });
    $(`lane-${node.role}`).append(node.box);
    $(`lane-${node.role}`).hidden = false;
    this.flash(node, "worn");
  },

  removeNode(place) {
    const node = this.nodes[place];
    for (const mark of [...node.marks]) this.put(mark, "queue");
    node.box.remove();
    delete this.nodes[place];
  },

  drawWorker(node, worker) {
    const before = node.box.dataset.state;
    node.box.dataset.state = worker.state;
    node.worker = worker;
    if (before === "running" && (worker.state === "starting" || worker.state === "dead")) this.died(node);
    if ((before === "starting" || before === "dead") && worker.state === "running") this.flash(node, "born");
    const life = Number(worker.id.slice(worker.place.length + 1));
    const words = [worker.role === "mixed" ? "undivided" : "", worker.host, life > 1 ? `life ${life}` : ""];
    set(node.life, words.filter(Boolean).join(", "));
    set(node.state, worker.state === "running" ? (worker.pid ? `pid ${worker.pid}` : "") : worker.state);
    const load = [`${count.format(worker.running)} running`];
    if (worker.waiting) load.push(`${count.format(worker.waiting)} waiting`);
    if (worker.pulling) load.push(`${count.format(worker.pulling)} fetching KV`);
    set(node.load, load.join(", "));
    const used = worker.blocks - worker.free_blocks;
    const leased = Math.min(worker.leased_blocks, used);
    set(node.blocks, worker.blocks ? `KV ${percent(used / worker.blocks)} %` : "");
    node.blocks.title = `${count.format(used)} of ${count.format(worker.blocks)} blocks in use, ${count.format(leased)} of them leased to a reader`;
    node.used.style.width = worker.blocks ? `${((used - leased) / worker.blocks) * 100}%` : "0";
    node.leased.style.width = worker.blocks ? `${(leased / worker.blocks) * 100}%` : "0";
  },

  died(node) {
    this.flash(node, "died");
    for (const mark of [...node.marks]) this.put(mark, "queue"); // they wait for another worker
  },

  flash(node, className) {
    node.box.classList.remove("born", "died", "worn");
    void node.box.offsetWidth; // so that the animation begins again
    node.box.classList.add(className);
  },

  // Something happened in the cluster.
  happen({ kind, request_id: id, worker_id: worker, peer_id: peer, num_tokens: tokens, detail }) {
    const place = placeOf(worker);
    if (kind === "worker") {
      const node = this.nodes[place];
      if (node && detail.startsWith("ended")) {
        node.box.dataset.state = "dead";
        set(node.state, detail);
        this.died(node);
      }
      return;
    }
    if (kind === "role") {
      const node = this.nodes[place], role = detail.split(" to ")[1];
      if (node && node.coat !== role && ["prefill", "decode", "mixed"].includes(role)) {
        this.wear(node, role);
        this.layout();
      }
      return;
    }
    if (!id) return;
    if (kind === "finish" || kind === "abort" || kind === "error") {
      const mark = this.marks.get(id);
      if (mark) this.end(mark, kind === "finish");
      return;
    }
    const mark = this.marks.get(id) || this.add(id);
    if (kind === "queued") mark.el.setAttribute("r", radius(tokens));
    else if (kind === "handoff") this.put(mark, placeOf(peer), "decode", true);
    else if (kind === "route") this.put(mark, place, "prefill");
    else if (kind === "prefill" && mark.stage !== "decode") this.put(mark, place, "prefill");
    else if (kind === "decode") this.put(mark, place, "decode");
  },

  // What the server says is in flight: marks for what was not seen coming, none for what is gone.
  reconcile(flights) {
    const now = performance.now();
    const known = new Map(flights);
    for (const mark of this.marks.values()) {
      if (known.has(mark.id)) mark.seen = now;
      else if (!mark.ending && now - mark.seen > FORGET_MS) this.end(mark, true);
    }
    for (const [id, stage] of flights) {
      let mark = this.marks.get(id);
      if (!mark) {
        mark = this.add(id);
        const node = this.roomiest(stage);
        if (node) this.put(mark, node.place, stage === "decode" ? "decode" : "prefill");
      } else if (stage === "decode" && mark.stage === "prefill" && this.nodes[mark.goal]?.role === "decode") {
        this.stage(mark, "decode"); // prompt computed where it decodes
      }
    }
    set($("n-queue"), count.format(this.nodes.queue.marks.length));
  },

  // Where a request that was not seen coming must be: with the worker whose own count is most above ours.
  roomiest(stage) {
    const role = stage === "decode" || $("lane-prefill").hidden ? "decode" : "prefill";
    const spare = (node) => node.worker.running + node.worker.pulling - node.marks.length;
    const nodes = Object.values(this.nodes).filter((node) => node.worker && node.role === role);
    const best = nodes.reduce((a, b) => (a && spare(a) >= spare(b) ? a : b), null);
    return best && (stage === "decode" || spare(best) > 0) ? best : null;
  },

  add(id) {
    const circle = svg("circle", { class: "mark", r: 4.5 });
    $("marks").append(circle);
    const mark = { id, el: circle, stage: "", goal: "queue", node: "queue", way: [], leg: null, seen: performance.now(), ending: null, x: 0, y: 0 };
    this.marks.set(id, mark);
    this.nodes.queue.marks.push(mark);
    this.seat(mark);
    const seat = mark.seat;
    Object.assign(mark, { x: seat.x, y: seat.y });
    this.move();
    return mark;
  },

  stage(mark, stage) {
    mark.stage = stage;
    mark.el.setAttribute("class", `mark ${stage}`);
  },

  // Send a mark to a node; it gets there when the legs before are done.
  put(mark, place, stage = "", withBlocks = false) {
    if (mark.ending || !this.nodes[place]) return;
    mark.seen = performance.now();
    if (mark.goal === place) {
      if (!mark.way.length && !mark.leg) this.stage(mark, stage);
      else if (mark.way.length) mark.way.at(-1).stage = stage;
      return;
    }
    mark.goal = place;
    mark.way.push({ place, stage, withBlocks });
    this.move();
  },

  end(mark, well) {
    if (mark.ending) return;
    mark.ending = { well, at: 0 };
    if (well) {
      mark.goal = "done";
      mark.way.push({ place: "done", stage: "decode", withBlocks: false });
    }
    this.move();
  },

  drop(mark) {
    this.leave(mark);
    this.marks.delete(mark.id);
    mark.el.remove();
    mark.leg?.blocks.forEach((block) => block.remove());
  },

  leave(mark) {
    const node = this.nodes[mark.node];
    const at = node ? node.marks.indexOf(mark) : -1;
    if (at >= 0) {
      node.marks.splice(at, 1);
      for (const other of node.marks.slice(at)) this.seat(other);
      this.more(node);
    }
  },

  // Give a mark its place in the tray of its node.
  seat(mark) {
    const node = this.nodes[mark.node];
    const area = node.area || { x: 0, y: 0, width: SLOT, height: SLOT };
    const columns = Math.max(1, Math.floor(area.width / SLOT));
    const rows = Math.max(1, Math.floor(area.height / SLOT));
    const index = node.marks.indexOf(mark);
    const shown = Math.min(index, columns * rows - 1);
    mark.hidden = index >= columns * rows;
    node.room = columns * rows;
    mark.seat = { x: area.x + ((shown % columns) + 0.5) * SLOT, y: area.y + (Math.floor(shown / columns) + 0.5) * SLOT };
    this.more(node);
  },

  more(node) {
    if (node.more) set(node.more, node.marks.length > node.room ? `+${count.format(node.marks.length - node.room)}` : "");
  },

  layout() {
    const origin = $("stage").getBoundingClientRect();
    const area = (box) => {
      const rect = box.getBoundingClientRect();
      return { x: rect.left - origin.left, y: rect.top - origin.top, width: rect.width, height: rect.height };
    };
    for (const node of Object.values(this.nodes)) {
      node.frame = area(node.box);
      node.area = area(node.tray);
      node.marks.forEach((mark) => this.seat(mark));
    }
    this.across = this.nodes.done.frame.x > this.nodes.queue.frame.x + 40;
    this.drawWires();
    for (const mark of this.marks.values()) if (!mark.leg) Object.assign(mark, { x: mark.seat.x, y: mark.seat.y });
    this.move();
  },

  drawWires() {
    this.wires.clear();
    const of = (role) => Object.values(this.nodes).filter((node) => node.role === role);
    const { queue, done } = this.nodes;
    const prefill = of("prefill");
    for (const node of of("decode")) {
      this.wire(node, done);
      for (const from of prefill) this.wire(from, node);
      this.wire(queue, node, prefill.length > 0);
    }
    for (const node of prefill) {
      this.wire(queue, node);
      this.wire(node, done, true); // answers of one token
    }
    $("wires").replaceChildren(...[...this.wires.values()].map((wire) => wire.el));
  },

  // `spare`: a way that is taken seldom, drawn only while it is; it passes beside the lane between.
  wire(from, to, spare = false) {
    const a = from.frame, b = to.frame;
    const out = this.across ? { x: a.x + a.width, y: a.y + a.height / 2 } : { x: a.x + a.width / 2, y: a.y + a.height };
    const into = this.across ? { x: b.x, y: b.y + b.height / 2 } : { x: b.x + b.width / 2, y: b.y };
    const half = this.across ? (into.x - out.x) / 2 : (into.y - out.y) / 2;
    let c1 = this.across ? { x: out.x + half, y: out.y } : { x: out.x, y: out.y + half };
    let c2 = this.across ? { x: into.x - half, y: into.y } : { x: into.x, y: into.y - half };
    if (spare) {
      const low = Math.max(...Object.values(this.nodes).map((node) => node.frame.y + node.frame.height)) + 26;
      const wide = Math.max(a.x + a.width, b.x + b.width) + 60;
      c1 = this.across ? { x: out.x + 20, y: low } : { x: wide, y: out.y + 20 };
      c2 = this.across ? { x: into.x - 20, y: low } : { x: wide, y: into.y - 20 };
    }
    const d = `M${out.x},${out.y}C${c1.x},${c1.y},${c2.x},${c2.y},${into.x},${into.y}`;
    const path = svg("path", { class: spare ? "wire spare" : "wire", d });
    path.style.setProperty("--lit", `var(--${to.role === "prefill" ? "prefill" : "decode"})`);
    this.wires.set(`${from.place}>${to.place}`, { el: path, points: [out, c1, c2, into] });
  },

  move() {
    if (!this.frame) this.frame = requestAnimationFrame((now) => this.step(now));
    if (document.hidden) {
      cancelAnimationFrame(this.frame); // no frames come while nobody looks
      this.frame = 0;
      this.step(performance.now());
    }
  },

  step(now) {
    this.frame = 0;
    const jump = calm.matches || document.hidden;
    let busy = false;
    for (const mark of [...this.marks.values()]) busy = this.stepOne(mark, now, jump) || busy;
    if (busy && !document.hidden) this.frame = requestAnimationFrame((next) => this.step(next));
  },

  // True while the mark has still to move.
  stepOne(mark, now, jump) {
    if (!mark.leg && mark.way.length) this.depart(mark, mark.way.shift(), now);
    const leg = mark.leg;
    if (leg) {
      leg.t = jump ? 1 : Math.min(1, (now - leg.since) / (LEG_MS / (1 + mark.way.length)));
      const target = { x: mark.seat.x, y: mark.seat.y };
      Object.assign(mark, travel(leg, target, ease(leg.t)));
      leg.blocks.forEach((block, i) => {
        const p = travel(leg, target, ease(Math.max(0, leg.t - 0.07 * (i + 1))));
        block.setAttribute("transform", `translate(${p.x - 2.5} ${p.y - 2.5})`);
      });
      if (leg.t >= 1) this.arrive(mark);
    } else if (mark.ending && !mark.way.length) {
      mark.ending.at ||= now;
      const gone = jump ? 1 : (now - mark.ending.at) / 700;
      if (!mark.ending.well) {
        this.stage(mark, "lost");
        mark.y += 0.6;
      }
      mark.el.style.opacity = Math.max(0, 1 - gone);
      if (gone >= 1) {
        this.drop(mark);
        return false;
      }
    } else {
      const dx = mark.seat.x - mark.x, dy = mark.seat.y - mark.y;
      const near = jump || Math.hypot(dx, dy) < 0.4;
      mark.x += near ? dx : dx * 0.18;
      mark.y += near ? dy : dy * 0.18;
      if (near) {
        this.paint(mark);
        return false;
      }
    }
    this.paint(mark);
    return mark.leg !== null || mark.way.length > 0 || mark.ending !== null || !jump;
  },

  paint(mark) {
    mark.el.setAttribute("transform", `translate(${mark.x.toFixed(1)} ${mark.y.toFixed(1)})`);
    if (!mark.ending) mark.el.style.opacity = mark.hidden && !mark.leg ? 0 : 1;
  },

  depart(mark, { place, stage, withBlocks }, now) {
    const from = mark.node;
    this.leave(mark);
    if (!this.nodes[place]) place = "queue";
    mark.node = place;
    this.nodes[place].marks.push(mark);
    this.seat(mark);
    const wire = this.wires.get(`${from}>${place}`);
    const blocks = [];
    if (wire) {
      wire.el.classList.add("lit");
      setTimeout(() => wire.el.classList.remove("lit"), LEG_MS + 150);
    }
    if (withBlocks && wire && !calm.matches) {
      for (let i = 0; i < 4; i += 1) blocks.push(svg("rect", { class: "block", width: 5, height: 5, rx: 1 }));
      $("marks").append(...blocks);
    }
    if (!withBlocks) this.stage(mark, stage);
    mark.leg = { from: { x: mark.x, y: mark.y }, wire, since: now, t: 0, stage, blocks };
  },

  arrive(mark) {
    mark.leg.blocks.forEach((block) => block.remove());
    this.stage(mark, mark.leg.stage);
    mark.leg = null;
  },

  // A new connection: what was drawn may be long over.
  forget() {
    for (const mark of [...this.marks.values()]) this.drop(mark);
  },
};

const laneOf = (role) => (role === "prefill" ? "prefill" : "decode"); // an undivided worker stands where it decodes
const placeOf = (worker) => worker.replace(/\.\d+$/, "");
const radius = (tokens) => Math.min(6, 3 + Math.log2(1 + tokens / 16) * 0.5).toFixed(1);
const ease = (t) => (t < 0.5 ? 2 * t * t : 1 - 2 * (1 - t) * (1 - t));

// From where the mark is, along the wire, to its seat.
function travel({ from, wire }, to, t) {
  const mix = (a, b, k) => ({ x: a.x + (b.x - a.x) * k, y: a.y + (b.y - a.y) * k });
  if (!wire) return mix(from, to, t);
  const [a, b, c, d] = wire.points;
  if (t < 0.2) return mix(from, a, t / 0.2);
  if (t > 0.8) return mix(d, to, (t - 0.8) / 0.2);
  const k = (t - 0.2) / 0.6;
  const ab = mix(a, b, k), bc = mix(b, c, k), cd = mix(c, d, k);
  return mix(mix(ab, bc, k), mix(bc, cd, k), k);
}

// -- chat -----------------------------------------------------------------------------------------------------

const chat = {
  messages: [],
  abort: null,

  make() {
    const box = $("prompt");
    $("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      const text = box.value.trim();
      if (!text || this.abort) return;
      box.value = "";
      this.ask(text);
    });
    box.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        $("ask").requestSubmit();
      }
    });
    document.querySelector(".chat").addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.abort?.abort();
    });
    $("stop").addEventListener("click", () => this.abort?.abort());
    $("clear").addEventListener("click", () => {
      this.abort?.abort();
      this.messages = [];
      $("log").replaceChildren($("hint"));
      $("hint").hidden = false;
      $("clear").hidden = true;
      box.focus();
    });
  },

  async ask(text) {
    $("hint").hidden = true;
    $("clear").hidden = false;
    this.messages.push({ role: "user", content: text });
    $("log").append(el("div", "said user", text));
    const turn = this.turn();
    this.abort = new AbortController();
    this.busy(true);
    try {
      await this.stream(turn, this.abort.signal);
    } catch (error) {
      if (error.name === "AbortError") turn.finish = "stopped";
      else turn.box.append(el("span", "wrong", error instanceof TypeError ? "The server cannot be reached." : error.message));
    }
    if (turn.answer) this.messages.push({ role: "assistant", content: turn.answer });
    else this.messages.pop(); // nothing was said: the next question stands by itself
    turn.box.classList.remove("busy");
    turn.box.append(el("span", "took", took(turn)));
    this.abort = null;
    this.busy(false);
    this.scroll(true);
  },

  turn() {
    const box = el("div", "said reply busy");
    const thought = el("span", "think"), text = el("span", "text");
    box.append(thought, text);
    $("log").append(box);
    this.scroll(true);
    return { box, thought, text, answer: "", tokens: 0, begun: performance.now(), first: 0, last: 0, finish: "" };
  },

  async stream(turn, signal) {
    const body = {
      messages: this.messages,
      stream: true,
      max_tokens: Math.max(1, Math.floor(Number($("max-tokens").value)) || 256),
      stream_options: { include_usage: true, continuous_usage_stats: true },
    };
    const response = await fetch("v1/chat/completions", {
      method: "POST",
      headers: { "content-type": "application/json", ...key.headers() },
      body: JSON.stringify(body),
      signal,
    });
    if (!response.ok) throw await refusal(response);
    for await (const { data } of events(response)) {
      if (data === "[DONE]") return;
      this.hear(turn, JSON.parse(data));
    }
    if (!turn.finish) throw new Error("The connection broke off.");
  },

  hear(turn, chunk) {
    if (chunk.error) throw new Error(chunk.error.message);
    const choice = chunk.choices[0];
    const tokens = chunk.usage?.completion_tokens ?? turn.tokens;
    if (tokens > turn.tokens) {
      turn.last = performance.now();
      turn.first ||= turn.last;
      turn.firstTokens ??= tokens;
      turn.tokens = tokens;
    }
    if (!choice) return;
    turn.finish = choice.finish_reason || turn.finish;
    const low = this.atEnd();
    if (choice.delta?.reasoning) turn.thought.append(choice.delta.reasoning);
    if (choice.delta?.content) {
      turn.answer += choice.delta.content;
      turn.text.append(choice.delta.content);
    }
    this.scroll(low);
  },

  atEnd() {
    const log = $("log");
    return log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  },

  scroll(wanted) {
    if (wanted) $("log").scrollTop = $("log").scrollHeight;
  },

  busy(on) {
    $("stop").hidden = !on;
    $("send").disabled = on;
    $("log").setAttribute("aria-busy", on);
  },
};

// "TTFT 84 ms, TPOT 12.3 ms, 64 tokens"
function took(turn) {
  if (!turn.first) return turn.finish === "stopped" ? "Stopped before the first token" : "";
  const parts = [`TTFT ${milliseconds(turn.first - turn.begun)}`];
  const after = turn.tokens - turn.firstTokens;
  if (after > 0) parts.push(`TPOT ${milliseconds((turn.last - turn.first) / after)}`);
  parts.push(`${count.format(turn.tokens)} ${turn.tokens === 1 ? "token" : "tokens"}`);
  if (turn.finish === "length") parts.push("cut at max tokens");
  else if (turn.finish === "stopped") parts.push("stopped");
  return parts.join(" · ");
}

// -- begin ----------------------------------------------------------------------------------------------------

$("key").value = key.get();
$("key").addEventListener("change", () => {
  key.set($("key").value.trim());
  feedAbort?.abort();
  hurry();
});
$("locked").addEventListener("submit", (event) => {
  event.preventDefault();
  key.set($("locked-key").value.trim());
  hurry();
});
$("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText($("curl").textContent);
    set($("copy"), "Copied");
  } catch {
    getSelection().selectAllChildren($("curl")); // no clipboard on this origin: the line is there to be copied
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") $("key-box").open = false;
});
charts.make();
new ResizeObserver(() => roles.drawn && roles.drawLoad()).observe($("load"));
flow.make();
chat.make();
charts.draw();
watch();
