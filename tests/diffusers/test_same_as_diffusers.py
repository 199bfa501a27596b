"""semantics="diffusers" on real models: the steps that compute, and what is returned, as under diffusers' own MagCache hook."""

from contextlib import nullcontext

import pytest

import magpolicy
from magpolicy import simulate

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("diffusers", reason="the diffusers extra is not installed")
mag_cache = pytest.importorskip("diffusers.hooks.mag_cache", reason="the installed diffusers has no MagCache hook")

from zoo import CASES  # noqa: E402
from zoo._case import Draw, Row  # noqa: E402

# Those whose blocks the hook knows and finds. Where it does not, it refuses, or skips nothing.
CLASSES = [
    "CogVideoXTransformer3DModel",
    "CogView4Transformer2DModel",
    "DiTTransformer2DModel",
    "Flux2Transformer2DModel",
    "FluxTransformer2DModel",
    "HunyuanImageTransformer2DModel",
    "HunyuanVideoFramepackTransformer3DModel",
    "HunyuanVideoTransformer3DModel",
    "Kandinsky5Transformer3DModel",
    "LTXVideoTransformer3DModel",
    "MochiTransformer3DModel",
    "MotifVideoTransformer3DModel",
    "PixArtTransformer2DModel",
    "QwenImageTransformer2DModel",
    "SD3Transformer2DModel",
    "WanTransformer3DModel",
    "WanVACETransformer3DModel",
]
# On a skip the hook lets through what these models exchange or add between their blocks.
OTHER_OUTPUTS = ("MotifVideoTransformer3DModel", "WanVACETransformer3DModel")

RATIOS = [1.0, 1.02, 0.99, 1.01, 0.985, 0.98, 0.97, 0.95, 0.93, 0.9]
RULES = [
    pytest.param(steps, *rule, id=f"{steps} steps, {rule[0]}, {rule[1]}, {rule[2]}")
    for steps, rule in [(10, (0.08, 3, 0.2)), (17, (0.06, 2, 0.1)), (6, (0.24, 5, 0.0)), (4, (0.0, 3, 0.5))]
]


class Watched:
    """A model called in a plain loop; which of its blocks really run, is told by the modules within them."""

    def __init__(self, name):
        self.case = CASES[name]
        self.model = self.case.make()
        self.blocks = self.case.stack(self.model)
        self.branches = ("cond", "uncond") if hasattr(self.model, "cache_context") else ("cond",)
        self._ran = set()
        for index, block in enumerate(self.blocks):
            for inner in list(block.modules())[1:]:
                inner.register_forward_pre_hook(lambda *_, index=index: self._ran.add(index))

    def run(self, steps, noise=0):
        """Per branch, whether each step ran all blocks; and every output, in order."""
        masks, outputs = {branch: [] for branch in self.branches}, []
        for step in range(steps):
            for branch in self.branches:
                self._ran.clear()
                with self.model.cache_context(branch) if len(self.branches) > 1 else nullcontext():
                    draw = Draw((Row((noise, step), branch),), level=1 - step / steps)
                    outputs += self.case.call(self.model, draw)
                masks[branch].append(len(self._ran) == len(self.blocks))
        return {branch: tuple(mask) for branch, mask in masks.items()}, outputs


def enable(model, **config):
    """The hook, put on the model's own way, or where it has none, on its blocks."""
    config = mag_cache.MagCacheConfig(**config)
    if hasattr(model, "enable_cache"):
        model.enable_cache(config)
    else:
        mag_cache.apply_mag_cache(model, config)


@pytest.mark.parametrize(("steps", "threshold", "max_skips", "retention"), RULES)
@pytest.mark.parametrize("name", CLASSES)
def test_the_same_steps_compute_as_under_the_hook(name, steps, threshold, max_skips, retention):
    theirs, ours = Watched(name), Watched(name)
    enable(
        theirs.model, threshold=threshold, max_skip_steps=max_skips, retention_ratio=retention,
        num_inference_steps=steps, mag_ratios=list(RATIOS),
    )  # fmt: skip
    settings = {"threshold": threshold, "max_skips": max_skips, "retention": retention, "semantics": "diffusers"}
    expected = simulate(RATIOS, steps=steps, **settings)
    with magpolicy.attach(ours.model, ratios=RATIOS, steps=steps, **settings) as handle:
        for generation in range(2):
            masks, outputs = theirs.run(steps, generation)
            assert masks == dict.fromkeys(theirs.branches, expected.mask)
            found, returned = ours.run(steps, generation)
            assert found == masks
            assert dict(zip(handle.report.schedule.streams, handle.report.schedule.masks, strict=True)) == masks
            if name not in OTHER_OUTPUTS:
                assert all(torch.equal(a, b) for a, b in zip(outputs, returned, strict=True))


def test_something_is_shown():
    """All rules but the last skip, none of them in the same way."""
    masks = [
        simulate(RATIOS, steps=n, threshold=t, max_skips=k, retention=r, semantics="diffusers").mask
        for n, t, k, r in (rule.values for rule in RULES)
    ]
    assert [all(mask) for mask in masks] == [False, False, False, True]
    assert len(set(masks)) == len(masks)
