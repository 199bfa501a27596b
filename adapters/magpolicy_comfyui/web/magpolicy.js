// The panel in magpolicy's nodes: the steps a run will compute, redrawn as the settings change, and what the last run did.
// The rule itself is not here: the server is asked, and answers with the library's own simulate().
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const NAME = "magpolicy.panel";
const WAIT = 120; // ms without a change before the server is asked
const LOOK = 400; // ms between looks at what does not call back
const AGAIN = 1000; // ms until a question is asked again that the server gave up, or had no room for
const LEAST = 52; // px
const ROW = 60; // most cells in a row of the strip
const SAMPLING = ["steps", "sampler_name", "scheduler", "denoise", "cfg", "start_at_step", "end_at_step"];
const STEPS_PROPERTY = "magpolicy_steps";
const SPEED_UP = "MagPolicySpeedUp";
const REPORT = "MagPolicyReport";
const REPORT_WIDTH = 220; // px: room for its title, which its few inputs are narrower than

const SEEN = "magpolicy.seen"; // what reports said of models, by the file each was loaded from; kept by the browser
const MOST_SEEN = 50;

const STYLE = `
.magpolicy-panel { box-sizing: border-box; overflow: hidden; padding: 6px 8px; border-radius: 6px; cursor: default;
  background: var(--comfy-input-bg, #222); color: var(--input-text, #ddd); font: 11px/15px Inter, Arial, sans-serif; }
.magpolicy-panel.magpolicy-empty { padding: 0; background: none; }
.magpolicy-head { display: flex; align-items: center; gap: 6px; }
.magpolicy-text { flex: 1; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.magpolicy-panel input { width: 44px; padding: 0 2px; border: 1px solid var(--border-color, #4e4e4e); border-radius: 3px;
  background: transparent; color: inherit; font: inherit; text-align: right; }
.magpolicy-strip { display: grid; gap: 1px; height: 12px; margin: 3px 0 1px; }
.magpolicy-strip i { border-radius: 1px; background: #f0a030; }
.magpolicy-strip i.skipped { background: var(--border-color, #4e4e4e); opacity: .55; }
.magpolicy-note { color: var(--descrip-text, #999); white-space: pre-wrap; }
.magpolicy-decides, .magpolicy-advice { white-space: pre-wrap; }
.magpolicy-error { color: var(--error-text, #ff6b6b); white-space: pre-wrap; }
.magpolicy-said { white-space: pre-wrap; }
.magpolicy-run { margin-top: 4px; border-top: 1px solid var(--border-color, #4e4e4e); padding-top: 3px; }
`;

function make(tag, className, parent, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  parent?.append(element);
  return element;
}

// One cell a step, in rows of at most ROW. `cells` are { computed, title }.
function drawStrip(parent, cells) {
  for (let start = 0; start < cells.length; start += ROW) {
    const row = make("div", "magpolicy-strip", parent);
    row.style.gridTemplateColumns = `repeat(${Math.min(ROW, cells.length)}, 1fr)`;
    for (const cell of cells.slice(start, start + ROW)) {
      make("i", cell.computed ? "computed" : "skipped", row).title = cell.title;
    }
  }
}

// What a step did, in words: "step 3: reused", or by stream where streams differ.
function cellsOf(schedule, mask, names) {
  return mask.map((computed, i) => {
    const why = names.map((name) => [name, schedule.streams[name].reasons[i]]);
    const same = why.every(([, reason]) => reason === why[0][1]);
    const said = same ? why[0][1] : why.map(([name, reason]) => `${name} ${reason}`).join(", ");
    return { computed, title: `step ${schedule.first_step + i}: ${said}` };
  });
}

// The node in front of `slot`, through reroutes and nodes without the wanted widgets.
function* upstream(node, name) {
  const seen = new Set();
  for (let at = node, slot = name; at && !seen.has(at); slot = "model") {
    seen.add(at);
    const index = at.inputs?.findIndex((input) => input.name === slot) ?? -1;
    const position = index >= 0 ? index : at.inputs?.length === 1 ? 0 : -1;
    at = position >= 0 ? at.getInputNode(position) : null;
    if (at) yield at;
  }
}

function* downstream(node) {
  const seen = new Set([node]);
  const queue = [node];
  while (queue.length) {
    const at = queue.shift();
    for (let slot = 0; slot < (at.outputs?.length ?? 0); slot++) {
      if (at !== node && at.outputs[slot].type !== "MODEL" && at.outputs[slot].type !== "GUIDER" && at.outputs[slot].type !== "*")
        continue;
      for (const next of at.getOutputNodes(slot) ?? []) {
        if (seen.has(next)) continue;
        seen.add(next);
        yield next;
        queue.push(next);
      }
    }
  }
}

const widget = (node, name) => node.widgets?.find((found) => found.name === name);

// What of a node's panel makes sense: the preview for nodes with the rule's settings, the report for those that calibrate.
// Nodes of the same name from another pack have neither of the settings that are looked for.
function kind(node) {
  if (node.comfyClass === SPEED_UP) return "preview";
  if (!widget(node, "model_type")) return null;
  if (widget(node, "magcache_thresh") && widget(node, "semantics")) return "preview";
  return widget(node, "name") ? "report" : null;
}

function seenFiles() {
  try {
    return JSON.parse(localStorage.getItem(SEEN)) ?? {};
  } catch {
    return {}; // no storage here, or somebody else's
  }
}

function keepSeen(file, model) {
  const others = Object.entries(seenFiles()).filter(([name]) => name !== file);
  try {
    localStorage.setItem(SEEN, JSON.stringify(Object.fromEntries([...others, [file, model]].slice(-MOST_SEEN))));
  } catch {
    // then it is known as long as this page is open
  }
}

class Panel {
  constructor(node, previews) {
    this.node = node;
    this.previews = previews;
    this.asked = 0;
    this.id = Math.random().toString(36).slice(2); // the server answers the newest question of a panel
    this.seen = null; // what the last run's report said of the model, and the file it was of
    this.build();
    const panel = this;
    this.widget = node.addDOMWidget("magpolicy", "magpolicy", this.root, {
      serialize: false,
      hideOnZoom: true,
      getMinHeight: () => panel.height,
      getMaxHeight: () => panel.height,
      getValue: () => "",
      setValue: () => {},
    });
    this.widget.serialize = false; // workflow files hold the node's own settings only
    this.live();
    if (previews) this.watch();
    this.dim();
  }

  hook(name, action) {
    const { node } = this;
    const before = node[name];
    node[name] = function (...values) {
      const result = before?.apply(this, values);
      action();
      return result;
    };
  }

  // As long as the node is in a graph, it is looked at: not all that happens to it calls back.
  live() {
    this.hook("onAdded", () => {
      clearInterval(this.looking);
      this.looking = setInterval(() => {
        this.stand();
        if (this.previews) this.later();
      }, LOOK);
    });
    this.hook("onRemoved", () => {
      clearInterval(this.looking);
      clearTimeout(this.timer);
      this.asked++;
      this.asking?.abort();
    });
  }

  // An undo makes all nodes anew, with the ids they had. Nodes 2.0 then still shows the panel of the node that is gone.
  stand() {
    if (this.root.isConnected || this.node.graph !== app.canvas?.graph) return;
    document.querySelector(`[data-node-id="${this.node.id}"] .magpolicy-panel`)?.replaceWith(this.root);
  }

  build() {
    this.root = make("div", `magpolicy-panel${this.previews ? "" : " magpolicy-empty"}`);
    this.inner = make("div", "", this.root);
    const head = make("div", "magpolicy-head", this.previews ? this.inner : null);
    this.text = make("span", "magpolicy-text", head, "…");
    make("span", "magpolicy-note", head, "steps");
    this.steps = make("input", "", head);
    this.steps.title = "Steps to preview. Empty: those of the sampler this node leads to.";
    this.steps.inputMode = "numeric";
    this.steps.addEventListener("input", () => {
      this.node.properties[STEPS_PROPERTY] = this.steps.value.trim();
      this.later();
    });
    for (const kind of ["keydown", "pointerdown"]) this.steps.addEventListener(kind, (event) => event.stopPropagation());
    this.plan = make("div", "", this.inner);
    this.run = make("div", "", this.inner);
    this.height = this.previews ? LEAST : 0;
  }

  // Settings change by hand, by undo, by a file, by other extensions, and those of the sampler matter too.
  watch() {
    const { node } = this;
    for (const each of node.widgets) {
      if (each === this.widget) continue;
      const before = each.callback;
      each.callback = (...values) => {
        const result = before?.apply(each, values);
        this.later();
        return result;
      };
    }
    this.hook("onConnectionsChange", () => this.later());
    this.hook("onConfigure", () => {
      this.steps.value = node.properties[STEPS_PROPERTY] ?? "";
      this.later();
    });
  }

  // The number is read only if "custom" is chosen.
  dim() {
    const number = widget(this.node, "custom_speedup");
    if (number) number.disabled = widget(this.node, "speedup").value !== "custom";
  }

  // What the server is asked. A setting that comes over a link is not known here, and is left out.
  question() {
    const { node } = this;
    const inputs = {};
    for (const each of node.widgets) {
      if (each === this.widget || node.inputs?.some((input) => input.widget?.name === each.name && input.link != null)) continue;
      inputs[each.name] = each.value;
    }
    const files = [];
    for (const at of upstream(node, "model")) {
      for (const name of ["unet_name", "ckpt_name", "model_name", "gguf_name"]) {
        const found = widget(at, name);
        if (found) files.push({ kind: name, file: String(found.value) });
      }
    }
    const sampler = this.sampler();
    this.steps.placeholder = sampler.steps ?? "";
    const typed = this.steps.value.trim();
    if (typed !== "") sampler.steps = Number.isNaN(Number(typed)) ? typed : Number(typed);
    this.file = files[0] ? `${files[0].kind}: ${files[0].file}` : "";
    const seen = this.seen?.file === this.file ? this.seen.model : this.file ? (seenFiles()[this.file] ?? null) : null;
    return { panel: this.id, node: node.comfyClass, inputs, sampler, model: files[0] ?? null, seen };
  }

  // The sampler this node leads to: its widgets, and those of the nodes that tell it the noise levels and the method.
  sampler() {
    const own = widget(this.node, "steps"); // of a node that only previews
    if (own) return { steps: own.value };
    const found = {};
    const take = (node) => {
      for (const name of SAMPLING) {
        const value = widget(node, name)?.value;
        if (value !== undefined && !(name in found)) found[name] = value;
      }
    };
    for (const at of downstream(this.node)) {
      const slots = ["sampler", "sigmas"].map((name) => at.inputs?.findIndex((input) => input.name === name) ?? -1);
      if (widget(at, "cfg")) found.cfg = widget(at, "cfg").value; // of a guider; a sampler has its own
      if (widget(at, "shift")) found.shift = widget(at, "shift").value;
      if (widget(at, "steps")) take(at);
      if (slots.some((slot) => slot >= 0)) {
        found.custom = true;
        for (const slot of slots) {
          const source = slot >= 0 ? at.getInputNode(slot) : null;
          if (source) take(source);
        }
      }
      if ("steps" in found && "sampler_name" in found) break;
    }
    return found;
  }

  later() {
    this.dim();
    const wanted = JSON.stringify(this.question());
    if (wanted === this.wanted) return;
    this.wanted = wanted;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.ask(wanted), WAIT);
  }

  async ask(question) {
    const turn = ++this.asked;
    this.asking?.abort(); // the server need not answer what is out of date
    this.asking = new AbortController();
    let answer;
    let status;
    try {
      const response = await api.fetchApi("/magpolicy/simulate", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: question,
        signal: this.asking.signal,
      });
      status = response.status;
      answer = await response.json();
    } catch (error) {
      answer = { error: `the server did not answer: ${error.message ?? error}` };
    }
    if (turn !== this.asked) return; // a later question was asked meanwhile: its answer counts
    if (status === 409 || status === 429) this.timer = setTimeout(() => this.ask(question), AGAIN);
    else this.show(answer);
  }

  show(answer) {
    this.plan.replaceChildren();
    if (answer.error) {
      this.text.textContent = "no preview";
      make("div", "magpolicy-error", this.plan, answer.error);
    } else {
      this.text.textContent = answer.headline;
      if (answer.schedule) this.drawSchedule(this.plan, answer.schedule);
      if (answer.decides) make("div", "magpolicy-decides", this.plan, `by ${answer.decides}`);
      for (const note of answer.notes ?? []) make("div", "magpolicy-note", this.plan, note);
      if (answer.advice) make("div", "magpolicy-advice", this.plan, `closer to the full run: ${answer.advice}`);
    }
    this.fit();
  }

  // One strip, or one a stream where they differ.
  drawSchedule(parent, schedule) {
    const names = Object.keys(schedule.streams);
    const differ = names.some((name) => String(schedule.streams[name].mask) !== String(schedule.mask));
    if (!differ) return drawStrip(parent, cellsOf(schedule, schedule.mask, names));
    for (const name of names) {
      make("div", "magpolicy-note", parent, name);
      drawStrip(parent, cellsOf(schedule, schedule.streams[name].mask, [name]));
    }
  }

  report({ strip, text, schedule, model }) {
    if (model) {
      this.seen = { file: this.file, model };
      if (this.file) keepSeen(this.file, model);
    }
    this.root.classList.remove("magpolicy-empty");
    this.run.replaceChildren();
    const box = make("div", this.previews ? "magpolicy-run" : "", this.run); // a line between the two
    make("div", "magpolicy-note", box, "last run");
    if (schedule) this.drawSchedule(box, schedule);
    else drawStrip(box, [...(strip ?? "")].map((mark, i) => ({ computed: mark !== "·", title: `step ${i}` })));
    make("div", "magpolicy-said", box, (text ?? "").replace(/ [█·]+\s+/g, ", ")); // the strip is drawn above
    this.fit();
    if (!this.previews) return;
    this.wanted = null; // what was learned may have changed the plan
    this.later();
  }

  fit() {
    const height = Math.max(this.previews ? LEAST : 0, this.inner.scrollHeight + 32); // and the padding here, and the widget's margin
    if (height === this.height) return;
    this.height = height;
    const { node } = this;
    const needed = node.computeSize?.() ?? node.size;
    node.setSize?.([Math.max(node.size[0], needed[0]), needed[1]]);
    app.graph?.setDirtyCanvas?.(true, true);
  }
}

// "12", or "12:5" for node 5 of the subgraph node 12.
function find(id) {
  let graph = app.graph;
  let node = null;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById?.(part) ?? graph?.getNodeById?.(Number(part));
    graph = node?.subgraph;
  }
  return node;
}

function start() {
  if (document.getElementById("magpolicy-style")) return; // installed twice: the first one serves
  make("style", "", document.head, STYLE).id = "magpolicy-style";
  app.registerExtension({
    name: NAME,
    setup() {
      api.addEventListener("magpolicy.report", ({ detail }) => find(detail?.node)?.magpolicy?.report(detail));
    },
    nodeCreated(node) {
      const what = kind(node);
      if (what) node.magpolicy = new Panel(node, what === "preview");
      if (node.comfyClass === REPORT) node.setSize?.([Math.max(node.size[0], REPORT_WIDTH), node.size[1]]);
    },
  });
}

start();
