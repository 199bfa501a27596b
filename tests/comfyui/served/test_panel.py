"""The panel in the node, in a real browser with the front end that this ComfyUI asks for."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Missing, open_page
from host import Server, Unavailable

import magpolicy

REPOSITORY = Path(__file__).parents[3]
EXAMPLES = REPOSITORY / "examples" / "comfyui"
SCREENSHOT = REPOSITORY / "docs" / "assets" / "comfyui-panel.png"

# Newer editors remember a widget's value by the node's number, also of nodes that are gone: numbers are not used twice.
CLEAR = """() => { window.clearGraph = () => {
  app.graph.clear();
  Object.assign(app.canvas.ds, { scale: 1, offset: [0, 0] });
  app.graph.last_node_id = window.lastNumber = (window.lastNumber ?? 0) + 100;
}; }"""
# A MagCache node that leads to a sampler, as a user would put them there.
ADD_NODES = """() => {
  clearGraph();
  const [cache, sampler] = ["MagCache", "KSampler"].map((type) => LiteGraph.createNode(type));
  cache.pos = [60, 60]; sampler.pos = [560, 60];
  app.graph.add(cache); app.graph.add(sampler);
  cache.connect(0, sampler, "model");
  Object.assign(window, { cache, sampler });
}"""
ADD_SPEED_UP = 'add("MagPolicySpeedUp", "Speed up (magpolicy)", [400, 110], { speedup: "balanced" })'
# Moves a slider as the editor does: the value, then the widget's callback.
SET = """([node, name, value]) => {
  const found = window[node].widgets.find((widget) => widget.name === name);
  found.value = value;
  found.callback?.(value, app.canvas, window[node]);
}"""
STRIP = "(part) => [...cache.magpolicy[part].querySelectorAll('i')].map((cell) => cell.className === 'computed')"


@pytest.fixture(scope="module")
def page(server: Server) -> Iterator[Any]:
    try:
        with open_page(server.url, width=1360, height=720) as page:
            page.evaluate(CLEAR)
            yield page
    except (Missing, Unavailable) as error:
        pytest.skip(str(error))


@pytest.fixture
def node(page: Any) -> Iterator[Any]:
    page.errors.clear()
    page.evaluate(ADD_NODES)
    change(page, "sampler", "steps", 28)
    change(page, "cache", "model_type", "flux")
    yield page
    assert page.errors == []


def change(page: Any, node: str, name: str, value: Any) -> None:
    page.evaluate(SET, [node, name, value])


def expect(page: Any, schedule: magpolicy.Schedule) -> None:
    """Wait until the panel shows ``schedule``."""
    wanted = list(schedule.mask)
    page.wait_for_function(
        f"(wanted) => JSON.stringify(({STRIP})('plan')) === JSON.stringify(wanted)", arg=wanted, timeout=15_000
    )
    said = page.evaluate("() => cache.magpolicy.text.textContent")
    assert f"{schedule.computed} of {schedule.steps}" in said
    assert f"{schedule.speedup:.2f}x" in said


def settings(page: Any) -> dict[str, Any]:
    values = page.evaluate("() => Object.fromEntries(cache.widgets.map((w) => [w.name, w.value]))")
    rule = {"threshold": values["magcache_thresh"], "retention": values["retention_ratio"], "max_skips": values["magcache_K"]}
    return {name: value for name, value in rule.items() if value >= 0}  # the others are the preset's


def test_the_strip_follows_every_setting(node: Any) -> None:
    expect(node, magpolicy.simulate("flux", steps=28, **settings(node)))
    for name, value in {"magcache_thresh": 0.05, "retention_ratio": 0.3, "magcache_K": 1}.items():
        before = node.evaluate(STRIP, "plan")
        change(node, "cache", name, value)
        schedule = magpolicy.simulate("flux", steps=28, **settings(node))
        expect(node, schedule)
        assert node.evaluate(STRIP, "plan") != before
    change(node, "cache", "start_step", 20)
    expect(node, magpolicy.simulate("flux", steps=28, start_step=20, **settings(node)))
    change(node, "cache", "end_step", 22)
    expect(node, magpolicy.simulate("flux", steps=28, start_step=20, end_step=22, **settings(node)))
    change(node, "cache", "model_type", "chroma")
    expect(node, magpolicy.simulate("chroma", steps=28, start_step=20, end_step=22, **settings(node)))


def test_a_new_node_has_the_settings_of_the_preset(node: Any) -> None:
    assert settings(node) == {}
    for kind in ("hunyuan_video", "chroma", "flux"):
        change(node, "cache", "model_type", kind)
        expect(node, magpolicy.simulate(kind, steps=28))
    assert "the preset's: magcache_thresh 0.24" in node.evaluate("() => cache.magpolicy.plan.textContent")
    # One that is saved in a file, or of ComfyUI-MagCache, keeps its own.
    node.evaluate(
        """async () => {
          const saved = JSON.parse(JSON.stringify(app.graph.serialize()));
          const found = saved.nodes.find((node) => node.type === "MagCache");
          found.widgets_values = ["chroma", 0.24, 0.1, 5, 0, -1];
          await app.loadGraphData(saved);
          window.cache = app.graph.findNodesByType("MagCache")[0];
        }"""
    )
    assert settings(node) == {"threshold": 0.24, "retention": 0.1, "max_skips": 5}
    expect(node, magpolicy.simulate("chroma", steps=28, threshold=0.24, retention=0.1, max_skips=5))


def test_the_steps_are_the_samplers_or_typed(node: Any) -> None:
    change(node, "sampler", "steps", 12)
    expect(node, magpolicy.simulate("flux", steps=12, **settings(node)))
    field = node.locator(".magpolicy-panel input").last
    field.fill("40")
    expect(node, magpolicy.simulate("flux", steps=40, **settings(node)))
    field.fill("")
    expect(node, magpolicy.simulate("flux", steps=12, **settings(node)))
    field.fill("none")
    node.wait_for_function("() => cache.magpolicy.plan.textContent.includes('must be a whole number')", timeout=15_000)


def test_a_mistake_is_told_in_the_panel_and_goes_away(node: Any) -> None:
    # As a link, another extension or a file may set it: past the widget's own limits, without its callback.
    node.evaluate("() => { cache.widgets.find((w) => w.name === 'magcache_thresh').value = -2; }")
    node.wait_for_function(
        "() => cache.magpolicy.plan.textContent.includes('magcache_thresh=-2 must be a number from -1 to 10')", timeout=15_000
    )
    assert node.evaluate(STRIP, "plan") == []
    change(node, "cache", "magcache_thresh", 0.1)
    expect(node, magpolicy.simulate("flux", steps=28, **settings(node)))


def test_moving_a_slider_asks_once_it_rests(node: Any) -> None:
    expect(node, magpolicy.simulate("flux", steps=28, **settings(node)))
    asked: list[str] = []
    note = lambda request: asked.append(request.url) if "magpolicy/simulate" in request.url else None  # noqa: E731
    node.on("request", note)
    node.evaluate(
        """(set) => { for (let i = 30; i > 2; i--) eval(set)(["cache", "magcache_thresh", i / 100]); }""",
        SET,
    )
    expect(node, magpolicy.simulate("flux", steps=28, **settings(node)))
    node.wait_for_timeout(300)
    node.remove_listener("request", note)
    assert settings(node)["threshold"] == 0.03
    assert len(asked) == 1


@pytest.mark.parametrize("status", [409, 429])
def test_a_question_that_the_server_gave_up_is_asked_again(node: Any, status: int) -> None:
    """As when many panels ask at once; what is shown stays till then."""
    expect(node, magpolicy.simulate("flux", steps=28, **settings(node)))
    refused: list[str] = []

    def refuse(route: Any) -> None:
        if len(refused) == 2:
            route.continue_()
            return
        refused.append(route.request.post_data)
        route.fulfill(status=status, json={"error": "not now"})

    node.route("**/magpolicy/simulate", refuse)
    change(node, "cache", "magcache_K", 2)
    expect(node, magpolicy.simulate("flux", steps=28, **settings(node)))
    node.unroute("**/magpolicy/simulate")
    assert len(set(refused)) == 1, "the same question, again"
    assert json.loads(refused[0])["panel"]
    assert "not now" not in node.evaluate("() => cache.magpolicy.plan.textContent")


def test_an_answer_that_is_out_of_date_is_not_waited_for(node: Any) -> None:
    """The browser ends the request, so that the server need not plan it."""
    expect(node, magpolicy.simulate("flux", steps=28, **settings(node)))
    held: list[Any] = []
    node.route("**/magpolicy/simulate", lambda route: held.append(route))
    change(node, "cache", "magcache_K", 2)
    node.wait_for_timeout(300)
    node.unroute("**/magpolicy/simulate")
    assert len(held) == 1
    node.evaluate("() => { window.asking = cache.magpolicy.asking; }")
    assert not node.evaluate("() => asking.signal.aborted")
    change(node, "cache", "magcache_K", 3)
    expect(node, magpolicy.simulate("flux", steps=28, **settings(node)))
    assert node.evaluate("() => asking.signal.aborted")


@pytest.fixture(params=["classic", "newer"])
def drawn_as(request: pytest.FixtureRequest, page: Any, version: str) -> Iterator[str]:
    """The kind of nodes that the front end draws."""
    if request.param == "newer" and version == "0.3.52":
        pytest.skip("its front end has the one kind only")
    use = "(on) => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)"
    if request.param == "newer":
        page.evaluate(use, True)
    yield request.param
    if request.param == "newer":
        page.evaluate(use, False)


@pytest.mark.parametrize("drawn_as", ["newer"], indirect=True)
def test_the_panel_works_in_the_newer_kind_of_nodes(page: Any, drawn_as: str) -> None:
    page.evaluate(ADD_NODES)
    change(page, "cache", "model_type", "flux")
    change(page, "cache", "magcache_K", 4)
    change(page, "sampler", "steps", 20)
    expect(page, magpolicy.simulate("flux", steps=20, **settings(page)))
    before = settings(page)["max_skips"]
    row = page.get_by_text("magcache_K", exact=True).locator("xpath=ancestor::*[.//button][1]")
    less = row.locator("[data-pc-section=decrementbutton]").or_(page.locator("[aria-label=magcache_K] button"))
    less.first.click()
    page.wait_for_function("(before) => cache.widgets.find((w) => w.name === 'magcache_K').value !== before", arg=before)
    assert settings(page)["max_skips"] == before - 1
    expect(page, magpolicy.simulate("flux", steps=20, **settings(page)))
    assert page.locator(".magpolicy-panel").first.bounding_box()["height"] > 20


def test_the_panel_that_is_seen_is_the_nodes_own_after_an_undo(page: Any, drawn_as: str) -> None:
    """An undo makes all nodes anew, with the ids they had."""
    page.evaluate(ADD_NODES)
    change(page, "cache", "model_type", "flux")
    expect(page, magpolicy.simulate("flux", steps=20, **settings(page)))
    for how in ("", ", false, false"):  # as a file is opened; as an undo puts a state of it back
        page.wait_for_function("() => cache.magpolicy.root.isConnected", timeout=15_000)
        page.evaluate(
            f"""async () => {{
              const before = cache;
              await app.loadGraphData(JSON.parse(JSON.stringify(app.graph.serialize())){how});
              window.cache = app.graph.findNodesByType("MagCache")[0];
              if (cache === before) throw new Error("the same node");
            }}"""
        )
    change(page, "cache", "magcache_K", 1)
    page.wait_for_function("() => cache.magpolicy.root.isConnected", timeout=15_000)
    expect(page, magpolicy.simulate("flux", steps=20, **settings(page)))
    assert page.locator(".magpolicy-panel").count() == 1


def test_the_panel_is_in_no_file(node: Any) -> None:
    expect(node, magpolicy.simulate("flux", steps=28, **settings(node)))
    saved = json.loads(node.evaluate("() => JSON.stringify(app.graph.serialize())"))
    cache = next(found for found in saved["nodes"] if found["type"] == "MagCache")
    names = node.evaluate("() => cache.widgets.filter((w) => w.type !== 'magpolicy').map((w) => w.name)")
    assert len(cache["widgets_values"]) == len(names)
    prompt = node.evaluate("async () => (await app.graphToPrompt()).output")
    inputs = next(found["inputs"] for found in prompt.values() if found["class_type"] == "MagCache")
    assert set(inputs) <= {*names, "model"}
    # A file made before the panel and the later settings were there loads with its values in their places.
    cache["widgets_values"] = ["wan2.1_t2v_1.3B", 0.12, 0.2, 4, 0, -1]
    node.evaluate(
        "async (saved) => { await app.loadGraphData(saved); window.cache = app.graph.findNodesByType('MagCache')[0]; }", saved
    )
    assert settings(node) == {"threshold": 0.12, "retention": 0.2, "max_skips": 4}
    expect(node, magpolicy.simulate("wan2.1_t2v_1.3B", steps=28, **settings(node)))


def test_a_report_is_shown_in_its_node(server: Server, node: Any) -> None:
    expect(node, magpolicy.simulate("flux", steps=28, **settings(node)))
    node.evaluate(
        """([strip, text]) => app.api.dispatchCustomEvent
          ? app.api.dispatchCustomEvent("magpolicy.report", { node: String(cache.id), strip, text })
          : app.api.dispatchEvent(new CustomEvent("magpolicy.report", { detail: { node: String(cache.id), strip, text } }))""",
        ["██·█", "flux: 4 steps ██·█  3 computed <b>"],
    )
    assert node.evaluate(STRIP, "run") == [True, True, False, True]
    assert "flux: 4 steps, 3 computed <b>" in node.evaluate("() => cache.magpolicy.run.textContent")


def test_a_node_without_a_report_shows_no_empty_box(page: Any, drawn_as: str) -> None:
    page.evaluate(
        """() => {
          clearGraph();
          const made = ["MagCacheCalibration", "MagPolicyReport"].map((type) => LiteGraph.createNode(type));
          made.forEach((node, i) => { node.pos = [60 + 400 * i, 60]; app.graph.add(node); });
          [window.calibration, window.reporter] = made;
        }"""
    )
    page.wait_for_function("() => calibration.magpolicy.root.isConnected")
    drawn = "(node) => { const s = getComputedStyle(node.magpolicy.root); return [s.backgroundColor, s.paddingTop]; }"
    assert page.evaluate(f"() => ({drawn})(calibration)") == ["rgba(0, 0, 0, 0)", "0px"]
    page.evaluate("() => calibration.magpolicy.report({ strip: '███', text: 'three steps' })")
    assert page.evaluate(f"() => ({drawn})(calibration)") != ["rgba(0, 0, 0, 0)", "0px"]
    assert page.evaluate("() => reporter.size[0]") >= 220  # its title is to be read


def computed(page: Any, steps: int, count: int) -> None:
    """Wait until the panel shows a plan."""
    page.wait_for_function(
        f"([steps, count]) => {{ const strip = ({STRIP})('plan');"
        " return strip.length === steps && strip.filter(Boolean).length === count; }",
        arg=[steps, count],
        timeout=15_000,
    )


@pytest.fixture
def speed_up(page: Any) -> Iterator[Any]:
    page.errors.clear()
    page.evaluate(ADD_NODES.replace('"MagCache"', '"MagPolicySpeedUp"'))
    change(page, "sampler", "steps", 28)
    yield page
    assert page.errors == []


def test_speed_up_shows_its_plan_and_what_decides_it(speed_up: Any) -> None:
    assert speed_up.evaluate("() => cache.widgets.map((w) => w.name)") == ["speedup", "custom_speedup", "learn", "magpolicy"]
    assert speed_up.evaluate("() => cache.title") == "Speed up (magpolicy)"
    for speed, count in (("quality", 18), ("balanced", 14), ("fast", 9)):
        change(speed_up, "cache", "speedup", speed)
        computed(speed_up, 28, count)
        assert speed_up.evaluate("() => cache.widgets[1].disabled")
    change(speed_up, "cache", "custom_speedup", 4)
    change(speed_up, "cache", "speedup", "custom")
    computed(speed_up, 28, 7)
    assert not speed_up.evaluate("() => cache.widgets[1].disabled")
    said = speed_up.evaluate("() => cache.magpolicy.plan.textContent")
    assert "a plan from the general prior" in said
    assert "what is known of the model is seen when it is sampled" in said
    assert "closer to the full run: run again" in said
    change(speed_up, "cache", "learn", "off")
    speed_up.wait_for_function("() => cache.magpolicy.plan.textContent.includes('set learn to')", timeout=15_000)


ADD_LOADER = """() => {
  const loader = LiteGraph.createNode("UNETLoader");
  app.graph.add(loader);
  loader.widgets.find((widget) => widget.name === "unet_name").value = "some-flux.safetensors";
  loader.connect(0, cache, "model");
}"""
REPORT = """(model) => {
  const detail = { node: String(cache.id), strip: "█·", text: "", model };
  if (app.api.dispatchCustomEvent) app.api.dispatchCustomEvent("magpolicy.report", detail);
  else app.api.dispatchEvent(new CustomEvent("magpolicy.report", { detail }));
}"""
KNOWN = "(known) => cache.magpolicy.plan.textContent.includes(\"norms of preset 'flux.1-dev'\") === known"


def test_a_model_that_was_sampled_is_known_by_its_file_in_another_workflow_too(speed_up: Any) -> None:
    speed_up.evaluate(ADD_LOADER)
    computed(speed_up, 28, 14)
    assert speed_up.evaluate(KNOWN, False)
    speed_up.evaluate(REPORT, {"preset": "flux.1-dev", "flux": True, "shift": 1.15})
    speed_up.wait_for_function(KNOWN, arg=True, timeout=15_000)
    speed_up.evaluate(ADD_NODES.replace('"MagCache"', '"MagPolicySpeedUp"'))
    computed(speed_up, 20, 10)
    assert speed_up.evaluate(KNOWN, False), "another model"
    speed_up.evaluate(ADD_LOADER)
    speed_up.wait_for_function(KNOWN, arg=True, timeout=15_000)
    speed_up.evaluate("() => localStorage.setItem('magpolicy.seen', 'no JSON')")
    speed_up.wait_for_function(KNOWN, arg=False, timeout=15_000)


# A tiny workflow that can be run, laid out for a picture of it.
RUNNABLE = """() => {
  clearGraph();
  Object.assign(app.canvas.ds, { scale: 1, offset: [0, 100] });
  const add = (type, title, pos, values) => {
    const node = LiteGraph.createNode(type);
    Object.assign(node, { pos, title });
    app.graph.add(node);
    for (const [name, value] of Object.entries(values ?? {})) {
      const found = node.widgets.find((widget) => widget.name === name);
      found.value = value;
      found.callback?.(value, app.canvas, node);
    }
    return node;
  };
  const model = add("TinyModel", "Load Diffusion Model", [90, 110], { kind: "Flux" });
  const text = add("TinyPrompt", "Prompt", [90, 240], { kind: "Flux" });
  const latent = add("TinyLatent", "Empty Latent Image", [90, 420], { kind: "Flux" });
  window.cache = add("MagCache", "MagCache", [400, 110], { model_type: "flux", magcache_thresh: 0.18 });
  window.sampler = add("KSampler", "KSampler", [750, 110], { steps: 28, cfg: 1, sampler_name: "euler", scheduler: "simple" });
  const picture = add("TinyDecode", "VAE Decode", [750, 420]);
  const shown = add("PreviewImage", "Preview Image", [1040, 420]);
  model.connect(0, cache, "model");
  cache.connect(0, sampler, "model");
  text.connect(0, sampler, "positive");
  text.connect(0, sampler, "negative");
  latent.connect(0, sampler, "latent_image");
  sampler.connect(0, picture, "samples");
  picture.connect(0, shown, "images");
}"""


def test_a_run_started_in_the_editor_is_reported_in_the_node(page: Any, version: str) -> None:
    page.errors.clear()
    page.evaluate(RUNNABLE)
    schedule = magpolicy.simulate("flux", steps=28, **settings(page))
    expect(page, schedule)
    page.evaluate("() => app.queuePrompt(0, 1)")
    wanted = list(schedule.mask)
    page.wait_for_function(
        f"(wanted) => JSON.stringify(({STRIP})('run')) === JSON.stringify(wanted)", arg=wanted, timeout=60_000
    )
    said = page.evaluate("() => cache.magpolicy.run.textContent")
    assert f"{schedule.computed} computed" in said
    assert "measured" in said
    assert page.errors == []


def test_a_run_of_speed_up_is_reported_and_then_the_next_one_is_planned_from_it(
    unlearned: Server, page: Any, version: str
) -> None:
    page.errors.clear()
    old = 'add("MagCache", "MagCache", [400, 110], { model_type: "flux", magcache_thresh: 0.18 })'
    assert old in RUNNABLE
    page.evaluate(RUNNABLE.replace(old, ADD_SPEED_UP))
    computed(page, 28, 14)
    page.evaluate("() => app.queuePrompt(0, 1)")
    page.wait_for_function(f"() => ({STRIP})('run').length === 28", timeout=60_000)
    said = page.evaluate("() => cache.magpolicy.run.textContent")
    assert "14 computed" in said
    assert "measured" in said
    learned = "a plan from what a run that skipped steps taught"
    page.wait_for_function("(learned) => cache.magpolicy.plan.textContent.includes(learned)", arg=learned, timeout=15_000)
    assert "when it is sampled" not in page.evaluate("() => cache.magpolicy.plan.textContent")
    shown = page.evaluate(STRIP, "plan")
    page.evaluate("() => { sampler.widgets.find((w) => w.name === 'seed').value = 2; return app.queuePrompt(0, 1); }")
    page.wait_for_function("(learned) => cache.magpolicy.run.textContent.includes(learned)", arg=learned, timeout=60_000)
    assert page.evaluate(STRIP, "run") == shown
    assert page.errors == []
    if os.environ.get("MAGPOLICY_SCREENSHOTS") and version == "0.3.75":
        page.evaluate("() => { app.canvas.deselectAll(); app.canvas.setDirty(true, true); }")
        page.wait_for_timeout(4_000)  # until the messages of the editor have gone
        for close in page.locator(".p-toast-close-button").all():
            close.click()
        page.screenshot(path=SCREENSHOT, clip={"x": 80, "y": 140, "width": 960, "height": 560})


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.api.json")), ids=lambda path: path.name.removesuffix(".api.json"))
def test_the_editor_makes_the_api_format_of_an_example_from_its_own(server: Server, page: Any, path: Path) -> None:
    prompt = json.loads(path.read_text(encoding="utf-8"))
    known = server.get("object_info")
    if any(node["class_type"] not in known for node in prompt.values()):
        pytest.skip("this ComfyUI does not have the model")
    saved = json.loads(path.with_name(path.name.replace(".api.", ".")).read_text(encoding="utf-8"))
    made = page.evaluate(
        "async (saved) => { await app.loadGraphData(saved); return (await app.graphToPrompt()).output; }", saved
    )
    assert "Invalid workflow" not in page.evaluate("() => document.body.innerText")
    assert {key: node["class_type"] for key, node in made.items()} == {key: node["class_type"] for key, node in prompt.items()}
    for key, node in prompt.items():
        # The editor writes out what the API format may leave to its defaults.
        assert {name: made[key]["inputs"][name] for name in node["inputs"]} == node["inputs"]


def test_a_calibration_shows_its_report_and_nothing_before(page: Any) -> None:
    page.errors.clear()
    page.evaluate(ADD_NODES.replace('"MagCache"', '"MagCacheCalibration"'))
    assert page.evaluate("() => cache.magpolicy.inner.textContent") == ""
    page.evaluate("() => cache.magpolicy.report({ strip: '███', text: 'written: there.json' })")
    assert "written: there.json" in page.evaluate("() => cache.magpolicy.inner.textContent")
    assert page.errors == []
