"""``python -m benchmarks.quality``: measure what is not measured yet, then write table and plots."""

from __future__ import annotations

import argparse

from benchmarks.quality import report, run
from benchmarks.quality.models import MODELS
from benchmarks.quality.sampling import SAMPLERS
from benchmarks.quality.sweep import KINDS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--samplers", nargs="*", default=list(SAMPLERS), choices=SAMPLERS)
    parser.add_argument("--parts", nargs="*", default=list(run.PARTS), choices=run.PARTS)
    parser.add_argument("--methods", nargs="*", default=list(KINDS), choices=KINDS, metavar="METHOD", help="of these parts")
    parser.add_argument("--again", nargs="*", default=[], choices=run.PARTS, help="measure these parts anew")
    parser.add_argument("--no-report", action="store_true", help="measure only")
    options = parser.parse_args()
    for model in options.models:
        for sampler in options.samplers:
            run.measure(model, sampler, options.parts, options.again, options.methods)
    if not options.no_report:
        report.write()


if __name__ == "__main__":
    main()
