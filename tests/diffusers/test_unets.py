"""U-Nets, and other models whose skip leaves out all of them: what they return may have another shape than what they take."""

import pytest

import magpolicy

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
diffusers = pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from zoo import CASES, UNETS  # noqa: E402
from zoo._case import Draw, Row  # noqa: E402

pytestmark = pytest.mark.sampled

WHOLE = [*UNETS.values(), *(case for case in CASES.values() if case.blocks)]
IN_LISTS = {"ZImageTransformer2DModel", "WanAnimate2Transformer3DModel"}
"""Samples come in a list, one tensor each."""
ELSEWHERE = {
    **dict.fromkeys(IN_LISTS, "was given no tensor where its hidden states should be"),
    "T5FilmDecoder": "was given no tensor where its hidden states should be",
    "RFD4ProteinaTransformer": "return something beside their states",
    "AnyFlowFARTransformer3DModel": "that a skip cannot build",
    "Cosmos3OmniTransformer": "that a skip cannot build",
}
"""Classes that are skipped by their stack, and compute with scope="model", for this reason."""
ALWAYS = {"ratios": [1.0, 1.0], "threshold": 100.0, "retention": 0.0, "max_skips": 5}
FIRST, THEN = Draw(), Draw((Row(noise=1),), level=0.6)


def taken_by(case, draw):
    """What it denoises, of the inputs of a call."""
    given = case.inputs(draw)
    return next((given[name] for name in ("sample", "hidden_states", "x") if name in given), next(iter(given.values())))


@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
@pytest.mark.parametrize("case", WHOLE, ids=lambda c: c.cls)
@pytest.mark.filterwarnings("ignore:nothing was skipped of what was to be:UserWarning")  # looked at below
def test_a_skip_adds_the_models_own_residual(case, autocast):
    """Output minus input; where the shapes differ, nothing in the input stands where the output does: the output."""
    if autocast and case.cls == "Cosmos3OmniTransformer":
        return  # fails by itself
    model, samples = case.make(), [taken_by(case, draw) for draw in (FIRST, THEN)]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        plain = [case.call(model, draw)[0] for draw in (FIRST, THEN)]
        with magpolicy.attach(model, scope="model", **ALWAYS) as handle, handle.run(steps=2), handle.stream("a context"):
            assert handle.scope == "model"
            assert torch.equal(case.call(model, FIRST)[0], plain[0])
            then = case.call(model, THEN)[0]
            report = handle.report
    if case.cls in ELSEWHERE:
        assert torch.equal(then, plain[1])
        assert ELSEWHERE[case.cls] in report.problems[0]
        return
    expected = plain[0]
    if plain[0].shape == samples[0].shape:
        before, now = (sample.to(plain[0]) for sample in samples)
        expected = now + (plain[0] - before)
    assert torch.equal(then, expected)
    assert then.dtype is plain[0].dtype
    assert report.skipped == 1


def test_u_nets_are_skipped_whole_without_being_asked():
    for case in UNETS.values():
        with magpolicy.attach(case.make(), **ALWAYS) as handle:
            assert handle.scope == "model", case.cls


def test_more_samples_and_another_size_midway_compute():
    """A residual fits what it was made of. In a new size the model may be of another ratio of shapes, too."""
    case = UNETS["UNetSpatioTemporalConditionModel"]
    model = case.make()
    rows = Row(noise=1), Row(noise=2)
    calls = FIRST, Draw(rows, level=0.6), Draw(rows, level=0.5), Draw(rows, level=0.4, size=12), Draw(rows, level=0.3, size=12)
    plain = [case.call(model, draw)[0] for draw in calls]
    with magpolicy.attach(model, schedule=magpolicy.Schedule.from_mask([1, 0, 0, 0, 0])) as handle:
        with handle.run(steps=5), handle.stream("a context"):
            found = [case.call(model, draw)[0] for draw in calls]
        decided = [entry.decision for entry in handle.report.trace]
    assert [decision.skip for decision in decided] == [False, False, True, False, True]
    assert decided[1] is decided[3] is magpolicy.Decision.MISMATCH
    for step, same in enumerate((0, 1, 1, 3, 3)):
        assert torch.equal(found[step], plain[same])


def test_stable_cascades_second_pipeline_whose_u_net_is_named_decoder():
    torch.manual_seed(0)
    config = {**UNETS["StableCascadeUNet"].config, "effnet_in_channels": 8}
    model = diffusers.StableCascadeUNet(**config).eval().requires_grad_(False)
    pipe = diffusers.StableCascadeDecoderPipeline(
        decoder=model, tokenizer=None, text_encoder=None, scheduler=diffusers.DDPMWuerstchenScheduler(), vqgan=None,
        latent_dim_scale=4.0,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    given = {"prompt_embeds": torch.ones(1, 3, 8), "prompt_embeds_pooled": torch.ones(1, 1, 8)}
    given |= {f"negative_{name}": -value for name, value in given.items()}

    def run():
        generator = torch.Generator().manual_seed(0)
        return pipe(
            image_embeddings=torch.ones(1, 8, 2, 2), **given, num_inference_steps=6, guidance_scale=2.0, output_type="latent",
            generator=generator,
        ).images  # fmt: skip

    plain, mask = run(), (1, 1, 0, 1, 0, 0)
    with magpolicy.attach(pipe, schedule=magpolicy.Schedule.from_mask(mask)) as handle:
        found = run()
        assert not torch.equal(found, plain)
        assert handle.scope == "model"
        assert [[bool(m) for m in mask]] * 2 == [list(each) for each in handle.report.schedule.masks]
    assert torch.equal(run(), plain)
