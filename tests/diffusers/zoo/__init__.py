"""Every transformer class of diffusers, tiny: one module a family, each with a list ``CASES``."""

import importlib
import pkgutil

CASES = {
    case.cls: case
    for info in pkgutil.iter_modules(__path__)
    if info.name.startswith("cases_")
    for case in importlib.import_module(f"{__name__}.{info.name}").CASES
}
