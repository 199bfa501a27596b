"""What faults are raised in: tiny real models of diffusers, each with the points that its run passes."""

from __future__ import annotations

from contextlib import nullcontext
from pipes import PIPES
from types import SimpleNamespace

from injection import Faults, only_new_garbage
from zoo import CASES
from zoo._case import Draw, Row

import magpolicy
import torch
from magpolicy import Schedule
from magpolicy_diffusers import _denoiser, _pipeline
from magpolicy_torch.blocks._stack import taken
from torch import nn

STEPS = 6
PLAN = Schedule.from_mask(
    {"cond": (1, 1, 0, 1, 0, 0), "uncond": (1, 1, 0, 1, 0, 0)},
    coefficients={"cond": (0, 0, 0.5, 0, 0.5, (0.5, 0.1)), "uncond": (0, 0, 0.5, 0, 0.4, (0.4, 0.1))},
)


def compiled_blocks(pipe):
    magpolicy.compile(pipe, backend="eager")


def compiled_whole(pipe):
    magpolicy.compile(pipe, region="model", backend="eager")


class Net(nn.Module):
    """A module of plain PyTorch."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class PipelineScene:
    """Calls of a pipeline."""

    knows_its_end = True

    def __init__(self, faults, cls, way, compiles=None, **settings):
        self.case, self.way = PIPES[cls], way
        self.faults, self.settings = faults, {"schedule": PLAN} | settings
        self.learns = settings.get("speedup") is not None and settings.get("learn") is not False
        self.target = self.case.make()
        if compiles is not None:
            compiles(self.target)
        self.model = self.target.transformer
        if compiles is None:  # hooks have nothing to do in a graph
            lists = [child for child in self.model.children() if isinstance(child, torch.nn.ModuleList)]
            for block in (lists[0][0], lists[-1][-1]):
                faults.on_module("block", block.norm if hasattr(block, "norm") else block.norm1)
            faults.on_module("behind the blocks", self.model.norm_out)
            entrance = self.model.x_embedder if hasattr(self.model, "x_embedder") else self.model.pos_embed
            faults.on_module("before the blocks", entrance)
        self.scheduler = self.target.scheduler
        self.scheduler.step = faults.around("scheduler", self.scheduler.step)

    def attach(self):
        return magpolicy.attach(self.target, **self.settings)

    def run(self):
        def told(pipe, step, timestep, tensors):
            self.faults.passage("callback")
            return {}

        return self.case.run(self.target, self.way, STEPS, callback_on_step_end=told, callback_on_step_end_tensor_inputs=[])


BRANCHES = ("cond", "uncond")


class LoopScene:
    """A user's own loop around a model: a with block, or none.

    Without, nothing says that a loop was left between two calls: what its run holds is freed when the next one begins.
    """

    learns = False

    def __init__(self, faults, *, block=True, **settings):
        self.case = CASES["WanTransformer3DModel"]
        self.faults, self.block, self.knows_its_end = faults, block, block
        self.settings = {"schedule": PLAN} | settings
        self.target = self.model = self.case.make()
        faults.on_module("block", self.model.blocks[0].ffn)
        faults.on_module("behind the blocks", self.model.proj_out)
        faults.on_module("before the blocks", self.model.patch_embedding)

    def attach(self):
        self.handle = magpolicy.attach(self.target, steps=STEPS, **self.settings)
        return self.handle

    def run(self, after_step=lambda: None):
        bare = not magpolicy.attached(self.target)
        with torch.no_grad(), nullcontext() if bare or not self.block else self.handle.run():
            outputs = []
            for step in range(STEPS):
                outputs += self.step(step, bare=bare)
                self.faults.passage("callback")
                after_step()
            return torch.stack(outputs)

    def step(self, step, *, bare=False):
        return [self.evaluation(step, name, bare=bare) for name in BRANCHES]

    def evaluation(self, step, name, *, bare=False):
        with nullcontext() if bare else self.handle.stream(name):
            return self.case.call(self.model, Draw((Row(step, name),), level=1 - step / STEPS))[0]

    def leave(self, calls):
        """Begin a run, and leave it between two calls of its first step, or behind them."""
        with torch.no_grad():
            for name in BRANCHES[:calls]:
                self.evaluation(0, name)


SCENES = {
    "flux, one branch": lambda faults: PipelineScene(faults, "FluxPipeline", "distilled"),
    "flux, guidance in separate calls": lambda faults: PipelineScene(faults, "FluxPipeline", "true cfg"),
    "sd3, guidance in one batch": lambda faults: PipelineScene(faults, "StableDiffusion3Pipeline", "cfg"),
    "sd3, by the rule": lambda faults: PipelineScene(
        faults, "StableDiffusion3Pipeline", "cfg", schedule=None, ratios=[1.0, 0.99, 1.01, 0.98, 1.0, 1.02],
        threshold=0.05, max_skips=2, retention=0.2,
    ),
    "flux, planned by the prior and learning": lambda faults: PipelineScene(
        faults, "FluxPipeline", "true cfg", schedule=None, speedup=1.5
    ),
    "flux, guarded": lambda faults: PipelineScene(
        faults, "FluxPipeline", "distilled", schedule=None, speedup=1.5, learn=False, safeguard=True
    ),
    "flux, calibrating": lambda faults: PipelineScene(faults, "FluxPipeline", "distilled", schedule=None, calibrate=True),
    "flux, residuals in 8 bits": lambda faults: PipelineScene(
        faults, "FluxPipeline", "true cfg", offload="cpu", storage_dtype=torch.float8_e4m3fn
    ),
    "sd3, the whole model": lambda faults: PipelineScene(faults, "StableDiffusion3Pipeline", "cfg", scope="model"),
    "flux, blocks compiled": lambda faults: PipelineScene(faults, "FluxPipeline", "true cfg", compiled_blocks),
    "flux, compiled as a whole": lambda faults: PipelineScene(faults, "FluxPipeline", "distilled", compiled_whole),
    "own loop in a with block": lambda faults: LoopScene(faults),
    "own loop": lambda faults: LoopScene(faults, block=False),
}  # fmt: skip


def begun(name, monkeypatch, tmp_path):
    """The scene of that name, with a user's folder of its own and faults also where residuals are computed."""
    monkeypatch.setenv("MAGPOLICY_HOME", str(tmp_path))
    only_new_garbage()
    faults = Faults()
    faults.in_arithmetic(monkeypatch)
    return SCENES[name](faults)


def decided(handle):
    """What the last run did, and why."""
    return handle.report.trace, handle.report.source


def footprint(scene):
    """All that attaching might leave on the host's objects, and in our own registers."""
    model, pipe = scene.model, scene.target
    modules = {}
    for name, module in model.named_modules():
        private = {key: value for key, value in sorted(module.__dict__.items()) if key.startswith("_")}
        methods = [id(value) for value in private.values() if callable(value)]
        hooks = {key: len(value) for key, value in private.items() if key.endswith("hooks")}
        modules[name] = type(module), sorted(module.__dict__), methods, hooks
    return SimpleNamespace(
        modules=modules,
        state={name: id(value) for name, value in model.state_dict(keep_vars=True).items()},
        kind=(type(pipe), type(pipe).__dict__.get("__call__")),
        known=(dict(_denoiser._in_use), set(_pipeline._around), [block for block in model.modules() if taken(block)]),
    )
