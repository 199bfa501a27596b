"""The ways in which cache-dit's tests let blocks take and return their states, under cache-dit and under ours.

The behaviours are those of ``tests/api/test_forward_pattern.py`` in cache-dit's repository, which only asks that a pipeline of
such blocks runs; the blocks here are our own, and compute something, so that what a skip returns can be checked.
"""

import pytest

import magpolicy
from magpolicy import Schedule

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
diffusers = pytest.importorskip("diffusers", reason="the diffusers extra is not installed")
cache_dit = pytest.importorskip("cache_dit", reason="the dev extra is not installed")

STEPS, BLOCKS = 8, 3
MASK = (1, 1, 1, 1, 0, 1, 0, 0)
PATTERNS = [cache_dit.ForwardPattern[f"Pattern_{number}"] for number in range(6)]


class Block(torch.nn.Module):
    """Moves its states a little; a pattern says which it takes, which it returns, and in which order."""

    def __init__(self, pattern, width=6):
        super().__init__()
        self.pattern = pattern
        self.mix = torch.nn.Linear(width, width)

    def states(self, hidden, text):
        moved = hidden + 0.1 * torch.tanh(self.mix(hidden)) + (0 if text is None else 0.01 * text.mean())
        if self.pattern.Return_H_Only:
            return moved
        text = hidden.flip(1) if text is None else text * 0.9  # a block that is given no text makes some
        return (moved, text) if self.pattern.Return_H_First else (text, moved)


class WithText(Block):
    def forward(self, hidden_states, encoder_hidden_states):
        return self.states(hidden_states, encoder_hidden_states)


class Without(Block):
    def forward(self, hidden_states):
        return self.states(hidden_states, None)


class Transformer(diffusers.ModelMixin, diffusers.ConfigMixin):
    """What it returns is made of the hidden states, as in models that people run."""

    def __init__(self, pattern):
        super().__init__()
        torch.manual_seed(0)
        self.pattern = pattern
        kind = Without if pattern.Forward_H_only else WithText
        self.transformer_blocks = torch.nn.ModuleList([kind(pattern) for _ in range(BLOCKS)])

    def forward(self, hidden_states, encoder_hidden_states=None, timestep=None, return_dict=False):
        for block in self.transformer_blocks:
            given = (hidden_states,) if self.pattern.Forward_H_only else (hidden_states, encoder_hidden_states)
            states = block(*given)
            if isinstance(states, torch.Tensor):
                hidden_states = states
            else:
                hidden_states, encoder_hidden_states = states if self.pattern.Return_H_First else states[::-1]
        return (hidden_states.sin(),)


class Pipeline(diffusers.DiffusionPipeline):
    """As simple as a pipeline can be: it has no scheduler."""

    def __init__(self, transformer):
        super().__init__()
        self.register_modules(transformer=transformer)

    @torch.no_grad()
    def __call__(self, latents, text=None, num_inference_steps=STEPS):
        for step in range(num_inference_steps):
            time = torch.tensor([1000.0 * (1 - step / num_inference_steps)])
            latents = latents - 0.1 * self.transformer(latents, encoder_hidden_states=text, timestep=time)[0]
        return latents


def inputs(pattern):
    generator = torch.Generator().manual_seed(1)
    shape = (1, 5, 6)  # hidden states and text of one shape, as there
    text = None if pattern.Forward_H_only else torch.randn(shape, generator=generator)
    return torch.randn(shape, generator=generator), text


@torch.no_grad()
def by_hand(model, latents, text):
    """The run with the stack's output replaced, where the mask skips, by its input plus the residual that was computed last."""
    first, last = model.transformer_blocks[0], model.transformer_blocks[-1]
    at = 0 if model.pattern.Return_H_First else 1
    seen = {}

    def leave(block, args, result):
        states = [result] if isinstance(result, torch.Tensor) else list(result)
        place = at if len(states) > 1 else 0
        if seen["computes"]:
            seen["residual"] = states[place] - seen["entered"]
        states[place] = seen["entered"] + seen["residual"] if not seen["computes"] else states[place]
        return states[0] if isinstance(result, torch.Tensor) else tuple(states)

    enter = first.register_forward_pre_hook(lambda block, args: seen.update(entered=args[0]))
    leaving = last.register_forward_hook(leave)
    for step, computes in enumerate(MASK):
        seen["computes"] = computes
        time = torch.tensor([1000.0 * (1 - step / STEPS)])
        latents = latents - 0.1 * model(latents, encoder_hidden_states=text, timestep=time)[0]
    enter.remove()
    leaving.remove()
    return latents


each = pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: p.name)


@each
def test_a_pipeline_of_such_blocks_skips_as_by_hand(pattern):
    latents, text = inputs(pattern)
    pipe = Pipeline(Transformer(pattern))
    plain = pipe(latents, text)
    with magpolicy.attach(pipe, schedule=Schedule.from_mask(MASK), steps=STEPS) as handle:
        found = pipe(latents, text)
        assert [not e.decision.skip for e in handle.report.trace] == [bool(computes) for computes in MASK]
    assert torch.equal(found, by_hand(pipe.transformer, latents, text))
    assert not torch.equal(found, plain)
    assert torch.equal(pipe(latents, text), plain)


@each
def test_the_peer_skips_the_same_steps_and_comes_as_close(pattern):
    """cache-dit computes the first block at every step, ours none; and it keeps what the blocks make of the text too."""
    latents, text = inputs(pattern)
    plain = Pipeline(Transformer(pattern))(latents, text)
    theirs = Pipeline(Transformer(pattern))
    cache_dit.enable_cache(
        cache_dit.BlockAdapter(
            pipe=theirs, transformer=theirs.transformer, blocks=theirs.transformer.transformer_blocks,
            blocks_name="transformer_blocks", forward_pattern=pattern,
        ),
        cache_config=cache_dit.DBCacheConfig(
            Fn_compute_blocks=1, Bn_compute_blocks=0, max_warmup_steps=0, num_inference_steps=STEPS,
            steps_computation_mask=list(MASK), steps_computation_policy="static",
        ),
    )  # fmt: skip
    found = theirs(latents, text, num_inference_steps=STEPS)
    assert cache_dit.summary(theirs)[0].cached_steps == [step for step, computes in enumerate(MASK) if not computes]
    cache_dit.disable_cache(theirs)
    ours = Pipeline(Transformer(pattern))
    with magpolicy.attach(ours, schedule=Schedule.from_mask(MASK), steps=STEPS):
        errors = [float((each - plain).abs().max()) for each in (ours(latents, text), found)]
    assert min(errors) > 0
    assert max(errors) < 2 * min(errors) < 0.01
