"""Speed of the core, as ratios measured in one run: ``python benchmarks/core.py`` (needs the ``demo`` extra).

Compared: a decision against the arithmetic the reference implementations do per step (a numpy 0-d array as in the official
scripts, a torch 0-d tensor as in diffusers), and against one evaluation of the demo model; ``import magpolicy`` against
``import numpy`` in fresh processes; ``simulate``, a setting of a ``sweep`` and a run of a ``Session`` against the decisions in
them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

import magpolicy
import torch
from magpolicy_demo import loop, model

RATIOS = magpolicy.preset("wan2.1-t2v-1.3b").curve.ratios["cond"]
SETTINGS = {"threshold": 0.12, "max_skips": 4, "retention": 0.2}


def per_call(function: Callable[[], object], calls: int, repeats: int = 15) -> float:
    """Processor time of one of ``calls`` calls in seconds: the least of all repeats, which other programs disturb least."""
    times = []
    for _ in range(repeats):
        started = time.process_time()
        for _ in range(calls):
            function()
        times.append((time.process_time() - started) / calls)
    return min(times)


def run_of_a_session() -> None:
    with magpolicy.Session(RATIOS, **SETTINGS) as session:
        for _ in RATIOS:
            session.decide("cond")
            session.commit()


def reference(ratios: object) -> None:
    """The per-step arithmetic of the published loops: accumulate, count, compare, reset."""
    product, error, count = 1.0, 0.0, 0
    for step in range(len(RATIOS)):
        if step >= 10:
            product = product * ratios[step]  # type: ignore[index]
            count += 1
            error = error + abs(1.0 - product)
            if not (error < 0.12 and count <= 4):
                product, error, count = 1.0, 0.0, 0


def import_time(statement: str, repeats: int = 11) -> float:
    times = []
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, "-c", statement], check=True, env=environment)  # compiled files are written once
    for _ in range(repeats):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", statement], check=True, env=environment)
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    steps = len(RATIOS)
    policy = magpolicy.MagPolicy(RATIOS, **SETTINGS)

    def decide_all() -> None:
        policy.reset()
        for _ in range(steps):
            policy.decide()

    ours = per_call(decide_all, 200) / steps
    by_numpy = per_call(lambda: reference(np.array(RATIOS)), 50) / steps
    by_torch = per_call(lambda: reference(torch.tensor(RATIOS)), 20) / steps
    ratios = f"numpy 0-d arithmetic takes {by_numpy / ours:.1f} times that, torch {by_torch / ours:.1f}"
    print(f"decide(): {ours * 1e6:.2f} us a step; {ratios}")

    network = model.load()
    with torch.inference_mode():
        tokens, labels = loop.noise_for(0, 10), torch.arange(10)
        step = per_call(lambda: model.velocity(network, tokens, torch.full((10,), 0.5), labels), 3)
    print(f"decide() is {100 * ours / step:.4f}% of one evaluation of the demo model ({step * 1e3:.1f} ms)")

    empty = import_time("pass")
    numpy_alone, name_alone, all_of_it = (
        import_time(s) - empty for s in ("import numpy", "import magpolicy", "import magpolicy; magpolicy.simulate")
    )
    print(
        f"import magpolicy takes {name_alone / numpy_alone:.2f} times import numpy, and {all_of_it / numpy_alone:.2f} times it "
        f"once simulate is used ({1e3 * numpy_alone:.0f} ms)"
    )

    bare = ours * steps
    preview = per_call(lambda: magpolicy.simulate(RATIOS, **SETTINGS), 100)
    print(f"simulate, {steps} steps: {preview / bare:.1f} times its decisions ({1e6 * preview:.0f} us)")
    session = per_call(run_of_a_session, 30)
    print(f"a run of a Session, {steps} steps: {session / bare:.1f} times its decisions ({1e6 * session:.0f} us)")
    started = time.process_time()
    table = magpolicy.sweep(
        RATIOS,
        thresholds=[i / 250 for i in range(1, 101)],
        max_skips=range(1, 11),
        retentions=[i / 25 for i in range(10)],
    )
    took = time.process_time() - started
    print(f"sweep of {len(table):,} settings: {took / len(table) / bare:.1f} times its decisions ({took:.2f} s)")


if __name__ == "__main__":
    main()
