"""What `test_keras_ref.py` runs in a process with TensorFlow in it; prints JSON.

python in_keras.py JOBS: commands, faults of the library, and other checks.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
from typing import Any
from unittest import mock

import numpy as np

from keras_ref import keras_files, maps, model, passes
from keras_ref import run as runs
from keras_ref.__main__ import main
from parity.contract.methods import DEFAULT, REFERENCE, Options
from parity.contract.network import from_source
from parity.contract.samples import SAMPLES


def run(*arguments: str) -> tuple[int, str, str]:
    """The exit status of a command, its errors, and what it prints; `--floor` without processes of its own, for their time."""
    with (
        contextlib.redirect_stderr(io.StringIO()) as errors,
        contextlib.redirect_stdout(io.StringIO()) as output,
        mock.patch.object(runs, "_in_child", runs.compute),
    ):
        try:
            status = main([*arguments])
        except SystemExit as end:  # argparse's
            status = int(end.code or 0)
    return status, errors.getvalue(), output.getvalue()


def loaded(path: str) -> tuple[Any, Any]:
    network = from_source(path)
    keras_model = model.build(network.table)
    model.load(keras_model, network)
    return keras_model, network.table


def files() -> dict[str, Any]:
    """The fingerprint of what Keras wrote, read again; what is said of damaged files."""
    keras_model, _ = loaded("thirteen.safetensors")
    keras_model.save("full.keras")
    keras_model.save("legacy.h5")
    keras_model.save_weights("new.weights.h5")
    shutil.copy("new.weights.h5", "renamed.h5")
    names = ("full.keras", "legacy.h5", "new.weights.h5", "renamed.h5")
    read = {name: keras_files.from_keras_file(name).fingerprint for name in names}
    damaged = {}
    with open("full.keras", "rb") as whole:
        contents = {"e.h5": b"", "d.keras": b"PK00", "t.keras": whole.read()[:9000]}
    for name, content in contents.items():
        with open(name, "wb") as file:
            file.write(content)
        try:
            keras_files.from_keras_file(name)
        except ValueError as error:
            damaged[name] = str(error)
    return {"read": read, "damaged": damaged}


def smoothgrad() -> dict[str, Any]:
    """Whether our map is that of the library's default call, and whether NumPy's generator is left alone after an error."""
    from tf_keras_vis.saliency import Saliency

    x = np.load("x.npy")[:1]
    p = passes.pass_through(passes.linear_models(*loaded("tiny.safetensors"), x), x, 3, Options(2, 0.2, 9))
    np.random.seed(5)
    with contextlib.suppress(ZeroDivisionError), maps.legacy_seed(9):
        theirs = Saliency(p.models.linear)(p.score, x, smooth_samples=2, smooth_noise=0.2)
        raise ZeroDivisionError
    alone = np.random.standard_normal() == np.random.RandomState(5).standard_normal()
    same = np.array_equal(maps.smoothgrad(p)["final"], theirs[0])
    return {"same": same, "alone": bool(alone)}


def scores() -> None:
    """Maps of every kind of score, by tf-keras-vis, into scores.npz."""
    from tf_keras_vis.gradcam import Gradcam
    from tf_keras_vis.layercam import Layercam
    from tf_keras_vis.saliency import Saliency
    from tf_keras_vis.utils.scores import BinaryScore, CategoricalScore

    x = np.load("x.npy")
    wanted = {
        "tiny.safetensors": {"class 3": CategoricalScore(3), "own": lambda y: 2 * y[:, 2] - y[:, 5] * y[:, 5]},
        "one.safetensors": {"class 1": BinaryScore(True), "class 0": BinaryScore(False)},
    }
    drawn = {}
    for path, of_network in wanted.items():
        linear = passes.linear_models(*loaded(path), x).linear
        for name, score in of_network.items():
            for method, library in (("vanilla", Saliency), ("gradcam", Gradcam), ("layercam", Layercam)):
                drawn[f"{path}/{name}/{method}"] = library(linear)(score, x)
    np.savez("scores.npz", **drawn)


def faults() -> dict[str, Any]:
    """One fault of the library at a time, by the stage that is off; "": none."""
    import tensorflow as tf
    from tf_keras_vis import gradcam, gradcam_plus_plus, layercam, saliency, scorecam
    from tf_keras_vis.utils import model_modifiers

    mean = {"sum": lambda a, axis, keepdims=False: tf.reduce_mean(a, axis, keepdims)}
    library: dict[str, tuple[Any, dict[str, Any]]] = {
        "gradcam/raw": (gradcam.Gradcam, {"_calculate_cam": lambda s, g, a, *_: np.ones(a.shape[:3], "f4")}),
        "vanilla/final": (saliency, {"normalize": lambda m: m}),
        "gradcam/final": (gradcam, {"zoom": lambda c, *_, **k: np.zeros((1, 32, 32), "f4")}),
        "gradcam_plus_plus/raw": (gradcam_plus_plus.K, mean),
        "layercam/raw": (layercam.Layercam, {"_calculate_cam": lambda s, g, a, *_: np.ones(a.shape[:3], "f4")}),
        "scorecam/raw": (scorecam.K, {"batch_dot": lambda a, w: tf.reduce_mean(a, -1)}),
        "softmax(logits)": (model_modifiers.ReplaceToLinear, {"__call__": lambda *_: None}),
        "smoothgrad/noise": (saliency, {"get_num_of_steps_allowed": lambda n: 1}),
        "": (saliency, {}),
    }
    said = {}
    for stage, (module, replaced) in library.items():
        with mock.patch.multiple(module, **replaced) if replaced else contextlib.nullcontext():
            methods = REFERENCE if stage[:5] in ("layer", "score") else DEFAULT
            arguments = f"--weights=tiny.safetensors --samples=2 --classes=4 --methods={','.join(methods)} --out=fault"
            status, line, _ = run(*arguments.split(), str(SAMPLES[0].path()))
            said[stage] = (status, line, os.path.exists("fault"))
    return said


if __name__ == "__main__":
    model.load_frameworks("fp64")
    jobs = json.loads(sys.argv[1])
    done = {name: run("--precision=fp64", "--keep=100000", f"--out={name}", *job) for name, job in jobs.items()}
    said = {"runs": done, "files": files(), "smoothgrad": smoothgrad()}
    scores()
    model.load_frameworks("fp32")
    print(json.dumps({**said, "faults": faults()}))
