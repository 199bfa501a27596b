"""Which branch of guidance a call of the model is: as the pipeline tells its own guidance, which may run on several ranks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from attrs import frozen

from magpolicy_torch.adapter import Patch, PutOn, Scoped
from torch import Tensor, nn

Arguments = Mapping[str, Any]
METHODS = ("predict_noise_maybe_with_cfg", "predict_noise_with_multi_branch_cfg")
"""Methods of the engine's pipelines that are given the arguments of all branches, and evaluate those that this rank has."""


@frozen
class Branches:
    """The branches of one step, by the tensors that each is conditioned on."""

    names: tuple[str, ...]
    own: tuple[tuple[int, ...], ...]
    """Identities of the tensors that no other branch has; the caller keeps them alive."""
    scale: float | None = None
    """The scale of guidance, where there is one."""

    @classmethod
    def of(cls, arguments: Sequence[Arguments], scale: float | None) -> Branches:
        """Those of a step, ``cond`` first."""
        names = tuple(("cond", "uncond")[n] if n < 2 else f"uncond {n}" for n in range(len(arguments)))
        held = [{id(value) for value in each.values() if isinstance(value, Tensor)} for each in arguments]
        others = [set().union(*(held[:n] + held[n + 1 :])) for n in range(len(held))]
        return cls(names, tuple(tuple(own - other) for own, other in zip(held, others, strict=True)), scale)

    def name_of(self, args: Sequence[Any], kwargs: Arguments) -> str | None:
        """The branch of a call with these arguments; ``None`` if they do not tell."""
        if len(self.names) == 1:
            return self.names[0]
        given = {id(value) for value in (*args, *kwargs.values())}
        found = [name for name, own in zip(self.names, self.own, strict=True) if not given.isdisjoint(own)]
        return found[0] if len(found) == 1 else None


class BranchTeller:
    """In front of a pipeline's methods of guidance: notes the branches of the step under way."""

    def __init__(self, pipeline: nn.Module) -> None:
        self.now: Scoped[Branches] = Scoped("branches")
        self._patches = [Patch(pipeline, partial(self._note, name), name) for name in METHODS if hasattr(pipeline, name)]
        self._parts = PutOn()

    def install(self) -> None:
        """Take the methods' places."""
        self._parts.put_on(*((patch.install, patch.remove) for patch in self._patches))

    def remove(self) -> None:
        """Give them back."""
        self._parts.take_off()

    def _note(self, name: str, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = inspect.signature(original).bind(*args, **kwargs).arguments
        if name == METHODS[0]:
            arguments = [given["positive_kwargs"], given.get("negative_kwargs")]
        else:
            arguments = list(given["branches_kwargs"])
        guided = bool(given.get("do_true_cfg")) and all(each is not None for each in arguments)
        scale = given.get("true_cfg_scale")
        told = Branches.of(
            arguments if guided else arguments[:1],
            float(scale) if guided and isinstance(scale, (int, float)) and len(arguments) == 2 else None,
        )
        with self.now.set(told):
            return original(*args, **kwargs)
