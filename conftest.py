"""Keeps pytest from taking the repository for a package: the ``__init__.py`` beside this file is for ComfyUI alone."""

from __future__ import annotations

from pathlib import Path

import pytest


class _PlainRoot:
    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        return pytest.Dir.from_parent(parent, path=path) if path == Path(__file__).parent else None


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_PlainRoot(), "magpolicy-plain-root")  # a folder's own conftest is not asked about it
