"""Forecasts through real pipelines: they return what the same pipeline returns with forecast residuals put in by hand."""

import pytest

import magpolicy
from magpolicy import Schedule

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from pipes import PIPES  # noqa: E402

from reference import ByHand  # noqa: E402

pytestmark = pytest.mark.sampled

MASK = (1, 1, 0, 1, 0, 0)
COEFFICIENTS = ((), (), (0.6,), (), (-0.4, 0.3), (0.8,))
NEVER_SKIPS = ("staggered", "no attention over time")
# What is left of its batch when guidance goes off looks like another branch: it starts afresh, and holds.
ANOTHER_BRANCH = ("HiDreamImagePipeline", "cfg off at half")
WAYS = [
    pytest.param(pipe, way, id=f"{pipe.cls}-{way}")
    for pipe in PIPES.values()
    for way in pipe.ways
    if not way.startswith(NEVER_SKIPS) and (pipe.cls, way) != ANOTHER_BRANCH
]


@pytest.mark.parametrize(("case", "way"), WAYS)
def test_every_branch_reuses_its_own_forecast(case, way):
    by_hand = case.make()
    with ByHand(case, by_hand, way, len(MASK), MASK, COEFFICIENTS) as reference:
        expected = case.run(by_hand, way, len(MASK))

    pipe = case.make()
    schedule = Schedule.from_mask(MASK, coefficients=COEFFICIENTS)
    with magpolicy.attach(pipe, schedule=schedule) as handle:
        found = case.run(pipe, way, len(MASK))
        assert handle.residuals_held == 0
        forecasts = sum(report.forecasts for report in handle.reports)
    assert forecasts == reference.forecasts > 0
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)

    with magpolicy.attach(pipe, schedule=schedule, forecast="hold") as handle:
        held = case.run(pipe, way, len(MASK))
    assert not torch.allclose(held, expected, rtol=1e-3, atol=1e-4), "nothing is shown"
