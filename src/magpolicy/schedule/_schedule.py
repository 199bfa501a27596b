"""Which steps of a run compute and which skip."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import field, frozen

from magpolicy import _checks
from magpolicy._errors import ArgumentError
from magpolicy.policy._curve import SINGLE
from magpolicy.policy._decision import Decision
from magpolicy.schedule import _coefficients, _export, _html, _trace
from magpolicy.schedule._coefficients import Check, Coefficients
from magpolicy.schedule._trace import TraceEntry

if TYPE_CHECKING:
    import os

COMPUTE, SKIP = "█", "·"


class _Strip(str):
    """A strip that prints anywhere: in ASCII where standard output has another encoding that lacks its characters, as a console
    or a file on Windows may. To all but ``print``, ``str`` and ``f"{strip}"`` it is the string of blocks and dots."""

    __slots__ = ()

    def __str__(self) -> str:
        try:
            self.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
        except (UnicodeEncodeError, LookupError):
            return self.replace(COMPUTE, "#").replace(SKIP, ".")
        return super().__str__()


@frozen(eq=False)
class Schedule:
    """A run's decisions per stream. Made by :func:`magpolicy.simulate`, :func:`magpolicy.plan`, from a trace, or from a mask.

    It is plain data: tuples of numbers and decisions; :meth:`to_dict` and pickles hold all of it. Two schedules are equal if
    the same steps of the same streams compute. The order of the streams does not matter, nor the name of an only stream.
    """

    __module__ = "magpolicy"

    streams: tuple[str, ...]
    """Stream names."""
    masks: tuple[tuple[bool, ...], ...]
    """Per stream, True where the step computes."""
    decisions: tuple[tuple[Decision, ...], ...] = field(repr=False)
    """Per stream, why."""
    modelled: tuple[tuple[float, ...], ...] = field(repr=False)
    """Per stream, the error of each skipped step; 0 where computed. By the rule it is abs(1-P), summed since the last computed
    step; by a plan it is the expected relative error of the step's forecast."""
    first_step: int = 0
    """Position in the full run of the first step here (img2img, later stages)."""
    coefficients: tuple[tuple[Coefficients, ...], ...] = field(default=(), repr=False)
    """Per stream and step how a skipped step forecasts: ``(c1, c2)`` reuses ``r_j + c1 (r_j - r_p) + c2 (r_p - r_q)`` of the
    residuals computed last, r_j the newest; ``(c1,)`` leaves r_q out, ``()`` holds r_j. Computed steps have ``()``."""

    checks: tuple[tuple[Check | None, ...], ...] = field(default=(), repr=False)
    """Per stream and computed step, what a skip there would have been and cost: its forecast and expected relative error.
    Compared with the residual that was computed, it tells at run time whether the plan holds. ``None`` where not known."""

    sigmas: tuple[float, ...] | None = field(default=None, repr=False)
    """Noise level of each step, where known: of a plan those it was made for, of a run without a plan those of the run."""

    def __attrs_post_init__(self) -> None:
        if not self.checks:
            object.__setattr__(self, "checks", tuple((None,) * len(mask) for mask in self.masks))
        if not self.coefficients:
            object.__setattr__(self, "coefficients", tuple(((),) * len(mask) for mask in self.masks))

    @property
    def _key(self) -> frozenset[tuple[str, tuple[bool, ...]]]:
        names = self.streams if len(self.streams) > 1 else ("",)
        return frozenset(zip(names, self.masks, strict=True))

    def __eq__(self, other: object) -> bool:
        return self._key == other._key if isinstance(other, Schedule) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.masks[0])

    @property
    def mask(self) -> tuple[bool, ...]:
        """True where the step computes: where any stream does."""
        return tuple(map(any, zip(*self.masks, strict=True)))

    @property
    def errors(self) -> tuple[float, ...]:
        """The error stated for each step, of the stream where it is largest; 0 where computed."""
        return tuple(map(max, zip(*self.modelled, strict=True)))

    @property
    def error(self) -> float:
        """Modelled error of the whole run: the sum of what each series of skips accumulated, mean over streams."""
        total = 0.0
        for row, decisions in zip(self.modelled, self.decisions, strict=True):
            errors = tuple(e for e, d in zip(row, decisions, strict=True) if d is not Decision.ABSENT)
            total += sum(e for e, after in zip(errors, (*errors[1:], 0.0), strict=True) if after == 0.0)
        return total / len(self.streams)

    @property
    def planned(self) -> bool:
        """Whether the errors are those that a plan expects of single steps, not those that the rule accumulates."""
        return any(map(any, self.checks))

    @property
    def rms_error(self) -> float:
        """Root mean square of the errors over all steps; for a plan, the size of its error in one number."""
        return float(np.sqrt(np.mean(np.square(self.errors))))

    @property
    def worst(self) -> float:
        """Largest error of a step; for a plan, the largest relative error that it expects."""
        return max(self.errors)

    @property
    def computed(self) -> int:
        """Number of steps that compute."""
        return sum(self.mask)

    @property
    def skipped(self) -> int:
        """Number of steps at which every stream skips."""
        return self.steps - self.computed

    @property
    def speedup(self) -> float:
        """Evaluations over computed evaluations, all streams counted: an upper bound of the speedup in time."""
        computed = sum(map(sum, self.masks))
        evaluated = sum(d is not Decision.ABSENT for row in self.decisions for d in row)
        return evaluated / computed if computed else float("inf")

    @property
    def strip(self) -> str:
        """One character a step: a block computes, a dot skips. Where standard output cannot show these, it prints as ``#`` and
        ``.``."""
        return _Strip("".join(COMPUTE if computes else SKIP for computes in self.mask))

    def stream_mask(self, stream: str) -> tuple[bool, ...]:
        """The mask of one stream."""
        return self.masks[self._index(stream)]

    def stream_errors(self, stream: str) -> tuple[float, ...]:
        """The accumulated modelled error of one stream."""
        return self.modelled[self._index(stream)]

    def stream_coefficients(self, stream: str) -> tuple[Coefficients, ...]:
        """The forecast of each step of one stream."""
        return self.coefficients[self._index(stream)]

    def reasons(self, stream: str | None = None) -> dict[str, int]:
        """How often each reason decided, in one stream or in all."""
        rows = self.decisions if stream is None else (self.decisions[self._index(stream)],)
        return dict(Counter(d.reason for row in rows for d in row))

    def _index(self, stream: str) -> int:
        if stream not in self.streams:
            raise ArgumentError(f"stream={stream!r} is not in this schedule; it has {', '.join(map(repr, self.streams))}")
        return self.streams.index(stream)

    def _row_of(self, stream: str) -> int:
        """Index of the row that ``stream`` follows: its own, or the first where the schedule does not know it."""
        return self.streams.index(stream) if stream in self.streams else 0

    def __str__(self) -> str:
        return f"{self.steps} steps {self.strip}  {self.computed} computed  {self.speedup:.2f}x"

    def _repr_html_(self) -> str:
        return _html.as_html(self)

    @property
    def steps_computation_mask(self) -> list[int]:
        """1 where a step computes, 0 where it skips, as cache-dit's ``DBCacheConfig`` takes it."""
        return [int(m) for m in self.mask]

    @property
    def bins(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """How many steps in a row compute and how many skip, by turns: compute bins and cache bins."""
        return _export.bins(self.mask)

    def export(self, form: str) -> dict[str, Any]:
        """This schedule for another engine. It reuses what it keeps itself, without magpolicy's forecasts.

        Args:
            form: ``"cache-dit"``: arguments of its ``DBCacheConfig``. ``"sglang"``: environment variables of SGLang-diffusion's
                step computation masking, for all requests of a server. ``"sglang-request"``: the same as fields of one request,
                ``enable_cache_dit`` and ``cache_dit_params``. ``"json"``: :meth:`to_dict`.

        Raises:
            ArgumentError: an unknown form; or, for an engine, a schedule whose first step skips, or whose streams skip
                different steps.
        """
        return _export.export(self, form)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; :meth:`from_dict` reads them back."""
        return _export.to_dict(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a ``.json`` file, which :func:`magpolicy.load_schedule` reads.

        Raises:
            PresetError: ``path`` does not end in ``.json``, or cannot be written.
        """
        _export.save(self, path)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Schedule:
        """The schedule :meth:`to_dict` wrote.

        Raises:
            ArgumentError: ``data`` is not of that form.
        """
        try:
            return cls.from_decisions(**_export.arguments_of(data))
        except KeyError as error:
            raise ArgumentError(f"data={_checks._short(data)}: {error} is missing; give what to_dict() returned") from error
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
            raise ArgumentError(f"data={_checks._short(data)} is not a schedule's to_dict(): {error!r}") from error

    @classmethod
    def from_decisions(
        cls,
        rows: Mapping[str, Sequence[tuple[Decision, float]]],
        *,
        first_step: int = 0,
        coefficients: Mapping[str, Sequence[float | Sequence[float]]] | None = None,
        checks: Mapping[str, Sequence[Check | None]] | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> Schedule:
        """From per-stream sequences of (decision, tested error), all of one length; the rest is as in :meth:`from_mask`."""
        lengths = [len(row) for row in rows.values()]
        if len(set(lengths)) != 1 or not lengths[0]:
            raise ArgumentError(f"rows have lengths {lengths}; every stream needs the same steps, at least one")
        return cls(
            streams=tuple(rows),
            masks=tuple(tuple(d.computes for d, _ in row) for row in rows.values()),
            decisions=tuple(tuple(d for d, _ in row) for row in rows.values()),
            modelled=tuple(tuple(error if d.skip else 0.0 for d, error in row) for row in rows.values()),
            first_step=first_step,
            coefficients=tuple(
                _coefficients.forecasts((coefficients or {}).get(name), name, [d for d, _ in row]) for name, row in rows.items()
            ),
            checks=tuple(_coefficients.checks((checks or {}).get(name), len(row)) for name, row in rows.items()),
            sigmas=None if sigmas is None else _coefficients.levels(sigmas, lengths[0]),
        )

    @classmethod
    def from_mask(
        cls,
        mask: Sequence[Any] | Mapping[str, Sequence[Any]],
        *,
        coefficients: Sequence[float | Sequence[float]] | Mapping[str, Sequence[float | Sequence[float]]] | None = None,
        errors: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
        checks: Mapping[str, Sequence[Check | None]] | None = None,
        first_step: int = 0,
        sigmas: Sequence[float] | None = None,
    ) -> Schedule:
        """A schedule of your own: 1 or True computes, 0 or False skips.

        Args:
            mask: one value a step, or a mapping from stream to such.
            coefficients: the forecast of each step (:attr:`coefficients`), likewise: one number or two, 0 at computed steps.
                All 0 by default: hold.
            errors: the error to state for each skipped step, likewise.
            checks: what to compare at computed steps (:attr:`checks`), per stream.
            first_step: position of the first step in the full run.
            sigmas: the noise level of each step, where known.

        Raises:
            ArgumentError: an empty mask, other values than 0 and 1, or a first step that skips (nothing to reuse yet).
        """
        rows = {str(name): row for name, row in (mask if isinstance(mask, Mapping) else {SINGLE: mask}).items()}
        stated = _by_stream(errors, rows)
        return cls.from_decisions(
            {name: _masked(row, stated.get(name)) for name, row in rows.items()},
            first_step=_checks.whole("first_step", first_step, 0, example="0"),
            coefficients=_by_stream(coefficients, rows),
            checks=checks,
            sigmas=sigmas,
        )

    @classmethod
    def from_trace(cls, trace: Iterable[TraceEntry], *, plan: Schedule | None = None) -> Schedule:
        """The schedule that a run followed. If a stream left out a step, it neither computes nor skips there.

        Args:
            trace: the run's entries, each of which states its forecast.
            plan: the schedule that the run followed. A trace does not hold expected errors and checks; those of the plan are
                used for each step at which the run did as planned. So are the plan's noise levels, where it has them.

        Raises:
            ArgumentError: the trace is empty.
        """
        return cls.from_decisions(**_trace.arguments_of(trace, plan))

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the strip over the accumulated error into an image file (needs the ``plot`` extra)."""
        from magpolicy.schedule._plot import plot_schedule

        plot_schedule(self, path)


def _masked(mask: Any, errors: Any) -> list[tuple[Decision, float]]:
    """One stream's mask and stated errors as decisions."""
    values = _checks.listed("mask", mask, "0 or 1")
    if not values or not all(np.ndim(value) == 0 and value in (0, 1) for value in values):
        raise ArgumentError(f"mask={_checks._short(values)} must hold 0 or 1 for each step, at least one")
    if not values[0]:
        raise ArgumentError(f"mask[0]={values[0]} must be 1: a run's first step has no residual to reuse")
    stated = _coefficients.numbers("errors", errors, len(values))
    decisions = (Decision.SCHEDULED if value else Decision.REUSED for value in values)
    return list(zip(decisions, stated, strict=True))


def _by_stream(values: Any, rows: Mapping[str, Any]) -> dict[str, Any]:
    if values is None:
        return {}
    if isinstance(values, Mapping):
        return {str(name): row for name, row in values.items()}
    return {str(name): values for name in rows}
