"""Pipelines that call other pipelines, which they hold: each of these is attached to by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from magpolicy import AttachRequest, Calibration, Curve, RunError
from magpolicy_diffusers._denoiser import Denoiser
from magpolicy_diffusers._handle import Handle
from magpolicy_diffusers._pipeline import stages_of
from magpolicy_diffusers._runs import HostRun
from magpolicy_torch.adapter import Attached, own_name

if TYPE_CHECKING:
    from typing_extensions import Self

    from magpolicy.adapter import ModelIdentity
    from magpolicy_torch.adapter import Report


class CombinedHandle(Attached):
    """A policy attached to a pipeline that calls others: Stable Cascade's and Kandinsky's, a prior and then a decoder.

    Each of these has a model, a scheduler and runs of its own, and so a handle of its own: see :attr:`parts`. Settings hold for
    each; a plan is made for each from what is known of its model. Other settings for one of them:
    ``magpolicy.attach(pipe.prior_pipe, speedup=1.5)``.
    """

    __module__ = "magpolicy_diffusers"

    no_run = "call the pipeline"

    def __init__(self, target: Any, parts: Mapping[str, Handle], request: AttachRequest) -> None:
        super().__init__(request)
        self._shown = own_name(target)
        self.parts = dict(parts)
        """The handles, by the names that the pipeline has for the pipelines it calls."""

    @classmethod
    def attach(cls, target: Any, request: AttachRequest) -> Self:
        """Attach to every pipeline that ``target`` calls. If one cannot be attached to, none stays so.

        Raises:
            AdapterError: as :meth:`Handle.attach`, and :class:`ArgumentError` and :class:`RunError` too.
        """
        with ExitStack() as undo:
            parts = {}
            for name, pipe in stages_of(target).items():
                parts[name] = Handle.attach(pipe, request.changed(pipe, {}) if request.arguments else request)
                undo.callback(parts[name].detach)
            undo.pop_all()
        return cls(target, parts, request)

    @property
    def denoisers(self) -> tuple[Denoiser, ...]:
        """The models of all parts."""
        return tuple([denoiser for part in self.parts.values() for denoiser in part.denoisers])

    @property
    def runs(self) -> Sequence[HostRun]:
        """The last runs of each part, in the order of :attr:`parts`."""
        return [run for part in self.parts.values() for run in part.runs]

    @property
    def _last_part(self) -> Handle:
        """The part that ran last, of those that ran."""
        parts = list(self.parts.values())
        running = [part for part in parts if part.running]
        return (running or [part for part in parts if part.runs] or parts)[-1]

    @property
    def report(self) -> Report:
        """What the last part has done, or is doing; :attr:`reports` has all."""
        return self._last_part.report

    @property
    def reports(self) -> tuple[Report, ...]:
        """The reports of each part's runs."""
        return tuple([report for part in self.parts.values() for report in part.reports])

    @property
    def curve(self) -> Curve:
        """The curve of the last part; of another one: ``handle.parts["prior_pipe"].curve``."""
        return self._last_part.curve

    @property
    def calibration(self) -> Calibration:
        """What the last part measured; of another one: ``handle.parts["prior_pipe"].calibration``."""
        return self._last_part.calibration

    @property
    def scope(self) -> str:
        """What a skip leaves out in the last part."""
        return self._last_part.scope

    def provenance(self) -> Mapping[str, Any]:
        return self._last_part.provenance()

    def conditions(self) -> Mapping[str, Any]:
        return self._last_part.conditions()

    @property
    def identity(self) -> ModelIdentity:
        return self._last_part.identity

    @property
    def residuals_held(self) -> int:
        """Residuals held in all parts."""
        return sum(part.residuals_held for part in self.parts.values())

    @property
    def running(self) -> bool:
        """Whether a run of some part is under way, here or in another thread."""
        return any(part.running for part in self.parts.values())

    @contextmanager
    def settings(self, **changes: Any) -> Iterator[Self]:
        """As :meth:`magpolicy_torch.Handle.settings`, for every part."""
        with ExitStack() as stack:
            for part in self.parts.values():
                stack.enter_context(part.settings(**changes))
            yield self

    def detach(self) -> None:
        """Leave every part as it was before; calling it again does nothing.

        Raises:
            RunError: a run is under way. Nothing is detached.
        """
        if self.running:
            raise RunError("detach(): a run is under way; leave its with block first")
        for part in self.parts.values():
            part.detach()

    def __repr__(self) -> str:
        return f"<CombinedHandle on {self._shown}: {', '.join(f'{name}: {part!r}' for name, part in self.parts.items())}>"
