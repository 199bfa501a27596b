"""What an adapter for a host needs of the core, beyond the names of :mod:`magpolicy` itself.

Our own adapters for torch, diffusers and ComfyUI use these names and no others; a stranger's adapter has the same.
docs/how-to/write-a-plugin.md shows one from beginning to end.
"""

from __future__ import annotations

from magpolicy._errors import require
from magpolicy._files import PRESET_ENDINGS, file_name, names_a_file
from magpolicy.catalog._matching import PresetMatches, named
from magpolicy.run._call import CallDecision, StreamDecision
from magpolicy.run._config import RunConfig, resolve

__all__ = [
    "PRESET_ENDINGS",
    "CallDecision",
    "PresetMatches",
    "RunConfig",
    "StreamDecision",
    "file_name",
    "named",
    "names_a_file",
    "require",
    "resolve",
]
