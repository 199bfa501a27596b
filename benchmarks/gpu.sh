#!/usr/bin/env bash
# Everything that wants one GPU, in at most 12 minutes: speed at the sizes of FLUX.1-dev and Wan2.1-1.3B, and the accelerator tests.
# It has not run on a GPU yet. FLUX.1-dev's weights are there twice, which takes 50 GB.
# `benchmarks/gpu.sh --tiny` runs all of it in a small size on a CPU, which shows that it works and no figures.
# The page goes to $OUT, or to the folder gpu-report. It needs `.[all,dev]`, or with --tiny `.[diffusers,test]`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export PYTHONPATH="$PWD/src:$PWD/adapters:$PWD/examples:$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" benchmarks/gpu.py --output "${OUT:-gpu-report}" "$@"
