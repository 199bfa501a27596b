"""No resampling."""
