"""Other packs whose nodes have the names of ours: which of them a workflow gets.

ComfyUI keeps one node for a name, that of the pack loaded last. Which pack that is follows from no order one could rely on, so
it is looked at once all packs are loaded, and told in the log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from attrs import define

Nodes = Mapping[str, Any]


@define
class SameNames:
    """Who has the names of ours, before this pack is loaded and after all packs are."""

    ours: Nodes
    others: Nodes
    """The nodes of those names that were loaded before this pack."""

    @classmethod
    def before(cls, ours: Nodes, known: Nodes) -> SameNames:
        """At the moment when this pack is loaded; ``known`` are the nodes that ComfyUI has so far."""
        return cls(ours, {name: known[name] for name in ours if name in known and known[name] is not ours[name]})

    def told(self, known: Nodes) -> Iterator[str]:
        """What to say once ``known`` are all nodes: a line for each other pack, which says whose nodes have the names."""
        lost = {name: known[name] for name in self.ours if name in known and known[name] is not self.ours[name]}
        won = {name: node for name, node in self.others.items() if name not in lost}
        own = ", ".join(name for name in self.ours if name.startswith("MagPolicy") and name not in lost)
        for pack, names in _by_pack(lost):
            yield (
                f"the nodes {names} of workflows are those of {pack}, which was loaded after this pack; ours are named {own}. "
                f"To have ours in workflows made for {pack} too, disable that pack"
            )
        for pack, names in _by_pack(won):
            yield (
                f"the nodes {names} of workflows are this pack's; {pack} was loaded before, and its nodes of the "
                "same names are hidden. To have those, disable this pack"
            )


def _by_pack(nodes: Nodes) -> Iterator[tuple[str, str]]:
    packs: dict[str, list[str]] = {}
    for name, node in nodes.items():
        packs.setdefault(_pack_of(node), []).append(name)
    return ((pack, ", ".join(names)) for pack, names in packs.items())


def _pack_of(node: Any) -> str:
    module = str(getattr(node, "RELATIVE_PYTHON_MODULE", None) or getattr(node, "__module__", "another pack"))
    return module.removeprefix("custom_nodes.")


def tell_when_loaded(names: SameNames, server: Any, known: Callable[[], Nodes], tell: Callable[[str], None]) -> None:
    """Tell when ``server`` starts, by when all packs are loaded; without one, what is known now."""

    async def starting(_: Any) -> None:
        for line in names.told(known()):
            tell(line)

    signal = getattr(getattr(server, "app", None), "on_startup", None)
    if signal is not None and not signal.frozen:
        signal.append(starting)
        return
    for line in names.told({**known(), **names.ours}):
        tell(line)
