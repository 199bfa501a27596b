"""Residuals: what a stack of blocks adds to its input, how it is kept, and what is measured of it.

A residual is a tensor of the shape of a model's image tokens. ``_arithmetic`` is the one place that makes, adds and forecasts
one. A :class:`~magpolicy_torch.ResidualStore` keeps the newest up to three of each stream for the skips to come, on their
device or in main memory. :class:`~magpolicy_torch.Moments` keeps none: it sums the inner products from which calibrations are
made. Nothing here knows blocks, models or decisions. Imports ``device`` alone.
"""
