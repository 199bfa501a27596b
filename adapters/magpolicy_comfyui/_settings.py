"""What a run is asked: by a node, or by :func:`magpolicy.attach`."""

from __future__ import annotations

from typing import Any

from attrs import evolve, frozen

from magpolicy import AttachRequest, Preset, Schedule, flow_sigmas
from magpolicy.adapter import Placement, RunConfig, ScheduleSpan, always_compute, named, place, resolve
from magpolicy.adapter import semantics as known_semantics
from magpolicy_torch.adapter import ResidualStore

CAUTIOUS: dict[str, Any] = {"threshold": 0.06, "max_skips": 3, "retention": 0.2}
"""What the rule goes by where neither the user nor the preset says it: a calibration recommends no settings."""
USUAL_SPEEDUP = "balanced"
"""Of plans, where no number is set."""


@frozen(kw_only=True)
class Settings:
    """The settings of one node, or of one call of :func:`magpolicy.attach`."""

    source: Any
    """A preset, curve or schedule, or ``None``: by the model and the run."""
    threshold: float | None = None
    max_skips: int | None = None
    retention: float | None = None
    """The rule's; ``None``: those of the preset."""
    start_step: int = 0
    """First step of the sampler that may be skipped."""
    end_step: int | None = None
    """Last one; negative ones count from the end."""
    semantics: str | None = None
    speedup: float | str | None = None
    """Plan for it; threshold, K and retention have no say then."""
    forecast: str | None = None
    offload: str | None = None
    storage_dtype: Any = None
    calibrate: bool = False
    window: int | None = None
    tokens: int | None = 2048
    """Of a calibration: evaluations back and tokens that are compared; see :class:`magpolicy_torch.Moments`."""
    name: str = ""
    """Of the calibration."""
    learn: bool | str | None = None
    """Whether runs teach later ones; ``"first"``: the first run computes every step. ``None``: a node that does not ask."""
    safeguard: Any = None
    """Whether a planned run is compared with its plan."""
    follow_steps: bool = False
    """Of a model with tables for two numbers of steps: the run says which."""
    given: RunConfig | None = None
    """Settings that were checked elsewhere, in place of all the above."""
    given_by_model: bool = False
    """Whether what decides in these was found by the model."""
    node: str | None = None
    """The node's id in its workflow, for messages to the browser."""

    @property
    def finds_its_source(self) -> bool:
        """Whether what decides is found by the model: nothing was chosen."""
        return not self.calibrate and (self.given_by_model or (self.source is None and self.given is None))

    @property
    def needs_table(self) -> bool:
        """Whether a preset has to be found for the model: the rule needs one, a plan and a calibration do without."""
        return self.source is None and self.given is None and self.speedup is None and not self.calibrate

    def without_table(self) -> Settings:
        """What is done in place of these where nothing is known of the model: what Speed up does, at its usual speed.

        A threshold has nothing to go by there, so the settings of the rule have no say; which steps may be skipped stays.
        """
        forecast = self.forecast if self.forecast in ("hold", "linear") else None  # others need a calibration
        return evolve(self, speedup=USUAL_SPEEDUP, semantics=None, forecast=forecast)

    def check(self) -> None:
        """Complain about settings that no run could have.

        Raises:
            ArgumentError: one is out of range; the message names it.
        """
        ResidualStore(self.offload, self.storage_dtype)
        known_semantics(self.semantics)
        if not self.calibrate and not self.needs_table:
            self._resolved(self.source)

    @classmethod
    def of_request(cls, request: AttachRequest) -> Settings:
        """What :func:`magpolicy.attach` was asked."""
        return cls(
            source=request.config.given,
            calibrate=request.calibrate,
            offload=request.offload,
            storage_dtype=request.storage_dtype,
            given=request.config.for_any_run(warns=False),  # the run's report says it
            given_by_model=request.finds_its_source,
            window=request.window,
            tokens=request.tokens,
            safeguard=request.safeguard,
            learn=request.learn,
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
            learn=self.learn or False,
        )

    def place(self, source: Any, steps: int) -> Placement:
        """A whole run of ``steps`` steps, as these settings see it.

        Raises:
            ArgumentError: a setting is missing.
        """
        span = ScheduleSpan(flow_sigmas(steps), ())
        return place(self.config(source, span, list(range(steps))), span)

    def config(self, source: Any, span: ScheduleSpan, sampler_steps: list[int]) -> RunConfig:
        """The checked settings of a run that covers ``span``; ``sampler_steps`` says which step each evaluation belongs to.

        Raises:
            ArgumentError: they do not fit.
        """
        if self.calibrate:
            return always_compute()
        return self.given or self._resolved(source, *self._may_skip(span, sampler_steps), span.steps)

    def _resolved(self, source: Any, start: int = 0, end: int | None = None, steps: int = 0) -> RunConfig:
        """The settings on ``source``, for a run of any length, whose report says what did not fit; ``start`` and ``end`` are
        the first and the last of ``steps`` that may be skipped."""
        return self._checked(source, start, end, steps).for_any_run(warns=False)

    def _checked(self, source: Any, start: int, end: int | None, steps: int) -> RunConfig:
        if isinstance(source, Schedule):
            return resolve(source)
        if self.speedup is not None:
            last = steps - 1 if end is None else end
            forced = [i for i in range(steps) if not start <= i <= last]
            return resolve(
                source, speedup=self.speedup, forced=forced or None, semantics=self.semantics, forecast=self.forecast
            )
        if isinstance(source, str):  # of several presets by that name, the one that has what is not set here
            source = named(source).with_settings([name for name, value in self._rule.items() if value is None])
        return resolve(
            source,
            **self.rule_on(source),
            start_step=start,
            end_step=end,
            semantics=self.semantics,
            forecast=self.forecast,
        )

    @property
    def _rule(self) -> dict[str, Any]:
        return {"threshold": self.threshold, "max_skips": self.max_skips, "retention": self.retention}

    def rule_on(self, source: Any) -> dict[str, Any]:
        """The settings of the rule on a preset or curve: those set here, or the preset's, or cautious ones."""
        published = source if isinstance(source, Preset) else None
        known = {name: getattr(published, name, None) if value is None else value for name, value in self._rule.items()}
        return {name: CAUTIOUS[name] if value is None else value for name, value in known.items()}

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
