"""Context parallelism of diffusers, over two ranks: runs skip what one process skips, and come out the same."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from harness import Pair
from split_models import SPLITS, WAYS, SplitModel, planned, splitting

CLOSE = 1e-5  # attention in parts sums in another order
STEPS = 8
RULE: dict[str, Any] = {
    "ratios": [1.0, 0.99, 0.98, 1.01, 0.97, 0.99, 0.98, 0.96],
    "threshold": 0.05,
    "max_skips": 2,
    "retention": 0.2,
}


def test_no_class_with_a_plan_is_missing() -> None:
    assert SPLITS.keys() == planned()


def distance(ours: list[Any], theirs: list[Any]) -> float:
    """Largest difference of any two tensors, over the largest value."""
    pairs = [pair for one, other in zip(ours, theirs, strict=True) for pair in zip(one, other, strict=True)]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def in_a_loop(split: SplitModel, model: Any, settings: dict[str, Any], way: str = "", order: str = "after", **options: Any):
    """A run of ``STEPS`` steps: the result of each call, and the handle's report."""
    from zoo._case import Draw, Row

    import magpolicy

    rows = options.get("rows", ((1,),))
    results = []
    if way and order == "after":
        split.enable(model, way)
    with magpolicy.attach(model, **settings) as handle:
        if way and order == "before":
            split.enable(model, way)
        with handle.run(steps=STEPS):
            for step in range(STEPS):
                handle.go_to(step)
                for call in rows:
                    names = [f"text {text}" for text in call]
                    draw = Draw(tuple(Row(step, text) for text in call), level=1 - step / STEPS)
                    with handle.stream(*names):
                        results.append(split.call(model, draw))
        return results, handle.report


def matches(cls: str, ways: list[str]) -> dict[str, Any]:
    """How far each way is from one process, and what it skipped."""
    import magpolicy

    split = SplitModel(cls)
    with splitting():
        alone, report = in_a_loop(split, split.case.make(), RULE)
        full, _ = in_a_loop(split, split.case.make(), {"schedule": magpolicy.Schedule.from_mask([1] * STEPS)})
        found: dict[str, Any] = {"alone": report.schedule.mask, "skips matter": distance(alone, full)}
        for way in ways:
            for order in ("before", "after"):
                results, report = in_a_loop(split, split.case.make(), RULE, way, order)
                found[f"{way} {order}"] = distance(results, alone), report.schedule.mask, report.problems
    return found


@pytest.mark.parametrize("cls", SPLITS)
def test_each_class_skips_as_in_one_process(pair: Pair, cls: str) -> None:
    import magpolicy

    limits = {name: value for name, value in RULE.items() if name != "ratios"}
    expected = magpolicy.simulate(RULE["ratios"], **limits).mask
    for found in pair(matches, cls=cls, ways=list(WAYS)):
        assert list(found.pop("alone")) == list(expected)
        assert found.pop("skips matter") > 100 * CLOSE
        for name, (far, mask, problems) in found.items():
            assert list(mask) == list(expected), (name, problems)
            assert far < CLOSE, name
