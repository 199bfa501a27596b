"""Compiled models: the same results, two clean graphs at most, and nothing recompiled from step to step or run to run."""

import copy
import threading

import pytest

import magpolicy
from magpolicy import Schedule

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
diffusers = pytest.importorskip("diffusers", reason="the diffusers extra is not installed")
from torch._dynamo.testing import CompileCounterWithBackend  # noqa: E402

MASKS = ([1, 1, 0, 1, 0, 0], [1, 0, 0, 1, 1, 0])
STEPS = len(MASKS[0])


@pytest.fixture(autouse=True)
def fresh():
    """Compiled code is kept by code object, and all of these tests share theirs."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(8, 8)

    def forward(self, x):
        return x + self.inner(torch.nn.functional.silu(x))


class Own(torch.nn.Module):
    """A user's own model."""

    _repeated_blocks = ("Block",)

    def __init__(self):
        super().__init__()
        self.embed, self.out = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
        self.blocks = torch.nn.ModuleList(Block() for _ in range(3))

    def forward(self, x, t):
        x = self.embed(x) * (1 + t)
        for block in self.blocks:
            x = block(x)
        return self.out(x)

    def compile_repeated_blocks(self, **options):
        for block in self.blocks:
            block.compile(**options)


def own():
    return Own()


def flux():
    return diffusers.FluxTransformer2DModel(
        in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip


def wan():
    return diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=8,
        freq_dim=16, ffn_dim=16, num_layers=3, cross_attn_norm=True, rope_max_seq_len=16,
    )  # fmt: skip


def draw(model, step, tokens=9):
    """Inputs of one step."""
    generator = torch.Generator().manual_seed(step)

    def noise(*shape):
        return torch.randn(shape, generator=generator)

    t = torch.tensor([1 - step / STEPS])
    kind = type(model).__name__
    if kind.startswith("Flux"):
        return dict(
            hidden_states=noise(1, tokens, 4), encoder_hidden_states=noise(1, 5, 8), pooled_projections=noise(1, 8),
            timestep=t, img_ids=torch.zeros(tokens, 3), txt_ids=torch.zeros(5, 3), return_dict=False,
        )  # fmt: skip
    if kind.startswith("Wan"):
        return dict(
            hidden_states=noise(1, 4, 2, 4, 4), timestep=t * 1000, encoder_hidden_states=noise(1, 5, 8), return_dict=False
        )
    return dict(x=noise(1, tokens, 8), t=t)


def run(handle, call, model, streams=("cond",), tokens=9):
    outputs = []
    with torch.no_grad(), handle.run(steps=STEPS):
        for step in range(STEPS):
            for stream in streams:
                with handle.stream(stream):
                    result = call(**draw(model, (step, stream == "cond").__hash__() % 1000, tokens) | _time(model, step))
                outputs.append(result[0] if isinstance(result, tuple) else result)
    return outputs


def _time(model, step):
    given = draw(model, step)
    return {name: given[name] for name in ("timestep", "t") if name in given}


def whole(model, **options):
    return torch.compile(model, fullgraph=True, **options)


def in_place(model, **options):
    model.compile(fullgraph=True, **options)
    return model


def regional(model, **options):
    model.compile_repeated_blocks(fullgraph=True, **options)
    return model


def made(make):
    torch.manual_seed(0)
    return make().eval().requires_grad_(False)


@pytest.mark.sampled
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("way", [whole, in_place, regional], ids=lambda f: f.__name__)
@pytest.mark.parametrize("make", [own, flux, wan], ids=lambda f: f.__name__)
def test_a_compiled_model_gives_what_the_model_gives_in_few_graphs(make, way, when):
    model, counter = made(make), CompileCounterWithBackend("eager")
    bare, plain = copy.deepcopy(model), copy.deepcopy(model)
    expected = []
    for mask in MASKS:
        with magpolicy.attach(bare, schedule=Schedule.from_mask(mask)) as handle:
            expected.append(run(handle, bare, bare))
    counted = CompileCounterWithBackend("eager")
    with torch.no_grad():
        way(plain, backend=counted)(**draw(plain, 0))
    target = way(model, backend=counter) if when == "before" else model
    graphs = []
    for mask, wanted in zip(MASKS, expected, strict=True):
        with magpolicy.attach(target, schedule=Schedule.from_mask(mask)) as handle:
            call = way(model, backend=counter) if when == "after" else target
            for _ in range(2):
                for found, value in zip(run(handle, call, model), wanted, strict=True):
                    torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-6)
                assert handle.report.schedule == Schedule.from_mask(mask)
                graphs.append(counter.frame_count)
    # Each compiling anew after attaching may compile anew; a second run, and another schedule, may not.
    assert graphs[0] == graphs[1]
    assert graphs[2] == graphs[3]
    if when == "before":
        assert graphs[0] == graphs[2]
    assert graphs[0] <= (counted.frame_count if way is regional else 2)


@pytest.mark.parametrize("way", [whole, in_place], ids=lambda f: f.__name__)
def test_two_streams_and_forecasts_share_the_graphs(way):
    model, counter = made(flux), CompileCounterWithBackend("eager")
    compiled = way(model, backend=counter)
    for scale in (0.0, 0.5, 0.7):
        forecasting = Schedule.from_mask(MASKS[0], coefficients=[0, 0, scale, 0, [scale, scale], [2 * scale, -scale]])
        with magpolicy.attach(compiled, schedule=forecasting) as handle:
            run(handle, compiled, model, streams=("cond", "uncond"))
            assert handle.report.forecasts == (6 if scale else 0)
    assert counter.frame_count == 2


@pytest.mark.skipif(not hasattr(torch, "accelerator"), reason="torch 2.5 compiles one graph more")
def test_another_size_costs_what_it_costs_without():
    """Shapes are static the first time, dynamic from the second on: for both of our graphs as for the plain one."""
    plain, counted = made(own), CompileCounterWithBackend("eager")
    compiled = whole(plain, backend=counted)
    with torch.no_grad():
        for tokens in (9, 12, 15, 18):
            compiled(**draw(plain, 0, tokens))
    model, counter = made(own), CompileCounterWithBackend("eager")
    with magpolicy.attach(whole(model, backend=counter), schedule=Schedule.from_mask(MASKS[0])) as handle:
        for tokens in (9, 12, 15, 18):
            run(handle, handle.module, model, tokens=tokens)
    assert counter.frame_count <= 2 * counted.frame_count


MODES = [{"mode": mode} for mode in ("reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")]
INDUCTOR = [pytest.param(options, marks=pytest.mark.slow) for options in ({"backend": "inductor"}, *MODES)]


@pytest.mark.parametrize("options", [{"backend": "aot_eager"}, *INDUCTOR], ids=str)
def test_backends(options):
    model = made(own)
    bare = copy.deepcopy(model)
    with magpolicy.attach(bare, schedule=Schedule.from_mask(MASKS[0])) as handle:
        expected = run(handle, bare, bare)
    with magpolicy.attach(whole(model, **options), schedule=Schedule.from_mask(MASKS[0])) as handle:
        for found, wanted in zip(run(handle, handle.module, model), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        assert handle.report.skipped == 3


def test_detaching_gives_the_compiled_model_back():
    model, counter = made(own), CompileCounterWithBackend("eager")
    compiled, kind = whole(model, backend=counter), type(model)
    with torch.no_grad():
        expected = compiled(**draw(model, 0))
        with magpolicy.attach(compiled, schedule=Schedule.from_mask(MASKS[0])) as handle:
            run(handle, compiled, model)
        graphs = counter.frame_count
        assert type(model) is kind
        assert torch.equal(compiled(**draw(model, 0)), expected)
    assert counter.frame_count == graphs, "its own graph is still there"


@pytest.mark.filterwarnings("ignore:nothing was:UserWarning")  # of the run as a whole
def test_a_model_whose_blocks_cannot_be_bypassed_stays_compiled():
    class Odd(Own):
        def forward(self, x, t):
            x = self.embed(x)
            for block in (*self.blocks, self.blocks[0]):
                x = block(x)
            return self.out(x)

    model, counter = made(Odd), CompileCounterWithBackend("eager")
    bare = copy.deepcopy(model)
    with magpolicy.attach(whole(model, backend=counter), schedule=Schedule.from_mask([1, 0, 0])) as handle:
        with torch.no_grad(), handle.run(steps=3):
            for step in range(3):
                torch.testing.assert_close(handle.module(**draw(model, step)), bare(**draw(model, step)))
        assert handle.report.computed == 3
    assert counter.frame_count == 1


def test_threads_share_a_compiled_model():
    model = made(own)
    bare = copy.deepcopy(model)
    with magpolicy.attach(bare, schedule=Schedule.from_mask(MASKS[0])) as handle:
        expected = run(handle, bare, bare)
    found = {}
    with magpolicy.attach(whole(model, backend="eager"), schedule=Schedule.from_mask(MASKS[0])) as handle:

        def work(name):
            found[name] = run(handle, handle.module, model)

        threads = [threading.Thread(target=work, args=(name,)) for name in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for outputs in found.values():
        for output, wanted in zip(outputs, expected, strict=True):
            torch.testing.assert_close(output, wanted, rtol=1e-5, atol=1e-6)
    assert len(found) == 3


@pytest.mark.parametrize("region", ["blocks", "model"])
@pytest.mark.parametrize("make", [own, flux], ids=lambda f: f.__name__)
def test_compile_compiles_as_the_host_does(make, region):
    model, counter = made(make), CompileCounterWithBackend("eager")
    bare = copy.deepcopy(model)
    with magpolicy.attach(bare, schedule=Schedule.from_mask(MASKS[0])) as handle:
        expected = run(handle, bare, bare)
    with magpolicy.attach(model, schedule=Schedule.from_mask(MASKS[0])) as handle:
        assert magpolicy.compile(model, region=region, backend=counter, fullgraph=True) is model
        for found, wanted in zip(run(handle, model, model), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    older = not hasattr(torch, "accelerator")  # torch 2.5 compiles one graph more
    assert 0 < counter.frame_count <= (2 if region == "model" else 3) + older


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"region": "layers"}, "region='layers' is not known; use one of 'blocks', 'model'"),
        ({"backend": "inducter"}, "backend='inducter' is none of torch.compile's; try 'inductor'"),
        ({"mode": "max-autotuned"}, "mode='max-autotuned' is none of inductor's; try 'max-autotune'"),
        ({"mode": "reduce-overhead", "options": {}}, "leave one of them out"),
        ({"mode": "reduce-overhead", "backend": "eager"}, "mode='reduce-overhead' is for backend='inductor', not 'eager'"),
    ],
)
def test_what_cannot_be_compiled_so_is_said_and_nothing_is(settings, message):
    model = own()
    with pytest.raises(magpolicy.ArgumentError) as error:
        magpolicy.compile(model, **settings)
    assert message in str(error.value)
    assert all(module._compiled_call_impl is None for module in model.modules())


def test_only_models_are_compiled():
    with pytest.raises(magpolicy.AdapterError, match="target="):
        magpolicy.compile("a model")
