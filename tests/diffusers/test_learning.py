"""``attach(pipe)`` alone learns from the calls that are made, on real pipelines."""

import pytest

import magpolicy
from magpolicy.adapter import learned

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("diffusers", reason="the diffusers extra is not installed")
pytest.importorskip("cattrs", reason="the files extra is not installed")

from pipes import PIPES  # noqa: E402

SOME = (
    ("FluxPipeline", "distilled"),
    ("StableDiffusion3Pipeline", "cfg"),
    ("WanPipeline", "cfg"),
    ("WanPipeline", "cfg, two experts"),
    ("PixArtSigmaPipeline", "cfg"),
    ("LTX2Pipeline", "cfg"),
)
