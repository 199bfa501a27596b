"""The kept figures as a table and plots: docs/explanation/quality-figures.md and docs/assets/quality-*.svg."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.quality import run
from benchmarks.quality.models import MODELS
from benchmarks.quality.sampling import SAMPLERS
from benchmarks.quality.sweep import KINDS, targets

ROOT = Path(__file__).parents[2]
PAGE, ASSETS = ROOT / "docs/explanation/quality-figures.md", ROOT / "docs/assets"
SLACK = 0.02  # of the full run's work, less than one step; given to everybody, ours never need it
SHOWN = {"ours": "#c1121f", "ablation": "#6a4c93", "baseline": "#6c757d", "other": "#1d6fa5"}
Rows = list[dict[str, Any]]
Curves = dict[str, tuple[list[float], list[float]]]


def load(model: str, sampler: str) -> tuple[dict[str, Any], Rows] | None:
    path = run.path_of(model, sampler)
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    return found["about"], [row for row in found["rows"].values() if row["method"] == "full" or row["method"] in KINDS]


def best(rows: Rows, method: str, share: float, work: str) -> dict[str, Any] | None:
    """The row of a method with the highest PSNR among those that do at most ``share`` of the work."""
    within = [r for r in rows if r["method"] == method and r[work] <= share + SLACK]
    return max(within, key=lambda r: r["psnr"], default=None)


def table(about: dict[str, Any], rows: Rows, work: str) -> str:
    """Methods against 1/2, 2/5 and 1/3 of the work: PSNR to the full run, SSIM, and PSNR to the fine reference."""
    shares = [k / about["steps"] for k in targets(about["steps"])]
    head = ["method", *(f"{k} of {about['steps']}" for k in targets(about["steps"]))]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for method in KINDS:
        cells = [_cell(best(rows, method, share, work)) for share in shares]
        if any(cell != "–" for cell in cells):
            lines.append("| " + " | ".join([method, *cells]) + " |")
    return "\n".join(lines)


def _cell(row: dict[str, Any] | None) -> str:
    return "–" if row is None else f"{row['psnr']:.1f} / {row['ssim']:.3f} / {row['psnr_fine']:.1f}"


def front(rows: Rows, work: str) -> Rows:
    """Rows that no row with less work beats."""
    found: Rows = []
    for row in sorted(rows, key=lambda r: (r[work], -r["psnr"])):
        if not found or row["psnr"] > found[-1]["psnr"]:
            found.append(row)
    return found


def curves(rows: Rows) -> Curves:
    """Work and PSNR of each method's front, of those that have one in the range that is drawn."""
    found = {}
    for method in KINDS:
        points = front([r for r in rows if r["method"] == method and 0.15 < r["fraction_all"] < 0.72], "fraction_all")
        if points:
            found[method] = [r["fraction_all"] for r in points], [r["psnr"] for r in points]
    return found


def plot(title: str, shown: Curves, path: Path) -> None:
    """Draw them, narrow and with the names below: what is read on a telephone is as wide as that."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    below = 0.2 + 0.19 * len(shown)  # inches
    figure, axes = plt.subplots(figsize=(5.4, 4.3 + below))
    styles: dict[str, int] = {}
    for method, (x, y) in shown.items():
        kind = KINDS[method]
        styles[kind] = styles.get(kind, -1) + 1
        mark, dash = "os^Dvx*"[styles[kind] % 7], ("-", "--", ":", "-.")[styles[kind] % 4]
        width = 2.2 if kind in ("ours",) else 1.1
        color = plt.get_cmap("tab20")(2 * styles[kind] % 20) if kind == "other" else SHOWN[kind]
        axes.plot(x, y, mark, linestyle=dash, color=color, linewidth=width, markersize=4, label=method)
    axes.set_xlabel("share of the full run's block computations")
    axes.set_ylabel("PSNR to the full run, dB")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    figure.legend(fontsize=9.5, loc="lower left", frameon=False, handlelength=3)
    figure.tight_layout(rect=(0, below / figure.get_figheight(), 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def write() -> None:
    parts = [
        "# Quality figures",
        "",
        "Written by `python -m benchmarks.quality`; what is compared and what follows: [Quality](quality.md).",
    ]
    for model in MODELS:
        for sampler in SAMPLERS:
            found = load(model, sampler)
            if found is None:
                continue
            about, rows = found
            versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
            parts += ["", f"## {about['title']}, {sampler}", ""]
            parts += [
                f"{about['samples']} samples, {about['steps']} steps; {about['date']}, {about['machine']}, {versions}.",
                "",
            ]
            parts += ["Cells: PSNR to the full run (dB) / SSIM / PSNR to the 150-step reference. All work counted:", ""]
            parts += [table(about, rows, "fraction_all"), ""]
            parts += ["The first block, which probing rules always run, not counted:", "", table(about, rows, "fraction"), ""]
            picture = ASSETS / f"quality-{model}-{sampler}.svg"
            plot(f"{about['title']}, {about['steps']} steps, {about['sampler']}", curves(rows), picture)
            parts += [f"![PSNR against work](../assets/{picture.name})"]
    PAGE.write_text("\n".join(parts) + "\n")
