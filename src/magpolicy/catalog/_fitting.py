"""Whether a calibration is one of this model, and in what a run differs from the one it was measured in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from magpolicy._errors import ArgumentError
from magpolicy.calibration._calibration import Calibration
from magpolicy.catalog._identity import ModelIdentity
from magpolicy.catalog._learned import date_of
from magpolicy.catalog._presets import Preset
from magpolicy.policy._curve import SINGLE

_WORDS = {"stack": "the block stack", "scope": "scope", "scheduler": "scheduler", "shift": "shift", "guidance": "guidance"}


def calibration_of(source: Any) -> Calibration | None:
    """The calibration that a preset, a calibration, or what else decides, holds."""
    if isinstance(source, Preset):
        return source.calibration
    return source if isinstance(source, Calibration) else None


def check_fits(source: Any, classes: Iterable[str], *, host: str, roles: Iterable[str] = ()) -> None:
    """Complain about a calibration that was measured on another model, or whose streams cannot be those of this one.

    Args:
        source: what decides in the runs; other things than calibrations, and presets with one, are let pass.
        classes: names of the model's classes, its own first, then those it is derived from.
        host: the host whose class that is: ``"torch"``, ``"diffusers"``, ``"ComfyUI"``. In another host a model's class has
            another name; then it is compared by the family that the names begin with.
        roles: how the names of streams begin that the host gives; none given: the user names them.

    Raises:
        ArgumentError: it does not fit; the message says what to do.
    """
    calibration = calibration_of(source)
    if calibration is None:
        return
    known, model = tuple(classes), ModelIdentity.of(calibration).model
    what = f"calibration {calibration.name!r}" if calibration.name else "the calibration given"
    if model and not _same(model, known, _host_of(calibration) == host):
        raise ArgumentError(
            f"{what} was measured on a {model}, target is a {known[0]}: its residuals take another path; leave it out, or "
            "calibrate this model: attach(..., calibrate=True)"
        )
    streams, begins = tuple(calibration.streams), tuple(roles)
    by_a_host = "pipeline" in calibration.provenance or "host" in calibration.provenance
    # SINGLE is the stream of a loop that names none: it serves in the place of any.
    if begins and not by_a_host and streams != (SINGLE,) and not any(name.startswith(begins) for name in streams):
        raise ArgumentError(
            f"{what} has the streams {', '.join(streams)}, those of target are {' and '.join(begins)}; calibrate with them: "
            "attach(..., calibrate=True)"
        )


def fits(source: Any, classes: Iterable[str], *, host: str) -> bool:
    """Whether :func:`check_fits` lets it pass."""
    try:
        check_fits(source, classes, host=host)
    except ArgumentError:
        return False
    return True


def differences(calibration: Calibration, run: Mapping[str, Any], streams: Iterable[str] = ()) -> tuple[str, ...]:
    """In what a run differs from that of its calibration, in words; empty if nothing that is known does.

    Args:
        calibration: what the run was planned from.
        run: the block stack, scope, scheduler, shift and guidance of the run, by the names of provenance, those that are known.
        streams: what was evaluated.
    """
    before = calibration.provenance
    had, lacks = "the calibration is of", "the calibration has no"
    if date_of(calibration):  # the user calibrated nothing
        had, lacks = "earlier runs had", "earlier runs had no"
    found = [
        f"{had} {words} {_shown(before[key])}, this run has {_shown(run[key])}"
        for key, words in _WORDS.items()
        if before.get(key) is not None and run.get(key) is not None and not _equal(before[key], run[key])
    ]
    known = set(calibration.streams)
    if known != {SINGLE}:
        first = next(iter(calibration.streams))
        new = dict.fromkeys(name for name in streams if not known & {name, _role(name), SINGLE})
        found += [f"{lacks} stream {name!r}, which goes by that of {first!r}" for name in new]
    return tuple(found)


def _same(model: str, classes: tuple[str, ...], same_host: bool) -> bool:
    if model in classes:
        return True
    if same_host or not classes:
        return not classes
    one, other = _family(model), _family(classes[0])
    return bool(one and other) and (one.startswith(other) or other.startswith(one))


def _family(name: str) -> str:
    """What the name of a model's class begins with: ``wan`` of ``WanTransformer3DModel`` and of ``WAN21``."""
    return re.split(r"transformer|unet|dit|model|[^a-z]", name.lower(), maxsplit=1)[0]


def _host_of(calibration: Calibration) -> str:
    versions = calibration.provenance.get("versions")
    known = versions if isinstance(versions, Mapping) else {}
    return str(calibration.provenance.get("host", "diffusers" if "diffusers" in known else "torch"))


def _role(stream: str) -> str:
    """What a stream goes by: ``uncond`` of ``uncond 2``, of ``uncond, again`` and of ``uncond [0:16]``."""
    return re.split(r"[ ,]", stream, maxsplit=1)[0]


def _equal(before: Any, now: Any) -> bool:
    if isinstance(before, list | tuple):  # merged of several
        return any(_equal(one, now) for one in before)
    if isinstance(before, int | float) and isinstance(now, int | float):
        return abs(before - now) <= 1e-3 * max(abs(before), abs(now))
    return bool(before == now)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)
