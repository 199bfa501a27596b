"""Would our own tests notice? Small mistakes are made in the code one at a time, and the tests of that module run.

``python tools/mutants.py --sample 60 session`` tries so many in one module; without a module, in all. They are made in a copy
of the clone. What survives is printed with its change. cosmic-ray makes the mistakes (the extra ``mutants``).
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cosmic_ray.commands.init import _all_work_items
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.work_item import MutationSpec, TestOutcome, WorkerOutcome

ROOT = Path(__file__).parents[1]
CORE = "src/magpolicy"
MODULES: dict[str, tuple[str, str]] = {
    "policy": (f"{CORE}/policy/_policy.py", "test_policy_states test_laws test_reference_decisions test_session_machine"),
    "step_table": (f"{CORE}/policy/_step_table.py", "test_reference_decisions test_laws test_placing"),
    "session": (f"{CORE}/run/_session.py", "test_policy_states test_session_machine test_arguments test_forecasts test_prior"),
    "objective": (f"{CORE}/planning/_objective.py", "test_plan test_distance"),
    "trajectory": (f"{CORE}/planning/_trajectory.py", "test_trajectory test_distance test_plan"),
    "safeguard": (f"{CORE}/planning/_safeguard.py", "test_forecasts"),
    "trust": (f"{CORE}/planning/_trust.py", "test_prior"),
    "replan": (f"{CORE}/planning/_replan.py", "test_forecasts"),
    "gram": (f"{CORE}/calibration/_gram.py", "test_calibration test_prior test_plan test_forecasts"),
    "store": ("adapters/magpolicy_torch/residuals/_store.py", "../torch/test_residuals ../torch/test_prefetch"),
}
"""By name, a module and the tests (in ``tests/core``) that are to notice, the quickest first."""
NO_MISTAKES = ("ExceptionReplacer", "RemoveDecorator", "ReplaceBinaryOperator_BitOr", "VariableInserter", "VariableReplacer")
"""Operators whose changes are none here: ``|`` stands in annotations, which are not run; classes need their decorators."""


def mistakes(module: str) -> Iterator[MutationSpec]:
    """All that can be made in a module."""
    for item in _all_work_items([Path(module)], {}):
        yield from (one for one in item.mutations if not any(part in one.operator_name for part in NO_MISTAKES))


def noticed(mistake: MutationSpec, tests: list[str], timeout: float) -> tuple[str, str]:
    """What became of a mistake, and the change."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", *tests]
    result = mutate_and_test([mistake], " ".join(command), timeout)
    if result.worker_outcome is not WorkerOutcome.NORMAL or result.test_outcome is TestOutcome.INCOMPETENT:
        return "none", ""
    return result.test_outcome.value, result.diff


def campaign(name: str, sample: int, seed: int, timeout: float) -> tuple[int, int]:
    """Try a sample of one module's mistakes: how many were noticed, and how many there were."""
    module, tested = MODULES[name]
    tests = [str(Path("tests/core", f"{test}.py")) for test in tested.split()]
    every = list(mistakes(module))
    if subprocess.run([sys.executable, "-m", "pytest", "-q", "-x", *tests], stdout=subprocess.DEVNULL, check=False).returncode:
        raise SystemExit(f"{name}: its tests fail without any mistake")
    chosen = random.Random(seed).sample(every, min(sample, len(every)))
    killed = valid = 0
    for mistake in chosen:
        outcome, change = noticed(mistake, tests, timeout)
        valid += outcome != "none"
        killed += outcome == "killed"
        if outcome == "survived":
            lines = [line for line in change.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
            print(f"survived in {name}, line {mistake.start_pos[0]}:", *lines, sep="\n", flush=True)
    print(f"{name}: {killed} of {valid} noticed, of {len(every)} that can be made", flush=True)
    return killed, valid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", default=list(MODULES), choices=list(MODULES))
    parser.add_argument("--sample", type=int, default=60, help="mistakes tried in each module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=600, help="seconds; what takes longer counts as noticed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "clone")
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        for file in filter(None, listed.split("\0")):
            if (ROOT / file).is_file():
                (copy / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / file, copy / file)
        os.chdir(copy)
        os.environ["PYTHONPATH"] = os.pathsep.join(str(copy / part) for part in ("src", "adapters", "examples", ""))
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # a change within one second would not be seen
        figures = [campaign(name, options.sample, options.seed, options.timeout) for name in options.modules]
        os.chdir(ROOT)
    killed, valid = map(sum, zip(*figures, strict=True))
    print(f"together: {killed} of {valid} noticed, {killed / max(valid, 1):.1%}")


if __name__ == "__main__":
    main()
