"""What one GPU shows, in at most 12 minutes, as a page: ``benchmarks/gpu.sh``.

The sections run one after the other, each in a process of its own with the time that is left, the most wanted first. One that
fails, or for which no time is left, says so on the page; the others stand.

- ``eager``, ``compiled``: a run of FLUX.1-dev and of Wan2.1-1.3B, of their sizes with random bfloat16 weights (speed does not
  depend on their values): plain, by the published rule, by a plan, and by diffusers' MagCache and cache-dit;
- ``offload``: residuals in pinned main memory, copied back while the device works, and what that saves;
- ``graphs``: the same with CUDA graphs (``mode="reduce-overhead"``), in a size where launching costs most;
- ``tests``: those of an accelerator.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SECTIONS = {
    "eager-flux": 100,
    "eager-wan": 150,
    "tests": 60,
    "compiled-flux": 150,
    "offload-flux": 60,
    "compiled-wan": 150,
    "graphs-wide": 90,
}
"""Each with the most seconds that it may take, in the order of interest."""
BUDGET = 700


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu-report"), help="folder for the page")
    parser.add_argument("--tiny", action="store_true", help="a small size, which also runs on a CPU")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all of it")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.section is not None:
        measure(given.section, given.tiny)
        return
    if not given.tiny and device() == "cpu":
        raise SystemExit("torch drives no accelerator here; --tiny shows on a CPU that everything runs")
    until = time.monotonic() + given.budget
    parts = [head(given.tiny)]
    given.output.mkdir(parents=True, exist_ok=True)
    page = given.output / "gpu.md"
    for name in given.sections:
        parts.append(f"## {name}\n\n{section(name, given.tiny, until - time.monotonic())}")
        page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")  # after each: whatever ends this leaves what was measured
        print(parts[-1], flush=True)
    print(f"written: {page}")


def section(name: str, tiny: bool, left: float) -> str:
    """What a section prints; what went wrong where it does not."""
    if left < 10:
        return "Not run: no time was left."
    command = [sys.executable, __file__, "--section", name, *(["--tiny"] if tiny else [])]
    if name == "tests":
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/torch/test_accelerator.py"]
    most, started = min(SECTIONS[name], left), time.monotonic()
    try:
        done = subprocess.run(command, cwd=ROOT, timeout=most, text=True, capture_output=True)
    except subprocess.TimeoutExpired as error:
        so_far = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        return f"{_rows(so_far)}\n\nStopped after {most:.0f} seconds."
    text = _rows(done.stdout)
    if name == "tests":
        last = "\n".join(done.stdout.strip().splitlines()[-12:])
        text = f"```text\n{last}\n```"
    elif done.returncode:
        text += f"\n\nIt failed:\n\n```text\n{done.stderr[-1500:]}\n```"
    return f"{text}\n\n{time.monotonic() - started:.0f} seconds in all."


def _rows(text: str) -> str:
    """The lines of a section's table; peers print much else."""
    return "\n".join(line for line in text.splitlines() if line.startswith("|"))


def head(tiny: bool) -> str:
    import diffusers
    import magpolicy
    import torch

    kind = device()
    named = getattr(torch.get_device_module(kind), "get_device_name", None)
    where = named() if named is not None and kind != "cpu" else f"a CPU ({platform.machine()})"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    lines = [
        f"# Measured on {where}, {datetime.date.today():%Y-%m-%d}",
        "",
        f"magpolicy {magpolicy.__version__} {commit}, torch {torch.__version__}, diffusers {diffusers.__version__}, "
        f"Python {platform.python_version()}. Random weights, one run after a warm one, the median of the repeats.",
    ]
    if tiny:
        lines += ["", "**A tiny size: this shows that everything runs. The figures say nothing.**"]
    return "\n".join(lines)


def device() -> str:
    import torch

    return (torch.accelerator.current_accelerator(True) or torch.device("cpu")).type


def sizes(tiny: bool) -> dict[str, Any]:
    from benchmarks import speed

    if not tiny:
        return {"flux": speed.SIZES["flux"], "wan": speed.SIZES["wan-1.3b"], "wide": speed.SIZES["wide"]}
    flux = speed.Size(
        lambda: speed._flux((2, 2), 2, 16, 32, 32, (4, 6, 6), 16), speed._flux_inputs(64, 16, 32, 32, 16), 8, (64, 32),
        plan="flux.1-dev",
    )  # fmt: skip
    wan = speed.Size(
        lambda: speed._wan(2, 1, 64), speed._video_inputs(1, 8, 8, 16), 8, (16, 128), ("cond", "uncond"), "wan2.1-t2v-1.3b"
    )
    return {"flux": flux, "wan": wan, "wide": flux}


def measure(name: str, tiny: bool) -> None:
    """A section's table: a row for each contender, as it comes."""
    from benchmarks import speed

    import torch

    warnings.simplefilter("ignore")
    how, _, size = name.partition("-")
    kind = device()
    bench = speed.Bench(sizes(tiny)[size], kind, torch.float32 if kind == "cpu" else torch.bfloat16)
    compiled = compilers(how, tiny)
    print("| | seconds a run | speedup | computed | peak GB above the weights |\n|---|---|---|---|---|", flush=True)
    plain = None
    for label, make in contenders(how, bench).items():
        model = bench.model if label == "plain" else _copy(bench.model)
        try:
            with torch.no_grad():
                seconds, peak, computed = _timed(bench, make(model, compiled(model)), 3 if tiny or how == "eager" else 2)
        except Exception as error:
            print(f"| {label} | {type(error).__name__}: {(str(error).splitlines() or [''])[0][:90]} | | | |", flush=True)
            continue
        finally:
            del model
            gc.collect()
        plain = plain or seconds
        print(f"| {label} | {seconds:.3f} | {plain / seconds:.2f} | {computed} | {peak / 1e9:.2f} |", flush=True)


def contenders(how: str, bench: Any) -> dict[str, Callable[[Any, Any], Any]]:
    """What is measured, by its name: each makes a contender of the model and of what calls it."""
    from benchmarks import speed

    import magpolicy

    steps = bench.size.steps
    rule = magpolicy.simulate(bench.size.plan or "flux.1-dev", steps=steps)
    plan = magpolicy.plan(bench.size.plan or "flux.1-dev", steps=steps, speedup=2.0)

    def by(schedule: Any, name: str, **options: Any) -> Callable[[Any, Any], Any]:
        def make(model: Any, call: Any) -> Any:
            handle = magpolicy.attach(call, schedule=schedule, learn=False, **options)
            return speed.Contender(name, call, lambda: handle.run(steps=steps), schedule.mask)

        return make

    made: dict[str, Callable[[Any, Any], Any]] = {"plain": lambda model, call: speed.Contender("plain", call)}
    made["the published rule"] = by(rule, "rule")
    made["a plan, speedup=2"] = by(plan, "plan")
    if how == "offload":
        made["the plan, offload='cpu'"] = by(plan, "offloaded", offload="cpu")
    elif how in ("eager", "compiled"):
        made["diffusers' MagCache, the rule's steps at most"] = lambda model, call: speed.mag_cache(model, call, rule.mask)
        made["cache-dit's DBCache, likewise"] = lambda model, call: speed.dbcache(model, call, rule.mask)
    return made


def compilers(how: str, tiny: bool) -> Callable[[Any], Any]:
    """How a model is compiled; in the tiny size the graphs are taken and nothing is generated, which takes minutes on a CPU."""
    import torch

    if how == "compiled":
        return lambda model: torch.compile(model, backend="eager") if tiny else model.compile_repeated_blocks() or model
    if how == "graphs":
        return lambda model: torch.compile(model, **({"backend": "eager"} if tiny else {"mode": "reduce-overhead"}))
    return lambda model: model


def _copy(model: Any) -> Any:
    import copy

    return copy.deepcopy(model)


def _timed(bench: Any, contender: Any, repeats: int) -> tuple[float, int, str]:
    """Median seconds of a run, the most bytes above what there was before, and how many steps computed, where that is known."""
    steps = bench.size.steps
    bench.loop(contender, steps, looking=False)
    seconds = [sum(bench.loop(contender, steps, looking=False)[0]) for _ in range(repeats)]
    with contextlib.redirect_stderr(open(os.devnull, "w")):
        peak = bench.peak(contender, steps)
    computed = f"{sum(contender.computes)} of {steps}" if contender.computes else f"{steps} of {steps}"
    return statistics.median(seconds), peak, computed if contender.name != "cache-dit DBCache" else "not known"


if __name__ == "__main__":
    main()
