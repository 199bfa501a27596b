"""Under ``semantics="diffusers"`` the same steps compute as under diffusers' own MagCache hook, on classes it gets right."""

from contextlib import nullcontext

import pytest

import magpolicy

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from diffusers.hooks import apply_mag_cache  # noqa: E402
from zoo import CASES  # noqa: E402
from zoo._case import Draw, Row  # noqa: E402

from diffusers import MagCacheConfig  # noqa: E402

STEPS = 14
RATIOS = [1.0, 0.98, 1.01, 0.97, 0.99, 1.02, 0.96, 0.99, 0.98, 1.0, 0.95, 0.97, 0.99, 0.94]
NAMES = [
    "Flux",
    "Flux2",
    "SD3",
    "Wan",
    "QwenImage",
    "CogVideoX",
    "CogView4",
    "HunyuanVideo",
    "HunyuanImage",
    "LTXVideo",
    "Mochi",
    "MotifVideo",
    "Kandinsky5",
    "DiT",
    "PixArt",
    "HunyuanVideoFramepack",
    "Prior",
    "TransformerTemporal",
]
RIGHT = [case for case in CASES.values() if any(case.cls.startswith((f"{n}Transformer", f"{n}Model")) for n in NAMES)]


def computed(case, model):
    """For each step, whether the first block's own modules ran."""
    inner, ran = [m for m in case.stack(model)[1].modules() if m is not case.stack(model)[1]], []
    hooks = [m.register_forward_pre_hook(lambda *_: ran.append(True)) for m in inner]
    found = []
    for step in range(STEPS):
        ran.clear()
        with model.cache_context("cond") if hasattr(model, "cache_context") else nullcontext():
            case.call(model, Draw((Row(step),), level=1 - step / STEPS))
        found.append(bool(ran))
    for hook in hooks:
        hook.remove()
    return tuple(found)


@pytest.mark.parametrize("case", RIGHT, ids=lambda c: c.cls)
def test_the_same_steps_compute(case):
    theirs, ours = case.make(), case.make()
    config = MagCacheConfig(num_inference_steps=STEPS, mag_ratios=RATIOS, threshold=0.06, max_skip_steps=3, retention_ratio=0.2)
    apply_mag_cache(theirs, config)
    settings = {"threshold": 0.06, "max_skips": 3, "retention": 0.2, "semantics": "diffusers"}
    with magpolicy.attach(ours, ratios=RATIOS, **settings) as handle, handle.run(steps=STEPS):
        found = computed(case, ours)
        assert found == handle.report.schedule.mask
    assert found == computed(case, theirs)
    assert 0 < sum(found) < STEPS


def test_classes_are_compared():
    assert len(RIGHT) >= 18
