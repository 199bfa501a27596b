"""Pipelines that call other pipelines: every model in them is driven, each in runs of its own."""

import functools

import pytest

import magpolicy
from magpolicy import RunError, Schedule

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
diffusers = pytest.importorskip("diffusers", reason="the diffusers extra is not installed")
transformers = pytest.importorskip("transformers", reason="the diffusers extra is not installed")

from pipes.pipes_video import words  # noqa: E402

from zoo import UNETS  # noqa: E402

from magpolicy_diffusers import CombinedHandle  # noqa: E402

MASK = (1, 1, 0, 1, 0, 0)
STRIP = "██·█··"
SKIPPING = {"schedule": Schedule.from_mask(MASK)}


def still(model):
    return model.eval().requires_grad_(False)


def clip(kind, width=16, **config):
    torch.manual_seed(0)
    name = f"CLIP{kind}"
    config = getattr(transformers, f"{name}Config")(
        hidden_size=width, projection_dim=8, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1, **config
    )
    return still(getattr(transformers, f"{name}ModelWithProjection")(config))


def reader(width=16):
    return clip("Text", width, vocab_size=96, max_position_embeddings=17, eos_token_id=1, bos_token_id=2, pad_token_id=0)


def cascade():
    def net(seed, **more):
        torch.manual_seed(seed)
        return still(diffusers.StableCascadeUNet(**{**UNETS["StableCascadeUNet"].config, **more}))

    return diffusers.StableCascadeCombinedPipeline(
        tokenizer=None, text_encoder=None, vqgan=None, prior_tokenizer=None, prior_text_encoder=reader(),
        decoder=net(0, effnet_in_channels=16), scheduler=diffusers.DDPMWuerstchenScheduler(),
        prior_prior=net(1, in_channels=16, out_channels=16), prior_scheduler=diffusers.DDPMWuerstchenScheduler(),
    )  # fmt: skip


def cascade_call(pipe, **more):
    given = {"prompt_embeds": torch.ones(1, 3, 8), "prompt_embeds_pooled": torch.ones(1, 1, 8)}
    given |= {f"negative_{name}": -value for name, value in given.items()}
    return given | {"height": 128, "width": 128, "decoder_guidance_scale": 2.0}


def kandinsky(cls, decoder=4, **more):
    torch.manual_seed(1)
    prior = diffusers.PriorTransformer(
        num_attention_heads=2, attention_head_dim=8, num_layers=2, embedding_dim=8, num_embeddings=17, additional_embeddings=4
    )
    prior.clip_std = torch.nn.Parameter(torch.ones(1, 8))
    tokenizer = words()
    tokenizer.model_max_length = 17
    config = {**UNETS["UNet2DConditionModel"].config, "in_channels": decoder, "out_channels": 8}
    unet = diffusers.UNet2DConditionModel(
        **config, addition_embed_type="image", encoder_hid_dim=8, encoder_hid_dim_type="image_proj",
        class_embed_type=None,
    )  # fmt: skip
    movq = diffusers.VQModel(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        in_channels=3, out_channels=3, latent_channels=4, norm_num_groups=2, layers_per_block=1, num_vq_embeddings=8,
    )  # fmt: skip
    return getattr(diffusers, cls)(
        unet=still(unet), scheduler=diffusers.DDIMScheduler(clip_sample=False), movq=still(movq), prior_prior=still(prior),
        prior_image_encoder=clip("Vision", image_size=16, patch_size=8), prior_text_encoder=reader(8),
        prior_tokenizer=tokenizer,
        prior_scheduler=diffusers.UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample"),
        prior_image_processor=None, **more,
    )  # fmt: skip


def kandinsky_call(pipe, **more):
    return {"prompt": "a cat", "height": 64, "width": 64, "guidance_scale": 3.0} | more


def picture(size=64):
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(3))


CASES = {
    "StableCascadeCombinedPipeline": (cascade, cascade_call),
    "KandinskyV22CombinedPipeline": (functools.partial(kandinsky, "KandinskyV22CombinedPipeline"), kandinsky_call),
    "KandinskyV22Img2ImgCombinedPipeline": (
        functools.partial(kandinsky, "KandinskyV22Img2ImgCombinedPipeline"),
        lambda pipe: kandinsky_call(pipe, image=picture(), strength=1.0),
    ),
    "KandinskyV22InpaintCombinedPipeline": (
        functools.partial(kandinsky, "KandinskyV22InpaintCombinedPipeline", decoder=9),
        lambda pipe: kandinsky_call(pipe, image=picture(), mask_image=torch.ones(1, 1, 64, 64)),
    ),
}


def make(name):
    pipe = CASES[name][0]()
    for stage in (pipe.prior_pipe, pipe.decoder_pipe):
        stage.set_progress_bar_config(disable=True)
    pipe.progress_bar = lambda *args, **kwargs: None  # Kandinsky's asks for an accelerator
    return pipe


def run(pipe, name, steps=6, prior=6):
    torch.manual_seed(0)
    with torch.no_grad():
        return pipe(
            **CASES[name][1](pipe), num_inference_steps=steps, prior_num_inference_steps=prior,
            generator=torch.Generator().manual_seed(0), output_type="latent", return_dict=False,
        )[0]  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_stage_skips_as_the_schedule_says(name):
    pipe = make(name)
    plain = run(pipe, name)
    with magpolicy.attach(pipe, schedule=Schedule.from_mask([1] * 6)):
        assert torch.equal(run(pipe, name), plain)
    with magpolicy.attach(pipe, **SKIPPING) as handle:
        assert isinstance(handle, CombinedHandle)
        found = run(pipe, name)
        assert [report.strip for report in handle.reports] == [STRIP] * 2
        assert list(handle.parts) == ["prior_pipe", "decoder_pipe"]
        assert handle.report.model == type(pipe.decoder_pipe.components.get("unet") or pipe.decoder).__name__
        assert handle.residuals_held == 0
        assert not torch.equal(found, plain)
        # the same as each stage's pipeline attached to by hand
    with magpolicy.attach(pipe.prior_pipe, **SKIPPING), magpolicy.attach(pipe.decoder_pipe, **SKIPPING):
        assert torch.equal(run(pipe, name), found)
    assert torch.equal(run(pipe, name), plain)


CASCADE = "StableCascadeCombinedPipeline"


def test_each_stage_has_its_own_length_plan_and_calibration():
    pipe = make(CASCADE)
    with magpolicy.attach(pipe, speedup=2.0) as handle:
        run(pipe, CASCADE, steps=8, prior=20)
        assert [len(report.schedule.masks[0]) for report in handle.reports] == [20, 8]
        assert all(report.skipped for report in handle.reports)
    with magpolicy.attach(pipe, calibrate=True) as handle:
        run(pipe, CASCADE, steps=5, prior=7)
        found = {name: part.calibration for name, part in handle.parts.items()}
        assert [found[name].steps for name in found] == [7, 5]
        assert handle.calibration == found["decoder_pipe"]
        assert len({calibration.provenance["identity"]["weights"] for calibration in found.values()}) == 2


def test_one_stage_by_itself_has_other_settings():
    pipe = make(CASCADE)
    with magpolicy.attach(pipe, **SKIPPING) as handle:
        with magpolicy.attach(pipe.prior_pipe, schedule=Schedule.from_mask([1] * 6)) as other:
            run(pipe, CASCADE)
            assert other.report.strip == "█" * 6
            assert handle.parts["decoder_pipe"].report.strip == STRIP
        with handle.parts["decoder_pipe"].settings(schedule=Schedule.from_mask([1, 0, 0, 0, 0, 0])):
            run(pipe, CASCADE)
            assert handle.report.strip == "█·····"


def test_it_is_found_replaced_and_taken_off():
    pipe = make(CASCADE)
    with pytest.raises(RunError, match="there was no run yet"):
        _ = magpolicy.attach(pipe, **SKIPPING).report
    handle = magpolicy.attach(pipe, **SKIPPING)  # in the place of the one before
    assert set(magpolicy.attached(pipe)) == set(handle.parts.values())
    assert {denoiser.module for denoiser in handle.denoisers} == {pipe.prior_prior, pipe.decoder}
    assert "prior_pipe" in repr(handle)

    def callback(stage, step, timestep, tensors):
        with pytest.raises(RunError, match="a run is under way"):
            handle.detach()
        assert handle.running
        return tensors

    with handle.settings(schedule=Schedule.from_mask([1, 0, 0, 0, 0, 0])):
        torch.manual_seed(0)
        pipe(**cascade_call(pipe), num_inference_steps=6, prior_num_inference_steps=6, output_type="latent",
             callback_on_step_end=callback)  # fmt: skip
    assert [report.strip for report in handle.reports] == ["█·····"] * 2
    magpolicy.detach(pipe)
    assert magpolicy.attached(pipe) == ()
    handle.detach()


def test_if_one_stage_cannot_be_attached_to_none_is():
    pipe = make(CASCADE)
    with magpolicy.attach(pipe.decoder, **SKIPPING, scope="model", offload="cpu"):
        pass
    pipe.decoder_pipe.decoder = torch.compile(torch.nn.ModuleList([pipe.decoder]), backend="eager")
    with pytest.raises(magpolicy.AdapterError):
        magpolicy.attach(pipe, **SKIPPING)
    assert magpolicy.attached(pipe.prior_pipe) == ()


def test_a_pipeline_that_holds_another_beside_its_own_model():
    from pipes import PIPES

    case = PIPES["FluxPipeline"]
    pipe, other = case.make(), case.make()
    pipe.refiner = other
    with magpolicy.attach(pipe, **SKIPPING) as handle:
        assert list(handle.parts) == ["", "refiner"]
        case.run(pipe, "distilled", 6)
        assert [report.strip for report in handle.reports] == [STRIP]
        case.run(other, "distilled", 6)
        assert [report.strip for report in handle.reports] == [STRIP] * 2
