"""The host adapter of "Write a plugin": it conforms, and uses public names only."""

import ast
from pathlib import Path

import numpy as np
import pytest

import magpolicy
from magpolicy.testing import RigStop, check_adapter

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
diffusers = pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

import host_adapter  # noqa: E402 - after what it needs

FILE = Path(host_adapter.__file__)
LABELS = {"cond": 1, "uncond": 0}


@pytest.fixture(autouse=True)
def registered():
    magpolicy.manager().register(host_adapter)
    yield
    magpolicy.manager().unregister(host_adapter)
    magpolicy.manager()


def transformer():
    torch.manual_seed(0)
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=3, sample_size=8, patch_size=2,
        num_embeds_ada_norm=10, norm_type="ada_norm_zero",
    )  # fmt: skip
    return model.eval().requires_grad_(False)


class GivenInputs:
    """A sampler whose latents do not depend on what the model returns; notes that."""

    def __init__(self, steps, seed, size, size_from, same_input, stop_at, last_block):
        self.steps, self.seed, self.size, self.size_from, self.same_input = steps, seed, size, size_from, same_input
        self.stop_at, self.last_block, self.hook = stop_at, last_block, None
        self.sigmas, self.outputs = [1 - step / steps for step in range(steps)] + [0.0], []

    def begin(self):
        return self.latents(0)

    def latents(self, step):
        size = self.size_from[1] if self.size_from is not None and step >= self.size_from[0] else self.size
        generator = torch.Generator().manual_seed(1000 * self.seed + (0 if self.same_input else step))
        return torch.randn(1, 4, size, size, generator=generator)

    def time(self, step):
        if step == self.stop_at and self.hook is None:
            self.hook = self.last_block.register_forward_pre_hook(self.stop)
        return torch.tensor([999 - 10 * (0 if self.same_input else step)])

    def step(self, latents, step, outputs):
        if step == self.stop_at:
            self.stop()  # a skipped step runs no block: the host's interruption comes from its loop then
        self.outputs += outputs.values()
        return self.latents(step + 1)

    def stop(self, *_):
        raise RigStop


class Rig:
    tolerance = 1e-5

    def __init__(self):
        self.engine, self.counted = host_adapter.Engine(transformer()), 0
        self.blocks = list(self.engine.transformer.transformer_blocks)
        for block in self.blocks:
            block.norm3.register_forward_hook(self.count)

    def count(self, *_):
        self.counted += 1

    def attach(self, **settings):
        return magpolicy.attach(self.engine, **settings)

    def blocks_run(self):
        counted, self.counted = self.counted, 0
        return counted

    def traces(self):
        modules = [(name, sorted(module.__dict__)) for name, module in self.engine.transformer.named_modules()]
        hooks = [len(module._forward_hooks) for module in self.engine.transformer.modules()]
        return modules, hooks, sorted(self.engine.__dict__)

    def residuals_held(self, handle):
        return handle.residuals_held

    def run(self, handle, steps, *, streams=("cond", "uncond"), batched=False, seed=0, size=8, size_from=None,
            same_input=False, stop_at=None):  # fmt: skip
        sampler = GivenInputs(steps, seed, size, size_from, same_input, stop_at, self.blocks[-1])
        try:
            self.engine.sample(sampler, {name: LABELS[name] for name in streams}, batched=batched)
        finally:
            if sampler.hook is not None:
                sampler.hook.remove()
        return [np.asarray(output) for output in sampler.outputs]


def test_the_adapter_conforms():
    assert len(check_adapter(Rig)) >= 12


def test_a_sampling_runs_the_plan_and_comes_close_to_the_full_one():
    engine, labels = host_adapter.Engine(transformer()), {"cond": 1, "uncond": 0}
    full = engine.sample(host_adapter.Euler(16), labels)
    with magpolicy.attach(engine, calibrate=True) as handle:
        assert torch.equal(engine.sample(host_adapter.Euler(16), labels), full)
        calibration = handle.calibration
    with magpolicy.attach(engine, calibration=calibration, speedup=2.0) as handle:
        fast = engine.sample(host_adapter.Euler(16), labels)
    assert handle.report.schedule == magpolicy.plan(calibration, speedup=2.0)
    assert calibration.curve.sigmas == tuple(host_adapter.Euler(16).sigmas[:-1])
    assert 0 < (fast - full).norm() / full.norm() < 0.01
    assert torch.equal(engine.sample(host_adapter.Euler(16), labels), full)


def test_it_uses_public_names_only():
    tree = ast.parse(FILE.read_text(encoding="utf-8"))
    allowed = {"__future__", "torch", "magpolicy", "magpolicy.adapter", "magpolicy_torch", "magpolicy_torch.adapter"}
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {node.module if isinstance(node, ast.ImportFrom) else alias.name for node in imports for alias in node.names}
    assert modules <= allowed
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names |= {alias.name for node in imports for alias in node.names}
    assert not [name for name in names if name.startswith("_") and not name.endswith("__")]
    assert len(FILE.read_text(encoding="utf-8").splitlines()) <= 120
