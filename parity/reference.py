"""The reference as a process: `python -m keras_ref`, so that TensorFlow never shares one with PyTorch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from importlib import util
from pathlib import Path


class ProcessError(ValueError):
    """The reference could not be computed; one line, in its own words where it has any."""


def check_installed() -> None:
    """Refuse early where the reference cannot run.

    Raises:
        ProcessError: a package is missing; the message says which extra to install.
    """
    missing = [name for name in ("tensorflow", "keras", "tf_keras_vis") if util.find_spec(name) is None]
    if missing:
        raise ProcessError(
            f"the reference needs {', '.join(missing)}: pip install 'attention-maps[keras]', or bring an artifact made "
            "elsewhere with --reference"
        )


def run(module: str, arguments: Sequence[str], *, quiet: bool = False) -> None:
    """Run `python -m module arguments`, its progress on our stderr; all its errors become ours.

    Args:
        module: `keras_ref`.
        arguments: of its command line.
        quiet: hide its progress.

    Raises:
        ProcessError: it failed; the message is its last line.
        KeyboardInterrupt: it was interrupted.
    """
    command = [sys.executable, "-m", module, *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    # The module must be found from any folder, also when this package is run from a checkout.
    here = str(Path(__file__).resolve().parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [here, environment.get("PYTHONPATH", "")]))
    last = ""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, text=True,
        errors="replace",
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            for line in process.stdout:
                last = line.strip() or last
                if not quiet and ": error:" not in line:
                    print(f"  {line.rstrip()}", file=sys.stderr, flush=True)
        except BaseException:
            process.terminate()
            raise
    if process.returncode == 130:
        raise KeyboardInterrupt
    if process.returncode < 0:
        raise ProcessError(f"{module} was killed by signal {-process.returncode} (out of memory?)")
    if process.returncode:
        said = last.partition(": error: ")[2] or last
        raise ProcessError(said or f"{module} failed with {process.returncode}")
