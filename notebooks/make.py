"""`python notebooks/make.py`: writes lab.ipynb and lab.ru.ipynb from `cells.py`, run; `--check` says whether they are up to date."""

from __future__ import annotations

import base64
import io
import sys
import tempfile
from pathlib import Path

import nbformat
from cells import CELLS, Code
from PIL import Image

FOLDER = Path(__file__).parent
NAMES = {"en": "lab.ipynb", "ru": "lab.ru.ipynb"}

WIDTH = 1200
"""Of a picture that is stored, in pixels."""


def notebook(language: str) -> nbformat.NotebookNode:
    """The lab in a language, `en` or `ru`, without outputs."""
    cells = []
    for number, cell in enumerate(CELLS):
        if isinstance(cell, Code):
            source = cell.source
            for english, russian in cell.ru.items() if language == "ru" else ():
                assert english in source, english
                source = source.replace(english, russian)
            made = nbformat.v4.new_code_cell(source)
            if any(cell.alt):
                made["metadata"]["alt"] = cell.alt[language == "ru"]
        else:
            made = nbformat.v4.new_markdown_cell(cell.en if language == "en" else cell.ru)
        made["id"] = f"cell-{number:02}"  # not nbformat's random ones: the files change only where the lab does
        cells.append(made)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})


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


def bare(book: nbformat.NotebookNode) -> str:
    """A notebook without outputs, as text."""
    book = nbformat.from_dict(book)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return nbformat.writes(book)


def main(arguments: list[str]) -> int:
    """Write both files, or with `--check` compare their cells; returns the exit status."""
    stale = 0
    for language, name in NAMES.items():
        book, path = notebook(language), FOLDER / name
        if "--check" not in arguments:
            with tempfile.TemporaryDirectory() as folder:
                run(book, Path(folder))
            shrink(book)
            path.write_text(nbformat.writes(book) + "\n", encoding="utf-8")
        elif not path.is_file() or bare(nbformat.read(path, as_version=4)) != bare(book):
            print(f"{path}: not up to date: run python notebooks/make.py", file=sys.stderr)
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
