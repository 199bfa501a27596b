"""Runs of real models: counts and times are those of the handle's report, and a step goes the way that it goes without."""

import threading

import pytest

import magpolicy

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
from magpolicy_torch import run_step  # noqa: E402


class Block(torch.nn.Module):
    def __init__(self, fail_at=None):
        super().__init__()
        self.fail_at, self.calls = fail_at, 0

    def forward(self, hidden_states):
        self.calls += 1
        if self.calls == self.fail_at:
            raise RuntimeError("out of luck")
        return hidden_states * 1.1


class Net(torch.nn.Module):
    def __init__(self, fail_at=None):
        super().__init__()
        self.blocks = torch.nn.ModuleList([Block(fail_at), Block()])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


MASK = magpolicy.Schedule.from_mask([1, 0, 0, 1, 0, 1])


def check(counted, reports, model):
    """Everything that was counted is in these reports, and the other way round."""
    want = {}
    for report in reports:
        for reason, count in report.reasons.items():
            kind = "skipped" if reason == "reused" else "computed"
            want[kind, reason, model] = want.get((kind, reason, model), 0) + count
    assert counted.by("magpolicy_evaluations_total", "decision", "reason", "model") == want
    assert counted.of("magpolicy_runs_total", model=model) == len(reports)
    calls = [call for report in reports for call in report.calls]
    for kind in (True, False):
        seconds = [call.seconds for call in calls if call.skipped is kind]
        name = "skipped" if kind else "computed"
        assert counted.of("magpolicy_call_duration_seconds_count", decision=name, model=model) == len(seconds)
        assert counted.of("magpolicy_call_duration_seconds_sum", decision=name, model=model) == pytest.approx(sum(seconds))


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.*more often than the run's 6 steps")
def test_a_module(start):
    _, counted = start()
    net, x = Net(), torch.ones(1, 4, 8)
    reports = []
    with magpolicy.attach(net, schedule=MASK) as handle:
        for _ in range(2):
            with handle.run():
                for _ in range(7):  # one more than the run has
                    net(x)
            reports.append(handle.report)
    assert reports[0].reasons["past_end"] == 1
    assert len(reports[0].calls) == 6
    check(counted, reports, "Net")


@torch.no_grad()
def test_a_model_that_raises(start):
    _, counted = start()
    net, x = Net(fail_at=2), torch.ones(1, 4, 8)

    def run(handle):
        with handle.run():
            for _ in range(6):
                net(x)

    with magpolicy.attach(net, schedule=MASK) as handle:
        with pytest.raises(RuntimeError, match="out of luck"):
            run(handle)
        check(counted, [handle.report], "Net")


@torch.no_grad()
def test_several_threads_on_one_model(start):
    _, counted = start()
    net, x, reports = Net(), torch.ones(1, 4, 8), []
    with magpolicy.attach(net, schedule=MASK) as handle:

        def work():
            for _ in range(5):
                with torch.no_grad(), handle.run(), handle.stream("cond", "uncond"):
                    for _ in range(6):
                        net(torch.cat([x, x]))
                    reports.append(handle.report)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(reports) == 20
    check(counted, reports, "Net")


def test_a_loop_without_a_model(start):
    _, counted = start()
    with magpolicy.Session(MASK) as session:
        for _ in range(6):
            run_step(session, torch.ones(1, 4, 8), lambda x: x * 1.1)
    assert counted.by("magpolicy_evaluations_total", "decision", "model") == {("computed", ""): 3, ("skipped", ""): 3}
    assert counted.by("magpolicy_call_duration_seconds_count", "decision") == {("computed",): 3, ("skipped",): 3}


def test_a_pipeline(start):
    pytest.importorskip("diffusers", reason="the diffusers extra is not installed")
    from benchmarks.trace_moves import STEPS, tiny_pipeline

    _, counted = start()
    pipe, reports = tiny_pipeline(), []
    with magpolicy.attach(pipe, speedup=2.0) as handle:
        for seed in range(2):
            pipe(
                prompt_embeds=torch.zeros(1, 4, 32), pooled_prompt_embeds=torch.zeros(1, 32), num_inference_steps=STEPS,
                height=32, width=32, output_type="latent", generator=torch.Generator().manual_seed(seed),
            )  # fmt: skip
            reports.append(handle.report)
    assert sum(report.reasons["reused"] for report in reports) == STEPS
    check(counted, reports, "FluxTransformer2DModel")


def test_a_step_is_as_long_as_without(start):
    pytest.importorskip("diffusers", reason="the diffusers extra is not installed")
    from benchmarks.trace_moves import trace_moves

    without = trace_moves()
    metrics, counted = start()
    with metrics:
        assert trace_moves() == without
        assert counted.of("magpolicy_runs_total") == 3
