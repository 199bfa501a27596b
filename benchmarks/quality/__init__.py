"""The quality lab: what every way of skipping costs in picture quality. ``python -m benchmarks.quality``."""
