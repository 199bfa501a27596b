"""A headless Chromium, driven by playwright's library; the browser is the system's own."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


class Missing(Exception):
    """What it takes to open a page is not here; says what."""


def _executable() -> str:
    if importlib.util.find_spec("playwright") is None:
        raise Missing("playwright is not installed; pip install -c constraints.txt -e '.[dev]'")
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        raise Missing(f"no browser: none of {', '.join(_NAMES)} is on the path; make browser")
    return found


@contextmanager
def blank_page(*, width: int = 1280, height: int = 800) -> Iterator[Any]:
    """A page of a new browser; ``page.errors`` lists uncaught exceptions of its scripts.

    Raises:
        Missing: no browser, or no library to drive it.
    """
    executable = _executable()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, headless=True, args=list(_ARGUMENTS))
        try:
            page = browser.new_page(viewport={"width": width, "height": height})
            page.errors = []
            page.on("pageerror", lambda error: page.errors.append(str(error)))
            yield page
        finally:
            browser.close()


@contextmanager
def open_page(url: str, *, width: int = 1280, height: int = 800) -> Iterator[Any]:
    """ComfyUI's editor at ``url``, loaded, with an empty graph; a :func:`blank_page` otherwise.

    Raises:
        Missing: no browser, or no library to drive it.
    """
    with blank_page(width=width, height=height) as page:
        page.request.post(f"{url}/api/settings/Comfy.TutorialCompleted", data="true")  # or a dialog lies over all
        page.goto(url)
        page.wait_for_function(
            "!!(window.app?.graph && window.LiteGraph?.registered_node_types['MagCacheCalibration'])", timeout=60_000
        )
        # The editor opens its first workflow by itself, and after that only draws what it is told to.
        page.wait_for_function("app.extensionManager?.workflow?.activeWorkflow != null", timeout=60_000)
        page.evaluate("() => app.graph.clear()")
        yield page
