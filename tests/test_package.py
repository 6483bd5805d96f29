"""What is shipped: the two distributions' contents, the one version, the extras, and the commands from an empty folder."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import GOLDEN, ROOT, run_program

from parity.contract.artifact import Artifact
from parity.contract.network import write
from torch_impl import __version__

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = ("torch_impl", "keras_ref", "parity")
COMMANDS = {
    "attention-maps": "torch_impl.__main__",
    "attention-parity": "parity.__main__",
    "attention-reference": "keras_ref.__main__",
}

LARGEST = 25_000_000
"""Bytes of a distribution: what people still download without a thought."""

SHIPPED = {
    path.relative_to(ROOT).as_posix()
    for package in PACKAGES
    for path in (ROOT / package).rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
}
"""Every file of the packages: modules, weights, labels, licences, templates, style."""


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel made from it, of this checkout's files."""
    folder = tmp_path_factory.mktemp("distributions")
    source = folder / "source"
    # A copy: what an earlier build left in the checkout would find its way in, and this one must leave nothing there.
    ignored = shutil.ignore_patterns(".*", "out", "dist", "build", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, source, ignore=ignored)
    made = subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(folder / "dist"), str(source)],
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-2000:]
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    (wheel,) = (folder / "dist").glob("*.whl")
    return sdist, wheel


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(distributions):
    _, wheel = distributions
    assert wheel.stat().st_size < LARGEST
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    info = f"attention_maps-{__version__}.dist-info"
    assert SHIPPED - names == set()
    assert {f"{info}/licenses/LICENSE", f"{info}/licenses/parity/contract/data/LICENSE"} <= names
    assert {name.split("/")[0] for name in names} == {*PACKAGES, info}, "nothing else lands in site-packages"


@pytest.mark.slow
def test_the_sdist_holds_what_is_built_and_read_and_no_test(distributions):
    sdist, _ = distributions
    assert sdist.stat().st_size < LARGEST
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    read = {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "pyproject.toml", "docs/overview.jpg"}
    assert (SHIPPED | read) - names == set()
    outside = [name for name in names if name.startswith(("tests", "benchmarks", "out", "."))]
    assert outside == []


@pytest.mark.slow
def test_the_installed_wheel_runs_its_commands_from_an_empty_folder(distributions, tmp_path):
    """The wheel in an environment of its own; PyTorch and the rest are this environment's, which is 5 GB less to fetch."""
    _, wheel = distributions
    venv.create(tmp_path / "environment", with_pip=False)
    python = tmp_path / "environment" / "bin" / "python"
    site = next((tmp_path / "environment" / "lib").glob("python*/site-packages"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    installed = subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "--quiet", str(wheel)],
        env=environment, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert installed.returncode == 0, installed.stderr
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))
    empty = tmp_path / "empty"
    empty.mkdir()

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(python.parent / command[0]), *command[1:]],
            cwd=empty, env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    home = run("python", "-c", "import torch_impl, parity; print(torch_impl.__file__, parity.__file__)")
    assert home.stdout.count(str(site)) == 2, "the wheel's modules, not the checkout's"
    version = run("attention-maps", "--version")
    assert version.returncode == 0
    assert f"attention-maps {__version__} · torch " in version.stdout
    assert list(empty.iterdir()) == []
    explained = run("attention-maps", "explain", "--weights", "offline", "--methods", "gradcam", "--out", "maps")
    assert explained.returncode == 0, explained.stderr
    assert (empty / "maps" / "overview.png").stat().st_size > 0
    judged = run(
        "attention-parity", "--reference", str(GOLDEN), "--no-ladder",
        "--weights", _tiny_weights(empty), "--precision", "fp64", "--out", "parity",
    )  # fmt: skip
    assert judged.returncode == 0, judged.stdout + judged.stderr
    assert (empty / "parity" / "report.html").stat().st_size > 0
    assert "usage: attention-parity" in run("attention-parity", "--help").stdout
    assert run("attention-reference", "--help").returncode == 0


def _tiny_weights(folder: Path) -> str:
    network = Artifact.read(GOLDEN).network
    assert network is not None
    write(network, folder / "tiny.safetensors")
    return "tiny.safetensors"


def test_version_has_one_place():
    assert PYPROJECT["project"]["dynamic"] == ["version"]
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "torch_impl._version.__version__"}
    # Every literal that says this version in the packages: the one.
    literals = [path for path, node in _nodes() if isinstance(node, ast.Constant) and node.value == __version__]
    assert literals == ["torch_impl/_version.py"]


def test_changelog_begins_with_this_version_or_what_comes_after_it():
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert __version__ in headings[:2]
    assert headings[0] in (__version__, "Unreleased", "[Unreleased]")


@pytest.mark.parametrize(("command", "module"), COMMANDS.items())
def test_commands_exist(command, module):
    assert PYPROJECT["project"]["scripts"][command] == f"{module}:main"


def test_every_import_is_a_stated_dependency():
    """A package that happens to be there because another needs it may be gone tomorrow."""
    stated = {
        re.split(r"[\[<>=;! ]", line)[0].lower()
        for lines in (PYPROJECT["project"]["dependencies"], *PYPROJECT["project"]["optional-dependencies"].values())
        for line in lines
    }
    owners = importlib.metadata.packages_distributions()
    unstated = {
        name: path
        for path, node in _nodes()
        for name in _imported(node) - sys.stdlib_module_names - {*PACKAGES}
        if name in owners and not stated & {owner.lower() for owner in owners[name]}
    }
    assert unstated == {}


def test_only_the_command_line_sets_switches_of_the_whole_process():
    """A library leaves the process as it found it; `test_explainer` looks at the process itself."""
    library = [path for path in SHIPPED if re.match(r"torch_impl/(?!batch/).*\.py$", path)]  # batch is a command's
    words = r"environ(\[[^]]*\] *=|\.(setdefault|update|pop))|putenv|mallopt|ctypes|set_num_threads|set_start_method"
    setting = [path for path in library if re.search(words, (ROOT / path).read_text(encoding="utf-8"))]
    assert setting == ["torch_impl/__main__.py"]


def _nodes() -> Iterator[tuple[str, ast.AST]]:
    """Everything in every module of the packages, with the module's path."""
    for path in sorted(path for path in SHIPPED if path.endswith(".py")):
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            yield path, node


def _imported(node: ast.AST) -> set[str]:
    """The packages that a statement imports."""
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    return {node.module.split(".")[0]} if isinstance(node, ast.ImportFrom) and node.module and not node.level else set()


WITHOUT = """
import importlib.util, runpy, sys
hidden = set({hidden!r})
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.split(".")[0] in hidden else find(name, package)
for name in hidden:
    sys.modules[name] = None  # an import of it fails as if it were not there
sys.argv = {argv!r}
runpy.run_module({module!r}, run_name="__main__", alter_sys=False)
"""


@pytest.mark.parametrize("module", ["keras_ref", "parity"])
def test_a_missing_extra_is_named_by_the_error_that_meets_it(tmp_path, weights, module):
    argv = [module, "--weights", weights, "--out", "result.safetensors"]
    program = WITHOUT.format(hidden=["tensorflow", "keras", "tf_keras_vis"], argv=argv, module=module)
    result = run_program("-c", program, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"{module}: error: ")
    assert "attention-maps[keras]" in line
    assert list(tmp_path.iterdir()) == []
