"""Which ranks run a model together, as the model shows: those that share its weights, or the tokens of a call."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from magpolicy import ArgumentError
from magpolicy_torch.ranks._group import RankGroup
from torch import distributed, nn

Ranks = tuple[int, ...]
"""Global ranks, in the order of their group."""


class SharedBy:
    """Which ranks share a handle's models: what an adapter puts in the place of its request's ``group``.

    They are looked for each time a run begins: parallelism may be set up after attaching.

    Args:
        modules: the models that one handle drives.
        given: what the user says: a process group, a device mesh, ``False`` (each rank for itself) or ``None`` (find out).

    Raises:
        ArgumentError: ``given`` is none of these, or a group that this rank is not in.
    """

    __module__ = "magpolicy_torch.adapter"

    def __init__(self, modules: Iterable[nn.Module], given: Any = None) -> None:
        self.given = given
        self._modules = tuple([weakref.ref(module) for module in modules])  # requests are kept beyond their models
        self._made: dict[Ranks, Any] = {}
        if several_processes():
            self()
        elif given is not None and given is not False and not _is_group(given):
            raise _unknown(given)

    def __call__(self) -> RankGroup | None:
        """The ranks that the next run is shared by; ``None`` if this one is by itself."""
        if self.given is False or not several_processes():
            return None
        found = list(_groups_of(self.given)) if self.given is not None else list(_found(self._alive))
        groups: dict[Ranks, Any] = {}
        for ranks, group in found:
            if len(ranks) > 1:
                groups[ranks] = groups.get(ranks) or group
        if not groups:
            return None
        return RankGroup(self._joined(groups))

    @property
    def _alive(self) -> list[nn.Module]:
        return [module for reference in self._modules if (module := reference()) is not None]

    def _joined(self, groups: dict[Ranks, Any]) -> Any:
        """The process group of all of them: the one that holds the others, or the default group."""
        ranks = max(groups, key=len)
        if any(not set(other) <= set(ranks) for other in groups):
            return None
        group = groups[ranks]
        if group is None and len(ranks) < distributed.get_world_size():  # of a mesh of several dimensions there is none yet
            if ranks not in self._made:
                self._made[ranks] = distributed.new_group(list(ranks), use_local_synchronization=True)
            group = self._made[ranks]
        return group


def group_of(given: Any) -> RankGroup | None:
    """The ranks of a run whose request has this ``group``: a :class:`SharedBy`, or what a user may give."""
    return given() if isinstance(given, SharedBy) else SharedBy((), given)()


def given(group: Any) -> Any:
    """What the user gave of a request's ``group``."""
    return group.given if isinstance(group, SharedBy) else group


def several_processes() -> bool:
    """Whether several processes were started together, whatever they do."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _found(modules: Sequence[nn.Module]) -> Iterator[tuple[Ranks, Any]]:
    """The groups that some module's tokens or weights are spread over, each with its ranks."""
    for module in modules:
        # diffusers: what enable_parallelism noted; its tensor parallelism shows in the weights
        parallel = getattr(module, "_parallel_config", None)
        mesh = getattr(getattr(parallel, "context_parallel_config", None), "_flattened_mesh", None)
        if mesh is not None:
            yield from _groups_of(mesh)
    seen = set()
    for module in modules:
        for parameter in (*module.parameters(), *_gathered(module)):
            mesh, placements = getattr(parameter, "device_mesh", None), getattr(parameter, "placements", ())
            shared = tuple(dim for dim, placement in enumerate(placements) if not placement.is_replicate())
            if mesh is not None and shared and (id(mesh), shared) not in seen:
                seen.add((id(mesh), shared))
                yield _of_mesh(mesh, shared)
    fsdp = sys.modules.get("torch.distributed.fsdp")  # whoever wraps a model in it has imported it
    kind: type | None = getattr(fsdp, "FullyShardedDataParallel", None)
    for module in modules if kind is not None else ():
        for inner in module.modules():
            if kind is not None and isinstance(inner, kind) and getattr(inner.sharding_strategy, "name", "") != "NO_SHARD":
                yield _of_group(inner.process_group)


def _gathered(module: nn.Module) -> Iterator[Any]:
    """The shares of weights of FSDP2 that are gathered now: with ``reshard_after_forward=False`` they stay so after a call, and
    no parameter shows that there are shares."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    kind: Any = getattr(fsdp, "FSDPModule", ())
    for inner in module.modules():
        if isinstance(inner, kind):
            state = inner._get_fsdp_state()
            groups = getattr(state, "_fsdp_param_groups", None)
            for group in [getattr(state, "_fsdp_param_group", None)] if groups is None else groups:
                yield from (one.sharded_param for one in getattr(group, "fsdp_params", ()))


def _groups_of(given: Any) -> Iterator[tuple[Ranks, Any]]:
    """What a user gave, or a mesh."""
    if isinstance(given, distributed.ProcessGroup):
        yield _of_group(given)
    elif _is_mesh(given):
        yield _of_mesh(given, tuple(range(given.ndim)))
    else:
        raise _unknown(given)


def _of_group(group: Any) -> tuple[Ranks, Any]:
    ranks = tuple(distributed.get_process_group_ranks(group))
    if distributed.get_rank() not in ranks:
        raise ArgumentError(
            f"group has ranks {list(ranks)} and this is rank {distributed.get_rank()}; give each rank its own group"
        )
    return ranks, group


def _of_mesh(mesh: Any, dims: tuple[int, ...]) -> tuple[Ranks, Any]:
    """The ranks along these dimensions of a mesh, at this rank's place in the others."""
    here = mesh.get_coordinate()
    if here is None:
        raise ArgumentError(f"group is a mesh that rank {distributed.get_rank()} is not in; give each rank its own mesh")
    if len(dims) == 1:
        return _of_group(mesh.get_group(dims[0]))
    along = tuple(slice(None) if dim in dims else here[dim] for dim in range(mesh.ndim))
    return tuple(sorted(mesh.mesh[along].flatten().tolist())), None


def _is_mesh(given: Any) -> bool:
    meshes = sys.modules.get("torch.distributed.device_mesh")
    return meshes is not None and isinstance(given, meshes.DeviceMesh)


def _is_group(given: Any) -> bool:
    return _is_mesh(given) or (distributed.is_available() and isinstance(given, distributed.ProcessGroup))


def _unknown(given: Any) -> ArgumentError:
    return ArgumentError(
        f"group={given!r} is not known; give a torch ProcessGroup or DeviceMesh, False for each rank by itself, or leave it out"
    )
