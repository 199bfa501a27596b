"""Draws docs/assets/architecture.svg from the code: packages and folders are boxes, imports are arrows.

``python docs/_architecture.py`` writes it anew; the tests compare it with the code. What the picture leaves out:

- imports that serve annotations only. Those of an ``__init__.pyi`` count: they say where the public names come from, which are
  loaded when they are first used;
- an arrow to a box that other arrows lead to as well: if A imports B and B imports C, an import of C in A is not drawn.
"""

from __future__ import annotations

import ast
import html
from collections import defaultdict
from collections.abc import Iterable, Iterator
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path

import grimp

PACKAGES = (
    "magpolicy",
    "magpolicy_torch",
    "magpolicy_metrics",
    "magpolicy_diffusers",
    "magpolicy_comfyui",
    "magpolicy_vllm_omni",
    "magpolicy_sglang",
)
ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "assets" / "architecture.svg"
Box = tuple[str, str]
"""A package, and what the box holds of it: ``""`` (its ``__init__``), a folder, a public module, or one of the next two."""
WAYS_IN, FILES = "ways in", "files"  # private modules beside the folders: those nobody here imports, and the others

LINE, CHAR, PAD, GAP_X, GAP_Y, MARGIN, WRAP = 15, 6.2, 8, 14, 30, 14, 26
STYLE = """
  text { font: 11px sans-serif; fill: #333 }
  .name { font-weight: bold; font-size: 12px; fill: #111 }
  .package { fill: #f4f5fb; stroke: #8c94c6 }
  .box { fill: #fff; stroke: #5c6bc0 }
  .public { fill: #e3e7fa; stroke: #3949ab; stroke-width: 1.6 }
  .arrow { fill: none; stroke: #777; marker-end: url(#head) }
  .way { marker-end: none }
  .across { fill: none; stroke: #3949ab; stroke-width: 1.6; marker-end: url(#head) }
"""


class Code:
    """What the picture shows: the boxes of each package with their modules, and the imports between boxes."""

    def __init__(self) -> None:
        graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)
        self._imported = {
            n for m in graph.modules for n in graph.find_modules_directly_imported_by(m) if _package(m) == _package(n)
        }
        self._modules = sorted(graph.modules - {"magpolicy.__main__"})
        self.boxes: dict[Box, list[str]] = defaultdict(list)
        for module in self._modules:
            if (box := self.box(module)) is not None:
                self.boxes[box].append(module)
        self.arrows: dict[Box, set[Box]] = {box: set() for box in self.boxes}
        for module in self._modules:
            for other in [*graph.find_modules_directly_imported_by(module), *_listed(module)]:
                start, end = self.box(module), self.box(other)
                if start is not None and end is not None and start != end:
                    self.arrows[start].add(end)

    def box(self, module: str) -> Box | None:
        """The box that ``module`` is in."""
        package, *names = module.split(".")
        if not names:
            return package, ""
        if any(other.startswith(f"{package}.{names[0]}.") for other in self._modules) or not names[0].startswith("_"):
            return package, names[0]
        return package, FILES if module in self._imported else WAYS_IN

    def inside(self, package: str) -> dict[Box, set[Box]]:
        """The arrows within a package, less those that a longer way makes unnecessary.

        Raises:
            graphlib.CycleError: boxes import each other in a circle.
        """
        arrows = {box: {b for b in ends if b[0] == package} for box, ends in self.arrows.items() if box[0] == package}
        TopologicalSorter(arrows).prepare()
        return {box: ends - {b for end in ends for b in _reach(arrows, end)} for box, ends in arrows.items()}

    def across(self) -> list[tuple[str, Box]]:
        """Which package imports which box of another."""
        return sorted({(start[0], end) for start, ends in self.arrows.items() for end in ends if start[0] != end[0]})


def _listed(module: str) -> Iterator[str]:
    """The modules that the ``__init__.pyi`` of a package imports public names from."""
    stub = next(
        (f for root in ("src", "adapters") if (f := ROOT / root / Path(*module.split(".")) / "__init__.pyi").exists()), None
    )
    for node in ast.walk(ast.parse("" if stub is None else stub.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield f"{module}.{node.module}" if node.level else str(node.module)


def _package(module: str) -> str:
    return module.partition(".")[0]


def _reach(arrows: dict[Box, set[Box]], start: Box) -> set[Box]:
    """The boxes that arrows lead to from ``start``."""
    found: set[Box] = set()
    ahead = list(arrows[start])
    while ahead:
        if (box := ahead.pop()) not in found:
            found.add(box)
            ahead.extend(arrows[box])
    return found


def rows_of(arrows: dict[Box, set[Box]]) -> list[list[Box]]:
    """The boxes in rows, each below all that import it."""
    row = dict.fromkeys(arrows, 0)
    for box in reversed([*TopologicalSorter(arrows).static_order()]):
        for end in arrows[box]:
            row[end] = max(row[end], row[box] + 1)
    return [sorted(b for b in arrows if row[b] == level) for level in range(max(row.values()) + 1)]


class Package:
    """One package laid out: where its boxes are, seen from its upper left corner, and how its arrows run."""

    x = y = 0.0
    """Where that corner is."""

    def __init__(self, code: Code, name: str) -> None:
        self.name, self.code = name, code
        self.rows = [list(row) for row in rows_of(code.inside(name))]
        self.links: list[tuple[Box, Box]] = []  # each one row down; a long arrow is led through points between the boxes
        self.last: set[tuple[Box, Box]] = set()
        self._lead(code.inside(name))
        self._sort()
        self.at: dict[Box, tuple[float, float, float, float]] = {}
        self._place()

    def _lead(self, arrows: dict[Box, set[Box]]) -> None:
        level = {box: at for at, row in enumerate(self.rows) for box in row}
        for start, ends in sorted(arrows.items()):
            for end in sorted(ends):
                way = [start, *[(f"{start}-{end}", str(at)) for at in range(level[start] + 1, level[end])], end]
                for at, point in zip(range(level[start] + 1, level[end]), way[1:-1], strict=True):
                    self.rows[at].append(point)
                self.links += pairwise(way)
                self.last.add((way[-2], end))

    def _sort(self) -> None:
        """Put each row into the order of what it is linked with, a few times down and up: few arrows cross then."""
        for sweep in range(8):
            up = sweep % 2
            order = {box: at for row in self.rows for at, box in enumerate(row)}
            for row in reversed(self.rows) if up else self.rows:
                linked = {box: [order[a if b == box else b] for a, b in self.links if (a if up else b) == box] for box in row}
                row.sort(key=lambda box: sum(linked[box]) / len(linked[box]) if linked[box] else order[box])
                order.update({box: at for at, box in enumerate(row)})

    def lines(self, box: Box) -> list[str]:
        """What is written in a box under its name."""
        package, part = box
        own = f"{package}.{part}" if part not in ("", WAYS_IN, FILES) else package
        names = [m[len(own) + 1 :] for m in self.code.boxes[box] if m != own]
        if part in (WAYS_IN, FILES):
            return _wrapped(f"{name}.py" for name in names)
        if part == "":
            return ["public names"]
        if part == "adapter":
            return ["for adapters"]
        return _wrapped(name.removeprefix("_") for name in names) if names else []

    def title(self, box: Box) -> str:
        package, part = box
        if part in (WAYS_IN, FILES):
            return ""
        is_folder = any(m.startswith(f"{package}.{part}.") for m in self.code.boxes[box])
        return f"{part}/" if is_folder else ".".join(filter(None, box))

    def _size(self, box: Box) -> tuple[float, float]:
        if box not in self.code.boxes:
            return 8, 0  # a long arrow: as tall as the row
        lines, title = self.lines(box), self.title(box)
        width = max(CHAR * 1.2 * len(title), *(CHAR * len(line) for line in lines), 0)
        return round(width) + 2 * PAD, LINE * (len(lines) + bool(title)) + 2 * PAD - 4

    def _place(self) -> None:
        sizes = {box: self._size(box) for row in self.rows for box in row}
        widths = [sum(sizes[box][0] for box in row) + GAP_X * (len(row) - 1) for row in self.rows]
        self.width = max(*widths, CHAR * 1.2 * len(self.name)) + 2 * MARGIN
        top = MARGIN + LINE + 6
        for row, width in zip(self.rows, widths, strict=True):
            tall = max(sizes[box][1] for box in row)
            left = (self.width - width) / 2
            for box in row:
                w, h = sizes[box] if box in self.code.boxes else (sizes[box][0], tall)
                self.at[box] = (round(left), round(top + (tall - h) / 2), w, h)
                left += w + GAP_X
            top += tall + GAP_Y
        self.height = top - GAP_Y + MARGIN

    def draw(self) -> Iterator[str]:
        """The lines of SVG for this package."""
        x, y = self.x, self.y
        yield f'<rect class="package" x="{x:.0f}" y="{y:.0f}" width="{self.width:.0f}" height="{self.height:.0f}" rx="6"/>'
        yield _text(x + MARGIN, y + MARGIN + 6, self.name, "name")
        for start, end in self.links:
            (a, b, w, h), (c, d, v, _) = self.at[start], self.at[end]
            x1, y1, x2, y2 = (round(n) for n in (x + a + w / 2, y + b + h, x + c + v / 2, y + d))
            half = (y1 + y2) // 2
            kind = "arrow" if (start, end) in self.last else "arrow way"
            if start not in self.code.boxes:  # through the row of a long arrow
                yield f'<path class="arrow way" d="M{x1} {y1 - h:.0f}V{y1}"/>'
            yield f'<path class="{kind}" d="M{x1} {y1}C{x1} {half} {x2} {half} {x2} {y2}"/>'
        for box, (a, b, w, h) in self.at.items():
            if box not in self.code.boxes:
                continue
            public = "public" if box[1] in ("", "adapter") else "box"
            yield f'<rect class="{public}" x="{x + a:.0f}" y="{y + b:.0f}" width="{w:.0f}" height="{h:.0f}" rx="4"/>'
            title, left, down = self.title(box), x + a + PAD, y + b + LINE
            if title:
                yield _text(left, down, title, "name")
                down += LINE
            for number, line in enumerate(self.lines(box)):
                yield _text(left, down + LINE * number, line)


def _wrapped(names: Iterable[str]) -> list[str]:
    lines = [""]
    for name in names:
        if lines[-1] and len(lines[-1]) + len(name) + 2 > WRAP:
            lines.append("")
        lines[-1] += (", " if lines[-1] else "") + name
    return lines


def _text(x: float, y: float, words: str, kind: str = "") -> str:
    return f'<text{f" class={kind!r}" if kind else ""} x="{x:.0f}" y="{y:.0f}">{html.escape(words)}</text>'.replace("'", '"')


LANE = 10
"""Distance between arrows that run side by side from package to package."""


def drawing() -> str:
    """The picture as SVG."""
    code = Code()
    core, torch, *hosts = (Package(code, name) for name in PACKAGES)
    across = code.across()
    lanes = {name: sorted({end for _, end in across if end[0] == name}) for name in (core.name, torch.name)}
    over, under = (LANE * (len(lanes[name]) + 1) for name in (core.name, torch.name))
    left = 2.0
    for host in hosts:  # side by side; torch is below them, the core on the right
        host.x, host.y = left, over
        left += host.width + GAP_X
    wide = max(left - GAP_X, torch.width + 2)
    torch.x, torch.y = (wide - torch.width) / 2, over + max(host.height for host in hosts) + under
    core.x, core.y = wide + over, over
    packages = {package.name: package for package in (core, torch, *hosts)}
    parts = [line for package in packages.values() for line in package.draw()]
    parts += [_across(packages[name], packages[end[0]], end, lanes[end[0]].index(end) + 1) for name, end in across]
    width, height = core.x + core.width + 2, max(package.y + package.height for package in (core, torch)) + 2
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
            "<title>The packages of magpolicy, their folders, and what imports what</title>",
            f"<style>{STYLE}</style>",
            '<defs><marker id="head" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
            '<path d="M0 1L7 4L0 7z" fill="#555"/></marker></defs>',
            f'<rect width="{width:.0f}" height="{height:.0f}" fill="#fff"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _across(start: Package, target: Package, end: Box, lane: int) -> str:
    """An arrow from a package to a box of another. Arrows to one box share a lane around that package."""
    x, y, w, h = target.at[end]
    x, y = target.x + x, target.y + y
    above, beside = target.y - LANE * lane, target.x - LANE * lane
    middle = start.x + start.width / 2 + LANE * lane
    if start.y > target.y:  # it lies to the left of its target, and lower
        way = f"M{start.x + start.width:.0f} {start.y + MARGIN + LANE * lane:.0f}H{beside:.0f}"
        way += f"V{above:.0f}" if end in target.rows[0] else ""
    else:
        way = f"M{middle:.0f} {start.y + (start.height if start.y < target.y else 0):.0f}V{above:.0f}"
    if end in target.rows[0]:
        way += f"H{x + w / 2:.0f}V{y:.0f}"
    else:
        way += f"H{beside:.0f}V{y + h / 2:.0f}H{x:.0f}"
    return f'<path class="across" d="{way}"/>'


if __name__ == "__main__":
    TARGET.write_text(drawing(), encoding="utf-8")
