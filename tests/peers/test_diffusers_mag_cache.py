"""What diffusers tests of its MagCache hook, of the hook itself and of ours: the same two small models, the same figures.

The behaviours are those of ``tests/hooks/test_mag_cache.py`` in diffusers' repository; the words are ours. What differs is said
where it does.
"""

from contextlib import nullcontext

import numpy as np
import pytest

import magpolicy
from magpolicy import ArgumentError

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
diffusers = pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry  # noqa: E402


class Doubling(torch.nn.Module):
    """A block whose residual is its input."""

    def forward(self, hidden_states, encoder_hidden_states=None):
        return hidden_states * 2.0


class DoublingWithText(torch.nn.Module):
    """The same, returning the text too, as Flux's blocks do."""

    def forward(self, hidden_states, encoder_hidden_states=None):
        return hidden_states * 2.0, encoder_hidden_states


class TwoBlocks(diffusers.ModelMixin):
    def __init__(self):
        super().__init__()
        self.transformer_blocks = torch.nn.ModuleList([Doubling(), Doubling()])

    def forward(self, hidden_states, encoder_hidden_states=None):
        for block in self.transformer_blocks:
            hidden_states = block(hidden_states, encoder_hidden_states=encoder_hidden_states)
        return hidden_states


class OneBlockWithText(diffusers.ModelMixin):
    def __init__(self):
        super().__init__()
        self.transformer_blocks = torch.nn.ModuleList([DoublingWithText()])

    def forward(self, hidden_states, encoder_hidden_states=None):
        for block in self.transformer_blocks:
            hidden_states, encoder_hidden_states = block(hidden_states, encoder_hidden_states=encoder_hidden_states)
        return hidden_states, encoder_hidden_states


@pytest.fixture(scope="module", autouse=True)
def _told_to_the_peer():
    """diffusers wants its registry to be told of a block; we read it off its first call."""
    for kind, hidden, text in ((Doubling, None, None), (DoublingWithText, 0, 1)):
        told = {"return_hidden_states_index": hidden, "return_encoder_hidden_states_index": text}
        TransformerBlockRegistry.register(kind, TransformerBlockMetadata(**told))


class Theirs:
    """diffusers' hook. It has no run: it counts calls, and begins anew after as many as it was told."""

    def __init__(self, model, *, ratios=None, retention=0.0, steps=2):
        given = {"calibrate": True} if ratios is None else {"mag_ratios": np.array(ratios)}
        common = {"num_inference_steps": steps, "threshold": 100.0, "retention_ratio": retention, "max_skip_steps": 5}
        diffusers.apply_mag_cache(model, diffusers.MagCacheConfig(**common, **given))

    def run(self):
        return nullcontext()


class Ours:
    def __init__(self, model, *, ratios=None, retention=0.0, steps=2):
        given = {"calibrate": True} if ratios is None else {"ratios": np.array(ratios)}
        rule = {"threshold": 100.0, "retention": retention, "max_skips": 5}
        self.steps, self.handle = steps, magpolicy.attach(model, **given, **({} if ratios is None else rule))

    def run(self):
        return self.handle.run(steps=self.steps)


both = pytest.mark.parametrize("cache", [Theirs, Ours])


def number(value):
    return torch.tensor([[[float(value)]]])


@both
def test_a_skip_adds_the_residual_of_the_step_before(cache):
    model = TwoBlocks()
    with cache(model, ratios=[1.0, 1.0]).run():
        assert model(number(10)) == 40
        assert model(number(11)) == 11 + 30  # computed, it would be 44


@both
def test_retention_keeps_steps_computed_however_small_the_error(cache):
    model = TwoBlocks()
    with cache(model, ratios=[1.0, 1.0], retention=1.0).run():
        model(number(10))
        assert model(number(11)) == 44


@both
@pytest.mark.parametrize("tokens", [1, 2], ids=["text of the image's shape", "longer text"])
def test_blocks_that_return_the_text_too(cache, tokens):
    model, text = OneBlockWithText(), torch.ones(1, tokens, 1)
    with cache(model, ratios=[1.0, 1.0]).run():
        assert model(number(10), encoder_hidden_states=text)[0] == 20
        image, passed = model(number(11), encoder_hidden_states=text)
        assert image == 11 + 10
        assert torch.equal(passed, text)


@both
def test_the_next_run_begins_by_computing(cache):
    model = TwoBlocks()
    cached = cache(model, ratios=[1.0, 1.0])
    with cached.run():
        assert [float(model(number(1))) for _ in range(2)] == [4, 4]
    with cached.run():
        assert model(number(2)) == 8  # not 2 + 3


@both
def test_calibrating_computes_every_step(cache):
    model = TwoBlocks()
    with cache(model).run():
        assert [float(model(number(value))) for value in (10, 20)] == [40, 80]


def test_a_calibration_has_a_ratio_a_step_and_is_kept():
    """diffusers logs its ratios and forgets them; its test finds ``[1.0]`` midway and nothing at the end."""
    model = TwoBlocks()
    ours = Ours(model)
    with ours.run():
        for value in (10, 20):
            model(number(value))
    calibration = ours.handle.calibration
    assert calibration.steps == 2
    assert np.allclose(next(iter(calibration.streams.values())).ratios, [1.0, 2.0])  # the residual has doubled: 30, then 60


def test_without_ratios_there_is_nothing_to_go_by():
    with pytest.raises(ValueError, match="mag_ratios"):
        diffusers.MagCacheConfig(num_inference_steps=10)
    with pytest.raises(ArgumentError, match="has no known preset"):
        magpolicy.attach(TwoBlocks(), threshold=100.0)
