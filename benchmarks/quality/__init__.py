"""The quality lab: what every way of skipping costs in picture quality, on models trained here. ``python -m benchmarks.quality``."""
