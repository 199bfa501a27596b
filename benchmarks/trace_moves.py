"""How far one step of a run goes through our code: ``python benchmarks/trace_moves.py`` (needs the ``diffusers`` extra).

A tiny Flux pipeline runs eight steps. Of one computed and of one skipped step, every call of one of our functions is noted.
The script prints the number of calls, how often a call is in another file than the call before, and the number of files. ``-v``
lists the calls, ``--plan`` follows a plan in place of the rule. Whoever follows a decision in a debugger goes this way, so it
should stay short.
"""

from __future__ import annotations

import argparse
import sys
from itertools import pairwise
from types import FrameType
from typing import Any

from attrs import frozen

import diffusers
import magpolicy
import torch

OURS = ("src/magpolicy/", "adapters/magpolicy_torch/", "adapters/magpolicy_diffusers/")
STEPS = 8


@frozen
class Moves:
    """The calls of one step, in order: the file and the function of each."""

    calls: tuple[tuple[str, str], ...]

    @property
    def changes(self) -> int:
        """How often a call is in another file than the one before."""
        return sum(a != b for (a, _), (b, _) in pairwise(self.calls))

    @property
    def files(self) -> int:
        """How many files the step goes through."""
        return len({file for file, _ in self.calls})

    def __str__(self) -> str:
        return f"{len(self.calls)} calls, {self.changes} changes of file, {self.files} files"


def tiny_pipeline() -> Any:
    """A Flux pipeline of five narrow blocks, without text encoders and decoder."""
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=2, num_single_layers=3, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    pipe = diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=None, text_encoder=None, tokenizer=None,
        text_encoder_2=None, tokenizer_2=None, transformer=transformer.eval(),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def trace_moves(**settings: Any) -> dict[str, Moves]:
    """What a ``computed`` and a ``skipped`` step call; the run before has shown the adapter how the model calls its blocks.

    Args:
        settings: for :func:`magpolicy.attach`, beside the preset.
    """
    pipe = tiny_pipeline()
    calls: list[list[tuple[str, str]]] = [[] for _ in range(STEPS + 1)]
    step = 0

    def note(frame: FrameType, event: str, _: Any) -> None:
        file = frame.f_code.co_filename.replace("\\", "/")
        if event == "call" and (ours := next((part for part in OURS if part in file), None)):
            calls[step].append((file[file.index(ours) :], frame.f_code.co_name))

    def mark(*args: Any, **kwargs: Any) -> Any:  # no callback, which would be a part of the step
        nonlocal step
        step += 1
        return scheduler_step(*args, **kwargs)

    def run() -> None:
        pipe(
            prompt_embeds=torch.zeros(1, 4, 32), pooled_prompt_embeds=torch.zeros(1, 32), num_inference_steps=STEPS,
            height=32, width=32, output_type="latent", generator=torch.Generator().manual_seed(0),
        )  # fmt: skip

    with magpolicy.attach(pipe, preset="flux.1-dev", **settings) as handle:
        run()
        run()
        before, scheduler_step = sys.getprofile(), pipe.scheduler.step
        pipe.scheduler.step = mark
        sys.setprofile(note)
        try:
            run()
        finally:
            sys.setprofile(before)
        mask = handle.report.schedule.mask
    # The first steps of a run, and what follows its last one, do more than a step in its midst.
    return {kind: Moves(tuple(calls[mask.index(wanted, 2)])) for kind, wanted in (("computed", 1), ("skipped", 0))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("-v", "--verbose", action="store_true", help="list the calls")
    parser.add_argument("--plan", action="store_true", help="follow a plan in place of the rule")
    chosen = parser.parse_args()
    for kind, moves in trace_moves(**({"speedup": 2.0} if chosen.plan else {})).items():
        print(f"{kind} step: {moves}")
        for file, function in moves.calls if chosen.verbose else ():
            print("   ", file, function)


if __name__ == "__main__":
    main()
