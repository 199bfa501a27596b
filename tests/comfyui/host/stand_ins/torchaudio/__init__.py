"""The little of torchaudio that ComfyUI touches when it is imported. For tests only."""

from torchaudio import functional, transforms

__version__ = "0"
__all__ = ["functional", "transforms"]
