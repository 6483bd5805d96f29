"""The documentation: every block runs, the site builds without a warning, no link leads nowhere, every picture has a text."""

from __future__ import annotations

import html.parser
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from conftest import ROOT

PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"])
LANGUAGES = {"sh", "python"}
DIRECTIVE = re.compile(r"^\{\w[\w-]*\}$")
"""Sphinx's own blocks: a table of contents, what autodoc fills in."""

NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]


@dataclass(frozen=True)
class Block:
    line: int
    language: str
    text: str
    excuse: str  # why it is not run; "" where it is


def blocks(page: Path) -> list[Block]:
    """Fenced blocks of code, with the comment that stands before one that is not run."""
    found, language, started, excuse, inside = [], "", 0, "", []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if language and line.strip() == "```":
            found.append(Block(started, language, "\n".join(inside) + "\n", excuse))
            language, excuse, inside = "", "", []
        elif language:
            inside.append(line)
        elif match := re.match(r"^```(\S+)", line):
            language, started = match[1], number
        elif match := re.match(r"^<!-- not run: (.+) -->$", line):
            excuse = match[1]
        elif line.strip():
            excuse = ""
    assert not language, f"{page}: a block that begins in line {started} does not end"
    return [block for block in found if not DIRECTIVE.match(block.language)]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_block_is_run_or_says_why_not(page):
    for block in blocks(page):
        assert block.language in LANGUAGES, (
            f"{page.name}:{block.line}: {block.language} is never run: sh, python or a reason"
        )
        if block.excuse:
            words = ("needs", "installs", "takes minutes", "tests/", "CI", "the checkout")
            assert any(word in block.excuse for word in words), (
                f"{page.name}:{block.line}: {block.excuse!r} is no reason"
            )
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"^(    |\t)(attention-maps|python|make|pip) ", text, flags=re.MULTILINE), (
        "an indented command is not run"
    )


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_nothing_is_left_to_be_filled_in(page):
    text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert not re.search(r"(^|\s)(SPEED|PRECISION|COST|COMPILE|MEASURED|RAY[A-Z]+|TODO|FIXME|XXX)\b", text)


RUNNER = """
import json, linecache, re, subprocess, sys
sys.path.insert(0, "")
names = {"__name__": "__main__"}
for line, language, text, page in json.load(sys.stdin):
    print(f"--- {page}:{line}", flush=True)
    file = re.match(r"# (\\w+\\.py)\\n", text)
    if language == "sh":
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", text], stdin=subprocess.DEVNULL)
        if done.returncode:
            sys.exit(f"{page}:{line}: exit status {done.returncode}")
    elif file:
        open(file[1], "w").write(text)
    else:
        linecache.cache[f"{page}:{line}"] = (len(text), None, text.splitlines(True), f"{page}:{line}")
        exec(compile(text, f"{page}:{line}", "exec"), names)
"""


def furnish(folder: Path) -> None:
    """What the pages' examples speak of: a cat, a classifier of emotions, and some holidays."""
    import skimage
    from PIL import Image

    pictures = Path(skimage.__file__).parent / "data"
    Image.open(pictures / "chelsea.png").convert("RGB").save(folder / "cat.jpg", quality=95)
    for file in (ROOT / "examples" / "emotions").iterdir():
        shutil.copy(file, folder)
    (folder / "holidays").mkdir()
    shutil.copy(pictures / "rocket.jpg", folder / "holidays")
    tools = folder / ".bin"
    tools.mkdir()
    modules = {
        "attention-maps": "-m torch_impl",
        "attention-parity": "-m parity",
        "attention-reference": "-m keras_ref",
    }
    for name, arguments in {**modules, "python": ""}.items():
        (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        (tools / name).chmod(0o755)


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if any(not b.excuse for b in blocks(p))], ids=lambda p: p.stem)
def test_every_block_runs(page, tmp_path):
    furnish(tmp_path)
    todo = [(b.line, b.language, b.text, page.name) for b in blocks(page) if not b.excuse]
    if any("keras_ref" in text for _, _, text, _ in todo):
        pytest.importorskip("tf_keras_vis")
    path = os.pathsep.join([str(tmp_path / ".bin"), os.environ["PATH"]])
    done = subprocess.run(
        [sys.executable, "-c", RUNNER], input=json.dumps(todo), cwd=tmp_path, capture_output=True, text=True, timeout=580,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.count("--- ") == len(todo)


# The site


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """Built as `make docs` builds it: a warning is an error."""
    pytest.importorskip("furo")
    pytest.importorskip("myst_parser")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(ROOT / "docs"), str(out)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=500, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return out


class Seen(html.parser.HTMLParser):
    """Links, anchors, pictures and everything that a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.pictures: list[dict[str, str | None]] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        has = dict(attrs)
        self.anchors |= {value for key in ("id", "name") if (value := has.get(key))}
        if tag == "a" and has.get("href"):
            self.links.append(str(has["href"]))
        if tag == "img":
            self.pictures.append(has)
        if tag in ("img", "script", "iframe", "source") and has.get("src"):
            self.fetched.append(str(has["src"]))
        if tag == "link" and has.get("href") and has.get("rel") != "canonical":
            self.fetched.append(str(has["href"]))


def read(page: Path) -> Seen:
    seen = Seen()
    seen.feed(page.read_text(encoding="utf-8"))
    return seen


@pytest.mark.slow
def test_no_link_leads_nowhere_and_nothing_is_fetched(site):
    pages = {page: read(page) for page in site.rglob("*.html") if "_static" not in page.parts}
    assert len(pages) >= 12
    broken = []
    for page, seen in pages.items():
        for link in [*seen.links, *seen.fetched]:
            parts = urlsplit(link)
            if parts.scheme == "data":  # a notebook's picture, in the page itself
                continue
            if parts.scheme or parts.netloc:
                if link in seen.fetched or not re.fullmatch(r"https://[\w.-]+\.\w+(/\S*)?", link):
                    broken.append(f"{page.name}: {link}")
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if target.is_dir():
                target /= "index.html"
            anchor = unquote(parts.fragment)
            if not target.is_file() or (anchor and target in pages and anchor not in pages[target].anchors):
                broken.append(f"{page.name}: {link}")
    assert not broken, "\n".join(sorted(set(broken)))


@pytest.mark.slow
def test_every_picture_has_a_text_and_a_size_worth_loading(site):
    for page in site.rglob("*.html"):
        for picture in read(page).pictures:
            assert picture.get("alt") or picture.get("role") == "presentation", (
                f"{page.name}: {picture.get('src')} has no text"
            )
            assert picture.get("alt") != picture.get("src")
    sizes = {path.name: path.stat().st_size for path in (site / "_images").iterdir()}
    assert max(sizes.values()) < 400_000
    assert sum(sizes.values()) < 2_000_000


@pytest.mark.slow
def test_the_search_finds_and_needs_no_network(site):
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    for word in ("smoothgrad", "cividi", "tensorflow"):  # stems: the index has no endings
        assert word in index.lower()


def test_refusals_are_quoted_word_for_word():
    """The words in a column of the page are those of the code."""
    page = (ROOT / "docs" / "your-own-model.md").read_text(encoding="utf-8")
    said = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "torch_impl").rglob("*.py"))
    said = re.sub(r'"\s*\n\s*f?"', "", said)  # a message goes on in the next line
    quoted = re.findall("“(.+?)”", page.partition("## What is refused")[2])
    assert len(quoted) > 10
    assert [words for words in quoted if words not in said] == []


def test_links_between_the_pages_and_the_readme():
    """In the sources too, for those who read them in a forge: relative links lead to files that are there."""
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            parts = urlsplit(link)
            if not parts.scheme and parts.path:
                assert (page.parent / parts.path).exists(), f"{page.name}: {link}"


def test_the_alternative_to_jet_is_shown():
    text = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    for name in re.findall(r"gallery/(\w+)-jet\.jpg", text):
        assert f"gallery/{name}-cividis.jpg" in text
        assert (ROOT / "docs" / "gallery" / f"{name}-cividis.jpg").is_file()
