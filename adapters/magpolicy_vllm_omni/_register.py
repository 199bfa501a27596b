"""The engine's entry point: adds the backend to those that vLLM-Omni chooses from by name, in a version that is known."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from typing import Any

from magpolicy import AdapterError

NAME = "magpolicy"
"""What ``--cache-backend`` is to say."""
KNOWN = ">=0.30,<0.31"
"""The versions of vLLM-Omni whose code this adapter was run in."""
_SELECTOR = "vllm_omni.diffusion.cache.selector"
_RUNNER = "vllm_omni.diffusion.worker.diffusion_model_runner"
_FUNCTION = "get_cache_backend"


def register() -> None:
    """Add ``magpolicy`` to the cache backends of vLLM-Omni, in this process.

    The engine calls it in each of its processes, through the entry-point group ``vllm_omni.general_plugins``, before a model
    loads. Calling it again does nothing. Where vLLM-Omni is not installed it does nothing. On a version that is not known the
    engine starts as ever; only if it is to use this backend, it ends at start-up with one error that says why.
    """
    if importlib.util.find_spec("vllm_omni") is None:
        return
    selector = importlib.import_module(_SELECTOR)
    # The runner binds the function when it is imported, which may have been before.
    for module in (selector, sys.modules.get(_RUNNER)):
        found = getattr(module, _FUNCTION, None)
        if found is not None and not hasattr(found, "_magpolicy"):
            setattr(module, _FUNCTION, _with_ours(found))


def _with_ours(choose: Any) -> Any:
    @functools.wraps(choose)
    def get_cache_backend(cache_backend: str | None, cache_config: Any) -> Any:
        if cache_backend != NAME:
            return choose(cache_backend, cache_config)
        check_version()
        from magpolicy_vllm_omni._backend import backend_class

        return backend_class()(cache_config)

    get_cache_backend._magpolicy = True  # type: ignore[attr-defined]
    return get_cache_backend


def check_version() -> None:
    """Raise unless the installed vLLM-Omni is one that is known.

    Raises:
        AdapterError: it is another one.
    """
    from packaging.specifiers import SpecifierSet

    found = str(importlib.import_module("vllm_omni").__version__)
    if not SpecifierSet(KNOWN).contains(found.partition("+")[0], prereleases=True):
        raise AdapterError(
            f"vllm_omni={found} is not known to this magpolicy, which was run in {KNOWN}; install a magpolicy for it, or start "
            "vLLM-Omni without --cache-backend magpolicy"
        )
