"""Every scheduler of diffusers, in the units of its own timesteps and in those that models take: what runs is what is said."""

import functools
import inspect
import itertools
import math
import warnings

import pytest

import magpolicy

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
diffusers = pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from zoo import CASES  # noqa: E402
from zoo._case import Draw, Row  # noqa: E402

from magpolicy_torch.adapter import Levels  # noqa: E402

pytestmark = pytest.mark.sampled

STEPS = 8
CASE = CASES["FluxTransformer2DModel"]
# Tokens, text or proteins are masked or refined, not denoised from a list of noise levels; or not to be made without a model's
# own settings.
OTHERS = {
    "AmusedScheduler", "BlockRefinementScheduler", "DiscreteDDIMScheduler", "EntropyBoundScheduler", "VQDiffusionScheduler",
    "RFD4ProteinaScheduler", "HeliosScheduler", "HeliosDMDScheduler", "RePaintScheduler", "ScoreSdeVeScheduler",
}  # fmt: skip
NAMES = sorted(
    name
    for name in dir(diffusers)
    if name.endswith("Scheduler") and not name.startswith("Flax") and name not in OTHERS and name != "SchedulerMixin"
)


def listed(name):
    """A scheduler that has listed its timesteps; ``None`` if it cannot be made here."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler = getattr(diffusers, name)()
            more = {"max_timesteps": 1.5708, "intermediate_timesteps": None} if name == "SCMScheduler" else {}
            scheduler.set_timesteps(STEPS, **more)
    except (ImportError, TypeError) as error:
        pytest.skip(str(error))
    return scheduler, more


@functools.cache
def model():
    return CASE.make()


STEP_TAKES_MORE = {"CogVideoXDPMScheduler", "DDPMWuerstchenScheduler", "KarrasVeScheduler", "PiflowScheduler"}
"""More than a result, a timestep and latents, or results of another form: these are stepped by hand."""


class Pipeline(diffusers.DiffusionPipeline):
    """The least that is a pipeline: it lists timesteps, and calls its transformer at each, in the unit that this takes."""

    def __init__(self, transformer, scheduler):
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    def __call__(self, unit, more, steps=STEPS):
        self.scheduler.set_timesteps(steps, **more)
        generator = torch.Generator().manual_seed(0)
        takes = inspect.signature(self.scheduler.step).parameters if hasattr(self.scheduler, "step") else ()
        given = {"generator": generator} if "generator" in takes else {}
        latents = torch.randn(1, 4, 4, 4, generator=generator)
        for place, t in enumerate(self.scheduler.timesteps[: len(Levels.of(self.scheduler).timesteps)]):
            value = unit(float(t), self.scheduler)
            with torch.no_grad():
                self.transformer(**CASE.inputs(Draw((Row((0, place)),))) | {"timestep": torch.tensor([value])})
            if type(self.scheduler).__name__ not in STEP_TAKES_MORE:
                self.scheduler.step(0.1 * latents, t, latents, **given)
            elif hasattr(self.scheduler, "step_index"):
                self.scheduler._step_index = place + 1


UNITS = {
    "as listed": lambda t, scheduler: t,
    "share": lambda t, scheduler: math.sin(t) / (math.sin(t) + math.cos(t)) if angles(scheduler) else t / full(scheduler),
    "from the other end": lambda t, scheduler: full(scheduler) - t,
}


def angles(scheduler):
    return getattr(scheduler.config, "prediction_type", None) == "trigflow"


def full(scheduler):
    return Levels.of(scheduler).full


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("name", NAMES)
def test_each_evaluation_is_at_its_own_place(name, unit):
    scheduler, more = listed(name)
    if unit == "from the other end" and (angles(scheduler) or min(scheduler.timesteps) < 0):
        pytest.skip("no model takes these so")
    if (name, unit) in {("DDIMInverseScheduler", "share"), ("UnCLIPScheduler", "from the other end")}:
        pytest.skip("its first timestep is the same in two units; no model takes these in this one")
    pipe = Pipeline(model(), scheduler)
    pipe.set_progress_bar_config(disable=True)
    with magpolicy.attach(pipe, speedup=2.0, learn=False) as handle:
        for _ in range(2):
            pipe(UNITS[unit], more)
            report = handle.report
            assert len(handle.reports) == 1
            assert [entry.step for entry in report.trace] == list(range(len(Levels.of(scheduler).timesteps)))
            levels = Levels.of(scheduler)
            planned = handle.request.session_over(levels.span()).schedule
            assert report.schedule.masks == planned.masks
            assert report.skipped > 0
            noise = levels.noise()
            assert noise is not None
            assert all(0 < level <= 1.001 for level in noise)


@pytest.mark.parametrize("name", NAMES)
def test_levels_are_read_as_noise(name):
    """Noise falls along the run (or rises, where it is put in), whatever the unit."""
    scheduler, _ = listed(name)
    noise = Levels.of(scheduler).noise()
    assert noise is not None
    steps = {b <= a + 1e-6 for a, b in itertools.pairwise(noise)}
    assert steps == {True}
