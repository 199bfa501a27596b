"""``attach(model, speedup=...)``: each run follows the plan for its own noise levels."""

import pytest

import magpolicy
from magpolicy import ArgumentError, Decision, Schedule, plan
from magpolicy.adapter import CallDecision

torch = pytest.importorskip("torch", reason="the torch extra is not installed")

SIGMAS = [1 - i / 20 for i in range(20)]


def levels(steps):
    return [1 - i / steps for i in range(steps)]


@pytest.fixture
def drifting(kit):
    """A model called on inputs that move slowly, and its calibration."""

    class Drifting:
        def __init__(self):
            torch.manual_seed(0)
            self.module = kit.Net().eval().requires_grad_(False)
            self.start, self.end = kit.noise(1, (1, 9, 8)), kit.noise(2, (1, 9, 8))
            with magpolicy.attach(self.module, calibrate=True) as handle:
                self.run(handle, SIGMAS)
                self.calibration = handle.calibration

        def run(self, handle, sigmas, *, start=0, streams=("single",)):
            with handle.run(sigmas=sigmas, start=start):
                for sigma in sigmas[start:]:
                    for place, stream in enumerate(streams):
                        with handle.stream(stream):
                            self.module((1 + place) * (sigma * self.start + (1 - sigma) * self.end))

        def planned(self, sigmas, *, start=0, **settings):
            with magpolicy.attach(self.module, calibration=self.calibration, **settings) as handle:
                self.run(handle, sigmas, start=start)
                return handle.report

    return Drifting()


@pytest.mark.parametrize("steps", [8, 13, 20, 30])
@pytest.mark.parametrize("target", [{"speedup": 2.0}, {"computed": 5}, {"error": 0.05}], ids=str)
def test_a_run_follows_the_plan_for_its_levels(drifting, steps, target):
    report = drifting.planned(levels(steps), **target)
    expected = plan(drifting.calibration, sigmas=levels(steps), **target)
    assert report.schedule == expected
    assert report.forecasts == sum(map(bool, expected.coefficients[0]))


def test_one_handle_plans_every_run_anew(drifting):
    with magpolicy.attach(drifting.module, calibration=drifting.calibration, speedup=2.0) as handle:
        for steps in (8, 20, 8):
            drifting.run(handle, levels(steps))
            assert handle.report.schedule == plan(drifting.calibration, sigmas=levels(steps), speedup=2.0)


def test_settings_of_a_plan_reach_it(drifting):
    settings = {"speedup": 1.6, "max_skips": 1, "retention": 0.2, "forced": [-1], "forecast": "hold"}
    report = drifting.planned(SIGMAS, **settings)
    assert report.schedule == plan(drifting.calibration, sigmas=SIGMAS, **settings)
    assert report.strip.startswith("████")
    assert report.strip.endswith("█")
    assert "··" not in report.strip
    assert report.forecasts == 0


def test_a_run_of_part_of_the_steps_gets_the_whole_speedup(drifting):
    report = drifting.planned(SIGMAS, start=8, speedup=2.0)
    assert len(report.strip) == 12
    assert report.computed == 6
    assert report.schedule.first_step == 8
    assert report.strip[0] == "█"
    expected = plan(drifting.calibration, sigmas=SIGMAS, part=(8, 20), speedup=2.0)
    assert report.schedule.mask == expected.mask
    assert report.forecasts == sum(map(bool, expected.coefficients[0]))


@pytest.mark.parametrize(("settings", "forecasts"), [({}, 5), ({"forecast": "hold"}, 0)], ids=["default", "hold"])
def test_ratios_alone_are_planned_with_forecasts_unless_told_to_hold(plain, settings, forecasts):
    ratios = [1.0, 1.1, 1.05, 1.02, 1.01, 1.0, 0.99, 0.98, 0.96, 0.9]
    with magpolicy.attach(plain.module, ratios=ratios, speedup=2.0, **settings) as handle:
        with handle.run():
            for key in range(10):
                plain(key)
        assert handle.report.schedule == plan(ratios, speedup=2.0, **settings)
        report = handle.report
        doubtful = report.held.get("doubtful", 0)  # such noise keeps no direction
        assert (report.computed, report.forecasts + doubtful) == (5, forecasts)
        assert ("does not keep its direction" in str(report)) == bool(doubtful) == bool(forecasts)


def test_a_plan_is_not_disturbed_by_streams_it_does_not_know(drifting):
    with magpolicy.attach(drifting.module, calibration=drifting.calibration, speedup=2.0) as handle:
        drifting.run(handle, SIGMAS, streams=("cond", "uncond"))
        expected = plan(drifting.calibration, sigmas=SIGMAS, speedup=2.0).mask
        assert handle.report.schedule.stream_mask("cond") == handle.report.schedule.stream_mask("uncond") == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"speedup": 0.5}, "speedup=0.5"),
        ({"speedup": 2.0, "computed": 5}, "speedup=2, computed=5 given: pass one"),
        ({"speedup": 2.0, "threshold": 0.1}, "threshold=0.1 is for the rule"),
        ({"speedup": 2.0, "semantics": "diffusers"}, "is for the rule"),
        ({"speedup": 20.0, "steps": 20, "max_skips": 1}, "20"),
        ({"computed": 0}, "computed=0"),
        ({"error": -1}, "error=-1"),
        ({"speedup": 2.0, "forecast": "psychic"}, "forecast='psychic'"),
        ({"speedup": 2.0, "schedule": Schedule.from_mask([1, 0])}, "pass one of"),
        ({"speedup": 2.0, "calibrate": True}, "pass one of"),
    ],
    ids=str,
)
def test_what_makes_no_sense_fails_before_anything_is_patched(drifting, settings, message):
    with pytest.raises(ArgumentError, match=message):
        magpolicy.attach(drifting.module, calibration=drifting.calibration, **settings)
    assert "forward" not in vars(drifting.module)


@pytest.mark.parametrize("other", [{"schedule": Schedule.from_mask([1, 0])}, {"calibrate": True}], ids=str)
def test_where_there_is_nothing_to_plan(plain, other):
    with pytest.raises(ArgumentError, match="leave speedup out"):
        magpolicy.attach(plain.module, speedup=2.0, **other)


def test_a_run_that_cannot_have_the_target_goes_by_the_nearest_plan(drifting):
    with magpolicy.attach(drifting.module, calibration=drifting.calibration, speedup=8.0, max_skips=2) as handle:
        with pytest.warns(magpolicy.PlanWarning, match="speedup=8 cannot be had in a run of"):
            drifting.run(handle, SIGMAS)
        assert handle.report.schedule == plan(drifting.calibration, sigmas=SIGMAS, computed=handle.report.computed, max_skips=2)


def test_a_run_that_skips_nothing_is_not_told_how_to_come_closer_to_itself(drifting):
    with magpolicy.attach(drifting.module, speedup=1.0, learn=False) as handle:
        drifting.run(handle, SIGMAS)
        assert (handle.report.skipped, handle.report.advice) == (0, "")
        assert "closer to the full run" not in str(handle.report)


def test_a_module_of_which_nothing_is_known(drifting):
    """By the general prior alone, at the noise levels of the run."""
    with pytest.raises(ArgumentError, match="has no preset, and the rule needs magnitude ratios"):
        magpolicy.attach(drifting.module, rule="published")
    with magpolicy.attach(drifting.module) as handle:
        drifting.run(handle, SIGMAS)
        assert handle.report.schedule == plan(None, sigmas=SIGMAS, speedup="balanced")
        assert handle.report.source == "a plan from the general prior, norms taken for constant"
        assert "closer to the full run: the next run is planned from what this one teaches" in str(handle.report)
        with pytest.raises(ArgumentError, match="how long is the run"), handle.run():
            pass


def test_levels_outside_what_was_calibrated_compute(drifting):
    report = drifting.planned([2.0, 1.5, *SIGMAS[1:]], speedup=1.5)
    assert report.strip.startswith("██")
    assert {e.decision for e in report.trace[:2]} == {Decision.SCHEDULED}


def test_a_plan_from_a_file(drifting, tmp_path):
    pytest.importorskip("cattrs", reason="the files extra is not installed")
    file = tmp_path / "mine.json"
    drifting.calibration.save(file)
    with magpolicy.attach(drifting.module, calibration=file, speedup=2.0) as handle:
        drifting.run(handle, SIGMAS)
        assert handle.report.schedule == plan(drifting.calibration, sigmas=SIGMAS, speedup=2.0)


# The safeguard


class Jump:
    """A model whose residual turns elsewhere than when it was calibrated, from one step on."""

    def __init__(self, kit, drifting, at):
        self.drifting, self.at, self.other = drifting, at, kit.noise(9, (1, 9, 8))

    def run(self, handle, streams=("single",)):
        drifting = self.drifting
        with handle.run(sigmas=SIGMAS):
            for step, sigma in enumerate(SIGMAS):
                x = sigma * drifting.start + (1 - sigma) * drifting.end + (3 * self.other if step >= self.at else 0)
                if len(streams) == 1:
                    drifting.module(x)
                else:
                    with handle.stream(*streams):
                        drifting.module(torch.cat([x] * len(streams)))


def test_a_run_as_calibrated_is_left_alone(drifting):
    report = drifting.planned(SIGMAS, speedup=2.0, safeguard=True)
    assert report.replans == ()
    assert report.schedule == plan(drifting.calibration, sigmas=SIGMAS, speedup=2.0)


@pytest.mark.parametrize("streams", [("single",), ("cond", "uncond")], ids=len)
def test_a_run_that_goes_elsewhere_is_planned_anew(drifting, kit, streams):
    planned = plan(drifting.calibration, sigmas=SIGMAS, speedup=3.0)
    at = 6
    with magpolicy.attach(drifting.module, calibration=drifting.calibration, speedup=3.0, safeguard=True) as handle:
        Jump(kit, drifting, at).run(handle, streams)
        report = handle.report
        assert handle.residuals_held == 0
    first = report.replans[0]
    computed = [i for i, computes in enumerate(planned.mask) if computes]
    assert first.step == next(i for i in computed if i >= at), "it shows at the first computed step"
    assert first.measured > 2 * first.expected
    assert report.computed > planned.computed
    assert report.schedule.mask[: first.step + 1] == planned.mask[: first.step + 1]
    assert f"left its plan at step {first.step}" in str(report)
    with magpolicy.attach(drifting.module, calibration=drifting.calibration, speedup=3.0) as handle:
        Jump(kit, drifting, at).run(handle, streams)
        assert handle.report.schedule.mask == planned.mask, "without the safeguard, it isn't looked at"


def test_the_next_run_begins_with_the_plan_again(drifting, kit):
    with magpolicy.attach(drifting.module, calibration=drifting.calibration, speedup=3.0, safeguard=True) as handle:
        Jump(kit, drifting, 6).run(handle)
        assert handle.report.replans
        drifting.run(handle, SIGMAS)
        assert handle.report.schedule == plan(drifting.calibration, sigmas=SIGMAS, speedup=3.0)
        assert handle.report.replans == ()


def test_what_is_measured_is_the_error_of_the_forecast(drifting, kit, monkeypatch):
    told = []
    commit = CallDecision.commit

    def noted(call, revised=None, errors=None, cosines=None):
        told.extend((call.step, error) for error in (errors or {}).values())
        commit(call, revised, errors, cosines)

    monkeypatch.setattr(CallDecision, "commit", noted)
    residuals = []
    for sigma in SIGMAS:
        x = sigma * drifting.start + (1 - sigma) * drifting.end
        residuals.append(drifting.module(x) / 2 - x)
    report = drifting.planned(SIGMAS, speedup=2.0, safeguard=True)
    schedule = plan(drifting.calibration, sigmas=SIGMAS, speedup=2.0)
    computed = [i for i, computes in enumerate(schedule.mask) if computes]
    assert [step for step, _ in told] == [i for i in computed if schedule.checks[0][i] is not None] != []
    for step, error in told:
        p, j = ([0, *[i for i in computed if i < step]])[-2:]
        (c,) = schedule.checks[0][step][0] or (0.0,)
        forecast = residuals[j] + c * (residuals[j] - residuals[p])
        assert error == pytest.approx(float((residuals[step] - forecast).norm() / residuals[step].norm()), rel=1e-2, abs=1e-5)
    assert report.replans == ()


def test_run_step_is_guarded_too(drifting, kit):
    from magpolicy_torch import run_step

    other = kit.noise(9, (1, 9, 8))
    with magpolicy.Session(drifting.calibration, sigmas=SIGMAS, speedup=3.0, safeguard=True) as session:
        for step, sigma in enumerate(SIGMAS):
            x = sigma * drifting.start + (1 - sigma) * drifting.end + (3 * other if step >= 6 else 0)
            run_step(session, x, drifting.module)
        assert session.replans


@pytest.mark.parametrize(("shape", "channel_dim"), [((1, 5000, 8), -1), ((1, 8, 4, 3000), 1), ((7,), -1), ((3, 4), -1)])
def test_the_error_is_measured_on_a_part_of_the_tokens(shape, channel_dim):
    from magpolicy_torch import ResidualStore

    generator = torch.Generator().manual_seed(0)
    before, last, new = (torch.randn(shape, generator=generator) for _ in range(3))
    store = ResidualStore()
    store.put("a", before)
    store.put("a", last, keep=2)
    true = (new - last - 0.5 * (last - before)).norm() / new.norm()
    assert float(store.error("a", new, (0.5,), channel_dim)) == pytest.approx(float(true), rel=0.03)
    assert float(store.error("a", new, (), channel_dim)) == pytest.approx(float((new - last).norm() / new.norm()), rel=0.03)
    assert store.error("a", new.double(), (0.5,), channel_dim) is None
    assert store.error("b", new, (), channel_dim) is None


# The report's schedule


def stated(schedule):
    return schedule.masks, schedule.coefficients, schedule.modelled, schedule.checks


@pytest.mark.parametrize("settings", [{}, {"forecast": "calibrated"}, {"forecast": "hold"}, {"objective": "latent"}], ids=str)
def test_the_report_states_the_plan_whole(drifting, settings):
    report = drifting.planned(SIGMAS, speedup=2.5, **settings)
    expected = plan(drifting.calibration, sigmas=SIGMAS, speedup=2.5, **settings)
    assert stated(report.schedule) == stated(expected)
    assert report.schedule.sigmas == expected.sigmas == tuple(SIGMAS)
    assert report.schedule.planned
    assert report.schedule.worst == expected.worst > 0
    expected_errors = magpolicy.expected_errors(drifting.calibration, expected)
    for schedule in (report.schedule, Schedule.from_dict(report.schedule.to_dict())):
        assert magpolicy.expected_errors(drifting.calibration, schedule) == expected_errors


def test_the_report_of_a_part_of_the_run_states_its_plan(drifting):
    report = drifting.planned(SIGMAS, start=8, speedup=2.0)
    expected = plan(drifting.calibration, sigmas=SIGMAS, part=(8, 20), speedup=2.0)
    assert stated(report.schedule) == stated(expected)
    assert report.schedule.sigmas == expected.sigmas == tuple(SIGMAS[8:])


def test_the_report_of_a_run_that_was_planned_anew_states_what_was_followed(drifting, kit):
    with magpolicy.attach(drifting.module, calibration=drifting.calibration, speedup=3.0, safeguard=True) as handle:
        Jump(kit, drifting, 6).run(handle)
        report = handle.report
    followed = report.replans[-1].schedule
    assert report.schedule.coefficients == followed.coefficients
    assert report.schedule.modelled == followed.modelled


def test_the_report_states_no_forecast_that_was_not_made(drifting):
    schedule = plan(drifting.calibration, sigmas=SIGMAS, speedup=2.5)
    with magpolicy.attach(drifting.module, schedule=schedule, forecast="hold") as handle:
        drifting.run(handle, SIGMAS)
        held = handle.report.schedule
    assert any(map(any, schedule.coefficients))
    assert not any(map(any, held.coefficients))
    assert [e for e, c in zip(held.modelled[0], schedule.coefficients[0], strict=True) if c and e] == []


@pytest.mark.parametrize("forecast", ["linear", "calibrated"])
def test_the_report_of_the_rule_states_its_forecasts(drifting, forecast):
    rule = {"threshold": 0.3, "max_skips": 3, "retention": 0.1, "forecast": forecast}
    report = drifting.planned(SIGMAS, **rule)
    assert report.schedule.coefficients == magpolicy.simulate(drifting.calibration, sigmas=SIGMAS, **rule).coefficients
    assert any(report.schedule.coefficients[0])
    assert report.schedule.sigmas == tuple(SIGMAS)
