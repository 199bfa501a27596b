"""What :func:`magpolicy.attach` returns for a ``ModelPatcher``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from magpolicy import AdapterError, ArgumentError, AttachRequest, Calibration, Curve, RunError
from magpolicy_comfyui import _runs
from magpolicy_comfyui._run_report import RunReport
from magpolicy_comfyui._settings import Settings
from magpolicy_torch.host._report import Report

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self


class Handle:
    """A policy attached to a ``ModelPatcher``. ComfyUI's samplers say where runs begin and end, and which streams there are.

    Clones that are made while it is attached are attached with it, as everything that is on a patcher.
    """

    __module__ = "magpolicy_comfyui"

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
        """What the last sampling did.

        Raises:
            RunError: there was none yet.
        """
        return self._outcome("report").report

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

    def detach(self) -> None:
        """Leave the patcher as it was before; calling it again does nothing."""
        if _runs.attached(self.patcher) is self._attachment:
            _runs.detach(self.patcher)

    def _measured(self, what: str) -> Calibration:
        if not self._attachment.settings.calibrate:
            raise RunError(f"{what}: this handle does not calibrate; attach with calibrate=True")
        outcome = self._outcome(what)
        if outcome.calibration is None:
            raise RunError(f"{what}: {outcome.problem}")
        return outcome.calibration

    def _outcome(self, what: str) -> RunReport:
        if self._attachment.outcome is None:
            raise RunError(f"{what}: there was no sampling yet with this model; run a sampler on it")
        return self._attachment.outcome

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.detach()

    def __repr__(self) -> str:
        return f"<Handle on a ModelPatcher of {type(self.patcher.model).__name__}>"
