"""Which of the user's calibrations serve a model: those kept by name, and those that runs left."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from magpolicy.calibration._calibration import Calibration
from magpolicy.calibration._lessons import Taught
from magpolicy.catalog._folder import every_own
from magpolicy.catalog._identity import ModelIdentity
from magpolicy.catalog._learned import date_of, learned_of
from magpolicy.catalog._matching import PresetMatches
from magpolicy.catalog._presets import Preset


def kept_for(identity: ModelIdentity, streams: Iterable[str] | None = None, more: Iterable[Preset] = ()) -> PresetMatches:
    """The user's calibrations that were made with this model, or with one near to it; the best is the first.

    First those of the same weights and config, then those of the same repo and class, then those of the same class and config;
    of equally near ones first those that the user kept, then what was learned, the newest first.

    Args:
        identity: the model.
        streams: leave out calibrations that lack one of these streams.
        more: presets that the user kept elsewhere, as in a host's own folder (:func:`presets_in`).

    Returns:
        Presets with a calibration; none, if nothing serves.
    """
    kept = [(preset, False) for preset in (*every_own(), *more)]
    every = [*kept, *((preset, True) for preset in sorted(learned_of(identity.model), key=_date, reverse=True))]
    near = [(_nearness(identity, preset), preset, learned) for preset, learned in every]
    serving = [row for row in near if row[0] and _has(row[1], streams)]
    serving.sort(key=lambda row: (-row[0], row[2]))
    return PresetMatches(preset for _, preset, _ in serving)


def _as_argument(preset: Preset) -> str:
    return f"preset={preset.name!r}"


def remarks_on_choice(
    identity: ModelIdentity,
    used: Calibration | None,
    *,
    by_rule: bool = False,
    more: Iterable[Preset] = (),
    choice: Callable[[Preset], str] = _as_argument,
) -> tuple[str, ...]:
    """What a user should know of the calibration that was found for a model, or of his own that were passed over, in words.

    Args:
        identity: the model.
        used: the calibration that its runs go by; ``None`` where there is none.
        by_rule: whether the rule decides, and no plan.
        more: presets that the user kept elsewhere, as for :func:`kept_for`.
        choice: how a user of the host chooses one of them himself; without it, as an argument of ``attach``.
    """
    if used is not None:
        measured = ModelIdentity.of(used)
        differ = identity.weights and measured.weights and identity.weights != measured.weights
        if not differ or identity.nearness(measured) != 1 or Taught.of(used) is not None:
            return ()
        return (f"the calibration {used.name!r} was measured with other weights of the same class and config",)
    own = [*every_own(), *more]
    if by_rule and (same := [preset for preset in own if _nearness(identity, preset)]):
        return (f"{_yours(same)} of this model, and not used: the rule goes by published settings; speedup=2 plans from it",)
    others = [preset for preset in own if _of_its_class(identity, preset)]
    if not others:
        return ()
    passed = f"{_yours(others)} of another {identity.model}, and passed over"
    return (f"{passed}; {choice(others[0])} uses it all the same",)


def _yours(kept: Sequence[Preset]) -> str:
    more = len(kept) - 1
    return f"your calibration {kept[0].name!r}" + (f" and {more} more are" if more else " is")


def _of_its_class(identity: ModelIdentity, preset: Preset) -> bool:
    """Whether it was measured with another model of the same class."""
    of = ModelIdentity("") if preset.calibration is None else ModelIdentity.of(preset.calibration)
    return bool(of.model) and of.model == identity.model and not identity.nearness(of)


def _nearness(identity: ModelIdentity, preset: Preset) -> int:
    return 0 if preset.calibration is None else identity.nearness(ModelIdentity.of(preset.calibration))


def _has(preset: Preset, streams: Iterable[str] | None) -> bool:
    return streams is None or preset.calibration is None or set(streams) <= set(preset.calibration.streams)


def _date(preset: Preset) -> str:
    return "" if preset.calibration is None else date_of(preset.calibration)
