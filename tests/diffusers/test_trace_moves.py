"""A decision stays easy to follow: one step of a pipeline goes through few of our files, and seldom from one to another."""

import pytest

pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from benchmarks.trace_moves import trace_moves

# Changes of file and files, at most. A skip of a plan also forecasts, from several residuals, and notes that.
RULE = {"computed": (45, 18), "skipped": (32, 16)}
PLAN = {"computed": (45, 18), "skipped": (36, 18)}


@pytest.mark.parametrize(("settings", "bounds"), [({}, RULE), ({"speedup": 2.0}, PLAN)], ids=["rule", "plan"])
def test_a_step_goes_through_few_files(settings, bounds):
    for kind, moves in trace_moves(**settings).items():
        changes, files = bounds[kind]
        assert moves.changes <= changes, f"{kind} step: {moves}"
        assert moves.files <= files, f"{kind} step: {moves}"
