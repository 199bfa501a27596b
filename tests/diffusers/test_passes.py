"""An attached pipeline passes for what it is: for diffusers, which asks for exact classes, for copies and the collector."""

import copy
import gc
import pickle
import weakref

import pytest

import magpolicy
from magpolicy import Schedule

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
diffusers = pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from pipes import PIPES  # noqa: E402

from zoo import CASES  # noqa: E402
from zoo._case import Draw  # noqa: E402

STRIP = "██·█··"
SKIPPING = {"schedule": Schedule.from_mask([c == "█" for c in STRIP])}
FLUX = PIPES["FluxPipeline"]
OUTSIDE = "called by something else than the {} that is attached, so nothing is skipped"


def again(case):
    """As ``case``, from a pipeline of the same class."""
    return lambda pipe: type(pipe).from_pipe(pipe), case


def other(name, *parts):
    """As case ``name``, from a pipeline that lacks ``parts``."""
    case = PIPES[name]
    return lambda pipe: getattr(diffusers, case.cls).from_pipe(pipe, **{p: getattr(case.make(), p) for p in parts}), case


SECONDS = {
    "FluxPipeline": other("FluxImg2ImgPipeline", "vae"),
    "StableDiffusion3Pipeline": other("StableDiffusion3Img2ImgPipeline", "vae"),
    "LTXPipeline": again(PIPES["LTXPipeline"]),
    "WanPipeline": other("WanVideoToVideoPipeline", "vae"),
    "WanPipeline two experts": again(PIPES["WanPipeline two experts"]),
}


@pytest.mark.parametrize("name", SECONDS)
def test_a_pipeline_made_from_an_attached_one_computes_and_says_so(name):
    """What stands around the attached pipeline's calls tells the step; of the other one's calls nobody does."""
    case, (derive, second) = PIPES[name], SECONDS[name]
    way = next(iter(second.ways))
    expected = second.run(derive(case.make()), way, 6)
    pipe = case.make()
    with magpolicy.attach(pipe, **SKIPPING) as handle:
        made = derive(pipe)
        for component in case.denoisers:
            assert getattr(made, component) is getattr(pipe, component)
        with pytest.warns(UserWarning, match=OUTSIDE.format(type(pipe).__name__)):
            assert torch.equal(second.run(made, way, 6), expected)
        case.run(pipe, next(iter(case.ways)), 6)
        assert handle.report.strip == STRIP
        with magpolicy.attach(made, **SKIPPING) as other:
            second.run(made, way, 6)
            assert other.report.skipped


def test_a_pipeline_made_from_an_attached_one_skips_where_it_is_put_in_a_run():
    pipe = FLUX.make()
    with magpolicy.attach(pipe, **SKIPPING) as handle:
        made = diffusers.FluxPipeline.from_pipe(pipe)
        with handle.run():
            FLUX.run(made, "true cfg", 6)
        assert handle.report.strip == STRIP
        assert set(handle.report.schedule.streams) == {"cond", "uncond"}


def test_diffusers_finds_the_class_for_a_task():
    pipe = FLUX.make()
    with magpolicy.attach(pipe, **SKIPPING):
        made = diffusers.AutoPipelineForImage2Image.from_pipe(pipe, vae=PIPES["FluxImg2ImgPipeline"].make().vae)
        assert type(made) is diffusers.FluxImg2ImgPipeline
        assert made.transformer is pipe.transformer


def test_an_attached_pipeline_is_what_it_was():
    pipe = PIPES["WanPipeline"].make()
    attributes, parts = dict(vars(pipe)), dict(pipe.components)
    with magpolicy.attach(pipe, **SKIPPING):
        assert (type(pipe), vars(pipe), pipe.components) == (diffusers.WanPipeline, attributes, parts)
        assert type(pipe.transformer) is diffusers.WanTransformer3DModel
        PIPES["WanPipeline"].run(pipe, "cfg", 6)
        assert set(vars(pipe)) - set(attributes) <= {"_guidance_scale", "_guidance_scale_2", "_attention_kwargs", "_interrupt",
                                                     "_current_timestep", "_num_timesteps", "_progress_bar_config"}  # fmt: skip


@pytest.mark.parametrize(
    "make_copy", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "deepcopy", "pickle"]
)
def test_a_copy_is_not_attached(make_copy):
    """A shallow one shares the model, and is a second pipeline around it."""
    expected = FLUX.run(FLUX.make(), "distilled", 6)
    pipe = FLUX.make()
    with magpolicy.attach(pipe, **SKIPPING) as handle:
        copied = make_copy(pipe)
        if copied.transformer is pipe.transformer:
            with pytest.warns(UserWarning, match=OUTSIDE.format("FluxPipeline")):
                assert torch.equal(FLUX.run(copied, "distilled", 6), expected)
        else:
            assert torch.equal(FLUX.run(copied, "distilled", 6), expected)
            with magpolicy.attach(copied, **SKIPPING) as second:
                FLUX.run(copied, "distilled", 6)
                assert second.report.strip == STRIP
        FLUX.run(pipe, "distilled", 6)
        assert handle.report.strip == STRIP
    assert torch.equal(FLUX.run(copied, "distilled", 6), expected)


def test_what_is_saved_names_nothing_of_ours(tmp_path):
    pipe = FLUX.make()
    with magpolicy.attach(pipe, **SKIPPING):
        FLUX.run(pipe, "distilled", 6)
        assert b"magpolicy" not in pickle.dumps(pipe)
        torch.save(pipe.transformer, tmp_path / "transformer.pt")
        pipe.save_pretrained(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"magpolicy" in path.read_bytes()]
    saved = diffusers.FluxTransformer2DModel.from_pretrained(tmp_path / "transformer")
    for key, value in pipe.transformer.state_dict().items():
        assert torch.equal(saved.state_dict()[key], value)


# Nothing is kept alive ------------------------------------------------------------------------------------------------------


def gone(*things):
    """Weak references to objects, which this list of arguments was the last to hold beside the caller."""
    return [weakref.ref(thing) for thing in things]


def assert_freed(references):
    gc.collect()
    assert [type(r()).__name__ for r in references if r() is not None] == []


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("name", ["FluxPipeline", "WanPipeline two experts"])
def test_a_pipeline_is_freed(name, detach):
    case, cls = PIPES[name], getattr(diffusers, PIPES[name].cls.split()[0])
    call, pipe = cls.__call__, case.make()
    handle = magpolicy.attach(pipe, **SKIPPING)
    case.run(pipe, next(iter(case.ways)), 6)
    references = gone(pipe, handle, *(getattr(pipe, name) for name in case.denoisers), *handle.stack.blocks)
    if detach:
        handle.detach()
    del pipe, handle
    assert_freed(references)
    assert cls.__call__ is call, "the last watched pipeline takes our method with it"


def test_a_pipeline_whose_handle_was_dropped_stays_attached():
    pipe = FLUX.make()
    plain = FLUX.run(FLUX.make(), "distilled", 6)
    handle = weakref.ref(magpolicy.attach(pipe, **SKIPPING))
    gc.collect()
    assert not torch.equal(FLUX.run(pipe, "distilled", 6), plain)
    assert handle().report.strip == STRIP


@pytest.mark.parametrize("way", ["by itself", "stopped midway", "in a run", "a run that is never left"])
def test_a_model_in_a_loop_is_freed(way):
    case = CASES["FluxTransformer2DModel"]
    model = case.make()
    handle = magpolicy.attach(model, steps=6, **SKIPPING)

    def loop(model, steps):
        for step in range(steps):
            case.call(model, Draw(level=1 - step / 6))

    if way in ("by itself", "stopped midway"):
        loop(model, 3 if way == "stopped midway" else 6)
    elif way == "in a run":
        with handle.run():
            loop(model, 6)
    else:
        run = handle.run()
        run.__enter__()
        loop(model, 2)
        del run
    references = gone(model, handle, *handle.stack.blocks)
    del model, handle
    assert_freed(references)
