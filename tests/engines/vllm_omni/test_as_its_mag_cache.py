"""What vLLM-Omni's tests assert of its mag_cache backend, asserted of it and of ours on the engine's own FLUX.1.

The behaviours are those of ``TestMagCacheBackend`` in ``tests/diffusion/cache/test_cache_backends.py`` of vLLM-Omni's
repository, which has a mock for the pipeline and for the hooks; here both are real, and the words are ours.
"""

from __future__ import annotations

import pytest

BACKENDS = {"mag_cache": "MagCacheBackend", "magpolicy": "MagPolicyBackend"}


@pytest.mark.parametrize("blocks", [1, 2], ids=["one block a list", "several"])
@pytest.mark.parametrize("settings", ["rule", "calibrating"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_chosen_by_its_name_and_enabled_by_a_refresh_too(engine, backend, settings, blocks):
    found = engine.ask("backend_life", backend=backend, settings=settings, blocks=blocks)
    assert found == {"class": BACKENDS[backend], "enabled": [False, True], "finite": True}
