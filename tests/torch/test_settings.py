"""Settings of one request: with handle.settings(...)."""

import threading

import pytest

import magpolicy
from magpolicy import ArgumentError, RunError, Schedule

torch = pytest.importorskip("torch", reason="the torch extra is not installed")


def run(handle, case, steps=8):
    with handle.run(steps=steps):
        for _ in range(steps):
            case()
    return handle.report.computed


def test_they_hold_inside_and_the_inner_ones_win(plain):
    with magpolicy.attach(plain.module, speedup=2.0, learn=False) as handle:
        assert run(handle, plain) == 4
        with handle.settings(speedup=4.0):
            assert run(handle, plain) == 2
            with handle.settings(computed=6):
                assert run(handle, plain) == 6
            with handle.settings(speedup=None):
                assert run(handle, plain) == 4
            with handle.settings(speedup=1), handle.run(steps=8):
                with handle.settings(speedup=4.0):
                    for _ in range(8):
                        plain()
                assert handle.report.computed == 8, "a run keeps the settings that it began with"
            assert run(handle, plain) == 2
            with handle.settings(schedule=Schedule.from_mask([1, 0] * 4)):
                assert run(handle, plain) == 4
            with handle.settings(ratios=[1.0] * 8, threshold=0.1, max_skips=3, retention=0.1):
                assert run(handle, plain) == 2
                with handle.settings(speedup=2.0):
                    assert run(handle, plain) == 4
            with handle.settings(calibrate=True):
                assert run(handle, plain) == 8
                assert handle.calibration.steps == 8
        assert run(handle, plain) == 4


def test_wrong_ones_are_told_at_once(plain):
    with magpolicy.attach(plain.module, speedup=2.0, learn=False) as handle:
        for wrong, message in (
            ({"speedup": 0.5}, r"speedup=0\.5"),
            ({"scope": "model"}, r"settings\(scope=...\) is settled when a model is attached; attach again"),
            ({"sppedup": 2}, r"settings\(sppedup=...\) is not known; settings takes speedup"),
            ({"speedup": 2, "error": 0.1}, "pass one of speedup, computed and error"),
            ({"storage_dtype": torch.int8}, "storage_dtype"),
        ):
            with pytest.raises(ArgumentError, match=message), handle.settings(**wrong):
                pytest.fail("they were taken")
        assert run(handle, plain) == 4


def test_two_that_alternate_are_planned_once_each(plain, monkeypatch):
    from magpolicy.run._planned import Plan

    planned, plan = [], Plan._plan
    monkeypatch.setattr(Plan, "_plan", lambda self, *of: planned.append(self.target.speedup) or plan(self, *of))
    with magpolicy.attach(plain.module, speedup=2.0, learn=False) as handle:
        for _ in range(5):
            for speed in (2.0, 4.0):
                with handle.settings(speedup=speed):
                    run(handle, plain)
        assert sorted(planned) == [2.0, 4.0]
        for count in range(200):
            with handle.settings(speedup=1 + count / 100):
                pass
        assert len(handle._known) <= 64


def test_threads_have_their_own(plain):
    found = {}
    with magpolicy.attach(plain.module, speedup=2.0, learn=False) as handle:

        def work(speed):
            with handle.settings(speedup=speed):
                found[speed] = [run(handle, plain) for _ in range(3)]

        def without():
            found["none"] = run(handle, plain)

        with handle.settings(speedup=8.0):
            threads = [threading.Thread(target=work, args=(speed,)) for speed in (1, 2, 4)]
            threads.append(threading.Thread(target=without))
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert found == {1: [8] * 3, 2: [4] * 3, 4: [2] * 3, "none": 4}


def test_they_end_with_an_exception(plain):
    with magpolicy.attach(plain.module, speedup=2.0, learn=False) as handle:
        with pytest.raises(RunError, match="mine"), handle.settings(speedup=4.0):
            raise RunError("mine")
        assert run(handle, plain) == 4
