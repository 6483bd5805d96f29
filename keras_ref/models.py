"""Where a Keras model comes from: a file, a function, `keras.applications`; and what it says of its input."""

from __future__ import annotations

import os
import re
import sys
from typing import Any

import numpy as np

from keras_ref import KerasRefError
from keras_ref.graph import as_function
from parity.contract.keras_files import SUFFIXES
from parity.contract.lookup import lookup
from parity.contract.text import one_line
from parity.contract.vgg import STANDARD_SIZE

APPLICATIONS = "keras.applications:"

IMAGENET = "imagenet"
"""The weights that Keras downloads."""

MODES = ("caffe", "tf", "torch")
"""Keras's names of preprocessing."""


def is_file(name: str) -> bool:
    """Whether `--model` names a file."""
    return name.endswith(SUFFIXES) or os.path.sep in name or os.path.exists(name)


def seed_of(weights: str | None) -> int | None:
    """The seed of `--weights random:N`; None where something else is asked for.

    Raises:
        KerasRefError: no such seed.
    """
    if weights is None or not weights.startswith("random:"):
        return None
    seed = weights.removeprefix("random:")
    if not re.fullmatch(r"\d{1,10}", seed) or int(seed) >= 2**32:
        raise KerasRefError(f"--weights {weights!r}: the seed must be 0 to 4294967295, as in random:0")
    return int(seed)


def check(name: str, weights: str | None) -> None:
    """Refuse what can be refused before TensorFlow is imported.

    Raises:
        KerasRefError: no such file, or a combination that means nothing.
    """
    if is_file(name) and not os.path.isfile(name):
        raise KerasRefError(
            f"--model {name!r}: no such file: give {', '.join(SUFFIXES[:2])} or package.module:function"
        )
    if not is_file(name) and ":" not in name:
        raise KerasRefError(f"--model {name!r}: give a .keras or .h5 file, or package.module:function")
    if seed_of(weights) is None and weights is not None:
        if not name.startswith(APPLICATIONS):
            raise KerasRefError(f"--weights {weights!r}: this model brings its own; give random:N or leave it out")
        if weights != IMAGENET and not os.path.isfile(weights):
            raise KerasRefError(f"--weights {weights!r}: no such file: give a Keras file, or random:N")


def load(name: str, weights: str | None, *, trust: bool) -> Any:
    """The Keras model.

    Raises:
        KerasRefError: it cannot be had; one line.
    """
    import keras

    model = _from_file(name, trust=trust) if is_file(name) else _from_function(name, weights)
    if not isinstance(model, keras.Model):
        raise KerasRefError(f"--model {name!r}: gave {type(model).__name__}, expected a Keras model")
    return model


def _from_file(path: str, *, trust: bool) -> Any:
    import keras

    try:
        return keras.saving.load_model(path, compile=False, safe_mode=not trust)
    except Exception as error:  # Keras raises whatever it likes
        said = one_line(error, 200)
        if "ambda" in said and not trust:
            raise KerasRefError(
                f"--model {path!r}: it holds a Lambda layer, which is code that would run here: give --trust if it is yours"
            ) from None
        if unknown := re.search(r"(?:locate class|Unknown layer:?) '([^']{1,100})'", str(error)):
            raise KerasRefError(
                f"--model {path!r}: its class {unknown[1]} is not known here: give package.module:function, of a module "
                "that defines the class and returns the loaded model"
            ) from None
        raise KerasRefError(f"--model {path!r}: Keras does not load it ({said})") from None


def _from_function(name: str, weights: str | None) -> Any:
    import keras

    function = lookup(name, "--model")
    try:
        if not name.startswith(APPLICATIONS):
            return function()
        model = function(weights=IMAGENET if weights in (None, IMAGENET) else None)
        if weights not in (None, IMAGENET) and seed_of(weights) is None:
            model.load_weights(weights)
        return model
    except Exception as error:  # whatever the user's code, a download or Keras raises
        if "URL fetch failure" in str(error):
            raise KerasRefError(
                f"--model {name!r}: its ImageNet weights cannot be downloaded ({one_line(error, 250)}): "
                "give --weights FILE, or random:0"
            ) from None
        hint = f" (--weights {weights!r})" if weights else ""
        raise KerasRefError(f"--model {name!r}: {type(error).__name__}: {one_line(error, 250)}{hint}") from None
    finally:
        keras.config.set_image_data_format("channels_last")


def functional(model: Any, name: str, size: tuple[int, int] | None) -> tuple[Any, tuple[int, int, int]]:
    """A model as a functional one, and the shape of its input.

    Args:
        model: of any make.
        name: as `--model` has it: those of `keras.applications` are made for 224×224 where they leave it open.
        size: (H, W), where the user gave them.

    Raises:
        KerasRefError: several inputs or outputs, no pictures, a size that is open or another.
    """
    import keras

    if isinstance(model, keras.Sequential) and not model.built:
        model.build((None, *_given(size), 3))
    function = as_function(model)
    if function is None:
        shape = (None, *_given(size or _built_for(model)), 3)
        try:
            x = keras.Input(shape[1:])
            function = keras.Model(x, model.call(x))
        except Exception as error:  # whatever its code does with a symbolic tensor
            raise KerasRefError(
                f"--model: a subclassed model whose call Keras cannot trace ({one_line(error, 200)}): "
                "give a function that returns the same as a functional model"
            ) from None
    for what, tensors in (("inputs", function._inputs), ("outputs", function._outputs)):
        if len(tensors) != 1:
            raise KerasRefError(f"--model: it has {len(tensors)} {what}, and one is compared: give a model of one")
    shape = tuple(function._inputs[0].shape)
    if len(shape) != 4:
        raise KerasRefError(f"--model: its input has the shape {shape}, expected pictures (N, H, W, channels)")
    said = shape[1:3]
    if None not in said and size not in (None, said):
        raise KerasRefError(f"--size {size[0]}x{size[1]}: the model is made for {said[0]}x{said[1]}")
    if None in said:
        usual = (STANDARD_SIZE, STANDARD_SIZE) if name.startswith(APPLICATIONS) else None
        said = _given(size or usual)
    height, width = said
    return function, (int(height), int(width), int(shape[3] or 3))


def _built_for(model: Any) -> tuple[int, int] | None:
    shape = (model.get_build_config() or {}).get("input_shape") if model.built else None
    return (shape[1], shape[2]) if shape and len(shape) == 4 and shape[1] and shape[2] else None


def _given(size: tuple[int, int] | None) -> tuple[int, int]:
    if size is None:
        raise KerasRefError("--model: it does not say for pictures of which size: give --size N, or HxW")
    return size


def own_preprocessing(name: str) -> str:
    """The preprocessing that belongs to a model: of `keras.applications` its module's, found by trying; `none` of others."""
    import keras

    if not name.startswith(APPLICATIONS):
        return "none"
    module = sys.modules[lookup(name, "--model").__module__]
    function = getattr(module, "preprocess_input", None)
    pixels = np.arange(48, dtype=np.float64).reshape(1, 4, 4, 3) * 5
    if function is None or np.array_equal(own := function(pixels.copy()), pixels):
        return "none"
    known = keras.applications.imagenet_utils.preprocess_input
    for mode in MODES:
        if np.allclose(own, known(pixels.copy(), mode=mode)):
            return mode
    raise KerasRefError(f"--model {name!r}: its preprocessing is none of {', '.join(MODES)}: give --preprocess")
