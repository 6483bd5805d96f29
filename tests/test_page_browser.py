"""The page in a real browser: nothing is loaded, runs or sticks out; at a desk, on a phone and on paper."""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from page_reports import KINDS, all_pages, good_report

from parity import charts, page

CSS = (Path(page.__file__).parent / "page.css").read_text(encoding="utf-8")

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync "
    "--no-first-run --disable-dev-shm-usage --hide-scrollbars"
)


class Browser:
    """A headless Chromium: opens a page and says what it did."""

    def __init__(self, profile: Path) -> None:
        webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        chromedriver = shutil.which("chromedriver")
        if not chromium or not chromedriver:
            pytest.skip("no browser: apt-get install chromium chromium-driver")
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for flag in [*FLAGS.split(), f"--user-data-dir={profile}"]:
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        options.unhandled_prompt_behavior = "ignore"
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
        self.ask = self.driver.execute_script

    def open(self, path: Path, *, width: int = 1280, medium: str = "screen", unfold: bool = True) -> list[str]:
        """Open a file, with every closed part opened → complaints: alerts, and what the console says of loads and policy."""
        from selenium.common.exceptions import NoAlertPresentException

        self.driver.get_log("browser")
        metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": medium})
        self.driver.get(path.as_uri())
        complaints = []
        try:
            complaints.append(f"alert: {self.driver.switch_to.alert.text}")
            self.driver.switch_to.alert.accept()
        except NoAlertPresentException:
            pass
        if unfold:
            self.ask("document.querySelectorAll('details').forEach(d => d.open = true)")
        return complaints + [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.driver.quit()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    for kind, text in all_pages().items():
        (folder / f"{kind}.html").write_text(text, encoding="utf-8")
    return {kind: folder / f"{kind}.html" for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_the_browser_has_nothing_to_complain_of(browser: Browser, files: dict[str, Path], kind: str) -> None:
    assert browser.open(files[kind]) == []
    assert browser.ask("return document.scripts.length") == 0
    assert browser.ask("return [...document.images].filter(i => !(i.complete && i.naturalWidth)).length") == 0
    if kind != "empty":
        assert browser.ask("return document.images.length") > 20
    # the style block is in force: the policy's digest is that of the block
    assert browser.ask("return getComputedStyle(document.querySelector('.skip')).position") == "absolute"


def test_the_policy_stops_what_escaping_might_miss(browser: Browser, tmp_path: Path) -> None:
    slip = '<script>alert(1)</script><img src="http://127.0.0.1:9/x.png" alt="x"><p style="color:red">x</p>'
    path = tmp_path / "slipped.html"
    path.write_text(f"<!DOCTYPE html>{slip}", encoding="utf-8")
    assert "alert: 1" in browser.open(path)  # the control: without the policy it does what it wants
    path.write_text(all_pages()["one"].replace("</main>", f"{slip}</main>"), encoding="utf-8")
    complaints = browser.open(path)
    assert len(complaints) == 3
    assert all("Content Security Policy" in complaint for complaint in complaints)


OVERFLOW = """
return [...document.querySelectorAll('body *')].filter(e => {
  if (e.closest('.scroll') && !e.matches('.scroll') || e.matches('.skip')) return false;
  const box = e.getBoundingClientRect();
  return box.width && (box.right > innerWidth + 1 || box.left < -1);
}).slice(0, 5).map(e => e.tagName + '.' + (e.getAttribute('class') || '') + ' ' + e.textContent.slice(0, 40))
"""

WIDER = "return [...document.querySelectorAll('SELECTOR')].filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.ariaLabel)"


@pytest.mark.parametrize(("width", "medium"), [(390, "screen"), (320, "screen"), (1280, "screen"), (688, "print")])
@pytest.mark.parametrize("kind", ["good", "hostile"])
def test_nothing_sticks_out_sideways(
    browser: Browser, files: dict[str, Path], kind: str, width: int, medium: str
) -> None:
    browser.open(files[kind], width=width, medium=medium)
    assert browser.ask("return innerWidth") == width
    assert browser.ask("return document.documentElement.scrollWidth") <= width
    assert browser.ask(OVERFLOW) == []
    if medium == "print":  # a box that scrolls would be cut off on paper
        assert browser.ask(WIDER.replace("SELECTOR", ".scroll")) == []


def test_a_phone(browser: Browser, files: dict[str, Path]) -> None:
    browser.open(files["good"], width=390)
    assert browser.ask(WIDER.replace("SELECTOR", ".scroll:has(.likeness)")) == []  # these fit
    assert len(browser.ask(WIDER.replace("SELECTOR", ".scroll:has(.verdicts)"))) == 1  # this one scrolls, and shows it:
    behind = "return getComputedStyle(document.querySelector('.scroll:has(.verdicts)')).backgroundAttachment"
    assert browser.ask(behind) == "local, local, scroll, scroll"
    smallest = browser.ask(
        "return Math.min(...[...document.querySelectorAll('body *')]"
        ".filter(e => [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()))"
        ".map(e => parseFloat(getComputedStyle(e).fontSize)))"
    )
    assert smallest >= 10.5
    scale = "return Math.min(...[...document.querySelectorAll('.chart')].map(i => i.width / i.naturalWidth))"
    assert browser.ask(scale) > 0.99  # a chart's text is not shrunk


def test_the_keyboard_reaches_the_content(browser: Browser, files: dict[str, Path]) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    browser.open(files["good"], unfold=False)
    active = "const e = document.activeElement; return [e.className, e.getBoundingClientRect().left >= 0]"
    ActionChains(browser.driver).send_keys(Keys.TAB).perform()
    assert browser.ask(active) == ["skip", True]  # it comes into view
    ActionChains(browser.driver).send_keys(Keys.ENTER).perform()
    ActionChains(browser.driver).send_keys(Keys.TAB).perform()  # the first thing after: the verdict's table
    assert browser.ask("return document.activeElement.ariaLabel").startswith("Each method")


def test_two_photographs_and_two_methods_are_less_than_eight_pages(browser: Browser, tmp_path: Path) -> None:
    """With as many stages as VGG16 has: 20 layers forward and back."""
    good, methods = good_report(), ("vanilla", "gradcam")
    layers = [f"block{b}_{kind}" for b in range(1, 6) for kind in ("conv1", "conv2", "conv3", "pool")]
    names = [f"{quantity}/{layer}" for quantity in ("activations", "gradients") for layer in layers]
    kept = [f for f in good.figures if f.stage.partition("/")[0] in methods]
    like = [f for f in good.figures if f.stage == "inputs"]
    report = replace(
        good,
        figures=(*(replace(f, stage=name) for name in names for f in like), *kept),
        verdicts=tuple(v for v in good.verdicts if v.method in (*methods, "network")),
        map_figures=tuple(m for m in good.map_figures if m.method in methods),
        pictures={key: pair for key, pair in good.pictures.items() if key[0] in methods},
        reference={**good.reference, "stages": names},
    )
    path = tmp_path / "two.html"
    path.write_text(page.render(report), encoding="utf-8")
    browser.open(path, width=688, medium="print", unfold=False)
    printed = browser.driver.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})
    assert 2 < len(re.findall(rb"/Type\s*/Page\b", base64.b64decode(printed["data"]))) < 8
    whole = "return [...document.querySelectorAll('.chart, article, h2, h3')].map(e => [e.tagName, getComputedStyle(e).breakInside, getComputedStyle(e).breakAfter, e.getBoundingClientRect().height])"  # fmt: skip
    for tag, inside, after, height in browser.ask(whole):
        assert (after if tag in ("H2", "H3") else inside) == "avoid"
        assert height < 1000  # of a page's 1024


# --- its colours ------------------------------------------------------------------------------------------------------


def luminance(colour: str) -> float:
    linear = [
        p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4
        for p in (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_stands_out() -> None:
    blocks = re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)
    light, dark = (dict(re.findall(r"--([\w-]+): (#\w{6});", block)) for block in blocks)
    chart = {"text": charts.INK, "muted": charts.MUTED, "link": charts.BLUE, "bad": charts.RED, "bad-card": charts.ROSE}
    pairs = [(ink, ground) for ink in ("text", "muted", "link", "good", "bad", "note") for ground in ("page", "card")]
    pairs += [(ink, f"{kind}-card") for kind in ("good", "bad", "note") for ink in ("text", "muted", "link", kind)]
    for colours in (light, dark, {**light, **chart}):
        for ink, ground in pairs:
            low, high = sorted((luminance(colours[ink]), luminance(colours[ground])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)
