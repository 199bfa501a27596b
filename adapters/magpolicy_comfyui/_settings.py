"""What a run is asked: by a node, or by :func:`magpolicy.attach`."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from magpolicy import AttachRequest, Schedule
from magpolicy.adapter import RunConfig, ScheduleSpan, always_compute, place, resolve
from magpolicy.adapter import semantics as known_semantics
from magpolicy_torch.adapter import ResidualStore


@frozen(kw_only=True)
class Settings:
    """The settings of one node, or of one call of :func:`magpolicy.attach`."""

    source: Any
    """A preset, curve or schedule, or ``None``: by the model and the run."""
    threshold: float | None = None
    max_skips: int | None = None
    retention: float | None = None
    start_step: int = 0
    """First step of the sampler that may be skipped."""
    end_step: int | None = None
    """Last one; negative ones count from the end."""
    semantics: str | None = None
    speedup: float | None = None
    """Plan for it; the threshold has no say then."""
    forecast: str | None = None
    offload: str | None = None
    storage_dtype: Any = None
    calibrate: bool = False
    window: int | None = None
    tokens: int | None = 2048
    """Of a calibration: evaluations back and tokens that are compared; see :class:`magpolicy_torch.Moments`."""
    name: str = ""
    """Of the calibration."""
    safeguard: Any = None
    """Whether a planned run is compared with its plan."""
    follow_steps: bool = False
    """Of a model with tables for two numbers of steps: the run says which."""
    given: RunConfig | None = None
    """Settings that were checked elsewhere, in place of all the above."""
    node: str | None = None
    """The node's id in its workflow, for messages to the browser."""

    def check(self) -> None:
        """Complain about settings that no run could have.

        Raises:
            ArgumentError: one is out of range; the message names it.
        """
        ResidualStore(self.offload, self.storage_dtype)
        known_semantics(self.semantics)
        if self.source is not None and not self.calibrate:
            self._resolved(self.source)

    @classmethod
    def of_request(cls, request: AttachRequest) -> Settings:
        """What :func:`magpolicy.attach` was asked."""
        return cls(
            source=request.config.given,
            calibrate=request.calibrate,
            offload=request.offload,
            storage_dtype=request.storage_dtype,
            given=request.config,
            window=request.window,
            tokens=request.tokens,
            safeguard=request.safeguard,
        )

    def request(self, config: RunConfig) -> AttachRequest:
        """What these settings ask of a run with ``config``."""
        return AttachRequest(
            config=config,
            calibrate=self.calibrate,
            offload=self.offload,
            storage_dtype=self.storage_dtype,
            window=self.window,
            tokens=self.tokens,
            safeguard=self.safeguard,
        )

    def preview(self, source: Any, steps: int) -> Schedule:
        """The schedule of a whole run of ``steps`` steps.

        Raises:
            ArgumentError: a setting is missing.
        """
        span = ScheduleSpan(tuple(1 - i / steps for i in range(steps)), ())
        return place(self.config(source, span, list(range(steps))), span).simulate()

    def config(self, source: Any, span: ScheduleSpan, sampler_steps: list[int]) -> RunConfig:
        """The checked settings of a run that covers ``span``; ``sampler_steps`` says which step each evaluation belongs to.

        Raises:
            ArgumentError: they do not fit.
        """
        if self.calibrate:
            return always_compute()
        return self.given or self._resolved(source, *self._may_skip(span, sampler_steps))

    def _resolved(self, source: Any, start: int = 0, end: int | None = None) -> RunConfig:
        if isinstance(source, Schedule):
            return resolve(source)
        planned = self.speedup is not None
        return resolve(
            source,
            threshold=None if planned else self.threshold,
            max_skips=self.max_skips,
            retention=self.retention,
            start_step=start,
            end_step=end,
            semantics=self.semantics,
            speedup=self.speedup,
            forecast=self.forecast,
        )

    def _may_skip(self, span: ScheduleSpan, sampler_steps: list[int]) -> tuple[int, int | None]:
        """First and last position that may be skipped, of ``start_step`` and ``end_step``, which count the sampler's steps."""
        count = max(sampler_steps) + 1
        last = count - 1 if self.end_step is None else self.end_step + count if self.end_step < 0 else self.end_step
        inside = [i for i, step in enumerate(sampler_steps) if self.start_step <= step <= last]
        if len(inside) == len(sampler_steps):
            return 0, None
        if not inside:
            return span.steps, None
        return span.first + inside[0], span.first + inside[-1]
