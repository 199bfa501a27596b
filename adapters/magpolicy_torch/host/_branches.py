"""One calibration of branches of guidance that ranks evaluate one each (CFG parallelism)."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from attrs import evolve, frozen
from numpy.typing import NDArray

import torch
from magpolicy import ArgumentError, Calibration, MagPolicyError, RunError
from magpolicy.adapter import ASSUMED, banded_cross
from magpolicy_torch.host._attached import Attached
from magpolicy_torch.host._host_run import HostRun
from magpolicy_torch.residuals._arithmetic import CHUNK, widest
from magpolicy_torch.residuals._moments import Moments
from torch import Tensor, distributed

Residuals = dict[str, Tensor]
"""Per stream (evaluations, elements)."""
Tables = dict[tuple[str, str], NDArray[np.float64]]


@frozen
class _Told:
    """What a rank says of its run."""

    problem: str
    calibration: Calibration | None
    residuals: tuple[str, ...]
    """The streams whose residuals it holds."""
    kind: tuple[torch.Size, torch.dtype] | None
    """The shape and dtype of each of these: (evaluations, elements)."""


def joint_calibration(handle: Attached, *, group: Any = None) -> Calibration:
    """One calibration of all streams, where each rank has evaluated some of them: its own branch of guidance.

    >>> with magpolicy.attach(model, calibrate=True) as handle:  # doctest: +SKIP
    ...     with handle.run(steps=28), handle.stream("cond" if rank == 0 else "uncond"):
    ...         loop(model)
    ...     calibration = magpolicy_torch.joint_calibration(handle)

    Every rank calls it after its run. Inner products between streams of two ranks need the residuals of both: the first rank
    is sent the tokens that the others have looked at, over the whole run, and all get the same result. If ``window`` is
    shorter than the run or the residuals have other shapes, what is between the streams is assumed
    (:meth:`magpolicy.Calibration.merge`).

    Args:
        handle: attached with ``calibrate=True``, after a run.
        group: the process group of the ranks that evaluate branches of one sample; the default group by default.

    Raises:
        RunError: there is no process group, or some rank has no calibration: on every rank.
        ArgumentError: two ranks evaluated the same branch, at other noise levels, or with other models: on every rank.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        raise RunError("joint_calibration: there are no other ranks; use handle.calibration, and Calibration.merge of those")
    held: Residuals = {}
    calibration, problem = None, ""
    try:
        calibration, held = handle.calibration, _held(handle)
    except MagPolicyError as error:
        problem = f"{error}"
    kind = next(((rows.shape, rows.dtype) for rows in held.values()), None)
    told: list[Any] = [None] * distributed.get_world_size(group)
    distributed.all_gather_object(told, _Told(problem, calibration, tuple(held), kind), group=group)
    merged = _merged(told)
    if kind is None or any(one.kind != kind for one in told):
        return merged
    cross = _between(told, held, group)
    provenance = {name: value for name, value in merged.provenance.items() if name != ASSUMED}
    return evolve(merged, cross={**merged.cross, **cross}, provenance=provenance)


def _merged(told: list[_Told]) -> Calibration:
    problems = [f"rank {rank}: {one.problem}" for rank, one in enumerate(told) if one.problem]
    if problems:
        raise RunError(f"joint_calibration: {'; '.join(problems)}")
    found = [one.calibration for one in told if one.calibration is not None]
    for (rank, one), (second, other) in itertools.combinations(enumerate(found), 2):
        if both := sorted(set(one.streams) & set(other.streams)):
            raise ArgumentError(
                f"joint_calibration: ranks {rank} and {second} both evaluated {both}; name each rank's branch, "
                "with handle.stream('cond') and with handle.stream('uncond')"
            )
    return Calibration.merge(found)


def _held(handle: Attached) -> Residuals:
    run = handle.runs[-1]
    moments = run.moments if isinstance(run, HostRun) else None
    return moments.held() if isinstance(moments, Moments) else {}


def _between(told: list[_Told], held: Residuals, group: Any) -> Tables:
    """Inner products between the streams of each two ranks. The first rank forms them, so that all have the same."""
    mine = torch.stack(list(held.values()))
    here, device = distributed.get_rank(group), _device(group, mine.device)
    tables: Tables = {}
    if here > 0:
        distributed.send(mine.to(device).contiguous(), group=group, group_dst=0)
    else:
        known = dict(held)
        for rank, one in enumerate(told[1:], 1):
            sent = torch.empty(len(one.residuals), *mine.shape[1:], dtype=mine.dtype, device=device)
            distributed.recv(sent, group=group, group_src=rank)
            theirs = dict(zip(one.residuals, sent.to(mine.device), strict=True))
            tables |= {(a, b): _crossed(known[a], theirs[b]) for a in known for b in theirs}
            known |= theirs
    made: list[Any] = [tables]
    distributed.broadcast_object_list(made, group=group, group_src=0, device=device)
    found: Tables = made[0]
    return found


def _crossed(first: Tensor, second: Tensor) -> NDArray[np.float64]:
    """(N, 2N-1) means of the products of the elements of two runs' residuals, each (N, elements)."""
    count, elements = first.shape
    size = max(1, CHUNK // count)
    with torch.no_grad():
        total = torch.zeros(count, count, dtype=widest(first.device), device=first.device)
        for start in range(0, elements, size):
            one, other = (rows[:, start : start + size].to(total.dtype) for rows in (first, second))
            total += one @ other.T
    return banded_cross((total / elements).cpu().double().numpy())


def _device(group: Any, residuals: torch.device) -> torch.device:
    """Where tensors have to be that ranks send each other: on the CPU, unless only an accelerator's backend is there."""
    kinds = [part.partition(":")[0] for part in str(distributed.get_backend_config(group)).split(",")]
    if "cpu" in kinds:
        return torch.device("cpu")
    return residuals if residuals.type in kinds else torch.device(kinds[0], torch.get_device_module(kinds[0]).current_device())
