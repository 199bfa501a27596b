"""The harness itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from host import Unavailable, chosen, serve


def test_a_worker_has_the_version_asked_for(comfyui: Path) -> None:
    import comfy
    import comfyui_version
    from host import obtain

    assert Path(comfy.__path__[0]).parent == comfyui
    assert obtain(comfyui_version.__version__) == comfyui


@pytest.mark.parametrize("version", chosen())
def test_a_server_runs_a_workflow(version: str, tmp_path: Path) -> None:
    pack = tmp_path / "custom_nodes" / "pack.py"
    pack.parent.mkdir()
    pack.write_text(_PACK)
    try:
        with serve(tmp_path, version) as server:
            assert "Said" in server.get("object_info")
            entry = server.run({"1": {"class_type": "Said", "inputs": {"what": "hello"}}})
    except Unavailable as error:
        pytest.skip(str(error))
    assert entry["outputs"]["1"]["text"] == ["hello"]


_PACK = """
class Said:
    INPUT_TYPES = classmethod(lambda cls: {"required": {"what": ("STRING", {})}})
    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "run", True, "test"

    def run(self, what):
        return {"ui": {"text": [what]}}


NODE_CLASS_MAPPINGS = {"Said": Said}
"""
