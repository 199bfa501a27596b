"""What diffusers loads with ``DiffusionPipeline.from_pretrained("digits", trust_remote_code=True)``."""

from magpolicy_demo.pipeline import DigitsPipeline

__all__ = ["DigitsPipeline"]
