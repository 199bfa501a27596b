"""The page "How the code hangs together" says what is so: its picture is that of the code, its paths and functions exist."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "explanation" / "architecture.md"
ROOTS = (ROOT, ROOT / "src", ROOT / "src" / "magpolicy", ROOT / "adapters")


def test_every_file_and_folder_that_the_page_names_exists():
    text = re.sub(r"^```.*?^```$", "", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    names = [name for name in re.findall(r"`([\w./-]+)`", text) if "/" in name or name.endswith((".py", ".json"))]
    folders = [root / name for root in ROOTS for name in ("magpolicy_diffusers", "magpolicy_comfyui")]
    assert len(names) > 20
    assert not [name for name in names if not any((root / name).exists() for root in (*ROOTS, *folders))]


@pytest.mark.parametrize("module", ["magpolicy.adapter", "magpolicy_torch.adapter"])
def test_the_reference_describes_every_name_for_adapters(module):
    if module == "magpolicy_torch.adapter":
        pytest.importorskip("torch", reason="the torch extra is not installed")
    reference = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    assert f"\n::: {module}\n" in reference  # which shows all names of __all__ that have a docstring
    loaded = importlib.import_module(module)
    values = {name: getattr(loaded, name) for name in loaded.__all__}
    # As ruff sorts: constants first.
    assert loaded.__all__ == sorted(loaded.__all__, key=lambda name: (not name.isupper(), name))
    assert not [name for name, value in values.items() if callable(value) and not value.__doc__]
    assert not [name for name in values if name.startswith("_")]
