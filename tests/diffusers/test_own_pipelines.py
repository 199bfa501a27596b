"""Pipelines of one's own: models of no class of diffusers, under any name, and calls of which nothing tells the step."""

import pytest

import magpolicy
from magpolicy import AdapterError, Schedule

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
diffusers = pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from zoo import CASES  # noqa: E402

STEPS, MASK = 6, (1, 1, 0, 1, 0, 0)
STRIP = "██·█··"
SCHEDULERS = {
    "DDIM": lambda: diffusers.DDIMScheduler(clip_sample=False),  # has no step_index
    "DDPM": lambda: diffusers.DDPMScheduler(clip_sample=False),
    "PNDM": lambda: diffusers.PNDMScheduler(skip_prk_steps=True),
    "CogVideoX": lambda: diffusers.CogVideoXDDIMScheduler(),
    "flow": lambda: diffusers.FlowMatchEulerDiscreteScheduler(),
}


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(8, 8)

    def forward(self, x, text):
        return x + torch.tanh(self.inner(x) + text)


class Net(torch.nn.Module):
    """No class of diffusers, and given no timestep by that name. ``calls``: how often its blocks ran."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = torch.nn.ModuleList(Block() for _ in range(3))
        self.calls = 0
        self.blocks[0].register_forward_hook(self._count)

    def _count(self, *_):
        self.calls += 1

    def forward(self, x, prompt=None, c_noise=None, perturbed=False):
        text = torch.zeros(x.shape[0], 1, 8) if prompt is None else prompt
        text = text * 2 if perturbed else text
        for block in self.blocks:
            x = block(x, text)
        return x * (1 if c_noise is None else 1 + 0.01 * c_noise)


class OfTime(Net):
    """Is given the timestep in a unit that no scheduler lists."""

    def forward(self, x, prompt=None, timestep=None, perturbed=False):
        return super().forward(x, prompt, timestep, perturbed)


class Pipeline(diffusers.DiffusionPipeline):
    """As people write them. ``way``: what it calls at each step."""

    def __init__(self, net, scheduler, name="net", **others):
        super().__init__()
        self.register_modules(**{name: net}, scheduler=scheduler, **others)
        self.set_progress_bar_config(disable=True)
        self.name = name

    @torch.no_grad()
    def __call__(self, num_inference_steps=STEPS, way="plain", strength=1.0, samples=1):
        net, texts = getattr(self, self.name), (torch.ones(samples, 1, 8), -torch.ones(samples, 1, 8))
        self.scheduler.set_timesteps(num_inference_steps)
        timesteps = self.scheduler.timesteps
        timesteps = timesteps[len(timesteps) - round(len(timesteps) * strength) :]
        self._num_timesteps = len(timesteps)
        torch.manual_seed(0)  # some schedulers draw
        x = torch.randn(samples, 6, 8)
        for t in timesteps:
            told = {"timestep": (t.float() + 1).log()} if isinstance(net, OfTime) else {}
            if way == "plain":
                out = net(x, texts[0], **told)
            elif way == "unconditional":
                out = net(x, **told)
            elif way == "sequential":
                cond, uncond = (net(x, text, **told) for text in texts)
                out = uncond + 2 * (cond - uncond)
            elif way == "batched":
                uncond, cond = net(torch.cat([x, x]), torch.cat(texts[::-1]), **told).chunk(2)
                out = uncond + 2 * (cond - uncond)
            else:
                out = net(x, texts[0], **told) * 2 - net(x, texts[0], perturbed=True, **told)
            x = self.scheduler.step(out, t, x).prev_sample
        return (x,)


WAYS = ("plain", "unconditional", "sequential", "batched", "perturbed")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("kind", [Net, OfTime])
def test_calls_of_which_nothing_tells_the_step_are_steps(kind, scheduler, way):
    """Neither the scheduler, nor a timestep that it lists: what the model is given tells, latents or a time that changes."""
    net = kind()
    pipe = Pipeline(net, SCHEDULERS[scheduler]())
    plain = pipe(way=way)[0]
    full, net.calls = net.calls, 0
    with magpolicy.attach(pipe, ratios=[1.0] * 10, threshold=0.0, max_skips=0, retention=0.0):
        assert torch.equal(pipe(way=way)[0], plain)
    net.calls = 0
    length = len(pipe.scheduler.timesteps)
    mask = (MASK * 2)[:length]
    with magpolicy.attach(pipe, schedule=Schedule.from_mask(mask)) as handle:
        for _ in range(2):  # a run ends with its call
            assert not torch.equal(pipe(way=way)[0], plain)
            assert all(list(each) == [bool(m) for m in mask] for each in handle.report.schedule.masks)
            assert len(handle.reports) == 1
        assert net.calls == 2 * full * sum(mask) // length


@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_begins_midway_is_placed_there(way):
    pipe = Pipeline(Net(), SCHEDULERS["DDIM"]())
    with magpolicy.attach(pipe, schedule=Schedule.from_mask(MASK)) as handle:
        pipe(way=way, strength=0.5)
        first = [entry for entry in handle.report.trace if entry.stream == handle.report.trace[0].stream]
        assert {entry.step for entry in handle.report.trace} == {3, 4, 5}
        assert [entry.decision.skip for entry in first] == [False, True, True]


@pytest.mark.filterwarnings("ignore:the schedule given has 6 steps:magpolicy.PlanWarning")
def test_samples_change_from_call_to_call():
    pipe = Pipeline(Net(), SCHEDULERS["DDIM"]())
    with magpolicy.attach(pipe, schedule=Schedule.from_mask(MASK)) as handle:
        for samples, steps in ((1, 6), (3, 6), (2, 12), (1, 3)):
            pipe(samples=samples, num_inference_steps=steps)
            assert handle.report.schedule.steps == steps
            assert handle.report.skipped


# Which of its modules denoises ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["net", "transformer", "backbone", "model"])
def test_a_module_of_ones_own_is_found(name):
    net = Net()
    pipe = Pipeline(net, diffusers.FlowMatchEulerDiscreteScheduler(), name, text_encoder=torch.nn.Linear(2, 2), vae=Net())
    with magpolicy.attach(pipe, schedule=Schedule.from_mask(MASK)) as handle:
        assert handle.module is net
        pipe()
        assert handle.report.strip == STRIP
        assert magpolicy.attached(net) == magpolicy.attached(pipe) == (handle,)
        with pytest.raises(AdapterError, match="attached already"):
            magpolicy.attach(net, schedule=Schedule.from_mask(MASK))
        magpolicy.detach(net)
    plain = pipe()[0]
    assert torch.equal(pipe()[0], plain)


def test_a_model_of_diffusers_under_another_name_is_found():
    model = CASES["FluxTransformer2DModel"].make()
    pipe = Pipeline(model, diffusers.FlowMatchEulerDiscreteScheduler(), "flow_model", vae=Net(), controlnet=Net())
    with magpolicy.attach(pipe, speedup=2.0) as handle:
        assert handle.module is model
        assert handle.scope == "stack"


def test_a_u_net_of_ones_own_is_skipped_whole_where_that_is_asked():
    class UNet(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.down_blocks, self.up_blocks = (torch.nn.ModuleList(Block() for _ in range(2)) for _ in range(2))

        def forward(self, x, prompt):
            for block in (*self.down_blocks, *self.up_blocks):
                x = block(x, prompt)
            return x

    pipe = Pipeline(UNet(), diffusers.FlowMatchEulerDiscreteScheduler(), "unet")
    with pytest.raises(AdapterError, match="scope='model'"):
        magpolicy.attach(pipe, schedule=Schedule.from_mask(MASK))
    with magpolicy.attach(pipe, schedule=Schedule.from_mask(MASK), scope="model") as handle:
        pipe()
        assert handle.report.strip == STRIP


def test_of_several_modules_the_one_with_blocks_denoises():
    net = Net()
    pipe = Pipeline(net, diffusers.DDIMScheduler(), "net", lifting=torch.nn.Linear(2, 2))
    with magpolicy.attach(pipe, speedup=2.0) as handle:
        assert handle.module is net


def test_of_several_that_could_be_meant_the_error_says_what_to_do():
    pipe = Pipeline(Net(), diffusers.DDIMScheduler(), "net", other=Net(), text_encoder=torch.nn.Linear(2, 2))
    with pytest.raises(AdapterError, match=r"of its modules net, other, text_encoder none .* magpolicy.attach\(pipe.net\)"):
        magpolicy.attach(pipe, speedup=2.0)
    with magpolicy.attach(pipe.net, schedule=Schedule.from_mask(MASK)) as handle, handle.run(steps=STEPS):
        pipe()
        assert handle.report.strip == STRIP


def test_a_pipeline_without_modules_says_so():
    pipe = Pipeline(None, diffusers.DDIMScheduler(), "net")
    with pytest.raises(AdapterError, match="has no denoiser that is known: in it none"):
        magpolicy.attach(pipe, speedup=2.0)
