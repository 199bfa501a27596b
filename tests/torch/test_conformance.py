"""The conformance kit over the torch adapter: a real Flux class, a real DiT class, and a user's own module."""

from contextlib import nullcontext

import numpy as np
import pytest

import magpolicy
from magpolicy.testing import RigStop, check_adapter

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
diffusers = pytest.importorskip("diffusers", reason="the diffusers extra is not installed")


class Block(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = torch.nn.LayerNorm(width)
        self.mlp = torch.nn.Sequential(torch.nn.Linear(width, 2 * width), torch.nn.GELU(), torch.nn.Linear(2 * width, width))

    def forward(self, hidden_states):
        return hidden_states + self.mlp(self.norm(hidden_states))


class OwnModel(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Linear(6, 16)
        self.blocks = torch.nn.ModuleList([Block(16) for _ in range(4)])
        self.out = torch.nn.Linear(16, 6)

    def forward(self, x, condition):
        hidden = self.embed(x) + condition[:, None]
        for block in self.blocks:
            hidden = block(hidden)
        return self.out(hidden)


class Rig:
    """Runs a model in a plain loop. Subclasses say how it is made and called."""

    tolerance = 1e-5

    def __init__(self):
        torch.manual_seed(0)
        self.model = self.make().eval().requires_grad_(False)
        self.counted = 0
        self.blocks = [b for child in self.model.children() if isinstance(child, torch.nn.ModuleList) for b in child]
        for block in self.blocks:
            # Counts what the block itself computes, under whatever is put around its forward.
            next(m for m in block.modules() if isinstance(m, torch.nn.LayerNorm)).register_forward_hook(self._count)

    def _count(self, *_):
        self.counted += 1

    def attach(self, **settings):
        return magpolicy.attach(self.model, **settings)

    def blocks_run(self):
        counted, self.counted = self.counted, 0
        return counted

    def traces(self):
        names = [(name, sorted(module.__dict__)) for name, module in self.model.named_modules()]
        forwards = [(name, "forward" in module.__dict__) for name, module in self.model.named_modules()]
        hooks = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in self.model.modules()]
        return names, forwards, hooks, sorted(self.model.state_dict())

    def residuals_held(self, handle):
        return handle.residuals_held

    def run(self, handle, steps, *, streams=("cond", "uncond"), batched=False, seed=0, size=8, size_from=None,
            same_input=False, stop_at=None):  # fmt: skip
        outputs = []
        with torch.no_grad(), nullcontext() if handle is None else handle.run(steps=steps):
            for step in range(steps):
                if size_from is not None and step >= size_from[0]:
                    size = size_from[1]
                # By name: a stream's inputs must not depend on which others run beside it.
                places = map(("cond", "uncond").index, streams)
                inputs = [self.inputs(seed, 0 if same_input else step, place, size) for place in places]
                if step == stop_at:
                    hook = self.blocks[-1].register_forward_pre_hook(self._stop)
                    try:
                        self.call(*inputs[0])
                        # A skipped step runs no block: the host's interruption comes from its loop then.
                        raise RigStop
                    finally:
                        hook.remove()
                if batched:
                    with nullcontext() if handle is None else handle.stream(*streams):
                        both = self.call(*(torch.cat(parts) for parts in zip(*inputs, strict=True)))
                    outputs.extend(both.chunk(len(streams)))
                else:
                    for stream, given in zip(streams, inputs, strict=True):
                        with nullcontext() if handle is None else handle.stream(stream):
                            outputs.append(self.call(*given))
        return [np.asarray(output) for output in outputs]

    @staticmethod
    def _stop(*_):
        raise RigStop

    @staticmethod
    def random(*key_then_shape):
        *key, shape = key_then_shape
        return torch.randn(shape, generator=torch.Generator().manual_seed(hash(tuple(key)) % 2**31))


class OwnRig(Rig):
    make = staticmethod(OwnModel)

    def inputs(self, seed, step, place, size):
        return self.random(seed, step, place, (1, size, 6)), self.random(seed, place, (1, 16))

    def call(self, x, condition):
        return self.model(x, condition)


class WholeModelRig(OwnRig):
    def attach(self, **settings):
        return magpolicy.attach(self.model, scope="model", **settings)


class OffloadRig(OwnRig):
    def attach(self, **settings):
        return magpolicy.attach(self.model, offload="cpu", **settings)


class FluxRig(Rig):
    @staticmethod
    def make():
        return diffusers.FluxTransformer2DModel(
            in_channels=4, num_layers=2, num_single_layers=3, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(4, 6, 6),
        )  # fmt: skip

    def inputs(self, seed, step, place, size):
        time = torch.tensor([1 - step / 20])
        return self.random(seed, step, place, (1, size, 4)), self.random(seed, place, (1, 5, 8)), time

    def call(self, x, text, time):
        return self.model(
            hidden_states=x, encoder_hidden_states=text, pooled_projections=text[:, 0], timestep=time,
            img_ids=torch.arange(x.shape[1])[:, None].repeat(1, 3).float(), txt_ids=torch.zeros(text.shape[1], 3),
            return_dict=False,
        )[0]  # fmt: skip


class DiTRig(Rig):
    @staticmethod
    def make():
        return diffusers.DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=3, sample_size=8, patch_size=2,
            num_embeds_ada_norm=10, norm_type="ada_norm_zero",
        )  # fmt: skip

    def inputs(self, seed, step, place, size):
        return self.random(seed, step, place, (1, 4, size, size)), torch.tensor([place]), torch.tensor([999 - 10 * step])

    def call(self, x, label, time):
        return self.model(x, timestep=time, class_labels=label, return_dict=False)[0]


@pytest.mark.parametrize("rig", [OwnRig, WholeModelRig, OffloadRig, FluxRig, DiTRig], ids=lambda rig: rig.__name__)
def test_the_adapter_conforms(rig):
    assert len(check_adapter(rig)) >= 10


class Lying(OwnRig):
    """An adapter that breaks one contract each; the kit has to notice."""

    def attach(self, **settings):
        settings.pop("schedule", None)
        return magpolicy.attach(self.model, **{"ratios": [1.0] * 12, **settings, "max_skips": 1})


class Holding(OwnRig):
    """Skips as planned, and takes no notice of coefficients."""

    def attach(self, **settings):
        return magpolicy.attach(self.model, **({"forecast": "hold"} if "schedule" in settings else {}) | settings)


def test_the_kit_notices_an_adapter_that_does_not_forecast():
    with pytest.raises(AssertionError, match="forecasts: a forecast from 2 residuals is not"):
        check_adapter(Holding)


def test_the_kit_notices_an_adapter_that_decides_otherwise():
    with pytest.raises(AssertionError, match=r"exact|as simulated|skips"):
        check_adapter(Lying)
