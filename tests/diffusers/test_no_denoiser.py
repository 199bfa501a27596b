"""Parts of a pipeline that do not denoise are refused, before anything is patched; models of one's own are not."""

import pytest

import magpolicy
from magpolicy import AdapterError

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
diffusers = pytest.importorskip("diffusers", reason="the diffusers extra is not installed")
transformers = pytest.importorskip("transformers", reason="the diffusers extra is not installed")

from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker  # noqa: E402

from magpolicy_torch.adapter import denoises  # noqa: E402

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
EYES = {**SMALL, "image_size": 16, "patch_size": 8}
WORDS = {**SMALL, "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}


def vae():
    return diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)


def clip():
    return transformers.CLIPTextModel(transformers.CLIPTextConfig(**WORDS))


class OwnText(transformers.CLIPTextModel):
    """Derived, with the forward of its base."""


class Around(torch.nn.Module):
    """A model of one's own with the parts of a pipeline in it."""

    def __init__(self, vae, text_encoder):
        super().__init__()
        self.vae, self.text_encoder = vae, text_encoder
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class OwnDenoiser(transformers.CLIPTextModel):
    """A language model that somebody made a denoiser, with a forward of its own."""

    def __init__(self, config):
        super().__init__(config)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(3))

    def forward(self, x, noise):
        for block in self.blocks:
            x = block(x)
        return x


PARTS = {
    "autoencoder": vae,
    "autoencoder without a distribution": diffusers.AutoencoderTiny,
    "compiled autoencoder": lambda: torch.compile(vae(), backend="eager"),
    "text encoder": clip,
    "text encoder of one's own name": lambda: OwnText(transformers.CLIPTextConfig(**WORDS)),
    "another text encoder": lambda: transformers.T5EncoderModel(
        transformers.T5Config(vocab_size=96, d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    ),
    "image encoder": lambda: transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**EYES)),
    "safety checker": lambda: StableDiffusionSafetyChecker(
        transformers.CLIPConfig(text_config=WORDS, vision_config=EYES, projection_dim=16)
    ),
    "adapter": lambda: diffusers.T2IAdapter(channels=[8, 8, 8, 8], num_res_blocks=1),
}


def left(module):
    return {name: dict(part.__dict__) for name, part in module.named_modules()}


@pytest.mark.parametrize("settings", [{}, {"speedup": 2.0}, {"rule": "published"}, {"calibrate": True}], ids=str)
@pytest.mark.parametrize("part", PARTS)
def test_it_is_refused(part, settings):
    module = PARTS[part]()
    before = left(module)
    name = type(getattr(module, "_orig_mod", module)).__name__
    with pytest.raises(AdapterError, match=rf"target={name} is no denoiser: .* attach to the pipeline, or to the model in it"):
        magpolicy.attach(module, **settings)
    assert left(module) == before
    assert magpolicy.attached(module) == ()


@pytest.mark.parametrize("made", [diffusers.FlowMatchEulerDiscreteScheduler, lambda: [vae()], lambda: diffusers.FluxPipeline])
def test_what_is_no_module_is_refused(made):
    with pytest.raises(AdapterError, match="pass what denoises: a pipeline, its transformer or unet"):
        magpolicy.attach(made())


@pytest.mark.parametrize("made", [lambda: Around(vae(), clip()), lambda: OwnDenoiser(transformers.CLIPTextConfig(**WORDS))])
def test_a_denoiser_of_ones_own_is_attached_to(made):
    module = made()
    with magpolicy.attach(module, speedup=2.0) as handle:
        assert handle.stack.blocks == tuple(module.blocks)


def test_a_decoder_beside_the_denoiser_is_not_taken_for_it():
    """Though some pipelines name their denoiser so."""
    pipe = diffusers.DiffusionPipeline()
    pipe.decoder, pipe.net = vae(), Around(None, None)
    with magpolicy.attach(pipe, speedup=2.0) as handle:
        assert handle.modules == (pipe.net,)


def test_of_diffusers_classes_those_are_refused_that_do_not_denoise():
    """As their names tell it. ControlNets are called at every step, and told the time."""
    found = [getattr(diffusers.models, name) for name in dir(diffusers.models) if not name.startswith("_")]
    kinds = {kind.__name__: kind for kind in found if isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin)}
    told = {name for name, kind in kinds.items() if denoises(kind.__new__(kind))}
    parts = {name for name in kinds if any(word in name for word in ("Autoencoder", "VAE", "Vae", "VQ", "Encoder", "Vocoder"))}
    models = {
        name for name in kinds if any(word in name for word in ("Transformer", "UNet", "DiT", "Prior", "ControlNetModel"))
    }
    assert len(models) > 30
    assert len(parts) > 10
    assert told & parts == set()
    assert models - parts - told == set()
