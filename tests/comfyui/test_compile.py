"""Compile Model in either order with MagCache, and ComfyUI's own node that compiles the whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from host import models, running
from host.running import PRESETS, RULE

import magpolicy
import torch

FEW = ("Flux", "WAN21_T2V", "QwenImage")


@pytest.fixture(autouse=True)
def fresh_compiler() -> Any:
    import torch._dynamo

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def compiled(patcher: Any, way: str) -> Any:
    if way == "blocks":
        from magpolicy_comfyui import NODE_CLASS_MAPPINGS

        node = NODE_CLASS_MAPPINGS["CompileModel"]()
        return node.apply(patcher, mode="default", backend="eager", fullgraph=False, dynamic=False)[0]
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    clone = patcher.clone()
    set_torch_compile_wrapper(model=clone, backend="eager")
    return clone


@pytest.mark.sampled
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("way", ["blocks", "whole"])
@pytest.mark.parametrize("name", FEW)
def test_compiled_in_either_order(comfyui: Path, name: str, way: str, order: str) -> None:
    patcher = models.make(name)
    plain, reference = running.under(patcher, PRESETS[name])
    wanted = running.sample(plain, name, steps=10, cfg=3.0)
    if order == "before":
        node, attachment = running.under(compiled(patcher, way), PRESETS[name])
    else:
        under, attachment = running.under(patcher, PRESETS[name])
        node = compiled(under, way)
    first = running.sample(node, name, steps=10, cfg=3.0)
    graphs = _counted("stats", "unique_graphs")
    assert graphs > 0, "nothing was compiled"
    second = running.sample(node, name, steps=10, cfg=3.0)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, wanted, rtol=1e-4, atol=1e-4)
    running.same(attachment.run_report.schedule, magpolicy.simulate(PRESETS[name], steps=10, batched=True, **RULE))
    assert attachment.run_report.schedule == reference.run_report.schedule
    assert attachment.run_report.report.scope == "stack"
    assert _counted("stats", "unique_graphs") == graphs, "compiled again for the second run"
    assert not torch._dynamo.utils.counters["graph_break"], dict(torch._dynamo.utils.counters["graph_break"])
    running.untouched(patcher)
    torch.testing.assert_close(running.sample(patcher, name, steps=10), running.sample(patcher, name, steps=10))


def _counted(group: str, name: str) -> int:
    import torch._dynamo

    return int(torch._dynamo.utils.counters[group][name])


@pytest.mark.parametrize("region", ["blocks", "model"])
def test_compile_is_by_comfyuis_own_wrapper(comfyui: Path, region: str) -> None:
    wanted = running.sample(models.make("Flux"), "Flux", steps=4, cfg=1.0)
    patcher = models.make("Flux")
    assert magpolicy.compile(patcher, region=region, backend="eager") is patcher
    found = running.sample(patcher, "Flux", steps=4, cfg=1.0)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert _counted("stats", "unique_graphs") > 0, "nothing was compiled"
    with pytest.raises(magpolicy.ArgumentError, match="try 'inductor'"):
        magpolicy.compile(patcher, backend="inducter")


def test_a_unet_is_compiled_and_skipped_as_a_whole(comfyui: Path) -> None:
    patcher = models.make("SD15")
    curve = magpolicy.Curve([1.0] * 10)
    node, attachment = running.under(compiled(patcher, "blocks"), curve)
    reference = running.sample(running.under(patcher, curve)[0], "SD15", steps=10)
    torch.testing.assert_close(running.sample(node, "SD15", steps=10), reference, rtol=1e-4, atol=1e-4)
    running.same(attachment.run_report.schedule, magpolicy.simulate(curve, **RULE))
    assert attachment.run_report.report.scope == "model"


@pytest.mark.slow
def test_the_compiler_of_the_machine(comfyui: Path) -> None:
    """The default backend, once."""
    from magpolicy_comfyui import NODE_CLASS_MAPPINGS

    patcher = models.make("Flux")
    node, attachment = running.under(patcher, "flux")
    wanted = running.sample(node, "Flux", steps=10)
    compile_model = NODE_CLASS_MAPPINGS["CompileModel"]().apply
    made = compile_model(node, mode="default", backend="inductor", fullgraph=True, dynamic=False)[0]
    try:
        result = running.sample(made, "Flux", steps=10)
    except Exception as error:
        if "compiler" in str(error).lower() and "InvalidCxxCompiler" in f"{type(error)}{error}":
            pytest.skip("no C++ compiler here")
        raise
    torch.testing.assert_close(result, wanted, rtol=1e-3, atol=1e-3)
    running.same(attachment.run_report.schedule, magpolicy.simulate("flux", steps=10, **RULE))
