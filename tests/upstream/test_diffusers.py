"""``upstream/diffusers``: what is said of diffusers is so, and the config would work if diffusers had the proposed table."""

import importlib.util
import inspect
from pathlib import Path
from typing import ClassVar

import pytest

pytest.importorskip("diffusers", reason="the diffusers extra is not installed")
from diffusers.models.cache_utils import CacheMixin

import magpolicy
import torch
from diffusers import FluxTransformer2DModel

FOLDER = Path(__file__).parents[2] / "upstream" / "diffusers"
SPEC = importlib.util.spec_from_file_location("magpolicy_config", FOLDER / "magpolicy_config.py")
ours = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(ours)
STEPS = 8


class WithTable(FluxTransformer2DModel):
    """A model of diffusers with the proposed methods. These are ours, and a fake of what diffusers might have one day."""

    table: ClassVar = {ours.MagPolicyConfig: (ours.apply_magpolicy, ours.remove_magpolicy)}

    def enable_cache(self, config):
        if self.is_cache_enabled:
            raise ValueError("a cache is enabled already")
        self.table[type(config)][0](self, config)
        self._cache_config = config

    def disable_cache(self):
        self.table[type(self._cache_config)][1](self)
        self._cache_config = None


def made(kind):
    torch.manual_seed(0)
    sizes = dict(num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2)
    return kind(in_channels=16, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 6, 6), **sizes).eval()


def runs(model, steps=STEPS):
    """A loop as a pipeline has one: a call a step, with falling timesteps."""
    given = dict(
        hidden_states=torch.ones(1, 16, 16),
        encoder_hidden_states=torch.ones(1, 4, 32),
        pooled_projections=torch.ones(1, 32),
        img_ids=torch.zeros(16, 3),
        txt_ids=torch.zeros(4, 3),
    )
    outs = []
    with torch.no_grad():
        for step in range(steps):
            with model.cache_context("cond"):
                outs.append(model(timestep=torch.tensor([1 - step / steps]), **given, return_dict=False)[0].clone())
    return outs


def test_diffusers_refuses_a_config_of_another_package():
    """When this fails, diffusers has a way in: use it, and say so in ``upstream/diffusers/README.md``."""
    with pytest.raises(ValueError, match="is not supported"):
        made(FluxTransformer2DModel).enable_cache(ours.MagPolicyConfig(num_inference_steps=STEPS))
    assert "isinstance(config" in inspect.getsource(CacheMixin.enable_cache)


def test_with_the_table_it_runs_what_attach_runs():
    plain, one, other = made(FluxTransformer2DModel), made(WithTable), made(FluxTransformer2DModel)
    before = runs(plain)
    handle = magpolicy.attach(other, steps=STEPS, speedup=2.0, learn=False)
    expected = runs(other)
    one.enable_cache(ours.MagPolicyConfig(num_inference_steps=STEPS, speedup=2.0, settings={"learn": False}))
    assert one.is_cache_enabled
    assert all(map(torch.equal, runs(one), expected))
    (attached,) = magpolicy.attached(one)
    assert attached.report.strip == handle.report.strip
    assert handle.report.computed == STEPS // 2
    one.disable_cache()
    assert not one.is_cache_enabled
    assert not magpolicy.attached(one)
    assert all(map(torch.equal, runs(one), before))


def test_a_setting_of_no_use_is_told_before_anything_is_attached():
    model = made(WithTable)
    with pytest.raises(magpolicy.ArgumentError, match="speedup"):
        model.enable_cache(ours.MagPolicyConfig(num_inference_steps=STEPS, speedup=-1.0))
    assert not model.is_cache_enabled
    assert not magpolicy.attached(model)
