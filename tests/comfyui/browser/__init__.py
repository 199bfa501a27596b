"""ComfyUI's editor in a real browser: the front-end package that a version asks for, and a headless Chromium."""

from browser.chromium import Missing, blank_page, open_page
from browser.front_end import front_end

__all__ = ["Missing", "blank_page", "front_end", "open_page"]
