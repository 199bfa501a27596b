// Draws what the package answered, as SVG in the page's own colours. Nothing is computed here but places on the page.
"use strict";

const drawing = (() => {
  const NAMESPACE = "http://www.w3.org/2000/svg";
  const LEFT = 46, RIGHT = 8;

  function element(name, attributes = {}, ...children) {
    const made = document.createElementNS(NAMESPACE, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  /** A picture of its place's width, with a description for those who cannot see it. */
  function picture(place, height, description) {
    const width = Math.max(place.clientWidth, 240);
    const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": description });
    place.replaceChildren(svg);
    return { svg, width, height };
  }

  function text(x, y, content, more = {}) {
    return element("text", { x, y, ...more }, content);
  }

  /** A box for each step, filled where it computes. */
  function strip(place, answer) {
    const { svg, width, height } = picture(place, 34, `${answer.computed} of ${answer.mask.length} evaluations compute`);
    const step = width / answer.mask.length;
    answer.mask.forEach((computes, at) => {
      const box = element("rect", {
        x: at * step + Math.min(1, step * 0.1), y: 4, width: step - Math.min(2, step * 0.2), height: height - 8,
        class: computes ? "computes" : "skips",
      });
      box.append(element("title", {}, `${at}: ${computes ? "computes" : "skipped"} (${answer.reasons[at]})`));
      svg.append(box);
    });
  }

  /** A bar for each skipped step: the relative error expected of it. */
  function errors(place, answer) {
    const known = answer.errors.filter((error) => error !== null);
    const most = Math.max(...known, 0);
    const { svg, width, height } = picture(place, 120, `Expected relative error of each step, at most ${short(most)}`);
    const step = (width - LEFT - RIGHT) / answer.mask.length, bottom = height - 18;
    frame(svg, width, bottom, 8, most, answer.mask.length);
    answer.errors.forEach((error, at) => {
      if (!error) return;
      const tall = (error / (most || 1)) * (bottom - 8);
      const bar = element("rect", { x: LEFT + at * step + step * 0.15, y: bottom - tall, width: step * 0.7, height: tall, class: "error" });
      bar.append(element("title", {}, `${at}: ${short(error)}`));
      svg.append(bar);
    });
  }

  /** The noise level of each evaluation, a dot where it computes and a ring where it is skipped. */
  function levels(place, answer) {
    const { svg, width, height } = picture(place, 120, `Noise levels, from ${short(answer.levels[0])} to ${short(answer.levels.at(-1))}`);
    const step = (width - LEFT - RIGHT) / answer.mask.length, bottom = height - 18;
    const places = answer.levels.map((level, at) => [LEFT + (at + 0.5) * step, bottom - level * (bottom - 8)]);
    frame(svg, width, bottom, 8, 1, answer.mask.length);
    svg.append(element("polyline", { points: places.map((at) => at.join()).join(" "), class: "line" }));
    places.forEach(([cx, cy], at) => {
      const dot = element("circle", { cx, cy, r: Math.min(3.5, step * 0.4), class: answer.mask[at] ? "computes" : "skips" });
      dot.append(element("title", {}, `${at}: noise level ${short(answer.levels[at])}`));
      svg.append(dot);
    });
  }

  function frame(svg, width, bottom, top, most, steps) {
    svg.append(
      element("line", { x1: LEFT, x2: width - RIGHT, y1: bottom, y2: bottom, class: "axis" }),
      text(LEFT - 6, bottom, "0", { "text-anchor": "end" }),
      text(LEFT - 6, top + 8, short(most), { "text-anchor": "end" }),
      text(LEFT, bottom + 14, "0"),
      text(width - RIGHT, bottom + 14, String(steps - 1), { "text-anchor": "end" }),
      text((LEFT + width - RIGHT) / 2, bottom + 14, "evaluation", { "text-anchor": "middle" }),
    );
  }

  /** Expected distance over the share that computes: the best plans, the rule, and where the schedule lies. */
  function curve(place, { plans, rule }, answer) {
    const here = answer.distance > 0 ? [{ share: 1 / answer.speedup, speedup: answer.speedup, distance: answer.distance }] : [];
    const all = [...plans, ...rule, ...here];
    const described = `Expected distance over the share that computes; here ${short(answer.distance)} at ${answer.speedup.toFixed(2)} times`;
    const { svg, width, height } = picture(place, 240, described);
    if (!all.length) return;
    const bottom = height - 34, top = 10;
    const logs = all.map(({ distance }) => Math.log10(distance));
    const low = Math.floor(Math.min(...logs)), high = Math.max(Math.ceil(Math.max(...logs)), low + 1);
    const x = (share) => LEFT + share * (width - LEFT - RIGHT);
    const y = (distance) => bottom - ((Math.log10(distance) - low) / (high - low)) * (bottom - top);
    for (let power = low; power <= high; power += 1) {
      const at = y(10 ** power);
      svg.append(element("line", { x1: LEFT, x2: width - RIGHT, y1: at, y2: at, class: "grid" }));
      svg.append(text(LEFT - 6, at + 4, power < -4 ? `1e${power}` : String(Number((10 ** power).toFixed(5))), { "text-anchor": "end" }));
    }
    for (const speedup of [1, 1.5, 2, 3, 4, 8]) {
      const at = x(1 / speedup);
      svg.append(element("line", { x1: at, x2: at, y1: top, y2: bottom, class: "grid" }));
      svg.append(text(at, bottom + 14, `${speedup}x`, { "text-anchor": speedup === 1 ? "end" : "middle" }));
    }
    svg.append(text((LEFT + width - RIGHT) / 2, height - 4, "share that computes, as a speedup", { "text-anchor": "middle" }));
    for (const [points, kind] of [[rule, "rule"], [plans, "plan"]]) {
      const places = points.map(({ share, distance }) => [x(share), y(distance)]);
      svg.append(element("polyline", { points: places.map((at) => at.join()).join(" "), class: `line ${kind}` }));
      places.forEach(([cx, cy], at) => {
        const dot = element("circle", { cx, cy, r: 3, class: kind });
        dot.append(element("title", {}, `${points[at].speedup.toFixed(2)}x: ${short(points[at].distance)}`));
        svg.append(dot);
      });
    }
    for (const { share, distance } of here) svg.append(element("circle", { cx: x(share), cy: y(distance), r: 7, class: "here" }));
  }

  function short(value) {
    return value === null ? "not known" : String(Number(value.toPrecision(3)));
  }

  return { strip, errors, levels, curve, short };
})();
