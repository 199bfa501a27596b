"""What diffusers' tests assert of a cache on a model, asserted of ours on every transformer class that diffusers has.

The behaviours are those of ``CacheTesterMixin`` and ``MagCacheTesterMixin`` in ``tests/models/testing_utils/cache.py`` of
diffusers' repository, which applies them to Flux; the words are ours, and the models are the zoo's. Its own configurations have
stacks of one block as often as of two, so both are tested.

Three things are ours to say. Attaching a second time takes the first handle's place, where ``enable_cache`` raises. A second
call at one timestep with nothing that tells it from the first could be another branch, so calls are named, as pipelines name
them. And no weight is zero: of a model whose last layer is zero, as diffusers initialises some, skipping cannot be seen.
"""

import pytest

import magpolicy

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
diffusers = pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from zoo import CASES  # noqa: E402
from zoo._case import Draw, Row  # noqa: E402

pytestmark = pytest.mark.sampled

STACKED = [case for case in CASES.values() if case.blocks]
ALWAYS = {"ratios": [1.0, 1.0], "threshold": 100.0, "retention": 0.0, "max_skips": 5}
"""The second step is skipped."""
FIRST, THEN = Draw(), Draw((Row(noise=1),))  # other noise, the same timestep
over_all = pytest.mark.parametrize("case", STACKED, ids=lambda c: c.cls)


def traces(model):
    return [(name, sorted(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()]


@over_all
def test_attaching_shows_and_detaching_leaves_nothing(case):
    model = case.make()
    before = traces(model)
    handle = magpolicy.attach(model, **ALWAYS)
    assert magpolicy.attached(model) == (handle,)
    assert traces(model) != before
    again = magpolicy.attach(model, **ALWAYS)
    assert magpolicy.attached(model) == (again,)
    magpolicy.detach(model)
    assert magpolicy.attached(model) == ()
    assert traces(model) == before


def short(case):
    """The case's model with each list of its stack cut to its first block."""
    model = case.make()
    for path in case.blocks:
        blocks = model.get_submodule(path)
        del blocks[1:]
    if hasattr(model, "num_decoder_layers"):  # Motif's last single blocks; one alone is none of them
        model.num_decoder_layers = 0
    return model


@over_all
@pytest.mark.parametrize("make", [lambda case: case.make(), short], ids=["stack", "one block a list"])
def test_a_skipped_step_differs_from_the_computed_one_and_is_finite(case, make):
    model = make(case)
    with magpolicy.attach(model, **ALWAYS) as handle, handle.run(steps=2), handle.stream("a context"):
        case.call(model, FIRST)
        skipped = case.call(model, THEN)
        assert [e.decision.skip for e in handle.report.trace] == [False, True]
    computed = case.call(model, THEN)
    assert all(tensor.isfinite().all() for tensor in skipped)
    assert not torch.allclose(skipped[0], computed[0], atol=1e-5)


@over_all
def test_contexts_are_kept_apart_and_a_reset_is_harmless(case):
    model = case.make()
    with magpolicy.attach(model, **ALWAYS) as handle, handle.run(steps=2):
        outputs = []
        for name in ("one", "other"):
            with model.cache_context(name) if hasattr(model, "cache_context") else handle.stream(name):
                outputs.append(case.call(model, FIRST))
        if hasattr(model, "_reset_stateful_cache"):  # diffusers' pipelines call it at the end of a run
            model._reset_stateful_cache()
        assert [(e.stream, e.decision.skip) for e in handle.report.trace] == [("one", False), ("other", False)]
    assert all(torch.equal(one, other) for one, other in zip(*outputs, strict=True))


def test_the_peer_holds_what_is_asserted_here():
    """On the class that diffusers asserts it of."""
    case = CASES["FluxTransformer2DModel"]
    model = case.make()
    config = diffusers.MagCacheConfig(num_inference_steps=2, retention_ratio=0.0, threshold=100.0, mag_ratios=[1.0, 1.0])
    model.enable_cache(config)
    with pytest.raises(ValueError, match="already been enabled"):
        model.enable_cache(config)
    with model.cache_context("a context"):
        case.call(model, FIRST)
        theirs = case.call(model, THEN)
    model.disable_cache()
    assert not model.is_cache_enabled
    with magpolicy.attach(model, **ALWAYS) as handle, handle.run(steps=2), model.cache_context("a context"):
        case.call(model, FIRST)
        assert torch.allclose(case.call(model, THEN)[0], theirs[0], atol=1e-6)
