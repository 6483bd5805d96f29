"""Sphinx's settings: `make docs`, or `python -m sphinx -W --keep-going docs out/docs`. Nothing is fetched, when built or when read."""

from __future__ import annotations

import re
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
language = "en"

# A reference that leads nowhere, within these packages, is an error; other projects' inventories would need the internet.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!(torch_impl|parity|keras_ref)\.).*"), (r"py:class", r".*\.Item")]

myst_enable_extensions = ["dollarmath", "attrs_block", "attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Yields", "returns_style")]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"attention-maps {release}"
html_static_path = ["_static"]
html_css_files = ["attention-maps.css"]
html_math_renderer = "mathml"
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1b5e9b", "color-brand-content": "#1b5e9b"},
    "dark_css_variables": {"color-brand-primary": "#8ec5ff", "color-brand-content": "#8ec5ff"},
}

_LINE = re.compile(r"^(Source|Matches|Differs): ", flags=re.MULTILINE)


def _mathml(translator: HTML5Translator, node: nodes.Element, display: str) -> None:
    """A formula as MathML, which browsers draw by themselves; its LaTeX stays as the text for copying and for old readers."""
    source = node.astext()
    markup = latex2mathml.converter.convert(source, display=display)
    label = translator.attval(source)
    if display == "block":
        markup = f'<div class="math" role="math" aria-label="{label}">{markup}</div>'
    translator.body.append(markup)
    raise nodes.SkipNode


def _inline(translator: HTML5Translator, node: nodes.Element) -> None:
    _mathml(translator, node, "inline")


def _block(translator: HTML5Translator, node: nodes.Element) -> None:
    _mathml(translator, node, "block")


def _prose(text: str) -> str:
    """A line of a docstring → reST: `code` as a literal; |x| and n**2 are meant as they stand."""
    parts = re.split(r"(``[^`]+``|(?<![:\w`])`[^`\n]+`(?![`_]))", text)
    for i, part in enumerate(parts):
        if i % 2 == 0:
            parts[i] = re.sub(r"(?<!\\)([|*])", r"\\\1", part)
        elif not part.startswith("``"):
            parts[i] = f"`{part}`"
        if i % 2 and parts[i + 1][:1].isalnum():
            parts[i] += "\\ "  # `Photograph`s
    return "".join(parts)


def _docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Our docstrings, Google sections with Markdown's `code` → what napoleon and reST read."""
    found: list[str] = []
    said = False  # the line before was Source, Matches or Differs
    code: int | None = None  # indentation of the block of code that we are in
    for i, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        starts = bool(line.strip()) and indent >= 4 and (
            (what == "module" and not "".join(lines[max(i - 1, 0) : i]).strip())
            or (i > 0 and lines[i - 1].strip() == "Example:")
        )  # fmt: skip
        if code is not None and line.strip() and indent < code:
            code = None
            if found[-1].strip():
                found.append("")
        if starts and code is None:
            code = indent
            opening = " " * (indent if i and lines[i - 1].strip() == "Example:" else 0) + "::"
            found += [opening, ""]
        inner = " " * 4 if code and found and "Example:" in lines else ""
        if code is not None:
            found.append(inner + line if line.strip() else line)
        elif said and indent and line.strip():  # the rest of such a line
            found[-1] += " " + _prose(line.strip())
        elif _LINE.match(line):
            said = True
            found += ["", _LINE.sub(r"**\1:** ", _prose(line))]
        else:
            said = False
            found.append(_prose(line))
    lines[:] = found


def setup(app: Sphinx) -> None:
    """Register the renderer of formulas and the reading of docstrings."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.connect("autodoc-process-docstring", _docstring, priority=10)  # before napoleon, so that sections are untouched
