"""CFG parallelism: each rank evaluates one branch of guidance, and skips what one process skips that evaluates both.

diffusers 0.42 has no way of its own to do this, so these are loops of a user's."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from harness import Pair

STEPS, GUIDANCE, CLOSE = 12, 3.0, 1e-5
BRANCHES = ("cond", "uncond")
LEVELS = [1 - step / STEPS for step in range(STEPS)]


def sample(branches: tuple[str, ...], model: Any, handle: Any, seed: int = 0, name: bool = True) -> Any:
    """A sampling loop. Of one branch, the other rank evaluates the other one."""
    import contextlib

    from zoo import CASES
    from zoo._case import Draw, Row

    import torch

    case = CASES["FluxTransformer2DModel"]
    latents = torch.randn(1, 16, 4, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad(), handle.run(steps=STEPS, sigmas=LEVELS):
        for step, level in enumerate(LEVELS):
            handle.go_to(step)
            found = {}
            for branch in branches:
                inputs = case.inputs(Draw((Row(0, branch),), level=level)) | {"hidden_states": latents}
                with handle.stream(branch) if name else contextlib.nullcontext():
                    found[branch] = model(**inputs, return_dict=False)[0]
            if len(branches) == 1:
                both = [torch.empty_like(latents) for _ in BRANCHES]
                torch.distributed.all_gather(both, found[branches[0]])
                found = dict(zip(BRANCHES, both, strict=True))
            velocity = found["uncond"] + GUIDANCE * (found["cond"] - found["uncond"])
            latents = latents - velocity / STEPS
    return latents


def mine() -> tuple[str, ...]:
    import torch

    return (BRANCHES[torch.distributed.get_rank()],)


def runs(branches: tuple[str, ...], **settings: Any) -> tuple[Any, Any]:
    from zoo import CASES

    import magpolicy

    model = CASES["FluxTransformer2DModel"].make()
    with magpolicy.attach(model, **settings) as handle:
        return sample(branches, model, handle), handle


def joint(window: int | None = None) -> dict[str, Any]:
    """The calibrations: of one process, of both ranks together, and merged of what each measured; what is planned from them."""
    import magpolicy
    import magpolicy_torch
    import torch

    _, handle = runs(BRANCHES, calibrate=True, window=window)
    alone = handle.calibration
    _, handle = runs(mine(), calibrate=True, window=window)
    both = magpolicy_torch.joint_calibration(handle)
    each: list[Any] = [None, None]
    torch.distributed.all_gather_object(each, handle.calibration)
    merged = magpolicy.Calibration.merge(each)
    found: dict[str, Any] = {"alone": alone, "joint": both, "merged": merged}
    if window is None:
        for name in ("joint", "merged"):
            settings = {"calibration": found[name], "speedup": 2.0, "guidance": GUIDANCE}
            expected, handle = runs(BRANCHES, **settings)
            simulated = magpolicy.plan(found[name], speedup=2.0, guidance=GUIDANCE, sigmas=LEVELS)
            ours, own = runs(mine(), **settings)
            found[f"run {name}"] = {
                "far": float((ours - expected).abs().max() / expected.abs().max()),
                "one process": list(handle.report.schedule.mask), "mask": list(own.report.schedule.mask),
                "planned": list(simulated.mask), "problems": own.report.problems,
            }  # fmt: skip
    return found


def refused(why: str) -> str:
    import magpolicy
    import magpolicy_torch
    import torch

    settings = {"calibrate": why != "one rank does not calibrate" or torch.distributed.get_rank() == 0}
    if not settings["calibrate"]:
        settings = {"schedule": magpolicy.Schedule.from_mask([True] * STEPS)}
    from zoo import CASES

    model = CASES["FluxTransformer2DModel"].make()
    with magpolicy.attach(model, **settings) as handle:
        sample(mine(), model, handle, name=why != "both unnamed")
        try:
            magpolicy_torch.joint_calibration(handle)
        except magpolicy.MagPolicyError as error:
            return f"{type(error).__name__}: {error}"
    return ""


def test_branches_of_two_ranks_make_one_calibration(pair: Pair) -> None:
    import numpy as np

    for found in pair(joint):
        pairs = [found[name].cross["cond", "uncond"] for name in ("joint", "alone")]
        assert np.allclose(*pairs, rtol=1e-6, atol=1e-12, equal_nan=True)
        assert found["joint"].streams == found["merged"].streams == found["alone"].streams
        assert "between_streams" not in found["joint"].provenance
        assert "assumed" in found["merged"].provenance["between_streams"]
        for name in ("run joint", "run merged"):
            run = found[name]
            assert run["mask"] == run["one process"] == run["planned"], run["problems"]
            assert not all(run["mask"])
            assert run["far"] < CLOSE


def test_what_makes_no_joint_calibration_is_one_error_on_both_ranks(pair: Pair) -> None:
    first, second = pair(refused, why="both unnamed")
    assert first == second
    assert "ArgumentError" in first
    assert "ranks 0 and 1 both evaluated" in first
    first, second = pair(refused, why="one rank does not calibrate")
    assert first == second
    assert "rank 1: calibration: this handle does not calibrate" in first
