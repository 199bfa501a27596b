"""A calibration for others: what it was measured on, by whom, under which licence, and a digest of what it says."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from attrs import evolve

from magpolicy import _checks
from magpolicy._errors import PresetError
from magpolicy.calibration._calibration import Calibration
from magpolicy.calibration._format import content_of
from magpolicy.calibration._likeness import ASSUMED
from magpolicy.catalog._identity import KEY, ModelIdentity

CONTRIBUTION = "contribution"
"""Where the provenance has by whom it is, its licence, and its digest."""
ABOUT = (
    *("model", KEY, "pipeline", "host", "repo", "scheduler", "shift", "guidance", "versions", "samples"),
    *("stack", "scope", "learned", ASSUMED, CONTRIBUTION),
)
"""What of a provenance is given to others. All else that somebody noted, such as prompts, stays here."""
LICENCES = ("CC0-1.0", "CC-BY-4.0", "MIT", "Apache-2.0")
"""Such as others can take up; SPDX's names."""
MAX_CONTRIBUTED = 1_000_000
"""Bytes of its JSON."""
_OF_A_CONTRIBUTION = {"by", "licence", "digest", "note"}


def contributed(calibration: Calibration, by: str, licence: str, note: str = "") -> Calibration:
    """``calibration`` as it is given to others.

    Raises:
        PresetError: something that others need to know of it is missing, or does not fit; says what.
    """
    about = {name: value for name, value in calibration.provenance.items() if name in ABOUT and name != CONTRIBUTION}
    said = {"by": by, "licence": licence} | ({"note": note} if note else {})
    given = evolve(calibration, provenance=about | {CONTRIBUTION: said})
    given = evolve(given, provenance=about | {CONTRIBUTION: said | {"digest": digest_of(given)}})
    if problems := problems_of(given):
        raise PresetError(f"{calibration.name or 'the calibration'} cannot be given to others yet: {'; '.join(problems)}")
    return given


def digest_of(calibration: Calibration) -> str:
    """A digest of everything that the calibration says, but its name and the digest itself.

    It tells a file that was changed on its way, or by hand. It does not tell who made it: anybody can make another one.
    """
    content = content_of(calibration)
    del content["name"]
    provenance = dict(content["provenance"])
    if isinstance(said := provenance.get(CONTRIBUTION), Mapping):
        provenance[CONTRIBUTION] = {name: value for name, value in said.items() if name != "digest"}
    text = json.dumps(content | {"provenance": provenance}, sort_keys=True, allow_nan=False)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def changed(calibration: Calibration) -> str:
    """What tells that a contributed calibration was changed since; empty if it was not, or is none."""
    said = calibration.provenance.get(CONTRIBUTION)
    if said is None:
        return ""
    if not isinstance(said, Mapping) or not isinstance(said.get("digest"), str):
        return f"provenance.{CONTRIBUTION} has no digest"
    return "" if said["digest"] == digest_of(calibration) else "its digest is another; it was changed since it was made"


def problems_of(calibration: Calibration) -> list[str]:
    """What is missing or wrong in a calibration that is given to others; empty if it can be taken up."""
    identity, about = ModelIdentity.of(calibration), calibration.provenance
    problems = []
    if not identity.model:
        problems.append("no model is named; measure it through an adapter, which notes the model")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", identity.repo):
        problems.append(f"repo={identity.repo!r} is no repo id; calibrate a model that was loaded by its repo id, as org/name")
    if not isinstance(about.get("versions"), Mapping) or not about["versions"]:
        problems.append("no versions of what measured it are noted")
    problems += [f"provenance has {name!r}, which nobody else needs" for name in sorted(set(about) - set(ABOUT))]
    said = about.get(CONTRIBUTION)
    if not isinstance(said, Mapping):
        return [*problems, "it says neither by whom it is nor its licence; write it with `magpolicy library contribute`"]
    problems += [f"{CONTRIBUTION}.{name} is not known" for name in sorted(map(str, set(said) - _OF_A_CONTRIBUTION))]
    problems += _wrong_texts(said)
    if said.get("licence") not in LICENCES:
        problems.append(f"licence={_checks._short(said.get('licence'))} is none of {', '.join(LICENCES)}")
    if text := changed(calibration):
        problems.append(text)
    if (size := len(json.dumps(content_of(calibration)))) > MAX_CONTRIBUTED:
        problems.append(f"it has {size} bytes, more than {MAX_CONTRIBUTED}; calibrate with fewer steps or a smaller window")
    return problems


def _wrong_texts(said: Mapping[str, Any]) -> list[str]:
    wrong = []
    for name, most in (("by", 100), ("note", 500)):
        text = said.get(name, "")
        if not isinstance(text, str) or len(text) > most or not text.isprintable():
            wrong.append(f"{name}={_checks._short(text)} must be one line of at most {most} characters")
    if isinstance(said.get("by"), str) and not said["by"].strip():
        wrong.append("by='' names nobody; try --by 'your name'")
    return wrong
