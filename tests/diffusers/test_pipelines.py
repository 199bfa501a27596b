"""Real pipelines, attached to: what they return, step for step, against the same pipeline with its steps skipped by hand."""

import pytest

import magpolicy
from magpolicy import Schedule

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from pipes import PIPES  # noqa: E402

from reference import ByHand  # noqa: E402

STEPS, MASK = 6, (1, 1, 0, 1, 0, 0)
STAGGERED = ("staggered",)  # frames at different noise levels in one call: no step of its own, so all of it computes
WAYS = [pytest.param(pipe, way, id=f"{pipe.cls}-{way}") for pipe in PIPES.values() for way in pipe.ways]


@pytest.mark.filterwarnings("ignore:nothing was:UserWarning")  # of the run as a whole
@pytest.mark.parametrize(("case", "way"), [p for p in WAYS if not p.values[1].startswith(STAGGERED)])
def test_every_branch_reuses_its_own_residual(case, way):
    by_hand = case.make()
    with ByHand(case, by_hand, way, STEPS, MASK) as reference:
        expected = case.run(by_hand, way, STEPS)
    if way != "no attention over time":  # Latte without the last block of its stack: every step computes
        assert {computed for *_, computed in reference.did} == {True, False}, "nothing is shown"

    pipe = case.make()
    with magpolicy.attach(pipe, schedule=Schedule.from_mask(MASK)) as handle:
        found = case.run(pipe, way, STEPS)
        assert handle.residuals_held == 0
        reports = handle.reports
    assert torch.equal(found, expected)
    did = [(e.step, not e.decision.skip) for report in reports for e in report.trace]
    assert did == [(step, computed) for _, step, branches, computed in reference.did for _ in branches]


@pytest.mark.sampled
@pytest.mark.parametrize(("case", "way"), WAYS)
def test_a_policy_that_never_skips_changes_nothing(case, way):
    pipe = case.make()
    plain = case.run(pipe, way, 4)
    with magpolicy.attach(pipe, ratios=[1.0] * 4, threshold=0.0, max_skips=0, retention=0.0):
        assert torch.equal(case.run(pipe, way, 4), plain)
    assert torch.equal(case.run(pipe, way, 4), plain)
