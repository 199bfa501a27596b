"""The cache backend that vLLM-Omni drives: ``enable`` once for a pipeline, ``refresh`` before each batch of requests."""

from __future__ import annotations

import functools
from typing import Any

import magpolicy
from magpolicy_vllm_omni._handle import Handle
from magpolicy_vllm_omni._settings import settings_of


@functools.cache
def backend_class() -> type[Any]:
    """The class of the backend, made once the engine is there to derive it from."""
    from vllm.logger import init_logger
    from vllm_omni.diffusion.cache.base import CacheBackend

    logger = init_logger("vllm_omni.magpolicy")

    class MagPolicyBackend(CacheBackend):  # type: ignore[misc]  # the engine has no type information
        """A policy as a cache backend. Making one checks the cache config.

        Raises:
            ArgumentError: a key or a value that is not known.
        """

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self._settings = settings_of(config)
            self.handle: Handle | None = None

        def enable(self, pipeline: Any) -> None:
            """Attach to the pipeline; raises one clear error before anything is patched."""
            self.handle = magpolicy.attach(pipeline, **self._settings)
            self.enabled = True
            logger.info("magpolicy is attached: %r", self.handle)

        def refresh(self, pipeline: Any, num_inference_steps: int, verbose: bool = True) -> None:
            """A batch of requests is to come. What the last one left is gone already; only a model may have been replaced."""
            handle = self.handle
            if handle is None or handle.pipeline is not pipeline or not handle.current:
                if handle is not None:
                    handle.detach()
                self.enable(pipeline)
            elif verbose and handle.runs:
                logger.info("magpolicy: %s", handle.report.schedule)

    return MagPolicyBackend
