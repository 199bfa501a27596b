"""Fit the general prior to full runs of models: ``python -m benchmarks.quality.fit_prior``.

A `Shape` is a prior: directions, norms of each stream and how alike two streams are, over noise level. It is made of full runs'
means, or of the formula that ships, fitted to them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from attrs import asdict, evolve, frozen
from numpy.typing import NDArray
from scipy.optimize import least_squares

import magpolicy
from magpolicy.calibration._moments import StreamMoments
from magpolicy.calibration._prior import Directions, _banded, _crossed

Floats = NDArray[np.float64]


def gram_of(calibration: magpolicy.Calibration, stream: str) -> Floats:
    """(N, N) inner products of a stream's residuals."""
    banded = calibration.streams[stream].gram
    i, j = np.indices((len(banded), len(banded)))
    return banded[np.maximum(i, j), np.abs(i - j)]


def cross_of(calibration: magpolicy.Calibration) -> Floats:
    """(N, N) inner products of the conditional stream's residuals with the other's."""
    table = calibration.cross["cond", "uncond"]
    i, j = np.indices((len(table), len(table)))
    return table[i, len(table) - 1 + j - i]


def cosines(gram: Floats) -> Floats:
    size = np.sqrt(np.diag(gram))
    return gram / np.outer(size, size)


@frozen(eq=False)
class Shape:
    """A prior over noise level, at the levels of a full run."""

    sigmas: tuple[float, ...]
    directions: Floats
    norms: tuple[Floats, Floats]
    cross: Floats
    """Cosines between the two streams."""

    def calibration(self, levels: Sequence[float]) -> magpolicy.Calibration:
        made = {}
        zeros = (0.0,) * len(self.sigmas)
        for name, norms in zip(("cond", "uncond"), self.norms, strict=True):
            ratios = np.append(1.0, norms[1:] / norms[:-1])
            made[name] = StreamMoments(_banded(norms, self.directions), ratios.tolist(), zeros, zeros)
        cross = {("cond", "uncond"): _crossed(*self.norms, self.cross)}
        whole = magpolicy.Calibration(sigmas=self.sigmas, streams=made, cross=cross)
        return whole.resample(sigmas=levels)

    @staticmethod
    def analytic(directions: Directions, sigmas: Sequence[float], likeness: float = 0.95) -> Shape:
        found = directions.cosines(np.asarray(sigmas))
        ones = np.ones(len(sigmas))
        return Shape(tuple(sigmas), found, (ones, ones), likeness * found)


def norms_of(calibration: magpolicy.Calibration | None, count: int = 60) -> tuple[Floats, Floats]:
    """The norms of a run's residuals in both streams, over the mean of the first; constant for ``None``."""
    if calibration is None:
        return np.ones(count), np.ones(count)
    sizes = [np.sqrt(np.diag(gram_of(calibration, name))) for name in ("cond", "uncond")]
    return sizes[0] / sizes[0].mean(), sizes[1] / sizes[0].mean()


def mean_shape(runs: Sequence[magpolicy.Calibration], likeness: float = 0.95) -> Shape:
    """Each run's Gram matrix over its mean diagonal, averaged over runs and streams; the second stream is like the first."""
    grams = [gram_of(run, name) for run in runs for name in ("cond", "uncond")]
    mean = np.mean([gram / np.diag(gram).mean() for gram in grams], axis=0)
    size = np.sqrt(np.diag(mean))
    return Shape(runs[0].sigmas, cosines(mean), (size, size), likeness * cosines(mean))


LAGS = (1, 2, 3, 4, 6, 8)
"""Steps of 60: what lies between computed steps of a run of 28 at 1/2 to 1/4 of the work, and half of it."""


def changes(directions: Floats) -> Floats:
    """Logarithms of how far directions move: first and second differences over each of the `LAGS`, everywhere in the run."""
    found = []
    count = len(directions)
    for lag in LAGS:
        late, before, first = (np.arange(2 * lag, count) - back for back in (0, lag, 2 * lag))
        at = lambda i, j: directions[i, j]  # noqa: E731
        once = at(late, late) - 2 * at(late, before) + at(before, before)
        mixed = at(late, late) + 4 * at(before, before) + at(first, first)
        twice = mixed - 4 * at(late, before) + 2 * at(late, first) - 4 * at(before, first)
        found += [np.log(np.maximum(once, 1e-9)), np.log(np.maximum(twice, 1e-9))]
    return np.concatenate(found)


def weights(count: int) -> Floats:
    """What each of these counts for: the first tenth of a run four times as much, for half of the movement is there."""
    found = []
    for lag in LAGS:
        place = np.arange(2 * lag, count)
        found += [np.where(place < max(count / 10, 2 * lag + 2), 2.0, 1.0)] * 2
    return np.concatenate(found)


FITTED = ("middle", "late", "late_range", "start_range", "rough")
"""The constants that are fitted. A rate and the scale say the same; the share of the start, which fits put anywhere between
0.04 and 0.2, was chosen by looking at runs of all three models."""


def fitted(runs: Sequence[magpolicy.Calibration], start: Directions | None = None) -> Directions:
    """The formula's constants that come closest to the runs' directions, in logarithms of what they move."""
    levels = np.asarray(runs[0].sigmas)
    wanted = np.mean([changes(cosines(gram_of(run, name))) for run in runs for name in ("cond", "uncond")], axis=0)
    weighed = weights(len(levels))
    first = asdict(start or Directions())
    names = [name for name in first if name in FITTED]

    def directions(logarithms: Floats) -> Directions:
        return evolve(start or Directions(), **dict(zip(names, np.exp(logarithms).tolist(), strict=True)))

    begin = np.log([first[name] for name in names])
    low, high = begin - 4, begin + 4
    found = least_squares(lambda x: weighed * (changes(directions(x).cosines(levels)) - wanted), begin, bounds=(low, high))
    return directions(found.x)


def misfit(directions: Directions, run: magpolicy.Calibration) -> float:
    """Root mean square of the logarithms' differences from one run: 0.7 is a factor of 2 in squared changes."""
    levels = np.asarray(run.sigmas)
    off = [changes(directions.cosines(levels)) - changes(cosines(gram_of(run, name))) for name in ("cond", "uncond")]
    return float(np.sqrt(np.mean(np.square(off))))


def main() -> None:
    from benchmarks.quality import full_runs

    runs = {name: full_runs.full_run(name) for name in full_runs.trained()}
    for left_out in (*runs, None):
        used = [run for name, run in runs.items() if name != left_out]
        if not used:
            continue
        found = fitted(used)
        shown = {name: round(value, 5) for name, value in asdict(found).items()}
        print(f"without {left_out}: {shown}  " + "  ".join(f"{n} {misfit(found, run):.2f}" for n, run in runs.items()))


if __name__ == "__main__":
    main()
