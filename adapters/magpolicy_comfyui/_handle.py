"""What :func:`magpolicy.attach` returns for a ``ModelPatcher``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from magpolicy import AdapterError, ArgumentError, AttachRequest, RunError
from magpolicy.adapter import check_fits
from magpolicy_comfyui import _runs
from magpolicy_comfyui._block_stacks import stack_of
from magpolicy_comfyui._identity import identity_of
from magpolicy_comfyui._settings import Settings
from magpolicy_torch.adapter import Attached, StreamNamer

if TYPE_CHECKING:
    from magpolicy.adapter import ModelIdentity
    from magpolicy_comfyui._run_report import RunReport
    from torch import nn


class Handle(Attached):
    """A policy attached to a ``ModelPatcher``. ComfyUI's samplers say where runs begin and end, and which streams there are.

    Clones that are made while it is attached are attached with it, as everything that is on a patcher.
    """

    __module__ = "magpolicy_comfyui"
    no_run = "run a sampler on it"

    def __init__(self, patcher: Any, request: AttachRequest) -> None:
        """Attach to ``patcher``; nothing is changed if that fails.

        Raises:
            AdapterError: attached already.
            ArgumentError: an option that is not known here, or the calibration is another model's.
        """
        super().__init__()
        if _runs.attached(patcher) is not None:
            raise AdapterError("this ModelPatcher is attached already; detach() the first handle, or attach to a clone()")
        for name in ("blocks", "steps"):
            if getattr(request, name) is not None:
                raise ArgumentError(f"{name}={getattr(request, name)!r}: ComfyUI tells that by itself; leave it out")
        if request.scope != "stack":
            raise ArgumentError(f"scope={request.scope!r}: it is chosen by the class of the model here; leave it out")
        check_fits(request.config.given, [type(patcher.model).__name__], host="ComfyUI", roles=StreamNamer.roles)
        self.patcher = patcher
        self._attachment = _runs.Attachment(Settings.of_request(request))
        self.install((partial(_runs.attach, patcher, self._attachment), self._take_off))

    @property
    def module(self) -> nn.Module:
        """The diffusion model, as the patcher holds it between two samplings."""
        module: nn.Module = self.patcher.model.diffusion_model
        return module

    @property
    def scope(self) -> str:
        """What a skip leaves out: the block ``"stack"``, or the whole ``"model"`` where no stack can be separated.

        Raises:
            AdapterError: the model's blocks cannot be told.
        """
        return "model" if stack_of(self.module) is None else "stack"

    def detach(self) -> None:
        """Leave the patcher as it was before; calling it again does nothing.

        Raises:
            RunError: a sampling is under way.
        """
        if self._attachment.driver is not None:
            raise RunError("detach(): a sampling is under way; let it come to its end first")
        super().detach()

    @property
    def runs(self) -> Sequence[RunReport]:
        """What the sampling under way has done so far, or else what the last one did: a sampling is one run."""
        latest = self._attachment.latest
        return () if latest is None else (latest,)

    def provenance(self) -> Mapping[str, Any]:
        """What a calibration says about the model it was made with, beside what the run knows."""
        return {"model": type(self.patcher.model).__name__, "identity": self.identity.to_dict()}

    @property
    def identity(self) -> ModelIdentity:
        return identity_of(self.patcher)

    def _take_off(self) -> None:
        if _runs.attached(self.patcher) is self._attachment:  # a node may have put its own in the place of it
            _runs.detach(self.patcher)

    def __repr__(self) -> str:
        name, attached = type(self.patcher.model).__name__, "" if self._attached else "not "
        return f"<Handle on a ModelPatcher of {name}, {attached}attached>"
