// The page "Explore a schedule": its settings are kept in the address, every change is asked of Python in the worker.
"use strict";

(() => {
  const page = document.getElementById("explore");
  const form = page.querySelector("form");
  const part = (name) => page.querySelector(`[data-part="${name}"]`);
  const NUMBERS = ["steps", "evaluations", "shift", "speedup", "threshold", "max_skips", "retention"];
  let models = [], shown, drawnCurve, curveOf = "";

  // --- Python -------------------------------------------------------------------------------------------------------------
  const worker = location.protocol === "file:" ? null : new Worker("worker.js");
  let busy = false;
  const waiting = new Map(); // by name; a newer question replaces one that waits

  function ask(name, question) {
    waiting.set(name, question);
    next();
  }

  function next() {
    if (busy || !waiting.size) return;
    const [name, question] = waiting.entries().next().value;
    waiting.delete(name);
    busy = true;
    worker.postMessage({ name, question });
  }

  function failed(reason) {
    say(`Python could not be loaded: ${reason}. These pages may have been built without a network; build them again with one.`);
    page.dataset.state = "failed";
  }

  // --- settings -----------------------------------------------------------------------------------------------------------
  function settings() {
    const fields = Object.fromEntries(new FormData(form));
    for (const name of NUMBERS) fields[name] = Number(form.elements[name].value);
    return fields;
  }

  function fill(values) {
    for (const [name, value] of Object.entries(values)) {
      if (form.elements[name] && value !== null && value !== undefined) form.elements[name].value = value;
    }
  }

  function published(name) {
    const { steps, threshold, max_skips, retention } = models.find((model) => model.name === name) ?? {};
    return { steps, threshold, max_skips, retention };
  }

  function changed({ keepAddress = false } = {}) {
    const asked = settings();
    for (const output of form.querySelectorAll("output")) output.value = form.elements[output.htmlFor.value].value;
    for (const group of form.querySelectorAll("[data-by]")) {
      group.hidden = group.dataset.by !== asked.by;
      group.disabled = group.hidden;
    }
    if (!keepAddress) history.replaceState(null, "", `?${new URLSearchParams(asked)}`);
    part("link").href = `?${new URLSearchParams(asked)}`;
    ask("answer", JSON.stringify(asked));
    const key = JSON.stringify({ ...asked, by: "", speedup: 0, threshold: 0 });
    if (key !== curveOf) {
      curveOf = key;
      ask("curve", JSON.stringify(asked));
    }
  }

  // --- answers ------------------------------------------------------------------------------------------------------------
  function say(words) {
    part("summary").textContent = words;
  }

  function show() {
    if (!shown) return;
    drawing.strip(part("strip"), shown);
    drawing.errors(part("errors"), shown);
    drawing.levels(part("levels"), shown);
    if (drawnCurve) drawing.curve(part("curve"), drawnCurve, shown);
  }

  function answered(answer) {
    page.dataset.state = answer.problem ? "problem" : "ready";
    if (answer.problem) return say(answer.problem);
    shown = answer;
    const far = drawing.short(answer.distance);
    say(`${answer.computed} of ${answer.mask.length} evaluations compute: ${answer.speedup.toFixed(2)}x. Expected distance ${far}.`);
    part("run").textContent = answer.lines.run;
    part("preview").textContent = answer.lines.preview;
    part("node").textContent = answer.lines.node;
    part("rows").replaceChildren(...answer.mask.map((computes, at) => row(answer, computes, at)));
    show();
  }

  function row(answer, computes, at) {
    const cells = [at, drawing.short(answer.levels[at]), computes ? "computes" : "skipped", answer.reasons[at], drawing.short(answer.errors[at])];
    const made = document.createElement("tr");
    for (const content of cells) made.insertCell().textContent = content;
    return made;
  }

  function started({ version, models: known }) {
    models = known;
    const groups = new Map();
    for (const { name, family } of models) {
      if (!groups.has(family)) groups.set(family, Object.assign(document.createElement("optgroup"), { label: family }));
      groups.get(family).append(new Option(name, name));
    }
    form.elements.model.append(...groups.values());
    part("version").textContent = version;
    const given = Object.fromEntries(new URLSearchParams(location.search));
    const model = given.model ?? "flux.1-dev";
    fill({ ...published(model), model, ...given });
    form.hidden = false;
    changed({ keepAddress: !location.search });
  }

  function replied({ data: { name, reply, failed: reason } }) {
    busy = false;
    if (reason !== undefined) return failed(reason);
    const content = JSON.parse(reply);
    if (name === "start") started(content);
    if (name === "answer") answered(content);
    if (name === "curve" && !content.problem) {
      drawnCurve = content;
      show();
    }
    next();
  }

  // --- the page -----------------------------------------------------------------------------------------------------------
  form.addEventListener("input", (event) => {
    if (event.target.name === "model") fill(published(event.target.value));
    changed();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  page.addEventListener("click", async ({ target }) => {
    if (target.dataset.copy === undefined) return;
    const content = target.dataset.copy === "link" ? part("link").href : part(target.dataset.copy).textContent;
    await navigator.clipboard.writeText(content);
    target.textContent = "Copied";
    setTimeout(() => (target.textContent = target.dataset.label), 1500);
  });
  new ResizeObserver(show).observe(page);

  if (worker === null) {
    say("This page needs a web server, since browsers run Python in it over http only. In the folder of these pages: python -m http.server");
    page.dataset.state = "failed";
  } else {
    worker.onmessage = replied;
    worker.onerror = (event) => failed(event.message ?? "the worker did not start");
    ask("start");
  }
})();
