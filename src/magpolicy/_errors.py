"""What magpolicy raises. A message names the argument, its value and the mend."""

from __future__ import annotations

import importlib
from types import ModuleType


def printable(text: str) -> str:
    """``text`` with everything written out that a terminal would act on, or could not show; lines and tabs stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode("ascii") for c in text)


class MagPolicyError(Exception):
    """Base class of every error magpolicy raises on purpose. Its message holds no control characters, whatever it names."""

    __module__ = "magpolicy"

    def __init__(self, message: object = "", *more: object) -> None:
        super().__init__(printable(message) if isinstance(message, str) else message, *more)


class ArgumentError(MagPolicyError, ValueError):
    """An argument has a value that cannot be used."""

    __module__ = "magpolicy"


class UnknownArgumentError(ArgumentError, TypeError):
    """A function has no argument of that name, or takes it by its name alone."""

    __module__ = "magpolicy"


class PresetError(ArgumentError):
    """A preset's name is unknown or its file does not hold a preset."""

    __module__ = "magpolicy"


class RunError(MagPolicyError, RuntimeError):
    """A run was used out of order: past its end, before its begin, or while another call is undecided."""

    __module__ = "magpolicy"


class AdapterError(MagPolicyError, TypeError):
    """No adapter can drive the object given to :func:`magpolicy.attach`."""

    __module__ = "magpolicy"


class MissingExtraError(MagPolicyError, ImportError):
    """An optional dependency is not installed; the message names the extra that installs it."""

    __module__ = "magpolicy"


class PlanWarning(UserWarning):
    """A run could not be planned for the target, and goes by the nearest plan."""

    __module__ = "magpolicy"


class PresetWarning(UserWarning):
    """A file among the user's own presets cannot be read and was left out."""

    __module__ = "magpolicy"


class LibraryWarning(UserWarning):
    """The user's folder cannot be written, so what runs teach is not kept."""

    __module__ = "magpolicy"


class PluginWarning(UserWarning):
    """A plugin failed and was left out."""

    __module__ = "magpolicy"


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency.

    Raises:
        MissingExtraError: it is not installed; names the extra to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(f"{module} is needed here; pip install 'magpolicy[{extra}]'") from error
