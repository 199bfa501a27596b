"""U-Nets: a skip leaves out the whole model, or the report says why it cannot."""

import pytest

import magpolicy

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
diffusers = pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from zoo import UNETS  # noqa: E402
from zoo._case import Draw, Row  # noqa: E402

ALWAYS = {"ratios": [1.0, 1.0], "threshold": 100.0, "retention": 0.0, "max_skips": 5}
FIRST, THEN = Draw(), Draw((Row(noise=1),), level=0.6)


@pytest.mark.parametrize("case", UNETS.values(), ids=lambda c: c.cls)
@pytest.mark.filterwarnings("ignore:nothing was skipped of what was to be:UserWarning")  # looked at below
def test_a_skip_adds_the_models_own_residual(case):
    model, samples = case.make(), [case.inputs(draw)["sample"] for draw in (FIRST, THEN)]
    plain = [case.call(model, draw)[0] for draw in (FIRST, THEN)]
    with magpolicy.attach(model, **ALWAYS) as handle, handle.run(steps=2), handle.stream("a context"):
        assert handle.scope == "model"
        assert torch.equal(case.call(model, FIRST)[0], plain[0])
        then = case.call(model, THEN)[0]
        report = handle.report
    if plain[0].shape == samples[0].shape:
        assert torch.equal(then, samples[1] + (plain[0] - samples[0]))
        assert report.skipped == 1
    else:  # it takes more channels than it returns
        assert torch.equal(then, plain[1])
        assert "returned something other than the states it was given" in report.problems[0]


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
