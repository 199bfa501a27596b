"""What a plan makes least, against cases computed by hand."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from magpolicy import ArgumentError
from magpolicy.planning import _objective as objectives
from magpolicy.planning._per_stream import share_budget
from magpolicy.planning._shortest_path import Path


@pytest.mark.parametrize(
    ("levels", "sizes"),
    [
        ((1.0,), (1.0,)),
        ((1.0, 0.7, 0.2), (0.3, 0.5, 0.2)),
        ((1.0, 1.0, 0.5, 0.5), (0.0, 0.25, 0.25, 0.25)),  # an evaluation that repeats a level
        ((0.8, 0.9, 0.3), (0.05, 0.35, 0.45)),  # a restart
    ],
    ids=str,
)
def test_how_much_of_the_run_an_evaluation_speaks_for(levels, sizes):
    assert objectives.step_sizes(levels) == pytest.approx(sizes)


def test_sizes_that_are_trusted_half_way():
    assert objectives.hedged(np.array([4.0, 1.0, 1.0])) == pytest.approx([8**0.5, 2**0.5, 2**0.5])


def test_shares_add_up_to_one_and_nothing_is_shared_without_a_warning():
    assert objectives.shares_of_run(np.array([3.0, 1.0])) == pytest.approx([0.75, 0.25])
    assert objectives.shares_of_run(np.zeros(2)) == pytest.approx([0.0, 0.0])


def test_the_cost_of_a_gap_is_that_of_its_skips():
    errors = np.array([9.0, 1.0, 2.0, 3.0, 9.0]).reshape(1, 1, 5)  # of the skips k = 1, 2, 3
    each, gap, peak = (objectives.gap_costs(errors, objectives.OBJECTIVES[name])[0, 0] for name in ("latent", "gap", "peak"))
    assert each == pytest.approx([0, 0, 1, 1 + 4, 1 + 4 + 9])
    assert gap == pytest.approx([0, 0, 1, 3**2, 6**2])
    assert peak == pytest.approx([0, 0, 1, 1 + 16, 1 + 16 + 81])


def test_errors_stay_until_the_end_or_fade():
    # An error of the first of two even steps counts at the end and all along, one of the second at the end and half the way.
    assert objectives.distance_weights(np.array([3.0, 3.0])) == pytest.approx(np.array([[2.1, 1.5], [1.5, 1.6]]))
    assert objectives.distance_weights(np.array([1.0, 3.0]), ridge=0.5) == pytest.approx(np.array([[2.5, 1.75], [1.75, 2.25]]))
    # The levels reached are 0.5, 0.2 and half of that.
    assert objectives.fading_weights([1.0, 0.5, 0.2]) == pytest.approx(
        np.array([[1.03, 0.4, 0.2], [0.4, 1.03, 0.5], [0.2, 0.5, 1.03]])
    )


def test_objectives_by_name_with_their_powers():
    assert objectives.objective(None) is objectives.OBJECTIVES["latent"]
    assert objectives.objective("gap").power == 2
    assert objectives.objective("peak").power == 4
    for power in (0.5, 1, 16):
        assert objectives.objective("latent", power).power == power
    assert objectives.objective(objectives.OBJECTIVES["gap"], 3).power == 3
    for power in (0.49, 16.1):
        with pytest.raises(ArgumentError, match=r"power=.* must be from 0\.5 to 16; try 2"):
            objectives.objective("latent", power)


@pytest.mark.parametrize("seed", range(5))
def test_streams_share_a_budget_as_costs_least_of_all_ways_to_share_it(seed):
    dice = np.random.default_rng(seed)
    costs = {name: dice.random(5) for name in ("cond", "uncond", "other")}
    paths = {name: {n: Path(tuple(range(n)), cost) for n, cost in enumerate(each, 1)} for name, each in costs.items()}
    problem = SimpleNamespace(streams=tuple(costs))
    for budget in range(3, 16):
        ways = [way for way in itertools.product(range(1, 6), repeat=3) if sum(way) == budget]
        best = min(ways, key=lambda way: sum(each[n - 1] for each, n in zip(costs.values(), way, strict=True)))
        shared = share_budget(problem, objectives.OBJECTIVES["relative"], paths, budget)
        assert {name: len(computed) for name, computed in shared.items()} == dict(zip(costs, best, strict=True))
    assert share_budget(problem, objectives.OBJECTIVES["relative"], paths, 16) is None
