"""A hook of the documentation's generator: each notebook becomes a page.

Notebooks are kept without what they print and draw, and the tests run them. Pages show code and text; with
``MAGPOLICY_RUN_NOTEBOOKS=1`` notebooks are run first, for pages that also show what comes out. Links to a notebook lead to its
page.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

RUN = "MAGPOLICY_RUN_NOTEBOOKS"


def on_files(files: Files, *, config: Any) -> Files:
    """Add a page for each notebook, and the pictures that it drew."""
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        uri = Path(notebook.src_uri)
        page, pictures = _rendered(Path(config.docs_dir) / uri)
        files.append(File.generated(config, uri.with_suffix(".md").as_posix(), content=page))
        for name, content in pictures.items():
            files.append(File.generated(config, (uri.parent / name).as_posix(), content=content))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """``markdown`` with links to notebooks as links to their pages; a notebook's own page leads to the file."""
    if page.file.src_uri.startswith("notebooks/"):
        return markdown
    return re.sub(r"\]\(([^()\s]+)\.ipynb\)", r"](\1.md)", markdown)


def _rendered(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures by file name."""
    import nbconvert
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    if os.environ.get(RUN):
        _run(notebook)
    exporter = nbconvert.MarkdownExporter()
    page, resources = exporter.from_notebook_node(notebook, {"unique_key": path.stem, "output_files_dir": f"{path.stem}-files"})
    title, _, rest = page.partition("\n\n")
    return f"{title}\n\n[Download this notebook]({path.name})\n\n{rest}", {
        name: content for name, content in resources["outputs"].items() if name in page
    }  # pictures come in several formats, and one is shown


def _run(notebook: Any) -> None:
    import nbclient

    before = os.environ.get("MAGPOLICY_HOME")
    with tempfile.TemporaryDirectory(prefix="magpolicy-notebook-") as folder:
        os.environ["MAGPOLICY_HOME"] = folder  # what a notebook learns must not plan the next one
        try:
            nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}}).execute()
        finally:
            if before is None:
                del os.environ["MAGPOLICY_HOME"]
            else:
                os.environ["MAGPOLICY_HOME"] = before
    for cell in notebook.cells:  # warnings of libraries are no part of the page
        cell.outputs = [output for output in cell.get("outputs", ()) if output.get("name") != "stderr"]
