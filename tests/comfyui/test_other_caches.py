"""Other caches on the same model: ComfyUI's EasyCache and LazyCache, and such as replace blocks by what they keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from host import models, running

import magpolicy
import torch

pytestmark = pytest.mark.sampled

STEPS = 16
RULE = {"threshold": 1.0, "max_skips": 3, "retention": 0.2}
CURVE = magpolicy.Curve([1.0] * STEPS)


def cached(patcher: Any, kind: str, threshold: float = 3.0) -> Any:
    """The model behind ComfyUI's node."""
    caches = pytest.importorskip("comfy_extras.nodes_easycache", reason="not in this ComfyUI")
    made = getattr(caches, f"{kind}Node").execute(patcher, threshold, 0.15, 0.95, False)
    return made.args[0]


class Works:
    """Of each evaluation, whether any part of the first block (or of a U-Net) ran."""

    def __init__(self, patcher: Any) -> None:
        from comfy.patcher_extension import WrappersMP

        from magpolicy_comfyui._block_stacks import stack_of

        self.done: list[bool] = []
        module = patcher.model.diffusion_model
        stack = stack_of(module)
        parts = (stack.blocks[0] if stack is not None else module).modules()
        self._hooks = [part.register_forward_pre_hook(self._work) for part in parts if not list(part.children())]
        patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "works", self._sample)

    def _work(self, *_: Any) -> None:
        if self.done:
            self.done[-1] = True

    def _sample(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Each step ends with the sampler's callback, also where another cache did not let the evaluation through."""
        args = list(args)
        before = args[5] if len(args) > 5 else kwargs.get("callback")

        def callback(step: int, *more: Any) -> None:
            if before is not None:
                before(step, *more)
            self.done.append(False)

        if len(args) > 5:
            args[5] = callback
        else:
            kwargs["callback"] = callback
        self.done.append(False)
        try:
            return executor(*args, **kwargs)
        finally:
            self.done.pop()
            for hook in self._hooks:
                hook.remove()


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("name", ["Flux", "WAN21_T2V", "QwenImage", "SD15"])
@pytest.mark.parametrize("kind", ["EasyCache", "LazyCache"])
def test_comfyui_s_own_cache_goes_alone(comfyui: Path, kind: str, name: str, order: str, cfg: float) -> None:
    """The picture is that of the other cache alone, the report says so, and which evaluations ran."""
    patcher = models.make(name)
    act = lambda m: running.sample(m, name, steps=STEPS, cfg=cfg)  # noqa: E731
    alone = act(cached(patcher, kind))
    plain = act(patcher)
    if order == "before":
        node, attachment = running.under(cached(patcher, kind), CURVE, **RULE)
    else:
        bare, attachment = running.under(patcher, CURVE, **RULE)
        node = cached(bare, kind)
    works = Works(node)
    assert torch.equal(act(node), alone)
    assert not torch.equal(alone, plain), "the other cache skips"
    report = attachment.run_report.report
    assert works.done.count(False) > 1
    assert f"{kind} is on this model too" in attachment.run_report.text
    strip = "".join("█" if done else "·" for done in works.done)
    # What LazyCache answers does not come to the model at all, so nothing is known of it after the last call that does.
    assert report.strip == (strip if kind == "EasyCache" else strip.rstrip("·"))
    assert report.computed == sum(works.done)
    assert 0 < report.computed < STEPS
    assert report.skipped == 0
    assert "reused" not in report.reasons
    assert torch.equal(act(patcher), plain)
    running.untouched(patcher)


def test_without_the_other_cache_it_skips_again(comfyui: Path) -> None:
    patcher = models.make("Flux")
    node, attachment = running.under(patcher, CURVE, **RULE)
    running.sample(cached(node, "EasyCache"), "Flux", steps=STEPS)
    running.sample(node, "Flux", steps=STEPS)
    running.same(attachment.run_report.schedule, magpolicy.simulate(CURVE, **RULE))
    assert not attachment.run_report.report.problems


def stale_cache(patcher: Any, since: int) -> tuple[Any, list[bool]]:
    """A clone whose model, from evaluation ``since`` on, at every other one returns what it made of its noise the last time."""
    clone, ran = patcher.clone(), []
    module = patcher.model.diffusion_model
    original = module.forward_orig
    kept: dict[tuple[int, ...], torch.Tensor] = {}

    def forward_orig(x: Any, *args: Any, **kwargs: Any) -> Any:
        ran.append(len(ran) < since or len(ran) % 2 == 0)
        if not ran[-1]:
            return kept[x.shape] + x
        made = original(x, *args, **kwargs)
        kept[x.shape] = made - x
        return made

    clone.add_object_patch("diffusion_model.forward_orig", forward_orig)
    return clone, ran


@pytest.mark.parametrize("since", [3, 4, 9])
def test_a_cache_of_another_pack_is_noticed(comfyui: Path, since: int) -> None:
    """It is not known by name: the first call whose blocks did not run tells, and from there on ours computes, and says why."""
    patcher = models.make("WAN21_T2V")
    other, ran = stale_cache(patcher, since)
    node, attachment = running.under(other, CURVE, **RULE)
    works = Works(node)
    assert torch.isfinite(running.sample(node, "WAN21_T2V", steps=STEPS)).all()
    report = attachment.run_report.report
    assert report.strip == "".join("█" if done else "·" for done in works.done)
    first = next(entry.step for entry in report.trace if entry.decision is magpolicy.Decision.ANSWERED)
    assert all(not entry.decision.skip for entry in report.trace if entry.step > first)
    assert "something else answered in the place of the blocks" in attachment.run_report.text
    assert len(ran) == STEPS
