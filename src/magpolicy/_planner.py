"""Planning when a run begins: what is wanted is known ahead, the run's noise levels only then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import field, frozen

from magpolicy._calibration import Calibration
from magpolicy._errors import ArgumentError
from magpolicy._goal import Goal
from magpolicy._plan import plan
from magpolicy._presets import preset
from magpolicy._schedule import Schedule

TARGETS = ("speedup", "computed", "error")


@frozen(eq=False)
class Planner:
    """A source and a target; makes the schedule of a run once its length is known."""

    source: Any
    """What :func:`magpolicy.plan` takes."""
    settings: Mapping[str, Any]
    """Arguments of it; those that are ``None`` are left out."""
    _made: dict[Any, Schedule] = field(factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, source: Any, rule: Mapping[str, Any], **settings: Any) -> Planner | None:
        """A planner, if ``settings`` holds a target.

        Args:
            source: what to plan from.
            rule: settings of the published rule, which a plan has no use for.
            settings: arguments of :func:`magpolicy.plan`; those that are ``None`` were not given.

        Raises:
            ArgumentError: more than one target, a setting of the rule beside one, or one that is out of range.
        """
        given = {name: value for name, value in settings.items() if value is not None}
        targets = [name for name in TARGETS if name in given]
        if not targets:
            return None
        for name, value in rule.items():
            if value is not None:
                raise ArgumentError(f"{name}={value!r} is for the rule, and {targets[0]} asks for a plan; leave {name} out")
        goal = Goal(**given)
        goal.check_target()
        found = preset(source) if isinstance(source, str | Path) else source
        measured = isinstance(found, Calibration) or getattr(found, "calibration", None) is not None
        if given.get("forecast") == "calibrated" and not measured:
            raise ArgumentError("forecast='calibrated' needs a Calibration, ratios alone do not say; try forecast='hold'")
        return cls(found, {name: getattr(goal, name) for name in given})  # checked, and iterators read out

    def schedule(
        self,
        steps: int | None,
        sigmas: Sequence[float] | None,
        *,
        start: int = 0,
        expert_step: int | None = None,
        guidance: float | None = None,
    ) -> Schedule:
        """The plan of a run; positions before ``start`` are said to compute, and are never evaluated.

        Raises:
            ArgumentError: the target cannot be had in such a run.
        """
        key = (steps, None if sigmas is None else tuple(sigmas), start, expert_step, guidance)
        if key not in self._made:
            self._made.clear()  # the next run is most often like the last
            self._made[key] = self._plan(steps, sigmas, start, {"expert_step": expert_step, "guidance": guidance})
        return self._made[key]

    def _plan(self, steps: int | None, sigmas: Sequence[float] | None, start: int, told: Mapping[str, Any]) -> Schedule:
        settings = {name: value for name, value in told.items() if value is not None} | dict(self.settings)
        length: dict[str, Any] = {"steps": steps} if sigmas is None else {"sigmas": sigmas}
        if not start:
            return plan(self.source, **length, **settings)
        count = steps if sigmas is None else len(sigmas)
        assert count is not None
        return whole(plan(self.source, **length, part=(start, count), **settings))


def whole(part: Schedule) -> Schedule:
    """The schedule of a whole run of which ``part`` is the end: what lies before it is computed."""
    before = part.first_step
    rows = dict(zip(part.streams, part.masks, strict=True))
    masks = {name: (True,) * before + mask for name, mask in rows.items()}
    coefficients = {name: (0.0,) * before + row for name, row in zip(part.streams, part.coefficients, strict=True)}
    errors = {name: (0.0,) * before + row for name, row in zip(part.streams, part.modelled, strict=True)}
    return Schedule.from_mask(masks, coefficients=coefficients, errors=errors)
