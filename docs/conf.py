"""Sphinx's settings: `make docs`, or `python -m sphinx -W --keep-going docs out/docs`. Nothing is fetched, when built or when read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import latex2mathml.converter
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

from torch_impl import __version__

project = "attention-maps"
author = "The attention-maps developers"
project_copyright = f"2026, {author}"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
default_role = "code"  # `x` in a docstring

# A reference that leads nowhere, within these packages, is an error; other projects' inventories would need the internet.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!(torch_impl|parity|keras_ref)\.).*"), (r"py:class", r".*\.Item")]

myst_enable_extensions = ["dollarmath", "attrs_block", "attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 3

napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Yields", "returns_style")]
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"attention-maps {release}"
html_static_path = ["_static"]
html_css_files = ["attention-maps.css"]
html_js_files = ["scrolls.js"]
html_math_renderer = "mathml"
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1b5e9b", "color-brand-content": "#1b5e9b"},
    "dark_css_variables": {"color-brand-primary": "#8ec5ff", "color-brand-content": "#8ec5ff"},
}


def _mathml(translator: HTML5Translator, node: nodes.Element, *, display: str) -> None:
    """A formula as MathML, which browsers draw by themselves; its LaTeX stays as the text for copying and for old readers."""
    source = node.astext()
    markup = latex2mathml.converter.convert(source, display=display)
    label = translator.attval(source)
    if display == "block":
        markup = f'<div class="math" role="math" aria-label="{label}">{markup}</div>'
    translator.body.append(markup)
    raise nodes.SkipNode


_CODE_OR_SIGN = re.compile(r"(?P<code>``[^`]+``|`[^`]+`)(?P<ending>\w?)|(?P<sign>[|*])")


def _prose(line: str) -> str:
    """|x| and n**2 stand as they are; `Photograph`s is a word."""

    def escaped(match: re.Match[str]) -> str:
        if match["sign"]:
            return "\\" + match["sign"]
        return match["code"] + ("\\ " + match["ending"] if match["ending"] else "")

    return _CODE_OR_SIGN.sub(escaped, line)


def _docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """What our docstrings write without reST: Source, Matches and Differs are fields, and code is code."""
    code = what == "module"  # whose only indented lines are code
    text = "\n".join(line if code and line.startswith("    ") else _prose(line) for line in lines)
    text = re.sub(r"^(Source|Matches|Differs): ", r":\1: ", text, flags=re.MULTILINE)
    text = re.sub(r"^Example:$", "Example::\n", text, flags=re.MULTILINE)
    if code:
        text = re.sub(r"\n\n(?=    )", "\n\n::\n\n", text)
    lines[:] = text.split("\n")


def _attribute(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Napoleon takes "what: how" for a type and its description."""
    types = [line for line in lines if line.startswith(":type: ")]
    if what in ("attribute", "data", "property") and types:
        lines[:] = [
            f"{types[0].removeprefix(':type: ')}: {lines[0]}",
            *(line for line in lines[1:] if line not in types),
        ]


NOTEBOOKS = {"lab": "lab.ipynb", "lab-ru": "lab.ru.ipynb"}
"""Page → the notebook that fills it."""


def _notebook(app: Sphinx, page: str, source: list[str]) -> None:
    """The cells of a notebook, and what they gave."""
    if page in NOTEBOOKS:
        book = json.loads((Path(app.srcdir).parent / "notebooks" / NOTEBOOKS[page]).read_text(encoding="utf-8"))
        source[0] = "\n\n".join(text for cell in book["cells"] for text in _cell(cell))


def _cell(cell: dict[str, Any]) -> Iterator[str]:
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield text
        return
    yield f"```python\n{text}\n```"
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/jpeg" in data:
            yield f"![{cell['metadata']['alt']}](data:image/jpeg;base64,{''.join(data['image/jpeg']).strip()})"
        else:
            yield f"```text\n{''.join(output.get('text', data.get('text/plain', ''))).rstrip()}\n```"


def setup(app: Sphinx) -> None:
    """Register the renderer of formulas, the reading of docstrings and of notebooks."""
    app.connect("source-read", _notebook)
    app.add_html_math_renderer(
        "mathml", (partial(_mathml, display="inline"), None), (partial(_mathml, display="block"), None)
    )
    app.connect("autodoc-process-docstring", _docstring, priority=10)  # before napoleon, so that sections are untouched
    app.connect("autodoc-process-docstring", _attribute, priority=900)  # after it
