"""What a user of the library calls: photographs in, maps out."""

from __future__ import annotations

import copy
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from parity.contract import classes as imagenet
from parity.contract.methods import DEFAULT, REFERENCE, Options, canonical_names
from parity.contract.network import INPUTS, Network
from parity.contract.versions import versions
from torch_impl import images
from torch_impl._version import __version__
from torch_impl.arrays import Images, Logits, Target
from torch_impl.batching import BatchSize
from torch_impl.capture import ENGINES
from torch_impl.capture.draw import ChooseRows, Drawn, draw
from torch_impl.capture.target_layer import find_layer
from torch_impl.explanation import Explanation
from torch_impl.maps.postprocess import finish
from torch_impl.maps.registry import DRAWN
from torch_impl.methods import capture_class
from torch_impl.output import FORMAT
from torch_impl.precision import check_precision, choose_device, name_of, numerics
from torch_impl.stock import check_narrow
from torch_impl.transform import Transform, transformed, visible

if TYPE_CHECKING:
    from torch_impl.images import Photograph

Classes = int | str | Sequence[int | str] | None
"""One class for all photographs, or one for each, an index or a label; None: each one's top-1."""

Report = Callable[[str, int, int], None]
"""Progress: called with (what, passes done, passes in all)."""


class Explainer:
    """Draws attention maps of one classifier.

    Example:
        explainer = Explainer.vgg16(weights="auto", device="cuda")
        maps = explainer(["cat.jpg", image_array], classes=[282, "espresso"], methods=("gradcam", "gradcam++"))
        maps["gradcam"]  # (2, 224, 224)
    """

    def __init__(
        self,
        model: nn.Module,
        target_layer: str | nn.Module,
        *,
        preprocess: str | Transform = "torchvision",
        size: int = 224,
        resize: str | None = None,
        device: str | torch.device | None = None,
        precision: str | None = None,
        batch_size: BatchSize = "auto",
        engine: str = "library",
        weights: Network | None = None,
    ) -> None:
        """Any PyTorch classifier with convolutions, and any of its layers.

        Args:
            model: gives logits (N, classes), not probabilities. Used in eval mode, and given back as it was.
            target_layer: of the CAMs: a module, or its name; its output must be (N, K, h, w).
            preprocess: `caffe`, `torchvision`, or a function from a Pillow image (RGB) to one input (C, H, W).
            size: height and width of the input, pixels; not used with a function.
            resize: `lab` (nearest neighbour, aspect ratio ignored: Keras's `load_img`) or `torchvision` (bilinear, then
                centre crop); by default the one that belongs to `preprocess`.
            device: None: where the model is. Otherwise a copy of the model is moved there, if it is elsewhere.
            precision: None: as the model is. Otherwise one of `fp64, fp32, tf32, fp16, bf16`, on a copy if it differs.
            batch_size: images in one pass; "auto" or a number.
            engine: `library`: each map by Captum or pytorch-grad-cam. `shared`: the same maps in the fewest passes; the
                libraries' own maps (`gradcam@pytorch-grad-cam`) are still theirs.
            weights: where the model's weights come from, for the manifest.

        Raises:
            LayerError: no such layer.
            DeviceError: no such device.
            ValueError: unknown preprocessing, resize, precision or engine.
        """
        if engine not in ENGINES:
            raise ValueError(f"engine {engine!r} is unknown; known: {', '.join(ENGINES)}")
        if isinstance(preprocess, str) and preprocess not in INPUTS:
            raise ValueError(f"preprocessing {preprocess!r} is unknown; give {', '.join(INPUTS)} or a function")
        resize = resize or ("torchvision" if preprocess == "torchvision" else "lab")
        if resize not in images.RESIZES:
            raise ValueError(f"resize {resize!r} is unknown; known: {', '.join(images.RESIZES)}")
        layer = find_layer(model, target_layer)
        self.target_layer = next(name for name, module in model.named_modules() if module is layer)
        floating = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
        self.device = choose_device(device) if device is not None else floating.device
        self.precision = precision or name_of(floating.dtype)
        self.dtype = check_precision(self.precision, self.device)
        if floating.device != self.device or floating.dtype != self.dtype:
            model = copy.deepcopy(model).to(self.device, self.dtype)
        self.model = model
        self.preprocess, self.size, self.resize = preprocess, size, resize
        self.batch_size, self.engine, self.weights = batch_size, engine, weights
        self._memory_format = _memory_format(model)

    @classmethod
    def vgg16(
        cls,
        weights: str | Network = "auto",
        *,
        input: str | None = None,
        resize: str = "lab",
        device: str | torch.device = "auto",
        precision: str = "fp32",
        batch_size: BatchSize = "auto",
        engine: str = "library",
        progress: Any = None,
    ) -> Explainer:
        """torchvision's VGG16.

        Args:
            weights: `auto`, `imagenet`, `keras`, `offline`, `offline-random:N`, `seeded:N`, a path, or a `Network`.
            input: `caffe` or `torchvision`; None: the preprocessing that these weights were trained with.
            resize: `lab` or `torchvision`; see `Explainer`.
            device: `auto`, `cpu`, `cuda`, `cuda:1`.
            precision: see `Explainer`.
            batch_size: images in one pass; "auto" or a number.
            engine: `library` or `shared`; see `Explainer`.
            progress: of a download; see `weights.load_network`.

        Raises:
            WeightsError: the weights cannot be had or used.
            DeviceError: no such device.
            ValueError: unknown preprocessing, resize, precision or engine.
        """
        from torch_impl.network import prepared
        from torch_impl.weights import load_network

        where = choose_device(device)
        dtype = check_precision(precision, where)  # before the weights, which may be a long download
        network = weights if isinstance(weights, Network) else load_network(weights, input=input, progress=progress)
        return cls(
            prepared(network, where, dtype),
            network.table.modules[network.table.target],
            preprocess=input or network.input,
            size=network.table.size[0],
            resize=resize,
            precision=precision,
            batch_size=batch_size,
            engine=engine,
            weights=network,
        )

    def __call__(
        self,
        photographs: Sequence[Any],
        classes: Classes = None,
        methods: str | Sequence[str] = DEFAULT,
        *,
        n_samples: int = 20,
        noise_level: float = 0.2,
        seed: int = 0,
        progress: Report | None = None,
    ) -> Explanation:
        """Draw the maps.

        Args:
            photographs: files, arrays uint8 (H, W, 3), Pillow images, or `images.Photograph`s already read.
            classes: one for all or one for each, an index or an ImageNet label; None: each photograph's top-1.
            methods: names of `parity.contract.methods.METHODS`, as a list or with commas between them.
            n_samples: SmoothGrad's noisy copies.
            noise_level: SmoothGrad's σ as a fraction of each image's range.
            seed: of SmoothGrad's noise.
            progress: called after each pass.

        Raises:
            ImagesError: photographs that cannot be read; all of them are named.
            ClassError: a class that does not exist.
            MapError: a map is not finite.
            ValueError: no photograph, no method, an unknown method, or settings out of range.
        """
        names, options = canonical_names(methods), Options(n_samples, noise_level, seed)
        check_narrow(names, self.precision)
        if isinstance(photographs, (str, os.PathLike, np.ndarray)):
            raise ValueError("photographs: give a list, also for a single one: [photograph]")
        photographs = list(photographs)
        if not photographs:
            raise ValueError("no photograph was given")
        seconds: dict[str, float] = {}
        with numerics(self.precision):
            clock = time.perf_counter()
            read, pixels, inputs = self._prepared(photographs)
            seconds["photographs"] = time.perf_counter() - clock
            drawn = self._draw(inputs, choose(classes, len(inputs)), names, options, seconds, progress)
            clock = time.perf_counter()
            size = (int(inputs.shape[-2]), int(inputs.shape[-1]))
            finished = {name: finish(drawn.raw[name], size).cpu().numpy() for name in names}
            seconds["finish"] = time.perf_counter() - clock
        rows = [_photograph_row(photograph, i, drawn) for i, photograph in enumerate(read)]
        assert drawn.logits is not None
        return Explanation(finished, pixels, drawn.logits.cpu().numpy(), self._manifest(rows, names, seconds, options))

    def compute(
        self,
        pixels: np.ndarray,
        target: Sequence[int] | None = None,
        methods: str | Sequence[str] = DEFAULT,
        *,
        n_samples: int = 20,
        noise_level: float = 0.2,
        seed: int = 0,
    ) -> Drawn:
        """Logits and raw maps of decoded photographs: for those who finish and keep them themselves.

        Args:
            pixels: uint8 (N, H, W, 3), RGB, of the network's size.
            target: the class of each; None: each one's top-1.
            methods: of the reference's.
            n_samples: SmoothGrad's noisy copies.
            noise_level: SmoothGrad's σ as a fraction of each image's range.
            seed: of SmoothGrad's noise.

        Returns:
            Tensors on the device; `methods.finish(raw, (H, W))` makes a raw map one in [0, 1] of the photograph's size.

        Raises:
            ClassError: a class that does not exist, or not one for all or for each.
            ValueError: no photograph, pixels that are not uint8 (N, H, W, 3), or an unknown method.
            MapError: a value is not finite.
        """
        names = canonical_names(methods, REFERENCE) if len(methods) else ()
        options = Options(n_samples, noise_level, seed)
        if len(pixels) == 0:
            raise ValueError("no photograph was given")
        with numerics(self.precision):
            return self._draw(self._inputs(pixels), choose(target, len(pixels)), names, options, {}, None)

    def _draw(
        self,
        inputs: Images,
        chosen: ChooseRows,
        names: Sequence[str],
        options: Options,
        seconds: dict[str, float],
        progress: Report | None,
    ) -> Drawn:
        """Every map; what each part took is noted down in `seconds`."""
        target: Target | ChooseRows = chosen
        logits: Logits | None = None
        raw: dict[str, Tensor] = {}
        capture = capture_class(self.engine)(self.model, find_layer(self.model, self.target_layer), self.batch_size)
        for what, group in _groups(names, capture.one_by_one):
            clock = time.perf_counter()
            drawn = draw(capture, inputs, target, group, options, partial(progress, what) if progress else None)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            seconds[what] = time.perf_counter() - clock
            target, logits = drawn.target, drawn.logits if logits is None else logits
            raw |= drawn.raw
        assert isinstance(target, Tensor)
        return Drawn(target, raw, logits)

    def _prepared(self, photographs: list[Any]) -> tuple[list[Photograph], np.ndarray, Images]:
        """Photographs read, the pixels that the network sees (N, H, W, 3) uint8, and its inputs (N, C, H, W)."""
        resize = self.resize if isinstance(self.preprocess, str) else images.AS_IT_IS
        fresh = [p for p in photographs if not isinstance(p, images.Photograph)]
        loaded = iter(images.load_all(fresh, size=self.size, resize=resize)[0] if fresh else [])
        read = [p if isinstance(p, images.Photograph) else next(loaded) for p in photographs]
        if isinstance(self.preprocess, str):
            pixels = np.stack([p.pixels for p in read])
            return read, pixels, self._inputs(pixels)
        inputs = transformed(self.preprocess, [p.pixels for p in read], [p.name for p in read])
        inputs = inputs.to(self.device, self.dtype).contiguous(memory_format=self._memory_format)
        return read, visible(inputs), inputs

    def _inputs(self, pixels: np.ndarray) -> Images:
        """Decoded photographs uint8 (N, H, W, 3) → (N, C, H, W) on the device."""
        if isinstance(self.preprocess, str):
            inputs = images.preprocess(pixels, input=self.preprocess, dtype=self.dtype, device=self.device)
        else:
            inputs = transformed(self.preprocess, pixels, [str(i) for i in range(len(pixels))])
            inputs = inputs.to(self.device, self.dtype)
        return inputs.contiguous(memory_format=self._memory_format)

    def _manifest(
        self, photographs: list[dict[str, Any]], methods: Sequence[str], seconds: dict[str, float], options: Options
    ) -> dict[str, Any]:
        network, cuda = self.weights, self.device.type == "cuda"
        return {
            "format": FORMAT,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "photographs": photographs,
            "methods": list(methods),
            "model": type(self.model).__name__,
            "target_layer": self.target_layer,
            "weights": {
                "source": network.source if network else "the model that was handed in",
                "remark": network.remark if network else "",
                "fingerprint": network.fingerprint if network else None,
            },
            "input": self.preprocess if isinstance(self.preprocess, str) else "a function that was handed in",
            "resize": self.resize if isinstance(self.preprocess, str) else None,
            "engine": self.engine,
            "settings": {**vars(options), "batch_size": self.batch_size},
            "device": str(self.device),
            "device_name": torch.cuda.get_device_name(self.device) if cuda else platform.machine(),
            "threads": torch.get_num_threads(),
            "precision": self.precision,
            "versions": {
                "attention-maps": __version__,
                **versions("torch", "torchvision", "captum", "grad-cam", "numpy", "pillow"),
            },
            "seconds": {name: round(value, 4) for name, value in seconds.items()},
        }


def choose(classes: Classes, count: int) -> ChooseRows:
    """How the explained classes are chosen once the logits say how many classes there are.

    Raises (when it is called):
        ClassError: a class that does not exist, or neither one for all nor one for each of `count` photographs.
    """
    if classes is None:
        return lambda logits, rows: logits.argmax(dim=1)
    given = [classes] if isinstance(classes, (int, str, np.integer)) else list(classes)
    plain = [value if isinstance(value, str) else int(value) for value in given]

    def chosen(logits: Logits, rows: list[int]) -> Target:
        indices = imagenet.per_photograph(plain, count, logits.shape[1])
        return torch.tensor([indices[row] for row in rows], device=logits.device)

    return chosen


def _groups(names: Sequence[str], one_by_one: bool) -> Iterator[tuple[str, list[str]]]:
    """(what, maps) that are drawn in one go: those that read the same pass together, the others each by itself.

    The first of them chooses the classes.
    """
    together = [] if one_by_one else [name for name in names if DRAWN[name].needs]
    yield "logits" if one_by_one else "shared", together
    for name in names:
        if name not in together:
            yield name, [name]


def _memory_format(model: nn.Module) -> torch.memory_format:
    """The layout of the model's own kernels, in which its inputs are handed to it."""
    kernels = (p for p in model.parameters() if p.ndim == 4)
    last = any(p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous() for p in kernels)
    return torch.channels_last if last else torch.contiguous_format


def _photograph_row(photograph: Photograph, i: int, drawn: Drawn) -> dict[str, Any]:
    """What the manifest says of a photograph."""
    assert drawn.logits is not None
    logits, chosen = drawn.logits[i], int(drawn.target[i])
    count, probabilities = len(logits), logits.double().softmax(dim=0)
    constant = [name for name, raw in drawn.raw.items() if bool(raw[i].amax() == raw[i].amin())]
    return {
        "name": photograph.name,
        "path": photograph.path,
        "sha256": photograph.sha256,
        "size": list(photograph.original_size),
        "notes": list(photograph.notes),
        "credit": images.credit_of(photograph.name, photograph.path),
        "class": chosen,
        "label": imagenet.label(chosen, count),
        "logit": float(logits[chosen]),
        "probability": float(probabilities[chosen]),
        "top5": [
            {"class": c, "label": imagenet.label(c, count), "probability": float(probabilities[c])}
            for c in logits.topk(min(5, count)).indices.tolist()
        ],
        "constant_maps": constant,
    }
