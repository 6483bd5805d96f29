"""`python notebooks/make.py`: runs lab.ipynb and lab.ru.ipynb from top to bottom, and stores them with what they gave.

They are edited as they are. The code of the two is the same but for comments and texts; `tests/test_notebook.py` holds them to it.
"""

from __future__ import annotations

import base64
import io
import sys
import tempfile
from pathlib import Path

import nbformat
from PIL import Image

FOLDER = Path(__file__).parent
NAMES = ("lab.ipynb", "lab.ru.ipynb")

WIDTH = 1200
"""Of a picture that is stored, in pixels."""


def run(book: nbformat.NotebookNode, folder: Path) -> None:
    """Run a notebook from top to bottom in a folder, by the kernel of this very environment; it then holds its outputs."""
    from nbclient import NotebookClient

    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(book, kernel_name="python3", timeout=1200, resources=resources, record_timing=False)
    manager = client.create_kernel_manager()
    manager.kernel_spec.argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    client.execute()


def shrink(book: nbformat.NotebookNode) -> None:
    """Pictures as JPEG, at most `WIDTH` pixels wide: seven of them fit into a file that a forge shows."""
    for output in (output for cell in book.cells for output in cell.get("outputs", ())):
        if png := output.get("data", {}).pop("image/png", None):
            picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
            picture.thumbnail((WIDTH, WIDTH), Image.Resampling.LANCZOS)
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=85, optimize=True)
            output["data"]["image/jpeg"] = base64.b64encode(file.getvalue()).decode()
            output["metadata"] = {}


def main() -> None:
    """Run both; one that fails stays as it was."""
    for path in (FOLDER / name for name in NAMES):
        book = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            run(book, Path(folder))
        shrink(book)
        path.write_text(nbformat.writes(book) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
