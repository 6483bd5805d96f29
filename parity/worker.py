"""One candidate in one precision, in a process of its own: `python -m parity.worker`. Started by `python -m parity`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from parity import candidate as candidates
from parity.candidate import CandidateError, Job
from parity.contract.artifact import Artifact, ArtifactError
from parity.contract.files import whole
from parity.contract.network import Network, WeightsError

FAILED = 2


def main(argv: list[str] | None = None) -> int:
    """Run the candidate (or the ladder) on a reference's job and write what it gave.

    Args:
        argv: without the program's name; None: the process's own.

    Returns:
        0 written; 2 not, and one line says why.
    """
    parser = argparse.ArgumentParser(prog="parity.worker", description=__doc__)
    parser.add_argument("reference")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--input")
    parser.add_argument("--methods", default="")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--candidate", default=candidates.DEFAULT)
    parser.add_argument("--ladder", action="store_true", help="also what the libraries' plain calls draw")
    parser.add_argument("--context", action="store_true", help="also what other maps on purpose would score")
    parser.add_argument("--extras", metavar="JSON", help="where ladder, context and conditioning go")
    parser.add_argument("--out", required=True)
    options = parser.parse_args(argv)
    try:
        reference = Artifact.read(options.reference)
        network = weights(options.weights, reference, options.input)
        job = candidates.job_of(
            reference,
            network,
            precision=options.precision,
            device=options.device,
            methods=[m for m in options.methods.split(",") if m],
        )
        found = candidates.record(candidates.load(options.candidate), job, reference.photographs, reference.settings)
        found.write(options.out)
        if options.extras:
            with whole(options.extras) as path:
                path.write_text(json.dumps(_extras(options, job, reference, found)), encoding="utf-8")
        return 0
    except KeyboardInterrupt:
        return 130
    except (ArtifactError, CandidateError, WeightsError, ValueError) as error:
        message = str(error)
    except Exception as error:  # the candidate is anybody's code
        import traceback

        where = traceback.extract_tb(error.__traceback__)[-1]
        message = f"the candidate failed: {type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
    print(f"parity: error: {' '.join(message.split())}", file=sys.stderr)
    return FAILED


def _extras(options: argparse.Namespace, job: Job, reference: Artifact, found: Artifact) -> dict[str, list[list[Any]]]:
    """Rows for the report that are drawn by the port: the fields of `Rung`, `ContextRow` and `Conditioning`."""
    rows: dict[str, list[list[Any]]] = {"ladder": [], "context": [], "conditioning": []}
    if options.ladder:
        from parity.ladder import rungs

        rows["ladder"] = [[r.method, r.what, r.pearson] for r in rungs(job, reference)]
    if options.context:
        from parity import context

        rows["context"] = [[r.method, r.what, r.pearson] for r in context.rows(job, reference)]
    if job.precision == "fp64":
        from parity import context

        ours = options.candidate in candidates.PORT.values()
        known = {m: found.whole(f"{m}/raw", "fp64") for m in job.methods} if ours else {}
        rows["conditioning"] = [[c.method, c.photograph, c.amplification] for c in context.conditioning(job, known)]
    return rows


def weights(source: str, reference: Artifact, input: str | None) -> Network:
    """The reference's own network: embedded in its artifact where it is small, else from `source`.

    Raises:
        WeightsError: they cannot be had.
    """
    if reference.network is not None:
        return reference.network
    from torch_impl.weights import load_network

    return load_network(source, input=input)


if __name__ == "__main__":
    sys.exit(main())
