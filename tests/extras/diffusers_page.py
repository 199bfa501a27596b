"""Runs the ``py`` blocks of a page about diffusers pipelines, which want downloaded weights and a GPU. What is faked:

- ``from_pretrained`` of a repo id (or of ``...``) loads a tiny saved pipeline of the same class: random weights, everything
  else real (text encoders, tokenizers, decoder, scheduler, from files by diffusers' and transformers' own loading);
- ``.to("cuda")`` stays on the CPU;
- pictures and videos are small where the page names no size.

As a program, ``python diffusers_page.py PAGE FOLDER`` with ``FOLDER/FluxPipeline`` and ``FOLDER/WanPipeline``. Standard library
and what the ``diffusers`` extra brings only.
"""

import contextlib
import copy
import importlib
import inspect
import re
import sys
from pathlib import Path

BLOCK = re.compile(r"^```py\n(?P<source>.*?)^```$", re.MULTILINE | re.DOTALL)
SMALL = {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16}


def fake(folder):
    import diffusers
    import torch

    real = diffusers.DiffusionPipeline.from_pretrained.__func__

    def from_pretrained(cls, name, **options):
        return real(cls, folder / cls.__name__ if name is ... or "/" in str(name) else name, **options)

    def to(self, *where, **options):
        return self

    diffusers.DiffusionPipeline.from_pretrained = classmethod(from_pretrained)
    diffusers.DiffusionPipeline.to = to
    for cls in (diffusers.FluxPipeline, diffusers.FluxImg2ImgPipeline, diffusers.WanPipeline):
        shrink(inspect.unwrap(cls.__call__))
    return diffusers, torch


def shrink(function):
    """Give ``function`` small defaults where it has large ones."""
    parameters = [p for p in inspect.signature(function).parameters.values() if p.default is not p.empty]
    function.__defaults__ = tuple(SMALL.get(p.name, p.default) for p in parameters)


def blocks(page):
    text = page.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        line = text[: match.start()].count("\n") + 1
        yield match["source"], compile("\n" * line + match["source"], str(page), "exec")


def given(diffusers, torch, folder):
    """Names that the page's loops take for granted: a model of the user's own, its inputs, a scheduler."""
    transformer = diffusers.WanTransformer3DModel.from_pretrained(folder / "WanPipeline", subfolder="transformer")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(28)
    scheduler.timesteps = scheduler.timesteps.view(-1, 1)  # a batch of one
    text = transformer.config.text_dim
    return {
        "magpolicy": importlib.import_module("magpolicy"),
        "pipe": diffusers.FluxPipeline.from_pretrained(folder / "FluxPipeline"),
        "transformer": transformer.eval(),
        "scheduler": scheduler,
        "latents": torch.randn(1, transformer.config.in_channels, 2, 4, 4),
        "negative": torch.zeros(1, 4, text),
        "ratios": [1.0] + [0.98] * 27,
        "copy": copy,
    }


def main(page, folder):
    diffusers, torch = fake(folder)
    namespace = given(diffusers, torch, folder)
    embedding = torch.randn(1, 4, namespace["transformer"].config.text_dim)
    for source, code in blocks(page):
        loop = "encoder_hidden_states" in source  # a loop of the user's own: prompts are embeddings, no gradients
        namespace["prompt"] = embedding if loop else "a fox"
        with torch.no_grad() if loop else contextlib.nullcontext():
            exec(code, namespace)
    if "worker" in namespace:
        namespace["worker"]("a fox")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
