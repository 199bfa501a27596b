"""Every transformer class of diffusers, tiny: one module a family, each with a list ``CASES``."""

import importlib
import pkgutil

from . import unets

CASES = {
    case.cls: case
    for info in pkgutil.iter_modules(__path__)
    if info.name.startswith("cases_")
    for case in importlib.import_module(f"{__name__}.{info.name}").CASES
}
"""Those with a stack of blocks, and what is no denoiser."""
UNETS = {case.cls: case for case in unets.UNETS}
"""Those that a skip leaves out whole."""
