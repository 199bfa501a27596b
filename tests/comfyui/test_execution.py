"""Prompts run by ComfyUI's own executor: outputs kept between prompts, one output of several, interrupts, lists, subgraphs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import tiny_pack
from attrs import Factory, define
from host import models, running

import magpolicy

Prompt = dict[str, dict[str, Any]]
EXPECTED = magpolicy.simulate("flux", steps=8, **running.RULE)


@define
class Server:
    """In the place of ComfyUI's, as far as the executor knows it."""

    client_id: str | None = "browser"
    last_node_id: str | None = None
    last_prompt_id: str | None = None
    sent: list[tuple[str, Any]] = Factory(list)

    def send_sync(self, event: Any, data: Any, *_: Any) -> None:
        self.sent.append((event, data))

    def of(self, event: str) -> list[Any]:
        """What was sent of that kind."""
        return [data for kind, data in self.sent if kind == event]


class Executor:
    """ComfyUI's, with what it has said and run."""

    def __init__(self) -> None:
        import execution

        self.server = Server()
        sizes = {"cache_args": {"lru": 0, "ram": 0, "ram_inactive": 0}} if running.version() >= (0, 3, 75) else {}
        self.inner = execution.PromptExecutor(self.server, **sizes)

    def run(self, prompt: Prompt, *outputs: str) -> dict[str, Any]:
        """Run it, give what its output nodes show."""
        self.server.sent.clear()
        with running.quiet():
            self.inner.execute(copy.deepcopy(prompt), "prompt", {"client_id": "browser"}, list(outputs))
        shown: dict[str, Any] = self.inner.history_result["outputs"]
        return shown

    @property
    def ended(self) -> str:
        """How the last prompt ended."""
        last: str = self.inner.status_messages[-1][0]
        return last

    @property
    def kept(self) -> set[str]:
        """The nodes whose outputs were taken from a prompt before."""
        return set(self.server.of("execution_cached")[-1]["nodes"])

    @property
    def reports(self) -> list[Any]:
        """What ours told the browser."""
        return self.server.of("magpolicy.report")


FORMS = ["schema", "nodes"]
"""Fixtures with ours in both forms. Where no test says otherwise, they are of the schema."""


@pytest.fixture
def executor(comfyui: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Executor:
    import nodes as host_nodes

    ours = request.getfixturevalue(getattr(request, "param", "schema"))
    for name, kind in {**tiny_pack.NODE_CLASS_MAPPINGS, **ours}.items():
        monkeypatch.setitem(host_nodes.NODE_CLASS_MAPPINGS, name, kind)
    made = Executor()
    server = type("server", (), {"PromptServer": type("PromptServer", (), {"instance": made.server})})
    monkeypatch.setitem(__import__("sys").modules, "server", server)
    return made


def workflow(**inputs: Any) -> Prompt:
    """A model behind MagCache, two samplers with it, and a report of each."""
    settings = {"model_type": "flux", "magcache_thresh": 0.24, "retention_ratio": 0.2, "magcache_K": 4}
    sampler = {
        "model": ["mag", 0], "positive": ["pos", 0], "negative": ["neg", 0], "latent_image": ["empty", 0], "steps": 8,
        "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
    }  # fmt: skip
    return {
        "model": {"class_type": "TinyModel", "inputs": {"kind": "Flux"}},
        "mag": {"class_type": "MagPolicy", "inputs": {"model": ["model", 0], **settings, **inputs}},
        "pos": {"class_type": "TinyPrompt", "inputs": {"kind": "Flux", "seed": 0}},
        "neg": {"class_type": "TinyPrompt", "inputs": {"kind": "Flux", "seed": 1}},
        "empty": {"class_type": "TinyLatent", "inputs": {"kind": "Flux"}},
        "one": {"class_type": "KSampler", "inputs": {**sampler, "seed": 1}},
        "two": {"class_type": "KSampler", "inputs": {**sampler, "seed": 2, "latent_image": ["one", 0], "denoise": 0.5}},
        "report one": {"class_type": "MagPolicyReport", "inputs": {"latent": ["one", 0], "model": ["mag", 0]}},
        "report two": {"class_type": "MagPolicyReport", "inputs": {"latent": ["two", 0], "model": ["mag", 0]}},
    }


def strip(text: Any) -> str:
    """The picture of a schedule in the text of a report."""
    shown = text["text"][0] if isinstance(text, dict) else text
    return next(word for word in str(shown).split() if set(word) <= set("█·") and word)


@pytest.mark.parametrize("executor", FORMS, indirect=True)
def test_one_output_of_several(executor: Executor) -> None:
    shown = executor.run(workflow(), "report one")
    assert executor.ended == "execution_success"
    assert set(shown) == {"report one"}
    assert strip(shown["report one"]) == EXPECTED.strip
    assert [data["node"] for data in executor.reports] == ["mag"]  # the other sampler did not run


@pytest.mark.parametrize("executor", FORMS, indirect=True)
def test_each_report_shows_the_run_of_its_latent(executor: Executor) -> None:
    first = executor.run(workflow(), "report one", "report two")
    assert strip(first["report one"]) == EXPECTED.strip
    assert "of a schedule of" in first["report two"]["text"][0]
    assert first["report one"] != first["report two"]
    changed = workflow()
    changed["two"]["inputs"]["seed"] = 5
    again = executor.run(changed, "report one", "report two")  # only the second samples
    assert executor.kept >= {"model", "mag", "one"}
    assert len(executor.reports) == 1
    assert again["report one"] == first["report one"]
    assert strip(again["report two"]) == strip(first["report two"])


@pytest.mark.parametrize("executor", FORMS, indirect=True)
def test_the_same_prompt_again_samples_nothing(executor: Executor) -> None:
    first = executor.run(workflow(), "report two")
    again = executor.run(workflow(), "report two")
    assert executor.kept >= {"model", "mag", "one", "two"}
    assert not executor.reports
    assert again == first


@pytest.mark.parametrize("executor", FORMS, indirect=True)
def test_two_nodes_with_the_same_inputs_are_told_of_their_own_samplings(executor: Executor) -> None:
    prompt = workflow()
    prompt["mag two"] = copy.deepcopy(prompt["mag"])
    prompt["two"]["inputs"]["model"] = prompt["report two"]["inputs"]["model"] = ["mag two", 0]
    executor.run(prompt, "report one", "report two")
    assert [data["node"] for data in executor.reports] == ["mag", "mag two"]


def test_changed_settings_sample_anew(executor: Executor) -> None:
    import torch

    executor.run(workflow(), "report one")
    shown = executor.run(workflow(magcache_K=1), "report one")
    assert executor.kept == {"model", "pos", "neg", "empty"}
    assert strip(shown["report one"]) == magpolicy.simulate("flux", steps=8, **running.RULE | {"max_skips": 1}).strip
    fresh = Executor()
    fresh.run(workflow(magcache_K=1), "report one")
    latents = [run.inner.caches.outputs for run in (executor, fresh)]
    assert torch.equal(*(sampled(cache, "one") for cache in latents))  # nothing was left of the prompt before


def sampled(cache: Any, node: str) -> Any:
    """The latent that a node put out, as the executor keeps it."""
    import asyncio
    import inspect

    entry = cache.get_local(node) if hasattr(cache, "get_local") else cache.get(node)
    entry = asyncio.run(entry) if inspect.iscoroutine(entry) else entry
    return getattr(entry, "outputs", entry)[0][0]["samples"]


@pytest.mark.parametrize("midway", [1, 3, 6])
def test_an_interrupted_prompt(executor: Executor, midway: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.model_management
    import comfy.samplers

    wanted = executor.run(workflow(), "report one")
    inner, calls = comfy.samplers.CFGGuider.predict_noise, []

    def predict(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == midway:
            raise comfy.model_management.InterruptProcessingException
        return inner(self, *args, **kwargs)

    changed = workflow()
    changed["one"]["inputs"]["seed"] = 7
    with monkeypatch.context() as patch:
        patch.setattr(comfy.samplers.CFGGuider, "predict_noise", predict)
        executor.run(changed, "report one")
    assert executor.ended == "execution_interrupted"
    shown = executor.run(changed, "report one")
    assert strip(shown["report one"]) == strip(wanted["report one"]) == EXPECTED.strip


def test_a_list_of_latents(executor: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that puts out a list has the sampler run once for each of it."""
    import nodes as host_nodes

    class TinyLatents(tiny_pack._Node):
        INPUT_TYPES = classmethod(lambda cls: {"required": {}})
        RETURN_TYPES = ("LATENT",)
        OUTPUT_IS_LIST = (True,)

        def run(self) -> tuple[Any]:
            return ([models.latent("Flux"), models.latent("Flux", size=(16, 12, 8))],)

    monkeypatch.setitem(host_nodes.NODE_CLASS_MAPPINGS, "TinyLatents", TinyLatents)
    prompt = workflow()
    prompt["empty"] = {"class_type": "TinyLatents", "inputs": {}}
    shown = executor.run(prompt, "report one")
    assert executor.ended == "execution_success"
    assert [data["strip"] for data in executor.reports] == [EXPECTED.strip] * 2
    assert [strip(text) for text in shown["report one"]["text"]] == [EXPECTED.strip] * 2


@pytest.mark.parametrize("executor", FORMS, indirect=True)
def test_a_node_that_makes_ours_as_it_runs(executor: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that expands into others, as loops do; the editor's own subgraphs are flat prompts by the time they run."""
    import nodes as host_nodes
    from comfy_execution.graph_utils import GraphBuilder

    class TinyExpanding(tiny_pack._Node):
        INPUT_TYPES = classmethod(lambda cls: {"required": {"model": ("MODEL",)}})
        RETURN_TYPES = ("MODEL",)

        def run(self, model: Any) -> dict[str, Any]:
            graph = GraphBuilder()
            made = graph.node(
                "MagPolicy", model=model, **{k: v for k, v in workflow()["mag"]["inputs"].items() if k != "model"}
            )
            return {"result": (made.out(0),), "expand": graph.finalize()}

    monkeypatch.setitem(host_nodes.NODE_CLASS_MAPPINGS, "TinyExpanding", TinyExpanding)
    prompt = workflow()
    prompt["mag"] = {"class_type": "TinyExpanding", "inputs": {"model": ["model", 0]}}
    shown = executor.run(prompt, "report one")
    assert executor.ended == "execution_success"
    assert strip(shown["report one"]) == EXPECTED.strip
    again = executor.run(prompt, "report one")
    assert not executor.reports
    assert again == shown
