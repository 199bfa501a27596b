"""A real ComfyUI for tests: fetched once, kept outside the repository, run on the CPU.

- :func:`chosen` says which versions are tested with: those that can be fetched, or what ``$MAGPOLICY_COMFYUI`` names.
- :func:`obtain` fetches and unpacks one version; :class:`Unavailable` says why it could not.
- :func:`load` imports it into this process. ComfyUI's modules are global, so one process holds one version: tests that ask for
  the fixture ``comfyui`` run in a worker process per version (see ``workers`` and ``conftest.py``).
- :func:`serve` starts its server on a loopback port.
"""

from fetching import Unavailable

from host.fetch import DEFAULT, RELEASES, chosen, obtain
from host.load import load
from host.serve import Server, serve

__all__ = ["DEFAULT", "RELEASES", "Server", "Unavailable", "chosen", "load", "obtain", "serve"]
