"""Faults beside a run: in another thread or task, in a process that was forked or started, in a generator closed elsewhere."""

import asyncio
import contextvars
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import magpolicy

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from injection import Faults  # noqa: E402
from scenes import PLAN, STEPS, LoopScene, decided, footprint  # noqa: E402
from zoo._case import Draw  # noqa: E402


@pytest.fixture
def loop():
    return LoopScene(Faults())


def test_a_thread_that_fails_leaves_the_others_alone(loop):
    before, handle = footprint(loop), loop.attach()
    wanted, results, errors = loop.run(), {}, []
    halfway = threading.Barrier(3, timeout=60)

    def work(name, fails):
        def met():  # each is in the middle of its run when one of them fails
            met.steps += 1
            if met.steps == STEPS // 2:
                halfway.wait()
                if fails:
                    raise KeyboardInterrupt

        met.steps = 0
        try:
            results[name] = loop.run(met), decided(handle)
        except KeyboardInterrupt as error:
            errors.append(error)

    trace = decided(handle)
    threads = [threading.Thread(target=work, args=(n, n == 1)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 1
    assert set(results) == {0, 2}
    assert all(torch.equal(result, wanted) and made == trace for result, made in results.values())
    assert not handle.running
    assert handle.residuals_held == 0
    handle.detach()
    assert footprint(loop) == before


def test_a_task_that_is_cancelled_leaves_the_others_alone(loop):
    before, handle = footprint(loop), loop.attach()
    wanted = loop.run()
    trace = decided(handle)

    async def run():
        outputs = []
        with torch.no_grad(), handle.run():
            for step in range(STEPS):
                outputs += loop.step(step)
                await asyncio.sleep(0)
        return torch.stack(outputs), decided(handle)

    async def main():
        tasks = [asyncio.create_task(run()) for _ in range(3)]
        for _ in range(3):
            await asyncio.sleep(0)
        tasks[1].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, cancelled, last = asyncio.run(main())
    assert isinstance(cancelled, asyncio.CancelledError)
    for result, made in (first, last):
        assert torch.equal(result, wanted)
        assert made == trace
    assert not handle.running
    handle.detach()
    assert footprint(loop) == before


@pytest.mark.parametrize("end", ["closed", "dropped", "closed in another context", "closed in another thread"])
def test_a_run_in_a_generator_that_is_not_ended(loop, end):
    before, handle = footprint(loop), loop.attach()
    wanted = loop.run()
    trace = decided(handle)

    def run():
        with torch.no_grad(), handle.run():
            for step in range(STEPS):
                loop.step(step)
                yield

    for steps in range(1, STEPS):
        generator = run()
        for _ in range(steps):
            next(generator)
        if end == "closed":
            generator.close()
        elif end == "closed in another context":
            contextvars.copy_context().run(generator.close)
        elif end == "closed in another thread":
            thread = threading.Thread(target=generator.close)
            thread.start()
            thread.join()
        del generator
        assert not handle.running
        assert handle.residuals_held == 0
        torch.set_grad_enabled(True)  # no_grad of torch itself does not survive a generator that is closed elsewhere
        assert torch.equal(loop.run(), wanted)
        assert decided(handle) == trace
    handle.detach()
    assert footprint(loop) == before


FORKS = """
import os, sys
import torch
torch.set_num_threads(1)
from injection import Faults
from scenes import STEPS, LoopScene, decided
loop, during = LoopScene(Faults()), sys.argv[1] == "in the middle of one"
handle = loop.attach()
wanted = loop.run()
trace, child = decided(handle), []
def fork():
    fork.passed += 1
    if fork.passed == STEPS // 2 and not child:
        child.append(os.fork())
fork.passed = 0 if during else STEPS
if not during:
    child.append(os.fork())
result = loop.run(fork)
same = torch.equal(result, wanted) and decided(handle) == trace and handle.residuals_held == 0
handle.detach()
if child[0] == 0:
    os._exit(0 if same else 1)
_, status = os.waitpid(child[0], 0)
assert same
assert os.waitstatus_to_exitcode(status) == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("during", ["before a run", "in the middle of one"])
def test_a_process_forks(during):
    """In a process of one thread: where torch has computed with several, what is forked cannot compute, with us or without."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", FORKS, during], env=environment, check=True, timeout=300)


ARRIVED = """
import pickle, sys
import magpolicy, torch
from zoo import CASES
from zoo._case import Draw
model = pickle.load(open(sys.argv[1], "rb"))
assert magpolicy.attached(model) == ()
with torch.no_grad():
    torch.save(CASES["WanTransformer3DModel"].call(model, Draw())[0], sys.argv[2])
with magpolicy.attach(model, steps=6):
    pass
"""


def test_a_model_is_sent_to_a_process_that_is_started(loop, tmp_path):
    model = loop.case.make()
    plain = pickle.dumps(model)
    with torch.no_grad(), magpolicy.attach(model, steps=STEPS, schedule=PLAN) as handle, handle.run(), handle.stream("cond"):
        before = [loop.case.call(model, Draw(level=1 - step / STEPS)) for step in range(STEPS - 1)]
        sent = pickle.dumps(model)
    assert len(before) == STEPS - 1
    assert len(sent) == len(plain)
    assert b"magpolicy" not in sent
    (tmp_path / "model").write_bytes(sent)
    paths = os.pathsep.join([str(Path(__file__).parents[1] / "diffusers"), *sys.path])
    command = [sys.executable, "-c", ARRIVED, str(tmp_path / "model"), str(tmp_path / "result")]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, check=True, timeout=300)
    with torch.no_grad():
        here = loop.case.call(model, Draw())[0]
    torch.testing.assert_close(torch.load(tmp_path / "result"), here)  # another process may use other threads
