"""Context parallelism of diffusers, over two ranks: runs skip what one process skips, and come out the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from harness import Pair
from split_models import SPLITS, WAYS, SplitModel, planned, splitting

CLOSE = 1e-5  # attention in parts sums in another order
STEPS = 8
RATIOS = [1.0, 0.99, 0.98, 1.01, 0.97, 0.99, 0.98, 0.96]
LIMITS: dict[str, Any] = {"threshold": 0.05, "max_skips": 2, "retention": 0.2}
FORECAST = [0, 0, 0, (0.8, 0.2), (1.5, 0.9), 0, 0.7, 0]  # from two residuals before the newest, and from one
ONE, TWO, TOGETHER = ((1,),), ((1,), (2,)), ((1, 2),)
"""The texts of each call of a step: no guidance, guidance in two calls, and in one."""


def test_no_class_with_a_plan_is_missing() -> None:
    assert SPLITS.keys() == planned()


def distance(ours: list[Any], theirs: list[Any]) -> float:
    """Largest difference of any two tensors, over the largest value."""
    pairs = [pair for one, other in zip(ours, theirs, strict=True) for pair in zip(one, other, strict=True)]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def apart(tables: list[Any]) -> float:
    """Largest difference of pairs of tables, as shares of the largest value of each: where all ranks hold all tokens, sums over
    them are twice what one process has."""
    import numpy as np

    return float(max(np.nanmax(abs(b / np.nanmax(abs(b)) - a / np.nanmax(abs(a)))) for a, b in tables))


def in_a_loop(
    split: SplitModel,
    way: str = "",
    order: str = "after",
    texts: Any = ONE,
    changing: bool = False,
    **settings: Any,
) -> tuple[list[Any], Any]:
    """A run of ``STEPS`` steps: the result of each call, and the handle.

    Args:
        split: the model.
        way: how it is split; "" for one process.
        order: whether it is attached to ``"before"`` it is split, or ``"after"`` that.
        texts: of each call of a step.
        changing: whether each step has other noise, so that residuals jump; else they go smoothly with the level.
        settings: of ``attach``.
    """
    from zoo._case import Draw, Row

    import magpolicy

    model, results = split.case.make(), []
    if way and order == "after":
        split.enable(model, way)
    with magpolicy.attach(model, **settings) as handle:
        if way and order == "before":
            split.enable(model, way)
        with handle.run(steps=STEPS):
            for step in range(STEPS):
                handle.go_to(step)
                for call in texts:
                    draw = Draw(tuple(Row(changing and step, text) for text in call), level=1 - step / STEPS)
                    with handle.stream(*(f"text {text}" for text in call)):
                        results.append(split.call(model, draw))
    return results, handle


def ways_of(cls: str) -> dict[str, Any]:
    """How far each way is from one process, and what it skipped."""
    import magpolicy

    split, rule = SplitModel(cls), {"ratios": RATIOS, **LIMITS}
    with splitting():
        alone, handle = in_a_loop(split, changing=True, **rule)
        full, _ = in_a_loop(split, changing=True, schedule=magpolicy.Schedule.from_mask([1] * STEPS))
        found: dict[str, Any] = {"alone": handle.report.schedule.mask, "skips matter": distance(alone, full)}
        for way in WAYS:
            for order in ("after",) if "anything" in way else ("before", "after"):
                results, handle = in_a_loop(split, way, order, changing=True, **rule)
                found[f"{way} {order}"] = distance(results, alone), handle.report.schedule.mask, handle.report.problems
    return found


@pytest.mark.sampled
@pytest.mark.parametrize("cls", SPLITS)
def test_each_class_skips_as_in_one_process(pair: Pair, cls: str) -> None:
    import magpolicy

    expected = list(magpolicy.simulate(RATIOS, **LIMITS).mask)
    for found in pair(ways_of, cls=cls):
        assert list(found.pop("alone")) == expected
        assert found.pop("skips matter") > 100 * CLOSE
        for name, (far, mask, problems) in found.items():
            assert list(mask) == expected, (name, problems)
            assert far < CLOSE, name


def together(cls: str, what: str) -> dict[str, Any]:
    """Split models with something else on them besides, and how far they are from one process."""
    from diffusers.hooks import apply_group_offloading
    from zoo._case import Draw

    import magpolicy
    import torch

    split, schedule = SplitModel(cls), magpolicy.Schedule.from_mask([1, 0, 1, 0, 0, 1])
    settings = {"schedule": schedule, "scope": "model" if what == "whole model" else "stack"}
    cpu, results = torch.device("cpu"), []
    with splitting():
        for splits in (False, True):
            model = split.case.make()
            if splits:
                split.enable(model, "ulysses")
            if splits and what == "group offloading":
                apply_group_offloading(model, onload_device=cpu, offload_device=cpu, num_blocks_per_group=1)
            if splits and what == "compiled":
                model.compile(backend="eager")
            if splits and what == "compiled blocks":
                model.compile_repeated_blocks(backend="eager")
            with magpolicy.attach(model, **settings) as handle, handle.run():
                results.append([split.call(model, Draw(level=1 - step / 6)) for step in range(6)])
    return {"distance": distance(*results), "strip": handle.report.strip, "problems": handle.report.problems}


@pytest.mark.parametrize(
    ("cls", "what"),
    [
        ("QwenImageTransformer2DModel", "group offloading"),
        ("WanTransformer3DModel", "group offloading"),
        ("QwenImageTransformer2DModel", "whole model"),
        ("QwenImageTransformer2DModel", "compiled"),
        pytest.param("WanTransformer3DModel", "compiled blocks", marks=pytest.mark.slow),
    ],
)
def test_together_with(pair: Pair, cls: str, what: str) -> None:
    for found in pair(together, cls=cls, what=what):
        assert found["strip"] == "█·█··█", found["problems"]
        assert found["distance"] < CLOSE


def gathered_by_the_last_block() -> dict[str, Any]:
    """A plan of a user's: the stack is entered with a share, and left with the whole."""
    import warnings

    from zoo._case import Draw

    import magpolicy
    from diffusers import ContextParallelConfig

    split, results = SplitModel("WanTransformer3DModel"), []
    with splitting(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for splits in (False, True):
            model = split.case.make()
            schedule = magpolicy.Schedule.from_mask([1, 1, 1] if not splits else [1, 0, 0])
            if splits:
                plan = dict(model._cp_plan)
                plan["blocks.2"] = plan.pop("proj_out")
                model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2), cp_plan=plan)
            with magpolicy.attach(model, schedule=schedule) as handle, handle.run():
                results.append([split.call(model, Draw(level=1 - step / 3)) for step in range(3)])
    told = [str(warning.message) for warning in caught if "nothing was skipped" in str(warning.message)]
    return {"distance": distance(*results), "strip": handle.report.strip, "told": told}


def test_a_plan_that_gathers_within_the_stack_computes_and_says_so(pair: Pair) -> None:
    for found in pair(gathered_by_the_last_block):
        assert found["strip"] == "███"
        assert found["distance"] < CLOSE
        assert len(found["told"]) == 1
        assert "WanTransformer3DModel computes: block 2 (WanTransformerBlock) returned something other" in found["told"][0]


UNEVEN = ("FluxTransformer2DModel", "HeliosTransformer3DModel", "MiniMaxH3Transformer3DModel", "QwenImageTransformer2DModel")
"""Those that the zoo gives an odd number of tokens, of text or of all."""


def uneven(cls: str) -> dict[str, Any]:
    import magpolicy

    split, schedule = (
        SplitModel(cls, even=False),
        magpolicy.Schedule.from_mask([not c for c in FORECAST], coefficients=FORECAST),
    )
    found = {}
    with splitting():
        alone, _ = in_a_loop(split, schedule=schedule)
        for way in ("ulysses anything", "ring anything"):
            results, handle = in_a_loop(split, way, schedule=schedule)
            found[way] = distance(results, alone), handle.report.skipped, handle.report.problems
    return found


@pytest.mark.parametrize("cls", UNEVEN)
def test_shares_of_unequal_length(pair: Pair, cls: str) -> None:
    for found in pair(uneven, cls=cls):
        for way, (far, skipped, problems) in found.items():
            assert skipped == 3, (way, problems)
            assert far < CLOSE, way


def collectives() -> dict[str, list[int]]:
    """How many the third call, computed, and the fourth, skipped, issue on this rank."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from zoo._case import Draw

    import magpolicy

    class Counted(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += "c10d" in function.namespace and not any(word in function.__name__ for word in ("wait", "wrap"))
            return function(*args, **(kwargs or {}))

    found = {}
    with splitting():
        for cls in SPLITS:
            split = SplitModel(cls)
            model = split.case.make()
            split.enable(model, "ulysses")
            with magpolicy.attach(model, schedule=magpolicy.Schedule.from_mask([1, 0, 1, 0])) as handle, handle.run():
                for step in range(4):
                    with Counted() as counted:
                        split.call(model, Draw(level=1 - step / 4))
                    found.setdefault(cls, []).append(counted.count)
    return found


def test_a_skip_issues_no_collective_but_the_hosts_own_outside_of_the_stack(pair: Pair) -> None:
    found, other = pair(collectives)
    assert found == other
    # Helios gathers within its blocks. MiniMax-H3 gathers video and audio, and two blocks for text attend before the stack.
    own = {"HeliosTransformer3DModel": 0, "MiniMaxH3Transformer3DModel": 2 + 2 * 4}
    for cls, counts in found.items():
        assert counts[3] == own.get(cls, 1), (cls, counts)
        assert counts[2] > counts[3]


def forecasts_of(cls: str, extra: str, texts: Any) -> dict[str, Any]:
    """Skips that forecast, and what a calibration measures; beside one process."""

    import magpolicy

    split = SplitModel(cls, extra)
    computed = [not c for c in FORECAST]
    schedule = magpolicy.Schedule.from_mask(computed, coefficients=FORECAST)
    with splitting():
        alone, handle = in_a_loop(split, texts=texts, schedule=schedule)
        held, _ = in_a_loop(split, texts=texts, schedule=magpolicy.Schedule.from_mask(computed))
        found: dict[str, Any] = {"forecasts": [handle.report.forecasts], "forecasts matter": distance(alone, held)}
        ours, handle = in_a_loop(split, "ulysses", texts=texts, schedule=schedule)
        found["distance"], found["problems"] = distance(ours, alone), handle.report.problems
        found["forecasts"].append(handle.report.forecasts)

        one = in_a_loop(split, texts=texts, calibrate=True)[1].calibration
        both = in_a_loop(split, "ulysses", texts=texts, calibrate=True)[1].calibration
        tables = [(one.streams[name].gram, both.streams[name].gram) for name in one.streams]
        tables += [(one.cross[names], both.cross[names]) for names in one.cross]
        found["calibration"] = apart(tables) if one.streams.keys() == both.streams.keys() else 1.0

        planned = magpolicy.plan(one, speedup=1.6)
        alone, _ = in_a_loop(split, texts=texts, calibration=one, speedup=1.6)
        ours, handle = in_a_loop(split, "ulysses", texts=texts, calibration=one, speedup=1.6)
        found["planned"] = distance(ours, alone), list(handle.report.schedule.mask) == list(planned.mask)
    return found


INSIDE = [cls for cls in SPLITS if cls.startswith(("ChronoEdit", "MiniMaxH3", "QwenImage", "Wan"))]
"""Those whose plan splits at the first block."""
EXTRAS = [
    pytest.param(cls, extra, texts, id=f"{cls}-{extra or 'plain'}-{name}")
    for cls, split in SPLITS.items()
    for extra in ("", *split.extras)
    for name, texts in (("one call", TOGETHER), *([("two calls", TWO)] if cls in INSIDE else ()))
]


@pytest.mark.sampled
@pytest.mark.parametrize(("cls", "extra", "texts"), EXTRAS)
def test_forecasts_and_calibrations_are_those_of_one_process(pair: Pair, cls: str, extra: str, texts: Any) -> None:
    for found in pair(forecasts_of, cls=cls, extra=extra, texts=texts):
        assert found["forecasts"] == [6, 6]
        assert found["forecasts matter"] > 100 * CLOSE
        assert found["distance"] < CLOSE, found["problems"]
        assert found["calibration"] < 1e-6
        assert found["planned"][0] < CLOSE
        assert found["planned"][1]


PIPES = {
    "WanPipeline": ("cfg", {}),
    "WanPipeline two experts": ("cfg", {}),
    "WanPipeline expanded timesteps": ("cfg", {}),
    "QwenImagePipeline": ("true cfg", {"": (6, 8), "negative_": (6, 8)}),
    "FluxPipeline": ("true cfg", {"": (6, 8), "negative_": (6, 8)}),
    "Flux2Pipeline": ("distilled", {"": (6, 8)}),
}
"""Of each pipeline: how its guidance is called, and the shapes of text that two ranks can share, where the plan splits it."""


class Film:
    """A pipeline of the test's, in one process or split."""

    def __init__(self, cls: str, way: str = "") -> None:
        from pipes import PIPES as FOUND

        self.case = FOUND[cls]
        self.pipe = self.case.make()
        self.denoisers = [getattr(self.pipe, name) for name in self.case.denoisers]
        for denoiser in self.denoisers if way else ():
            SplitModel(type(denoiser).__name__).enable(denoiser, way)

    def run(self, steps: int = 12, seed: int = 0) -> Any:
        from pipes._case import random

        import torch

        guidance, texts = PIPES[self.case.cls]
        more: dict[str, Any] = {}
        for sign, (tokens, channels) in texts.items():
            more[f"{sign}prompt_embeds"] = random(1, tokens, channels, seed=1 + len(sign))
            if "Qwen" in self.case.cls:
                more[f"{sign}prompt_embeds_mask"] = torch.ones(1, tokens, dtype=torch.long)
        return self.case.run(self.pipe, guidance, steps, seed, **more)


def pipelines(cls: str) -> dict[str, Any]:
    import magpolicy
    import torch

    found: dict[str, Any] = {}
    with splitting():
        with magpolicy.attach((alone := Film(cls)).pipe, calibrate=True) as handle:
            alone.run()
            one = handle.calibration
        with magpolicy.attach(
            (both := Film(cls, "ulysses")).pipe, calibrate=True, reduce=torch.distributed.all_reduce
        ) as handle:
            both.run()
            two = handle.calibration
        for name, calibration in (("one's", one), ("both's", two)):
            results = []
            for film in (alone, both):
                with magpolicy.attach(film.pipe, calibration=calibration, speedup=2.0) as handle:
                    results.append(film.run())
                    found[f"{name} {len(results)}"] = handle.report.strip, handle.report.skipped, handle.report.problems
            found[name] = distance([[results[1]]], [[results[0]]])
        found["full"] = distance([[alone.run()]], [[results[0]]])
    return found


@pytest.mark.sampled
@pytest.mark.parametrize("cls", PIPES)
def test_pipelines_come_out_as_in_one_process(pair: Pair, cls: str) -> None:
    first, second = pair(pipelines, cls=cls)
    assert first == second
    for name in ("one's", "both's"):
        assert first[f"{name} 1"] == first[f"{name} 2"]
        assert first[f"{name} 2"][1] == 6
        assert first[name] < CLOSE
    assert first["full"] > 100 * CLOSE


def safeguarded(cls: str) -> dict[str, Any]:
    """A run whose residuals jump by a plan of one whose residuals did not, beside one process."""
    split, texts = SplitModel(cls), TWO
    with splitting():
        smooth = in_a_loop(split, texts=texts, calibrate=True)[1].calibration
        settings = {"texts": texts, "changing": True, "calibration": smooth, "speedup": 1.6, "safeguard": True}
        alone, one = in_a_loop(split, **settings)
        ours, both = in_a_loop(split, "ulysses", **settings)
    replans = [[(r.step, r.stream, r.outcome, round(r.measured, 4)) for r in handle.report.replans] for handle in (one, both)]
    return {"replans": replans, "strips": [one.report.strip, both.report.strip], "distance": distance(ours, alone)}


@pytest.mark.parametrize("cls", ["FluxTransformer2DModel", "QwenImageTransformer2DModel", "WanTransformer3DModel"])
def test_a_safeguard_leaves_the_plan_where_one_process_does(pair: Pair, cls: str) -> None:
    first, second = pair(safeguarded, cls=cls)
    assert first == second
    assert first["replans"][0]
    assert first["replans"][0] == first["replans"][1]
    assert first["strips"][0] == first["strips"][1]
    assert first["distance"] < CLOSE


def learning(cls: str, way: str) -> dict[str, Any]:
    """Two runs, of which the second one goes by what the first has taught."""
    import magpolicy
    from magpolicy.adapter import learned

    with splitting():
        film = Film(cls, way)
        with magpolicy.attach(film.pipe) as handle:
            results = [[film.run()], [film.run()]]
            known, report = learned(handle.identity), handle.report
    grams = {name: moments.gram for name, moments in known.streams.items()}
    return {"results": results, "told": (report.strip, report.source), "taught": grams}


@pytest.mark.sampled
@pytest.mark.parametrize("cls", PIPES)
def test_runs_teach_what_they_teach_one_process(pair: Pair, cls: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = pair(learning, cls=cls, way="ulysses")
    monkeypatch.setenv("MAGPOLICY_HOME", str(tmp_path))
    alone = learning(cls, "")  # here: one of several processes that share nothing learns nothing
    assert "taught" in alone["told"][1]
    for found in both:
        assert found["told"] == alone["told"]
        assert distance(found["results"], alone["results"]) < CLOSE
        assert apart([(alone["taught"][name], gram) for name, gram in found["taught"].items()]) < CLOSE
