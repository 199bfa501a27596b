"""What the handles of all hosts have in common: what :func:`magpolicy.attach` returns."""

from __future__ import annotations

import abc
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakSet

from attrs import evolve

from magpolicy import ArgumentError, AttachRequest, Calibration, Curve, RunError
from magpolicy.adapter import ModelIdentity
from magpolicy_torch.blocks._put_on import PutOn, to_its_end
from magpolicy_torch.host._report import Report
from magpolicy_torch.host._scoped import Scoped
from magpolicy_torch.residuals._store import ResidualStore

if TYPE_CHECKING:
    from typing_extensions import Self


SETTINGS_KEPT = 64
"""Settings of requests that a handle remembers, with their plans."""


class AttachedRun(Protocol):
    """What a handle says about one run."""

    @property
    def residuals_held(self) -> int:
        """Residuals held now; none when it is over."""

    @property
    def report(self) -> Report:
        """The report of the run so far."""

    @property
    def curve(self) -> Curve:
        """The curve that the run measured."""

    def calibration(self, provenance: Mapping[str, Any]) -> Calibration:
        """What it measured, on a model that ``provenance`` describes."""


class _UnderWay:
    """That a run is under way: held by whoever runs it."""


class Attached(abc.ABC):
    """The base of the handles of all hosts: reports of runs, and detaching. As a context manager it detaches at the end.

    A host's handle says which runs there were (:attr:`runs`), and how to patch its model (:meth:`install`).

    Args:
        request: what was asked.
    """

    no_run = "run the model"
    """How to make a run, for the message where there was none yet."""

    def __init__(self, request: AttachRequest | None = None) -> None:
        self._request = request
        self._settings: Scoped[AttachRequest] = Scoped("magpolicy_settings")
        self._known: dict[Any, tuple[AttachRequest, AttachRequest]] = {}
        self._lock = threading.Lock()
        self._active: WeakSet[_UnderWay] = WeakSet()  # one that an interruption broke off is gone
        self._parts = PutOn()
        self._attached = False

    @property
    def request(self) -> AttachRequest:
        """What was asked of runs that begin now and here.

        Raises:
            RunError: this kind of handle does not say.
        """
        if self._request is None:
            raise RunError("request: this kind of handle does not say what was asked of it")
        return self._settings.get() or self._request

    @contextmanager
    def settings(self, **changes: Any) -> Iterator[Self]:
        """Other settings for the runs that are begun inside the with block, in this thread or task.

        >>> with handle.settings(speedup=2.5):  # doctest: +SKIP
        ...     pipe(prompt)

        Settings that are not given stay those of the with block around, or of ``attach``; ``None`` stands for the default of
        ``attach``. What contradicts a setting is left out: a target takes the place of another target, and of the rule.
        Threads that are started inside do not inherit them; tasks of an event loop and ``asyncio.to_thread`` do.

        Args:
            changes: the arguments of :func:`magpolicy.attach` that say what decides and how residuals are kept.

        Raises:
            ArgumentError: a setting is wrong, or is settled when a model is attached (``blocks``, ``scope``).
            RunError: this kind of handle does not say what was asked of it.
        """
        with self._settings.set(self._changed(changes)):
            yield self

    def _changed(self, changes: Mapping[str, Any]) -> AttachRequest:
        """The request with these changes; the same object for the same changes, so that its plans are made once."""
        request = self.request
        key: Any = (id(request), tuple(sorted(changes.items())))
        try:
            before, found = self._known.get(key, (request, None))
        except TypeError:  # settings that cannot be compared
            key, before, found = None, request, None
        if found is None or before is not request:
            found = request.changed(self.target if hasattr(self, "target") else getattr(self, "module", None), changes)
            ResidualStore(found.offload, found.storage_dtype)  # complains now
            if key is not None:
                with self._lock:
                    if len(self._known) >= SETTINGS_KEPT:
                        self._known.clear()
                    self._known[key] = request, found
        return found

    @property
    @abc.abstractmethod
    def runs(self) -> Sequence[AttachedRun]:
        """The runs of the current call of the host, or else of its last one, in order."""

    @abc.abstractmethod
    def provenance(self) -> Mapping[str, Any]:
        """What a calibration notes about the model that it was made with, under ``"identity"`` what tells it from others."""

    def conditions(self) -> Mapping[str, Any]:
        """Scheduler, shift and guidance of the runs made here, as :meth:`provenance` names them, where the host knows them.

        Reports say in what a run differs from its calibration.
        """
        return {}

    @property
    def identity(self) -> ModelIdentity:
        """Which model it is attached to, as it is now: a LoRA that is loaded makes it another one."""
        known = self.provenance()
        return ModelIdentity.from_dict(known.get("identity", {"model": str(known.get("model", ""))}))

    @property
    @abc.abstractmethod
    def scope(self) -> str:
        """What a skip leaves out: the block ``"stack"``, or the whole ``"model"``."""

    @property
    def report(self) -> Report:
        """What the run under way here has done so far, or else what the last one did.

        Raises:
            RunError: there was none yet.
        """
        return self._reported(self._latest("report"))

    @property
    def reports(self) -> tuple[Report, ...]:
        """One report for each run of the last call: pipelines that work in sections or stages make several."""
        return tuple(map(self._reported, self.runs))

    @property
    def curve(self) -> Curve:
        """The curve that the last run measured; attach with ``calibrate=True``.

        Raises:
            RunError: not calibrating, no run yet, or a model whose blocks could not be followed.
            ArgumentError: the residuals make no curve (another resolution midway, NaN).
        """
        return self._latest("curve").curve

    @property
    def calibration(self) -> Calibration:
        """What the last run measured; attach with ``calibrate=True``, and let the run go to its end.

        It has a name for :func:`magpolicy.keep`, which tells the model, and its provenance says which model that is.

        Raises:
            RunError: not calibrating, no run yet, a run that was stopped, or a model whose blocks could not be followed.
            ArgumentError: the residuals make no calibration (another resolution midway, NaN).
        """
        run = self._latest("calibration")
        noted = getattr(run, "provenance", None)
        found = run.calibration(self.provenance() if noted is None else noted)
        return evolve(found, name=found.name or ModelIdentity.of(found).name(found.streams))

    @property
    def residuals_held(self) -> int:
        """Residuals held for the run under way here: one per stream, two where a forecast needs them, none after it."""
        return sum(run.residuals_held for run in self.runs)

    @property
    def running(self) -> bool:
        """Whether a run is under way, here or in another thread."""
        return len(self._active) > 0

    def detach(self) -> None:
        """Leave everything as it was before; calling it again does nothing.

        Raises:
            RunError: a run is under way, here or in another thread.
        """
        with self._lock:
            if self.running:
                raise RunError("detach(): a run is under way; leave its with block first")
            self.let_go()

    def let_go(self) -> None:
        """Detach, whatever is under way: what it is attached to is gone."""
        to_its_end(self._let_go)

    def _let_go(self) -> None:
        self._attached = False
        self._parts.take_off()
        self.loosen()

    def loosen(self) -> None:  # noqa: B027  (a handle that keeps no model has nothing to do)
        """Keep nothing of the model alive: it is detached. Reports, and what was measured, stay."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.detach()

    def _reported(self, run: AttachedRun) -> Report:
        compared = getattr(run, "differences", None)
        remarks = () if compared is None else compared(self.conditions(), lambda: self.identity)
        return evolve(run.report, problems=(*run.report.problems, *remarks)) if remarks else run.report

    def _latest(self, what: str) -> AttachedRun:
        runs = self.runs
        if not runs:
            raise RunError(f"{what}: there was no run yet; {self.no_run}")
        return runs[-1]

    def install(self, *installed: tuple[Callable[[], None], Callable[[], None]], replaces: Attached | None = None) -> None:
        """Patch the model, by pairs of a function that patches and one that undoes it. If one fails, all are undone, also
        what an interruption has broken off.

        Args:
            installed: the pairs. What undoes a patch is called also where that was not put on, or only by half, and where it
                is off again.
            replaces: the handle whose place this one takes; it is detached first.

        Raises:
            RunError: a run of the handle to replace is under way. Nothing was changed.
        """
        if replaces is not None:
            try:
                replaces.detach()
            except RunError as error:
                raise RunError(
                    "attach(): it is attached already, and a run is under way; let it come to its end first"
                ) from error
        self._parts = PutOn()
        try:
            self._parts.put_on(*installed)
            self._attached = True
        except BaseException:
            self.let_go()
            raise

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """During the with block a run is under way, and the handle cannot be detached."""
        with self._lock:
            if not self._attached:
                raise RunError("run(): this handle is detached, or another one took its place; attach again")
            run = _UnderWay()
            self._active.add(run)
        try:
            yield
        finally:
            with self._lock:
                self._active.discard(run)


class AttachedToLoop(Attached):
    """A handle on a model that is called in the user's own loop, which says where a run begins, its steps and its streams."""

    def __init__(self, request: AttachRequest | None = None) -> None:
        super().__init__(request)
        self.named_streams: Scoped[tuple[str, ...]] = Scoped("magpolicy_streams")
        self._warned = False

    @contextmanager
    def run(self, steps: int | None = None, sigmas: Sequence[float] | None = None, *, start: int = 0) -> Iterator[Self]:
        """One run: ``with handle.run(steps=28): ...``. Leaving it, also by an exception, frees what it held.

        Args:
            steps: evaluations per stream; by default the ``steps`` given to ``attach``.
            sigmas: their noise levels, where known.
            start: position in the run of the first evaluation (image to image, a second stage).

        Raises:
            RunError: detached, or a run is under way in this thread.
            ArgumentError: the settings do not fit a run of that length.
        """
        with self.open_run(steps, sigmas, start):
            yield self

    @abc.abstractmethod
    def open_run(self, steps: int | None, sigmas: Sequence[float] | None, start: int) -> AbstractContextManager[None]:
        """Open a run for the time of the with block, for :meth:`run`."""

    @contextmanager
    def stream(self, *names: str) -> Iterator[Self]:
        """Names the stream of the calls inside, or the streams batched in each of them, in batch order.

        >>> with handle.stream("cond", "uncond"):  # doctest: +SKIP
        ...     model(torch.cat([x, x]), ...)

        Raises:
            ArgumentError: no name, or one twice.
        """
        if not names or len(set(names)) < len(names) or not all(isinstance(n, str) for n in names):
            raise ArgumentError(f"stream{names!r} must name at least one stream, each once; try stream('cond', 'uncond')")
        with self.named_streams.set(names):
            yield self

    def go_to(self, step: int) -> None:
        """Inside :meth:`run`: the calls to come are those of ``step``, counted from 0 at the beginning of the full run.

        >>> with handle.run(steps=28):  # doctest: +SKIP
        ...     for step, t in enumerate(timesteps):
        ...         handle.go_to(step)
        ...         model(x, t, ...)

        Only needed where it is not plain: without it each call is its stream's next evaluation, or, with a model of diffusers,
        the timestep tells. To read that from an accelerator, the host has to wait for it at every call; this spares the wait.

        Raises:
            RunError: no run is under way here.
            ArgumentError: ``step`` lies outside the run, or before where it is.
        """
        if not self.try_go_to(step):
            raise RunError(f"go_to({step}): no run is under way here; use it inside 'with handle.run(steps=...):'")

    @abc.abstractmethod
    def try_go_to(self, step: int) -> bool:
        """Go to ``step`` as :meth:`go_to` does; returns whether a run is under way here."""

    def warn(self, message: str, *, once: bool = False) -> None:
        """Tell the user; ``once``: what holds for every call outside a run."""
        if not (once and self._warned):
            self._warned = self._warned or once
            warnings.warn(message, UserWarning, stacklevel=4)
