"""Weights that are no plain tensors, and weights that move: what runs is as simulated, never skipping changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from host import models, running

import magpolicy
import torch

pytestmark = pytest.mark.sampled

CURVE = magpolicy.Curve([1.0] * 8)
RULE = {"threshold": 1.0, "max_skips": 2, "retention": 0.2}
EXPECTED = magpolicy.simulate(CURVE, **RULE)
NAMES = ("Flux", "WAN21_T2V", "SDXL")


def sampled(name: str) -> Callable[[Any], torch.Tensor]:
    return lambda model: running.sample(model, name, cfg=3.0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16], ids=["e4m3", "e5m2", "half"])
def test_weights_that_are_cast_for_each_call(comfyui: Path, name: str, dtype: torch.dtype) -> None:
    patcher = models.make(name, _dtypes=(dtype, torch.float32))
    assert any(p.dtype is dtype for p in patcher.model.parameters())
    running.check(patcher, CURVE, EXPECTED, sampled(name), **RULE)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_fast_matrix_product_of_fp8(comfyui: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The option --fast fp8_matrix_mult. It writes into what a layer is given."""
    import comfy.ops

    made = []
    linear = comfy.ops.fp8_linear
    monkeypatch.setattr(comfy.ops, "fp8_linear", lambda *args: made.append(linear(*args)) or made[-1])
    patcher = models.make(name, _dtypes=(torch.float8_e4m3fn, torch.float32), _operations=comfy.ops.fp8_ops)
    small = (*models.latent(name)["samples"].shape[1:-2], 4, 4)  # on a CPU that product is slow
    running.check(patcher, CURVE, EXPECTED, lambda model: running.sample(model, name, cfg=3.0, size=small), **RULE)
    assert any(product is not None for product in made)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["float8_e4m3fn", "float8_e5m2", "int8_tensorwise", "nvfp4", "mxfp8"])
def test_mixed_precision(comfyui: Path, name: str, form: str) -> None:
    """Layers of a checkpoint that says for each how it is quantized."""
    quant = pytest.importorskip("comfy.quant_ops")
    if form not in quant.QUANT_ALGOS or running.version() < (0, 33):
        pytest.skip(f"this ComfyUI has no checkpoints with layers of {form}")
    patcher = models.quantized(name, form)
    kinds = {type(p.data).__name__ for p in patcher.model.parameters()}
    assert "QuantizedTensor" in kinds
    running.check(patcher, CURVE, EXPECTED, sampled(name), **RULE)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lora", [False, True], ids=["plain", "lora"])
def test_weights_that_move_between_steps(comfyui: Path, name: str, lora: bool) -> None:
    """Another model takes the memory midway and gives it back: layers are unloaded, and cast on the fly with their patches."""
    from comfy.patcher_extension import WrappersMP

    patcher = models.make(name)
    if lora and name == "SDXL" and running.version() < (0, 33):
        pytest.skip("moved so often, weights of a U-Net lose their patches in this ComfyUI, without a node of ours too")
    if lora:
        weights = {k: p for k, p in patcher.model.named_parameters() if k.endswith("weight") and p.ndim == 2}
        generator = torch.Generator().manual_seed(5)
        patches = {k: (0.05 * torch.randn(p.shape, generator=generator),) for k, p in weights.items()}
        assert patcher.add_patches(patches, 0.7)
    moved: list[float] = []

    def move(executor: Any, *args: Any, **kwargs: Any) -> Any:
        cpu = torch.device("cpu")
        with running.quiet():
            if len(moved) % 2:
                patcher.partially_load(cpu, patcher.model_size() // 2)
            else:
                patcher.partially_unload(cpu, patcher.model_size() // 2)
        moved.append(patcher.loaded_size())
        return executor(*args, **kwargs)

    # Weights that are cast on the fly are patched each time anew, by the same sum: the results are equal bit for bit.
    patcher.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "moves", move)
    running.check(patcher, CURVE, EXPECTED, sampled(name), **RULE)
    assert len(set(moved)) > 1


@pytest.mark.parametrize("name", ["LTXAV", "MiniMaxH3"])
def test_what_is_fetched_ahead(comfyui: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamic VRAM fetches the weights of the next block while one runs: of all blocks if they compute, of none on a skip.

    It needs a GPU: its queue is stood in for by one that counts the layers that it would have fetched.
    """
    prefetch = pytest.importorskip("comfy.model_prefetch", reason="this ComfyUI fetches nothing ahead")
    fetched: list[int] = []

    def make(blocks: list[Any], *_: Any) -> list[Any]:
        fetched.append(0)
        return [*blocks, None]

    def pop(queue: list[Any], device: Any, module: Any, *_: Any) -> None:
        ahead = queue.pop(0)
        fetched[-1] += 0 if ahead is None else sum(hasattr(m, "weight") for m in ahead.modules())

    monkeypatch.setattr(prefetch, "make_prefetch_queue", make)
    monkeypatch.setattr(prefetch, "prefetch_queue_pop", pop)
    patcher = models.make(name)
    running.sample(patcher, name, steps=2)
    whole = fetched[-1]
    fetched.clear()
    node, attachment = running.under(patcher, CURVE, **RULE)
    running.sample(node, name)
    computed = [bool(count) for count in fetched]
    assert set(fetched) == {0, whole}
    assert computed.count(True) == attachment.run_report.report.computed
    assert computed.count(False) >= attachment.run_report.report.skipped  # the first skip tries two ways
