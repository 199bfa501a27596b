"""Pipelines of diffusers, tiny: one module a family, each with a list ``PIPES``."""

import importlib
import pkgutil

PIPES = {
    pipe.cls: pipe
    for info in pkgutil.iter_modules(__path__)
    if info.name.startswith("pipes_")
    for pipe in importlib.import_module(f"{__name__}.{info.name}").PIPES
}
