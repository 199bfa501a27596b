"""What :func:`magpolicy.attach` returns for a ``ModelPatcher``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from magpolicy import AdapterError, ArgumentError, AttachRequest, Calibration, Curve, RunError
from magpolicy_comfyui import _runs
from magpolicy_comfyui._block_stacks import stack_of
from magpolicy_comfyui._run_report import RunReport
from magpolicy_comfyui._settings import Settings
from magpolicy_torch.adapter import Report

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from torch import nn


class Handle:
    """A policy attached to a ``ModelPatcher``. ComfyUI's samplers say where runs begin and end, and which streams there are.

    Clones that are made while it is attached are attached with it, as everything that is on a patcher.
    """

    def __init__(self, patcher: Any, request: AttachRequest) -> None:
        """Attach to ``patcher``; nothing is changed if that fails.

        Raises:
            AdapterError: attached already.
            ArgumentError: an option that is not known here.
        """
        if _runs.attached(patcher) is not None:
            raise AdapterError("this ModelPatcher is attached already; detach() the first handle, or attach to a clone()")
        for name in ("blocks", "steps"):
            if getattr(request, name) is not None:
                raise ArgumentError(f"{name}={getattr(request, name)!r}: ComfyUI tells that by itself; leave it out")
        if request.scope != "stack":
            raise ArgumentError(f"scope={request.scope!r}: it is chosen by the class of the model here; leave it out")
        settings = Settings.of_request(request)
        self.patcher = patcher
        self._attachment = _runs.Attachment(settings)
        _runs.attach(patcher, self._attachment)

    @property
    def report(self) -> Report:
        """What the sampling under way has done so far, or else what the last one did.

        Raises:
            RunError: there was none yet.
        """
        return self._latest("report").report

    @property
    def reports(self) -> tuple[Report, ...]:
        """As :attr:`report`, in a tuple: a sampling is one run. Empty where there was none yet."""
        run_report = self._attachment.latest
        return () if run_report is None else (run_report.report,)

    @property
    def curve(self) -> Curve:
        """The curve that the last sampling measured; attach with ``calibrate=True``.

        Raises:
            RunError: not calibrating, no sampling yet, or nothing could be measured.
        """
        return self._measured("curve").curve

    @property
    def calibration(self) -> Calibration:
        """What the last sampling measured; attach with ``calibrate=True``.

        Raises:
            RunError: as :attr:`curve`.
        """
        return self._measured("calibration")

    @property
    def residuals_held(self) -> int:
        """Residuals held for the sampling under way: one per stream, more where a forecast needs them, none after it."""
        run = self._attachment.run
        return 0 if run is None else run.residuals_held

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
        if self._attachment.run is not None:
            raise RunError("detach(): a sampling is under way; let it come to its end first")
        if _runs.attached(self.patcher) is self._attachment:
            _runs.detach(self.patcher)

    def _measured(self, what: str) -> Calibration:
        if not self._attachment.settings.calibrate:
            raise RunError(f"{what}: this handle does not calibrate; attach with calibrate=True")
        run_report = self._latest(what)
        if run_report.calibration is None:
            raise RunError(f"{what}: {run_report.problem}")
        return run_report.calibration

    def _latest(self, what: str) -> RunReport:
        run_report = self._attachment.latest
        if run_report is None:
            raise RunError(f"{what}: there was no sampling yet with this model; run a sampler on it")
        return run_report

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.detach()

    def __repr__(self) -> str:
        return f"<Handle on a ModelPatcher of {type(self.patcher.model).__name__}>"
