"""``attach(model, speedup=...)`` learns from the runs that are made: measured as they compute, kept, planned from."""

import json
import os
import stat
import subprocess
import sys
import threading
import warnings

import pytest

import magpolicy
from magpolicy import ArgumentError, LibraryWarning, PlanWarning
from magpolicy.adapter import learned

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("cattrs", reason="the files extra is not installed")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from magpolicy_torch.adapter import Learner  # noqa: E402
from magpolicy_torch.residuals import _samples  # noqa: E402
from magpolicy_torch.residuals._samples import HELD, ROWS, ResidualSamples  # noqa: E402

STEPS = 12
ADVICE = "one run with learn='first' computes every step, and teaches more"


def run(handle, steps=STEPS, streams=("single",), key=0, shape=(1, 9, 8), **options):
    """One run of a loop; what it ended at."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(key))
    with handle.run(steps=steps, **options):
        for _ in range(options.get("start", 0), steps):
            for stream in streams:
                with handle.stream(stream):
                    out = handle.module(x)
            x = x - 0.1 * out
    return x


def home():
    from magpolicy import library

    return library()


def files():
    return sorted(home().glob("**/*")) if home().exists() else []


def attach(module, **settings):
    return magpolicy.attach(module, **{"speedup": 2.0, **settings})


def test_the_first_run_goes_by_the_prior_and_the_next_by_what_it_taught(plain):
    with attach(plain.module) as handle:
        run(handle)
        first = handle.report
        assert first.source.startswith("a plan from the general prior")
        assert first.advice == "the next run is planned from what this one teaches; with learn='first' it teaches most"
        run(handle, key=1)
        second = handle.report
        known = learned(handle.identity)
    assert second.source.startswith("a plan from what a run that skipped steps taught on 20")
    assert second.advice == ADVICE
    assert f"by {second.source}" in str(second)
    assert second.computed == first.computed == 6
    assert known.provenance["taught"] == {"whole": True, "full": False, "computed": 6, "runs": 2}
    assert known.sigmas == tuple(1 - i / STEPS for i in range(STEPS))


def test_a_first_run_in_full_teaches_all_and_later_ones_are_not_measured(plain):
    with attach(plain.module, learn="first") as handle:
        run(handle)
        assert handle.report.computed == STEPS
        assert handle.report.source == "learn='first': every step computes, and later runs are planned from it"
        for key in (1, 2):
            run(handle, key=key)
            assert handle.report.computed == 6
            assert handle.report.source.startswith("a plan from what a run in full taught on 20")
            assert handle.report.advice == ""
            assert handle.runs[-1].lesson.samples is None
        known = learned(handle.identity)
    assert known.provenance["taught"] == {"whole": True, "full": True, "computed": STEPS, "runs": 1}


def test_a_longer_run_in_full_takes_the_place_of_a_first_try_of_few_steps(plain):
    for steps, expected in ((4, 4), (STEPS, STEPS), (6, STEPS)):
        with attach(plain.module, speedup=1.0) as handle:
            run(handle, steps=steps)
            assert handle.report.computed == steps
            assert learned(handle.identity).provenance["taught"]["full"] is True
            assert len(learned(handle.identity).sigmas) == expected


def test_one_run_in_full_is_enough_also_if_it_taught_nothing(plain):
    def stopped(handle):
        with handle.run(steps=STEPS):
            raise RuntimeError("stop")

    with attach(plain.module, learn="first") as handle:
        with pytest.raises(RuntimeError, match="stop"):
            stopped(handle)  # none was made
        with pytest.warns(PlanWarning, match="3 steps"):
            run(handle, steps=3)  # too short to teach
        assert handle.report.computed == 2
        assert "teach" not in handle.report.advice
        assert files() == []
        with handle.run(steps=STEPS):
            for _ in range(STEPS):
                handle.module(torch.full((1, 9, 8), float("nan")))
        assert handle.report.computed == STEPS
        assert files() == []
        run(handle)
        assert handle.report.computed == 6
        run(handle, start=4)  # of a part of the schedule it could still teach, if nothing better were known
        assert handle.report.computed < 8


def test_what_a_run_in_full_taught_is_what_a_calibration_measures(plain):
    with attach(plain.module, learn="first") as handle:
        run(handle, streams=("cond", "uncond"))
        found = learned(handle.identity)
    with magpolicy.attach(plain.module, calibrate=True) as handle:
        run(handle, streams=("cond", "uncond"))
        expected = handle.calibration
    for name, moments in expected.streams.items():
        assert found.streams[name].gram == pytest.approx(moments.gram, rel=1e-5, nan_ok=True)
    pair = ("cond", "uncond")
    assert found.cross[pair] == pytest.approx(expected.cross[pair], rel=1e-5, nan_ok=True)


def test_a_run_that_skips_shows_what_it_computed_and_nothing_else(plain):
    """The model is the same function at every step, so every residual that it computes can be made again."""
    with attach(plain.module) as handle:
        run(handle)
        trace = handle.report.trace
        known = learned(handle.identity)
        inputs, computed = [], [entry.step for entry in trace if entry.decision.computes]
        plain.module.register_forward_hook(lambda _, args, out: inputs.append(args[0].clone()), always_call=True)
    x = torch.randn((1, 9, 8), generator=torch.Generator().manual_seed(0))
    residual = plain.module(x) / 2 - x
    assert known.streams["single"].gram[0, 0] == pytest.approx(float(residual.square().mean()), rel=1e-4)
    assert known.provenance["taught"]["computed"] == len(computed) < STEPS


def test_a_later_attach_and_another_handle_know_it(plain):
    with attach(plain.module) as handle:
        run(handle)
    with attach(plain.module) as handle:
        run(handle)
        assert "what a run that skipped steps taught" in handle.report.source
    with attach(plain.module, learn=False) as handle:  # what is known serves all the same
        run(handle)
        assert "what 2 runs that skipped steps taught" in handle.report.source


PROGRAM = """
import sys, torch, magpolicy
torch.manual_seed(0)
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(3))
    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x
with magpolicy.attach(Net(), speedup=2.0) as handle, torch.no_grad():
    with handle.run(steps=12):
        x = torch.ones(1, 4, 8)
        for _ in range(12):
            x = x + 0.1 * handle.module(x)
    print(handle.report.source)
"""


def test_another_process_goes_on_where_the_last_one_left(tmp_path):
    environment = {**os.environ, "MAGPOLICY_HOME": str(tmp_path / "home")}
    said = [
        subprocess.run([sys.executable, "-c", PROGRAM], env=environment, check=True, capture_output=True, text=True).stdout
        for _ in range(2)
    ]
    assert said[0].startswith("a plan from the general prior")
    assert said[1].startswith("a plan from what a run that skipped steps taught")


@pytest.mark.parametrize("settings", [{"learn": False}, {"calibrate": True, "speedup": None}, {"ratios": [1.0] * STEPS}])
def test_nothing_is_written_where_nothing_is_learned(plain, settings):
    with attach(plain.module, **settings) as handle:
        run(handle)
        run(handle)
    assert files() == []


def test_learning_may_be_asked_for_beside_ratios(plain):
    with attach(plain.module, ratios=[1.0] * STEPS, learn=True) as handle:
        run(handle)
        assert "norms of the ratios given" in handle.report.source
        run(handle)
        assert "what a run that skipped steps taught" in handle.report.source


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"calibrate": True, "learn": True, "speedup": None}, "calibrate=True decides already"),
        ({"schedule": magpolicy.Schedule.from_mask([True, False]), "learn": True, "speedup": None}, "the schedule given"),
        (
            {"ratios": [1.0] * 6, "threshold": 0.1, "max_skips": 2, "retention": 0.2, "learn": "first", "speedup": None},
            r"learn='first' plans runs from .*, and the rule on the ratios given decides already; leave learn out",
        ),
        ({"learn": "always"}, "learn='always'"),
    ],
)
def test_learning_where_something_else_decides_is_refused(plain, settings, words):
    with pytest.raises(ArgumentError, match=words):
        attach(plain.module, **settings)


def test_a_calibration_of_the_users_decides_and_nothing_is_learned(plain):
    with magpolicy.attach(plain.module, calibrate=True) as handle:
        run(handle)
        calibration = handle.calibration
    with pytest.raises(ArgumentError, match=r"a plan from calibration 'Net-.*' decides already"):
        attach(plain.module, calibration=calibration, learn=True)
    before = files()
    with attach(plain.module, calibration=calibration) as handle:
        run(handle)
    assert files() == before


def test_a_folder_that_cannot_be_written_is_told_once_and_learning_goes_on(plain, monkeypatch, tmp_path):
    from magpolicy.catalog import _learned

    _learned._told.clear()
    blocked = tmp_path / "file"
    blocked.write_text("a file, where a folder should be")
    monkeypatch.setenv("MAGPOLICY_HOME", str(blocked / "home"))
    with attach(plain.module) as handle:
        with pytest.warns(LibraryWarning, match="what runs teach is not kept"):
            run(handle)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            run(handle)
        assert "what a run that skipped steps taught" in handle.report.source


def test_a_run_that_raised_teaches_nothing(plain):
    def stopped(handle):
        with handle.run(steps=STEPS):
            for _ in range(STEPS):
                handle.module(torch.ones(1, 9, 8))
            raise RuntimeError("stop")

    with attach(plain.module) as handle:
        with pytest.raises(RuntimeError, match="stop"):
            stopped(handle)
        assert handle.runs[-1].lesson.samples is None
    assert files() == []


def test_a_run_that_was_left_early_teaches_nothing(plain):
    with attach(plain.module) as handle, handle.run(steps=STEPS):
        for _ in range(STEPS - 1):
            handle.module(torch.ones(1, 9, 8))
    assert files() == []


def test_a_run_that_goes_on_past_its_end_teaches_nothing(plain):
    """Its steps are not what was said: here two conditions pass for one."""

    def unnamed(handle):
        with handle.run(steps=STEPS):
            for step in range(STEPS):
                for sign in (1, -1):
                    handle.module(sign * torch.ones(1, 9, 8) + step)

    with attach(plain.module) as handle:
        with pytest.warns(UserWarning, match="If guidance calls it twice a step"):
            unnamed(handle)
        assert "with handle.stream" in str(handle.report)
    assert files() == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_run_that_was_not_finite_teaches_nothing(plain, value):
    with attach(plain.module) as handle, handle.run(steps=STEPS):
        for step in range(STEPS):
            handle.module(torch.full((1, 9, 8), value if step == 0 else 1.0))
    assert files() == []


def test_a_run_whose_shape_changes_teaches_nothing(plain):
    with attach(plain.module) as handle, handle.run(steps=STEPS):
        for step in range(STEPS):
            handle.module(torch.ones(1, 9 if step < 5 else 16, 8))
    assert files() == []


def test_a_run_of_a_part_teaches_until_a_whole_one_does(plain):
    with attach(plain.module) as handle:
        run(handle, start=4)
        assert learned(handle.identity).provenance["taught"]["whole"] is False
        run(handle)
        assert "of a part of the schedule, taught on" in handle.report.source
        assert learned(handle.identity).provenance["taught"]["whole"] is True
        run(handle, start=4)
        assert learned(handle.identity).provenance["taught"]["runs"] == 1


def test_streams_of_each_run_have_knowledge_of_their_own(plain):
    with attach(plain.module) as handle:
        run(handle, streams=("cond", "uncond"))
        run(handle)
        assert set(learned(handle.identity, ("cond", "uncond")).streams) == {"cond", "uncond"}
        assert set(learned(handle.identity, ("single",)).streams) == {"single"}


def test_other_weights_are_another_model(plain):
    with attach(plain.module) as handle:
        run(handle)
        with torch.no_grad():
            for parameter in plain.module.parameters():
                parameter.mul_(1.5)
        run(handle)
        assert handle.report.source.startswith("a plan from the general prior")
        run(handle)
        assert "what a run that skipped steps taught" in handle.report.source


def test_threads_that_share_a_handle_all_teach(plain):
    problems = []

    def work(handle, key):
        try:
            with torch.no_grad():
                run(handle, key=key)
        except BaseException as error:
            problems.append(error)

    with attach(plain.module) as handle:
        threads = [threading.Thread(target=work, args=(handle, key)) for key in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert problems == []
        assert learned(handle.identity).provenance["taught"]["runs"] == 3


def test_where_processes_share_the_work_nothing_is_learned(plain, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with attach(plain.module) as handle:
        run(handle)
        assert "the next run" not in handle.report.advice  # no promise that is not kept
    assert files() == []


def test_a_file_that_cannot_be_read_is_passed_over(plain):
    with attach(plain.module) as handle:
        run(handle)
        (file,) = [path for path in files() if path.is_file()]
    file.write_text("{")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with attach(plain.module) as handle:
            run(handle)
            assert handle.report.source.startswith("a plan from the general prior")


def test_what_is_kept_names_no_path(plain, tmp_path):
    with attach(plain.module) as handle:
        run(handle)
    (file,) = [path for path in files() if path.is_file()]
    text = file.read_text()
    assert str(home()) not in text
    assert json.loads(text)["provenance"]["model"] == "Net"
    assert stat.S_ISREG(file.stat().st_mode)


# What measuring costs.


class Counts(TorchDispatchMode):
    """Operations, and the elements that they write."""

    def __init__(self):
        super().__init__()
        self.operations, self.elements = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.operations += 1
        if isinstance(out, torch.Tensor) and function._schema.returns[0].alias_info is None:  # no view
            self.elements += out.numel()
        return out


def test_looking_at_a_residual_costs_one_gather_of_a_few_elements():
    """At the size of FLUX a step is about 10^14 operations, and reads its 24 GB of weights: this is 400,000 elements."""
    samples = ResidualSamples(28)
    residual = torch.empty(1, 4096, 3072, dtype=torch.bfloat16, device="meta")
    samples.add("single", residual, step=0)
    with Counts() as counts:
        for step in range(1, 28):
            samples.add("single", residual, step=step)
    assert counts.operations <= 28 * 5
    assert counts.elements <= 28 * ROWS * 3072
    assert samples.nbytes <= HELD
    assert samples.nbytes / residual.nbytes <= 1.0  # less than one residual, for the whole run


@pytest.mark.parametrize("shape", [(1, 4, 8), (2, 100, 64), (1, 5000, 16), (7,), (1, 30, 3, 16)])
def test_a_few_elements_of_every_channel_stand_for_all(shape):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(2, *shape, generator=generator)
    every = [base[0] + 0.3 * step * base[1] for step in range(6)]
    samples = ResidualSamples(6)
    for step, residual in enumerate(every):
        samples.add("single", residual, step=step)
    flat = torch.stack(every).flatten(1).double()
    exact = (flat @ flat.T / flat.shape[1]).numpy()
    assert samples.measured().gram == pytest.approx(exact, rel=0.1 if flat.shape[1] > 8 * ROWS else 1e-9)


@pytest.mark.parametrize(
    ("steps", "shape", "rows"),
    [
        (28, (1, 200, 3072), 97),  # what 32 MiB hold of 28 steps of 12 kB
        (4, (1, 500, 8), 128),
        (4, (1, 100, 8), 100),
        (28, (1, 2, 300_000), 1),
    ],
)
def test_how_many_elements_of_each_channel_are_looked_at(steps, shape, rows):
    samples = ResidualSamples(steps)
    samples.add("single", torch.zeros(shape), step=0)
    assert samples.nbytes == rows * shape[-1] * 4


@pytest.mark.parametrize("other", [torch.zeros(1, 5, 4), torch.zeros(1, 4, 4, device="meta")], ids=["shape", "device"])
def test_residuals_of_another_shape_or_device_teach_nothing(other):
    samples = ResidualSamples(2)
    for step, residual in enumerate([torch.ones(1, 4, 4), torch.ones(1, 4, 4)]):
        samples.add("single", residual, step=step)
    assert samples.measured() is not None
    samples.add("single", other, step=2)
    assert samples.nbytes == 0
    assert samples.measured() is None


class OtherRank:
    """A group of two ranks, of which the other looked at ``numbers``."""

    def __init__(self, numbers=0.0, alike=True):
        self.numbers, self.alike, self.told = numbers, alike, []

    def ends_alike(self, digest):
        self.told.append(digest)
        return self.alike

    def sum(self, tensor):
        self.mine = tensor
        return tensor + self.numbers


def test_ranks_have_the_mean_of_what_each_looked_at():
    every = torch.randn(2, 1, 16, 8, generator=torch.Generator().manual_seed(0))

    def looked_at(tokens, first=0):
        samples = ResidualSamples(4)
        for step, residual in enumerate(every, first):
            samples.add("single", residual[:, tokens], step=step)
        return samples

    theirs = OtherRank()
    looked_at(slice(6, 16)).measured(theirs)
    mine = OtherRank(theirs.mine)
    found = looked_at(slice(6)).measured(mine)
    assert found.gram == pytest.approx(looked_at(slice(16)).measured().gram)
    assert mine.told == theirs.told
    later, nothing = OtherRank(), OtherRank()
    looked_at(slice(6), first=1).measured(later)
    assert ResidualSamples(4).measured(nothing) is None
    assert len({*mine.told, *later.told, *nothing.told}) == 3
    assert looked_at(slice(6)).measured(OtherRank(alike=False)) is None


def test_products_are_summed_in_pieces(monkeypatch):
    residuals = torch.randn(3, 1, 7, 3, generator=torch.Generator().manual_seed(0))
    flat = residuals.flatten(1).double()
    for chunk in (1, 12, 10_000):
        monkeypatch.setattr(_samples, "CHUNK", chunk)
        samples = ResidualSamples(3)
        for step, residual in enumerate(residuals):
            samples.add("single", residual, step=step)
        assert samples.measured().gram == pytest.approx((flat @ flat.T / 21).numpy())


def test_a_residual_of_one_number_is_looked_at_too():
    samples = ResidualSamples(4)
    samples.add("single", torch.tensor(3.0), step=0)
    assert samples.measured().gram[0, 0] == pytest.approx(9.0)


def test_channels_that_are_large_are_all_seen():
    residual = torch.ones(1, 4096, 64)
    residual[..., 7] = 100.0
    samples = ResidualSamples(4)
    samples.add("single", residual, step=0)
    assert samples.measured().gram[0, 0] == pytest.approx(float(residual.square().mean()))


def test_channels_may_stand_elsewhere():
    residual = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    first, last = ResidualSamples(4), ResidualSamples(4)
    first.add("single", residual, 1, step=0)
    last.add("single", residual.movedim(1, -1), step=0)
    assert first.measured().gram == pytest.approx(last.measured().gram)


def test_a_residual_that_cannot_be_looked_at_does_not_stop_the_run(plain, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(ResidualSamples, "_few", fail)
    with attach(plain.module) as handle:
        run(handle)
        assert handle.report.computed == 6
    assert files() == []


def test_nothing_is_measured_where_nothing_is_asked_for(plain):
    with attach(plain.module, learn=False) as handle:
        run(handle)
        assert handle.runs[-1].lesson is None
    assert Learner.of(handle._request, lambda: handle.identity) is None


@pytest.mark.parametrize("steps", [2, 3, 4])
def test_a_run_is_planned_where_the_processor_takes_the_smallest_numbers_for_0(steps):
    if not torch.set_flush_denormal(True):
        pytest.skip("the processor does not flush denormal numbers")
    try:
        for count in (steps, 8):
            assert magpolicy.plan(None, steps=count, speedup=2).mask[0]
    finally:
        torch.set_flush_denormal(False)
