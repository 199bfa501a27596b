"""Writes down the public names with their signatures: ``python tools/public_api.py``; a test compares them with the code.

What users may rely on is in this list, so a change of it is seen in a review, and belongs into ``CHANGELOG.md``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import griffe

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "tests" / "release" / "public_api.txt"
MODULES = (
    "magpolicy",
    "magpolicy.adapter",
    "magpolicy.hookspecs",
    "magpolicy.testing",
    "magpolicy.testing.strategies",
    "magpolicy_torch",
    "magpolicy_torch.adapter",
    "magpolicy_diffusers",
    "magpolicy_metrics",
    "magpolicy_comfyui",
    "magpolicy_vllm_omni",
)


def public_api() -> str:
    """The list: a line for each public name, for each member of a public class, and for each parameter with its default."""
    loader = griffe.GriffeLoader(search_paths=[ROOT / "src", ROOT / "adapters"], allow_inspection=False)
    for package in dict.fromkeys(name.partition(".")[0] for name in MODULES):
        loader.load(package)
    loader.resolve_aliases(implicit=True, external=False)
    told: dict[str, str] = {}
    return "".join(f"{line}\n" for name in MODULES for line in _of_module(loader.modules_collection[name], told))


def _of_module(module: griffe.Module, told: dict[str, str]) -> Iterator[str]:
    """The module's lines; ``told`` has the path under which each object was listed first, and is added to."""
    names = [str(name) for name in module.exports or ()] or [name for name in module.functions if _public(name)]
    for name in sorted(names):
        path, item = f"{module.path}.{name}", module.members.get(name)
        if item is None:
            yield path
            continue
        item = item.final_target if item.is_alias else item
        first = told.setdefault(item.path, path)
        if first == path:
            yield from _of(path, item)
        else:
            yield f"{path}: the same as {first}"


def _of(path: str, item: griffe.Object | griffe.Alias) -> Iterator[str]:
    if item.is_function:
        yield from _of_function(path, item)
    elif item.is_class:
        yield f"{path}({', '.join(str(base).rpartition('.')[2] for base in item.bases)}): class"
        for name, member in sorted(item.all_members.items()):
            if _public(name) or name == "__init__":
                yield from _of(f"{path}.{name}", member.final_target if member.is_alias else member)
    elif item.is_module:
        yield f"{path}: module"
    else:
        yield f"{path}: {item.annotation or '-'}"


def _of_function(path: str, function: griffe.Object | griffe.Alias) -> Iterator[str]:
    """The parameters in a line each, so that a changed one is a changed line."""
    kinds = griffe.ParameterKind
    yield f"{path} -> {function.returns or '-'}"
    for parameter in function.parameters:
        if parameter.name in ("self", "cls"):
            continue
        star = {kinds.var_positional: "*", kinds.var_keyword: "**", kinds.keyword_only: "by name "}.get(parameter.kind, "")
        default = "" if parameter.default is None or "*" in star else f" = {parameter.default}"
        yield f"    {star}{parameter.name}: {parameter.annotation or '-'}{default}"


def _public(name: str) -> bool:
    return not name.startswith("_")


if __name__ == "__main__":
    TARGET.write_text(public_api(), encoding="utf-8")
