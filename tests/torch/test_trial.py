"""``magpolicy_torch.trial``: schedules carried out in a loop of one's own."""

import math
import warnings

import pytest

import magpolicy
from magpolicy import AdapterError, ArgumentError, RunError, Schedule, plan, refine

torch = pytest.importorskip("torch", reason="the torch extra is not installed")

from magpolicy_torch import trial  # noqa: E402

SIGMAS = [1 - i / 10 for i in range(10)]
EVERY = Schedule.from_mask([True] * 10)


@pytest.fixture
def module(kit):
    torch.manual_seed(0)
    return kit.Net().eval().requires_grad_(False)


@pytest.fixture
def loop(module):
    """Starts from noise, and moves along what the model says."""

    def denoise(handle):
        x = torch.randn(1, 9, 8)
        with handle.run(sigmas=SIGMAS):
            for sigma, following in zip(SIGMAS, [*SIGMAS[1:], 0.0], strict=True):
                x = x + (following - sigma) * module(x)
        return x

    return denoise


@pytest.fixture
def calibration(module, loop):
    with magpolicy.attach(module, calibrate=True) as handle:
        loop(handle)
        return handle.calibration


def by_hand(module, loop, schedule, seed):
    torch.manual_seed(seed)
    with magpolicy.attach(module, schedule=schedule) as handle:
        return loop(handle).double()


def test_the_error_is_the_mean_squared_difference(module, loop, calibration):
    schedule = plan(calibration, computed=4)
    pairs = [(by_hand(module, loop, schedule, s), by_hand(module, loop, EVERY, s)) for s in (1, 2)]
    run = trial(module, loop, seeds=(1, 2))
    state = torch.get_rng_state()
    assert run(schedule) == pytest.approx(sum(float((a - b).square().mean()) for a, b in pairs) / 2, rel=1e-9)
    assert run(schedule) > 0
    assert run(EVERY) == 0
    assert torch.equal(torch.get_rng_state(), state)


def test_refining_with_it(module, loop, calibration):
    run = trial(module, loop)
    refined = refine(calibration, run, computed=[3, 5], runs=20)
    assert refined.runs <= 20
    assert [run(s) for s in refined.schedules] == list(refined.errors)
    assert refined.errors[0] <= run(plan(calibration, computed=3))


def test_several_tensors_and_arrays_are_compared(module, loop, calibration):
    schedule = plan(calibration, computed=4)
    one = trial(module, loop)(schedule)
    assert trial(module, lambda h: {"a": [loop(h)], "b": None})(schedule) == one
    assert trial(module, lambda h: loop(h).numpy())(schedule) == one
    assert trial(module, lambda h: (loop(h), torch.zeros(3)))(schedule) == pytest.approx(one / 2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_the_worst_for_refine(module, loop, calibration, value):
    def overflowing(handle):
        x = loop(handle)
        return x * value if handle.report.computed == 3 else x

    run = trial(module, overflowing)
    assert not math.isfinite(run(plan(calibration, computed=3)))
    assert math.isfinite(run(plan(calibration, computed=4)))
    with pytest.raises(ArgumentError, match="run gave no number"):
        refine(calibration, run, computed=3, runs=4)


def test_what_fails_leaves_the_model_as_it_was(module, loop):
    def failing(handle):
        with handle.run(steps=10):
            module(torch.zeros(1, 9, 8))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        trial(module, failing)(EVERY)
    with pytest.raises(ArgumentError, match="no tensor to compare"):
        trial(module, lambda h: [loop(h), None][1])(EVERY)
    with pytest.raises(RunError, match="there was no run yet"):
        trial(module, lambda h: torch.zeros(3))(EVERY)
    assert "forward" not in vars(module)
    run = trial(module, loop)
    with magpolicy.attach(module, schedule=EVERY):
        for again in (lambda: run(EVERY), lambda: trial(module, loop)):
            with pytest.raises(AdapterError, match="attached already; detach"):
                again()
    assert run(EVERY) == 0


@pytest.mark.parametrize(
    ("fits", "words"),
    [
        (5, "7 steps were computed, 5 planned"),
        (0, "nothing was skipped of what was to be"),
    ],
)
def test_a_run_that_computes_what_was_to_be_skipped_is_told_once(module, loop, fits, words):
    """By the handle, where it skipped nothing; by the trial, where it skipped some."""

    def other_shapes(handle):
        with handle.run(sigmas=SIGMAS):
            for place in range(10):
                module(torch.zeros(1, 9 if place % 2 and place > fits else 4, 8))  # another shape: nothing can be reused
        return torch.zeros(1)

    run = trial(module, other_shapes)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run(Schedule.from_mask([True, False] * 5))
    assert [words in str(each.message) for each in told] == [True]


def test_options_are_attachs(module, loop, calibration):
    whole = trial(module, loop, options={"scope": "model"})
    assert whole(EVERY) == 0
    assert whole(plan(calibration, computed=4)) > 0
    with pytest.raises(ArgumentError, match=r"options\['schedule'\] is given"):
        trial(module, loop, options={"schedule": EVERY})
