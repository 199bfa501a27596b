"""The tiny pipelines themselves: they run, and evaluate the branches their case says."""

import inspect

import pytest

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from pipes import PIPES  # noqa: E402

pytestmark = pytest.mark.sampled

WAYS = [pytest.param(pipe, way, id=f"{pipe.cls}-{way}") for pipe in PIPES.values() for way in pipe.ways]


@pytest.mark.parametrize(("case", "way"), WAYS)
def test_the_calls_are_those_the_case_says(case, way):
    pipe, steps, batches = case.make(), 4, []
    denoisers = [getattr(pipe, name) for name in case.denoisers]
    for name, cls in case.denoisers.items():
        assert type(getattr(pipe, name)).__name__ == cls

    def note(module, args, kwargs):
        batches.append(module)

    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in denoisers]
    first = case.run(pipe, way, steps)
    for hook in hooks:
        hook.remove()
    assert len(batches) == sum(len(case.ways[way].at(step, steps)) for step in range(steps))
    assert first.isfinite().all()
    assert torch.equal(first, case.run(case.make(), way, steps)), "a fresh pipeline gives the same"
    assert not torch.equal(first, case.run(pipe, way, steps, seed=1))


@pytest.mark.parametrize("case", PIPES.values(), ids=lambda p: p.cls)
def test_the_call_takes_what_the_case_says(case):
    taken = inspect.signature(case.make().__call__).parameters
    assert ("strength" in taken) >= case.strength
    assert ("sigmas" in taken) >= case.custom_sigmas
