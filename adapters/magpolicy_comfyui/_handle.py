"""What :func:`magpolicy.attach` returns for a ``ModelPatcher``."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from magpolicy import ArgumentError, AttachRequest, RunError
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

    def __init__(self, patcher: Any, attachment: _runs.Attachment, request: AttachRequest | None = None) -> None:
        super().__init__(request)
        self.patcher = self.target = patcher
        self._attachment = attachment

    @classmethod
    def attach(cls, patcher: Any, request: AttachRequest) -> Handle:
        """Attach to ``patcher``, in the place of what is on it. If that fails, nothing is changed.

        Raises:
            ArgumentError: an option that is not known here, or the calibration is another model's.
            RunError: a sampling is under way.
        """
        for name in ("blocks", "steps"):
            if getattr(request, name) is not None:
                raise ArgumentError(f"{name}={getattr(request, name)!r}: ComfyUI tells that by itself; leave it out")
        if request.scope != "stack":
            raise ArgumentError(f"scope={request.scope!r}: it is chosen by the class of the model here; leave it out")
        check_fits(request.config.given, [type(patcher.model).__name__], host="ComfyUI", roles=StreamNamer.roles)
        before = cls.on(patcher)
        attachment = _runs.Attachment(Settings.of_request(request))
        handle = cls(patcher, attachment, request)
        handle.install((partial(_runs.attach, patcher, attachment), handle._take_off), replaces=before)
        attachment.owner = weakref.ref(handle)
        return handle

    @classmethod
    def on(cls, patcher: Any) -> Handle | None:
        """The handle on ``patcher``: the one that ``attach`` made, or one for what a node or the cloned patcher left there."""
        attachment = _runs.attached(patcher)
        if attachment is None:
            return None
        owner = attachment.owner()
        if owner is not None and owner.patcher is patcher:
            return owner
        handle = cls(patcher, attachment)
        handle.install((lambda: None, handle._take_off))
        return handle

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

    @property
    def running(self) -> bool:
        """Whether a sampling is under way."""
        return super().running or self._attachment.driver is not None

    def detach(self) -> None:
        """Leave the patcher as it was before; calling it again does nothing.

        Raises:
            RunError: a sampling is under way.
        """
        if self.running:
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
