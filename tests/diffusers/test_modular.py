"""Modular pipelines with every guider: what runs is the schedule, each branch has its own residuals, nothing stays.

The pipelines are the denoising steps of diffusers' own blocks, which take a prompt as embeddings: text encoders and decoders
run before and after, and know nothing of what is skipped.
"""

import contextlib

import pytest

import magpolicy
from magpolicy import Decision, Schedule

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
diffusers = pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from pipes import PIPES  # noqa: E402

from diffusers.hooks import LayerSkipConfig, SmoothedEnergyGuidanceConfig  # noqa: E402

pytestmark = pytest.mark.sampled

STEPS, MASK = 6, (1, 1, 0, 1, 0, 0)


def core(blocks, workflow=""):
    """The denoising step of a modular pipeline's blocks."""
    denoise = getattr(diffusers, blocks)().sub_blocks["denoise"]
    return denoise.sub_blocks[workflow] if workflow else denoise


# Blocks, the tiny pipeline that has the models and prompts, its way with guidance, and the list of its blocks.
PIPELINES = {
    "QwenImage": (("QwenImageAutoBlocks", "text2image"), "QwenImagePipeline", "true cfg", "transformer_blocks"),
    "Wan": (("WanBlocks",), "WanPipeline", "cfg", "blocks"),
    "StableDiffusion3": (
        ("StableDiffusion3AutoBlocks", "text2image"), "StableDiffusion3Pipeline", "cfg", "transformer_blocks",
    ),
    "ZImage": (("ZImageAutoBlocks", "text2image"), "ZImagePipeline", "cfg", "layers"),
    "LTX": (("LTXAutoBlocks", "text2video"), "LTXPipeline", "cfg", "transformer_blocks"),
    "HunyuanVideo15": (
        ("HunyuanVideo15AutoBlocks", "text2video"), "HunyuanVideo15Pipeline", "cfg", "transformer_blocks",
    ),
    "Flux": (("FluxAutoBlocks",), "FluxPipeline", "distilled", ""),
    "Flux2": (("Flux2AutoBlocks", "text2image"), "Flux2Pipeline", "distilled", ""),
}  # fmt: skip
UNTIL = {"perturbed_guidance_stop": 0.9}
GUIDERS = {
    "ClassifierFreeGuidance": lambda fqn: {},
    "ClassifierFreeZeroStarGuidance": lambda fqn: {},
    "AdaptiveProjectedGuidance": lambda fqn: {},
    "AdaptiveProjectedMixGuidance": lambda fqn: {},
    "TangentialClassifierFreeGuidance": lambda fqn: {},
    "FrequencyDecoupledGuidance": lambda fqn: {},
    "MagnitudeAwareGuidance": lambda fqn: {},
    "AutoGuidance": lambda fqn: {"auto_guidance_config": LayerSkipConfig([1], fqn=fqn)},
    "SkipLayerGuidance": lambda fqn: {"skip_layer_config": LayerSkipConfig([1], fqn=fqn), "skip_layer_guidance_stop": 0.9},
    "PerturbedAttentionGuidance": lambda fqn: {
        "perturbed_guidance_config": LayerSkipConfig([1], fqn=fqn),
        "perturbed_guidance_stop": 0.9,
    },
    "SmoothedEnergyGuidance": lambda fqn: {"seg_guidance_config": SmoothedEnergyGuidanceConfig([1], fqn=fqn)},
}


FAULTS = {
    "QwenImage": "ClassifierFreeZeroStarGuidance FrequencyDecoupledGuidance AutoGuidance SkipLayerGuidance",
    "Wan": "FrequencyDecoupledGuidance MagnitudeAwareGuidance PerturbedAttentionGuidance",
    "StableDiffusion3": "MagnitudeAwareGuidance AutoGuidance SkipLayerGuidance PerturbedAttentionGuidance",
    "ZImage": "MagnitudeAwareGuidance AutoGuidance SkipLayerGuidance",
    "LTX": "FrequencyDecoupledGuidance PerturbedAttentionGuidance",
    "HunyuanVideo15": (
        "FrequencyDecoupledGuidance MagnitudeAwareGuidance AutoGuidance SkipLayerGuidance PerturbedAttentionGuidance"
    ),
}
"""Guiders that raise or give NaN by themselves on such a model, in diffusers 0.42: another form of latents, blocks that they do
not know."""


def guider(name, fqn):
    return getattr(diffusers.guiders, name)(**GUIDERS[name](fqn))


class Modular:
    """A modular pipeline of that name, tiny."""

    def __init__(self, name, guided_by=None):
        blocks, like, way, fqn = PIPELINES[name]
        case = PIPES[like]
        whole = case.make()
        self.pipe = core(*blocks).init_pipeline()
        parts = {"transformer": whole.transformer, "scheduler": whole.scheduler}
        if guided_by is not None:
            parts["guider"] = guider(guided_by, fqn)
        self.pipe.update_components(**parts)
        self.pipe.vae = whole.vae  # the denoising step asks it for sizes alone
        self.pipe.set_progress_bar_config(disable=True)
        known = {each.name for each in core(*blocks).inputs}
        self.arguments = {"latents": torch.randn(1, 4, 2, 4, 4)} if name == "Wan" else {}  # its blocks make none of 4 channels
        self.arguments |= {name: value for name, value in case.ways[way].arguments(whole).items() if name in known}

    def run(self):
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(0)
        latents = self.pipe(**self.arguments, num_inference_steps=STEPS, generator=generator, output="latents")
        return torch.as_tensor(latents)


PAIRS = [(name, guided) for name in PIPELINES for guided in (GUIDERS if PIPELINES[name][3] else (None,))]
FAULTY = [(name, guided) for name, guided in PAIRS if guided in FAULTS.get(name, "").split()]


@pytest.mark.parametrize(("name", "guided_by"), FAULTY)
def test_what_does_not_run_by_itself(name, guided_by):
    """Or it belongs into the test below."""
    with contextlib.suppress(AttributeError, ImportError, KeyError, RuntimeError, TypeError, ValueError):
        assert not Modular(name, guided_by).run().isfinite().all()


@pytest.mark.parametrize(("name", "guided_by"), [pair for pair in PAIRS if pair not in FAULTY])
def test_every_branch_follows_the_schedule(name, guided_by):
    if guided_by == "FrequencyDecoupledGuidance":
        pytest.importorskip("kornia", reason="kornia, which this guider needs, is not installed")
    modular = Modular(name, guided_by)
    plain = modular.run()
    with magpolicy.attach(modular.pipe, ratios=[1.0] * STEPS, threshold=0.0, max_skips=0, retention=0.0):
        assert torch.equal(modular.run(), plain)
    with magpolicy.attach(modular.pipe, schedule=Schedule.from_mask(MASK)) as handle:
        found, begun = modular.run(), set()
        for entry in handle.report.trace:
            first = entry.stream not in begun  # branches that come late have nothing to reuse then
            assert entry.decision.skip is not bool(MASK[entry.step]) or (first and entry.decision is Decision.NO_RESIDUAL)
            begun.add(entry.stream)
        assert handle.report.skipped
        assert handle.residuals_held == 0
    assert not torch.equal(found, plain)
    assert torch.equal(modular.run(), plain)
