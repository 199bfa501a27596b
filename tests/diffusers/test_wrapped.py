"""Models with something around them, as pipelines and loops hold them."""

import warnings

import pytest

import magpolicy
from magpolicy import AdapterError, Schedule

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
diffusers = pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from pipes import PIPES  # noqa: E402

from zoo import CASES  # noqa: E402
from zoo._case import Draw, Row  # noqa: E402

FLUX, WAN = PIPES["FluxPipeline"], CASES["WanTransformer3DModel"]
STRIP = "██·█··"
SKIPPING = {"schedule": Schedule.from_mask([c == "█" for c in STRIP])}


class Around(torch.nn.Module):
    """A module of one's own around a model: passes its calls on, and shows its attributes."""

    def __init__(self, model, call=lambda model, args, kwargs: model(*args, **kwargs)):
        super().__init__()
        self.model, self.call = model, call

    def forward(self, *args, **kwargs):
        return self.call(self.model, args, kwargs)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)


def peft_model(model):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    # With weights that count: that of a fresh LoRA adds nothing.
    config = peft.LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        return peft.get_peft_model(model, config).eval().requires_grad_(False)


def lora_model(model):
    return peft_model(model).base_model


def prepared(model):
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    return accelerate.Accelerator(cpu=True).prepare_model(model)


def dispatched(model):
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    return accelerate.dispatch_model(model, {"": "cpu"}, main_device="cpu", force_hooks=True)


def compiled(model):
    return torch.compile(model, backend="eager")


def swa(model):
    return torch.optim.swa_utils.AveragedModel(model)


WRAPPERS = {
    "PeftModel": peft_model,
    "LoraModel": lora_model,
    "accelerate, prepared": prepared,
    "accelerate, dispatched": dispatched,
    "torch.compile": compiled,
    "one's own": Around,
    "two of one's own": lambda model: Around(Around(model)),
    "compiled, in one's own": lambda model: Around(compiled(model)),
    "averaged": swa,
}
wrapped = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)


def attributes(model):
    """Pipelines ask the model for some; what lacks them has them put on, as its user has to."""
    if not hasattr(model, "config"):
        for name in ("config", "dtype", "device", "cache_context"):
            setattr(model, name, getattr(model.module, name))
    return model


@wrapped
def test_a_pipeline_that_holds_it(wrap):
    def made():
        pipe = FLUX.make()
        inner = pipe.transformer
        parts = dict(pipe.components)
        pipe = type(pipe)(**{name: part for name, part in parts.items() if name != "transformer"}, transformer=None)
        pipe.set_progress_bar_config(disable=True)
        pipe.transformer = attributes(wrap(inner))
        return pipe

    plain, pipe = made(), made()
    full = FLUX.run(plain, "true cfg", 6)
    with magpolicy.attach(pipe, schedule=Schedule.from_mask([1] * 6)):
        assert torch.equal(FLUX.run(pipe, "true cfg", 6), full)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with magpolicy.attach(pipe, **SKIPPING) as handle:
            assert not torch.equal(FLUX.run(pipe, "true cfg", 6), full)
            assert handle.report.strip == STRIP
            assert handle.report.model == "FluxTransformer2DModel"
            assert magpolicy.attached(pipe) == (handle,)
    assert torch.equal(FLUX.run(pipe, "true cfg", 6), full)


@wrapped
def test_ones_own_loop_around_it(wrap):
    model = WAN.make()
    around = wrap(model)
    expected = WAN.make()
    expected = wrap(expected)

    def loop(called):
        draws = [Draw((Row((0, 0), "a cat"),), level=1 - step / 6) for step in range(6)]
        with torch.no_grad():
            return [called(**WAN.inputs(draw), return_dict=False)[0] for draw in draws]

    full = loop(expected)
    with magpolicy.attach(around, steps=6, **SKIPPING) as handle, warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        made = loop(around)
        assert handle.report.strip == STRIP
        assert magpolicy.attached(around) == (handle,)
    assert [torch.equal(a, b) for a, b in zip(made, full, strict=True)] == [c == "█" for c in STRIP]
    assert all(map(torch.equal, loop(around), full))


def test_what_calls_the_forward_alone_is_said():
    """Nothing of ours stands around that. A wrapper that does so leaves hooks out as well."""
    pipe = FLUX.make()
    full = FLUX.run(pipe, "distilled", 6)
    pipe.transformer = Around(pipe.transformer, lambda model, args, kwargs: model.forward(*args, **kwargs))
    with (
        magpolicy.attach(pipe, **SKIPPING),
        pytest.warns(UserWarning, match="transformer of FluxPipeline wraps a model that was not called as a module"),
    ):
        assert torch.equal(FLUX.run(pipe, "distilled", 6), full)


@pytest.mark.parametrize("how", [compiled, lambda model: model.compile(backend="eager") or model], ids=["outside", "in place"])
@pytest.mark.parametrize("wrap", [peft_model, Around])
def test_what_is_compiled_with_the_model_in_it_is_refused(wrap, how):
    """One graph holds both: nobody can stand in between."""
    pipe = FLUX.make()
    pipe.transformer = how(wrap(pipe.transformer))
    for target in (pipe, pipe.transformer):
        with pytest.raises(AdapterError, match="was compiled with FluxTransformer2DModel in it"):
            magpolicy.attach(target, steps=6, **SKIPPING)


def test_of_two_models_in_one_module_neither_is_taken():
    both = torch.nn.ModuleList([WAN.make(), WAN.make()])
    pipe = FLUX.make()
    pipe.transformer = both
    with pytest.raises(AdapterError, match="no denoiser that is known"):
        magpolicy.attach(pipe, **SKIPPING)
