"""What a user of the library calls: photographs in, maps out."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from parity.contract import classes as imagenet
from parity.contract.network import INPUTS, Network
from parity.contract.samples import credit_of
from torch_impl import __version__, images, vgg16
from torch_impl.arrays import Images, Logits
from torch_impl.batching import BatchSize, micro_batches, sized, taken
from torch_impl.cam import find_layer
from torch_impl.heap import return_freed_blocks
from torch_impl.methods import METHODS, Settings, finish, logits_of, raw_maps
from torch_impl.names import ENGINES, REFERENCE_METHODS, canonical_name, check_stock
from torch_impl.precision import dtype_of, name_of, numerics
from torch_impl.preprocess import preprocess
from torch_impl.preserve import preserved
from torch_impl.shared_pass import Computed, shared_pass

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

Source = "str | os.PathLike[str] | np.ndarray | Image"
"""A photograph: a file, an array uint8 (H, W, 3), or a Pillow image."""

Transform = Callable[["Image"], Tensor]
"""A picture → one input (C, H, W), as torchvision's transforms are."""

Report = Callable[[str, int, int], None]
"""Progress: called with (what, passes done, passes in all)."""

MANIFEST = "manifest.json"
FORMAT = "attention-maps explanation 1"


class DeviceError(ValueError):
    """No such device here; the message says what there is."""


class OutputError(ValueError):
    """The output folder cannot be used; the message says why."""


@dataclass(frozen=True)
class Explanation:
    """Maps with everything that says where they come from.

    Attributes:
        maps: method → (N, H, W) in [0, 1]; float32, or float64 where it was computed in float64.
        pixels: (N, H, W, 3) uint8: what the network saw.
        logits: (N, classes), the same type as the maps.
        manifest: photographs, classes, weights, settings, versions, seconds; plain JSON types.
    """

    maps: Mapping[str, np.ndarray] = field(repr=False)
    pixels: np.ndarray = field(repr=False)
    logits: np.ndarray = field(repr=False)
    manifest: Mapping[str, Any]

    def __getitem__(self, method: str) -> np.ndarray:
        """A method's maps (N, H, W); `gradcam++` is an alias.

        Raises:
            KeyError: this method was not asked for.
        """
        name = canonical_name(method)
        if name not in self.maps:
            raise KeyError(f"{method} was not drawn; drawn: {', '.join(self.maps)}")
        return self.maps[name]

    @property
    def captions(self) -> list[str]:
        """`label probability`, photograph by photograph."""
        return [f"{p['label']} {p['probability']:.2f}\n{p['name']}" for p in self.manifest["photographs"]]

    @property
    def footer(self) -> str:
        """The small print of every figure: weights, remarks, credits."""
        weights = self.manifest["weights"]
        credits = [p["credit"] for p in self.manifest["photographs"] if p.get("credit")]
        lines = [f"weights: {weights['source']}" + (f" · {weights['remark']}" if weights["remark"] else "")]
        if credits:
            lines.append("photographs: " + "; ".join(dict.fromkeys(credits)))
        return "\n".join(lines)

    def figure(self, method: str, colormap: str = "jet") -> Figure:
        """A method's maps as the lab draws them: a row of photographs.

        Raises:
            KeyError: this method was not asked for.
            ColormapError: no such colour map.
        """
        from torch_impl import figure

        return figure.method_figure(
            canonical_name(method),
            self.pixels,
            self[method],
            self.captions,
            constant=self._constant()[canonical_name(method)],
            colormap=figure.checked_colormap(colormap),
            footer=self.footer,
        )

    def overview(self, colormap: str = "jet") -> list[Figure]:
        """Photographs × {photograph, every map}; one figure for every 12 photographs.

        Raises:
            ColormapError: no such colour map.
        """
        from torch_impl import figure

        return figure.overview_figures(
            self.pixels,
            self.maps,
            self.captions,
            constant=self._constant(),
            colormap=figure.checked_colormap(colormap),
            footer=self.footer,
        )

    def save(self, folder: str | os.PathLike[str], *, colormap: str = "jet", overwrite: bool = False) -> list[Path]:
        """Write the figures, `overview.png`, `maps.npz` and `manifest.json`: all of them, or nothing.

        Args:
            folder: made if it is not there. An earlier result in it is replaced; other files stay.
            colormap: a matplotlib name.
            overwrite: also into a folder that holds files and no result of ours.

        Returns:
            The files written.

        Raises:
            OutputError: the folder cannot be used.
            ColormapError: no such colour map.
            OSError: as the file system says.
        """
        out = Path(folder)
        earlier = check_output(out, overwrite=overwrite)
        figures = {f"{name}.png": self.figure(name, colormap) for name in self.maps}
        for page, drawn in enumerate(self.overview(colormap), start=1):
            figures["overview.png" if page == 1 else f"overview-{page}.png"] = drawn
        names = [*figures, "maps.npz", MANIFEST]
        existing = next(p for p in (out, *out.absolute().parents) if p.is_dir())
        with tempfile.TemporaryDirectory(dir=existing, prefix=".part-") as staging:
            # The same file system as the result, so that what is complete is moved into place, never copied.
            for name, drawn in figures.items():
                drawn.savefig(Path(staging, name), metadata={"Software": f"attention-maps {__version__}"})
            np.savez_compressed(Path(staging, "maps.npz"), pixels=self.pixels, **self.maps)  # type: ignore[arg-type]
            manifest = {**self.manifest, "files": names, "colormap": colormap}
            Path(staging, MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False), encoding="utf-8")
            out.mkdir(parents=True, exist_ok=True)
            for name in names:
                os.replace(Path(staging, name), out / name)
        for name in earlier - set(names):
            (out / name).unlink(missing_ok=True)
        return [out / name for name in names]

    def _constant(self) -> dict[str, list[bool]]:
        return {name: [name in p["constant_maps"] for p in self.manifest["photographs"]] for name in self.maps}


def _transformed(transform: Transform, pictures: Iterable[np.ndarray], names: Sequence[str]) -> Images:
    from PIL import Image as Pillow

    found: list[Tensor] = []
    for pixels, name in zip(pictures, names, strict=True):
        made = transform(Pillow.fromarray(pixels))
        if not isinstance(made, Tensor) or made.ndim != 3 or not made.is_floating_point():
            shape = f"{made.dtype} {tuple(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
            raise ValueError(f"preprocess gave {shape} for {name!r}; expected a floating-point tensor (C, H, W)")
        if found and made.shape != found[0].shape:
            raise ValueError(
                f"preprocess gave {tuple(made.shape)} for {name!r}, and {tuple(found[0].shape)} before; "
                "let it resize to one size, or explain photographs one by one"
            )
        found.append(made)
    return torch.stack(found)


def _chosen(logits: Logits, classes: Sequence[int | str] | None) -> list[int]:
    """The class of each photograph: as given, or its top-1."""
    if classes is None:
        return [int(c) for c in logits.argmax(dim=1)]
    return _checked_classes(classes, *logits.shape)


def _checked_classes(classes: Sequence[int | str], n_photographs: int, n_classes: int) -> list[int]:
    return imagenet.per_photograph([c if isinstance(c, str) else int(c) for c in classes], n_photographs, n_classes)


def _visible(inputs: Images) -> np.ndarray:
    """Inputs (N, C, H, W) → uint8 (N, H, W, 3), each image's channels stretched to the whole range."""
    wide = inputs.detach().float()
    low, high = wide.amin(dim=(2, 3), keepdim=True), wide.amax(dim=(2, 3), keepdim=True)
    shown = ((wide - low) / (high - low).clamp_min(1e-12) * 255).round().to(torch.uint8)
    shown = shown[:, :3] if shown.shape[1] >= 3 else shown[:, :1].expand(-1, 3, -1, -1)
    return shown.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def check_output(folder: str | os.PathLike[str], *, overwrite: bool = False) -> set[str]:
    """Whether results may be written here; asked before the work, so that nobody waits in vain.

    Returns:
        Names of the files that an earlier result of ours left here.

    Raises:
        OutputError: a file of this name, a folder with somebody's files, or no permission.
    """
    out = Path(folder)
    shown = ascii(os.fspath(folder))
    if not os.fspath(folder).strip():
        raise OutputError("the output folder's name is empty")
    parent = next(p for p in (out, *out.absolute().parents) if os.path.lexists(p))
    if not parent.is_dir():
        raise OutputError(f"output folder {shown}: {ascii(str(parent))} is not a folder; choose another name")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"output folder {shown}: no permission to write in {ascii(str(parent))}")
    if parent != out:
        return set()
    earlier = _earlier_result(out)
    if earlier is not None:
        return earlier
    if not overwrite and any(not entry.is_dir() for entry in out.iterdir()):
        raise OutputError(
            f"output folder {shown} holds files that are not a result of this program; "
            "choose another folder, or add --overwrite to write beside them"
        )
    return set()


def _earlier_result(out: Path) -> set[str] | None:
    """Names of the files of a result of ours; None where there is none."""
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return None
        return {str(name) for name in manifest["files"] if Path(str(name)).name == str(name)}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """`auto`: CUDA where there is one, else the CPU; or `cpu`, `cuda`, `cuda:1`.

    Raises:
        DeviceError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"device {name!r} is unknown; give auto, cpu, cuda or cuda:1") from None
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise DeviceError(f"device {name!r} is not supported; give auto, cpu, cuda or cuda:1")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise DeviceError(f"device {name!r}: PyTorch finds no CUDA device here; give cpu or auto")
        if (device.index or 0) >= count:
            raise DeviceError(f"device {name!r}: there are {count} CUDA devices, cuda:0 to cuda:{count - 1}")
    return device


def _check_precision(precision: str, device: torch.device) -> None:
    """Refuse an unknown number format, and one that the device does not have."""
    dtype_of(precision)
    if precision == "tf32" and device.type != "cuda":
        raise ValueError("precision tf32 exists on CUDA devices only; give fp32")


def _check_engine(engine: str) -> None:
    if engine not in ENGINES:
        raise ValueError(f"engine {engine!r} is unknown; known: {', '.join(ENGINES)}")


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
            precision: None: as the model is. Otherwise one of `PRECISIONS`, on a copy if it differs.
            batch_size: images in one pass; "auto" or a number.
            engine: `library`: each map by Captum or pytorch-grad-cam. `shared`: the same maps in the fewest passes, see
                `shared_pass`; the libraries' own maps (`gradcam@pytorch-grad-cam`) are still theirs.

        Raises:
            LayerError: no such layer.
            DeviceError: no such device.
            ValueError: unknown preprocessing, resize, precision or engine.
        """
        return_freed_blocks()
        _check_engine(engine)
        if isinstance(preprocess, str) and preprocess not in INPUTS:
            raise ValueError(f"preprocessing {preprocess!r} is unknown; give {', '.join(INPUTS)} or a function")
        resize = resize or ("torchvision" if preprocess == "torchvision" else "lab")
        if resize not in images.RESIZES:
            raise ValueError(f"resize {resize!r} is unknown; known: {', '.join(images.RESIZES)}")
        layer = find_layer(model, target_layer)
        name = next(name for name, module in model.named_modules() if module is layer)
        floating = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
        self.device = choose_device(device) if device is not None else floating.device
        self.precision = precision or name_of(floating.dtype)
        self.dtype = dtype_of(self.precision)
        _check_precision(self.precision, self.device)
        if floating.device != self.device or floating.dtype != self.dtype:
            model = copy.deepcopy(model).to(self.device, self.dtype)
        self.model = model
        self.target_layer = name
        self.preprocess = preprocess
        self.size = size
        self.resize = resize
        self.batch_size = batch_size
        self.engine = engine
        self.network: Network | None = None
        self._memory_format = torch.contiguous_format

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
            precision: one of `PRECISIONS`.
            batch_size: images in one pass; "auto" or a number.
            engine: `library` or `shared`; see `Explainer`.
            progress: of a download; see `weights.load_network`.

        Raises:
            WeightsError: the weights cannot be had or used.
            DeviceError: no such device.
            ValueError: unknown preprocessing, resize, precision or engine.
        """
        return_freed_blocks()
        _check_engine(engine)
        where = choose_device(device)
        _check_precision(precision, where)  # before the weights, which may be a long download
        if isinstance(weights, Network):
            network = weights
        else:
            from torch_impl.weights import load_network

            network = load_network(weights, input=input, progress=progress)
        model = vgg16.prepared(network, where, dtype_of(precision))
        explainer = cls(
            model,
            network.architecture.target.activation,
            preprocess=input or network.input,
            size=network.architecture.size,
            resize=resize,
            precision=precision,
            batch_size=batch_size,
            engine=engine,
        )
        explainer.network = network
        explainer._memory_format = torch.channels_last
        return explainer

    def __call__(
        self,
        photographs: Sequence[Any],
        classes: int | str | Sequence[int | str] | None = None,
        methods: str | Sequence[str] = REFERENCE_METHODS,
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
            methods: names of `methods.METHODS`.
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
        names = list(dict.fromkeys(canonical_name(m) for m in ([methods] if isinstance(methods, str) else methods)))
        if not names:
            raise ValueError(f"no method: give one or more of {', '.join(METHODS)}")
        check_stock(names, self.precision)
        if isinstance(photographs, (str, os.PathLike, np.ndarray)):
            raise ValueError("photographs: give a list, also for a single one: [photograph]")
        photographs = list(photographs)
        if not photographs:
            raise ValueError("no photograph was given")
        if isinstance(seed, bool) or not 0 <= seed < 2**32:
            raise ValueError(f"seed {seed}: give 0 to 4294967295")
        seconds: dict[str, float] = {}
        with numerics(self.precision):
            clock = time.perf_counter()
            read, pixels, inputs = self._prepared(photographs)
            seconds["photographs"] = time.perf_counter() - clock
            settings = Settings(
                target_layer=self.target_layer,
                noise_level=noise_level,
                n_samples=n_samples,
                seed=seed,
                batch_size=self.batch_size,
            )
            wanted = (
                classes if classes is None else [classes] if isinstance(classes, (int, str, np.integer)) else classes
            )
            draw = self._by_libraries if self.engine == "library" else self._shared
            logits, chosen, raws = draw(inputs, wanted, names, settings, seconds, progress)
            maps: dict[str, np.ndarray] = {}
            constant: dict[str, list[bool]] = {}
            clock = time.perf_counter()
            for name in names:
                raw = raws.pop(name)
                maps[name] = finish(raw, (inputs.shape[-2], inputs.shape[-1])).cpu().numpy()
                constant[name] = (raw.amax(dim=(1, 2)) == raw.amin(dim=(1, 2))).tolist()
            seconds["finish"] = time.perf_counter() - clock
        probabilities = logits.double().softmax(dim=1)
        rows = [
            {
                "name": one.name,
                "path": one.path,
                "sha256": one.sha256,
                "size": list(one.original_size),
                "notes": list(one.notes),
                "credit": credit_of(one.path),
                "class": chosen[i],
                "label": imagenet.label(chosen[i], logits.shape[1]),
                "logit": float(logits[i, chosen[i]]),
                "probability": float(probabilities[i, chosen[i]]),
                "top5": [
                    {"class": c, "label": imagenet.label(c, logits.shape[1]), "probability": float(probabilities[i, c])}
                    for c in logits[i].topk(min(5, logits.shape[1])).indices.tolist()
                ],
                "constant_maps": [name for name in names if constant[name][i]],
            }
            for i, one in enumerate(read)
        ]
        return Explanation(
            MappingProxyType(maps),
            pixels,
            logits.cpu().numpy(),
            self._manifest(
                rows,
                names,
                seconds,
                {
                    "n_samples": n_samples,
                    "noise_level": noise_level,
                    "seed": seed,
                },
            ),
        )

    def _prepared(self, photographs: list[Any]) -> tuple[list[images.Photograph], np.ndarray, Images]:
        """Photographs read, the pixels that the network sees (N, H, W, 3) uint8, and its inputs (N, C, H, W)."""
        resize = self.resize if isinstance(self.preprocess, str) else images.AS_IT_IS
        fresh = [p for p in photographs if not isinstance(p, images.Photograph)]
        loaded = iter(images.load_all(fresh, size=self.size, resize=resize)[0] if fresh else [])
        read = [p if isinstance(p, images.Photograph) else next(loaded) for p in photographs]
        if isinstance(self.preprocess, str):
            pixels = np.stack([p.pixels for p in read])
            return read, pixels, self._inputs(pixels)
        inputs = _transformed(self.preprocess, [p.pixels for p in read], [p.name for p in read])
        inputs = inputs.to(self.device, self.dtype).contiguous(memory_format=self._memory_format)
        # What a function did to the picture cannot be undone; its own output, stretched to [0, 255], lies under the map.
        return read, _visible(inputs), inputs

    def compute(
        self,
        pixels: np.ndarray,
        target: Sequence[int] | None = None,
        methods: str | Sequence[str] = REFERENCE_METHODS,
        *,
        n_samples: int = 20,
        noise_level: float = 0.2,
        seed: int = 0,
    ) -> Computed:
        """Logits and raw maps of decoded photographs, by the shared engine: for those who finish and keep them themselves.

        Args:
            pixels: uint8 (N, H, W, 3), RGB, of the network's size.
            target: the class of each; None: each one's top-1.
            methods: of the four.
            n_samples: SmoothGrad's noisy copies.
            noise_level: SmoothGrad's σ as a fraction of each image's range.
            seed: of SmoothGrad's noise.

        Returns:
            Tensors on the device; `methods.finish(raw, (H, W))` makes a raw map one in [0, 1] of the photograph's size.

        Raises:
            ClassError: a class that does not exist, or not one for all or for each.
            ValueError: no photograph, or pixels that are not uint8 (N, H, W, 3); and as of `shared_pass`.
            MapError: a value is not finite.
        """
        if len(pixels) == 0:
            raise ValueError("no photograph was given")
        with numerics(self.precision):
            inputs = self._inputs(pixels)
            settings = Settings(
                target_layer=self.target_layer,
                noise_level=noise_level,
                n_samples=n_samples,
                seed=seed,
                batch_size=self.batch_size,
            )
            categories = None
            if target is not None:
                chosen = _checked_classes(list(target), len(pixels), self._n_classes(inputs))
                categories = torch.tensor(chosen, device=self.device)
            return shared_pass(self.model, inputs, categories, methods, settings)

    def _by_libraries(
        self,
        inputs: Images,
        classes: Sequence[int | str] | None,
        names: Sequence[str],
        settings: Settings,
        seconds: dict[str, float],
        progress: Report | None,
    ) -> tuple[Logits, list[int], dict[str, Tensor]]:
        """Logits, classes and raw maps, each map by the library that draws it; the seconds are noted down."""
        clock = time.perf_counter()
        logits = self._logits(inputs, settings.batch_size)
        seconds["logits"] = time.perf_counter() - clock
        chosen = _chosen(logits, classes)
        return logits, chosen, self._each(inputs, chosen, names, settings, seconds, progress)

    def _each(
        self,
        inputs: Images,
        chosen: list[int],
        names: Sequence[str],
        settings: Settings,
        seconds: dict[str, float],
        progress: Report | None,
    ) -> dict[str, Tensor]:
        target = torch.tensor(chosen, device=self.device)
        raws: dict[str, Tensor] = {}
        for name in names:
            clock = time.perf_counter()
            one = replace(settings, progress=partial(progress, name) if progress else None)
            raws[name] = raw_maps(name, self.model, inputs, target, one)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            seconds[name] = time.perf_counter() - clock
        return raws

    def _shared(
        self,
        inputs: Images,
        classes: Sequence[int | str] | None,
        names: Sequence[str],
        settings: Settings,
        seconds: dict[str, float],
        progress: Report | None,
    ) -> tuple[Logits, list[int], dict[str, Tensor]]:
        """The same in the fewest passes. A class given by a label needs no logits, but the number of classes to be checked."""
        shared = [name for name in names if name in REFERENCE_METHODS]
        target: Tensor | None = None
        if classes is not None:
            count = self._n_classes(inputs)
            chosen = _checked_classes(classes, len(inputs), count)
            target = torch.tensor(chosen, device=self.device)
        computed = shared_pass(
            self.model, inputs, target, shared, settings, progress=partial(partial, progress) if progress else None
        )
        chosen = computed.target.tolist()
        seconds |= computed.seconds
        others = [name for name in names if name not in shared]
        return (
            computed.logits,
            chosen,
            dict(computed.raw) | self._each(inputs, chosen, others, settings, seconds, progress),
        )

    def _n_classes(self, inputs: Images) -> int:
        """How many logits the model gives."""
        if self.network is not None:
            return self.network.architecture.classes
        return self._logits(inputs[:1], 1).shape[1]

    def _inputs(self, pixels: np.ndarray) -> Images:
        """Decoded photographs uint8 (N, H, W, 3) → (N, C, H, W) on the device."""
        if isinstance(self.preprocess, str):
            inputs = preprocess(pixels, input=self.preprocess, dtype=self.dtype, device=self.device)
        else:
            inputs = _transformed(self.preprocess, pixels, [str(i) for i in range(len(pixels))])
            inputs = inputs.to(self.device, self.dtype)
        return inputs.contiguous(memory_format=self._memory_format)

    def _logits(self, inputs: Images, batch_size: BatchSize) -> Logits:
        found: list[Tensor] = []
        with preserved(self.model), torch.inference_mode():
            micro_batches(
                range(len(inputs)),
                sized(batch_size, self.model, inputs),
                self.device,
                lambda rows: found.append(logits_of(self.model, taken(inputs, rows))),
            )
        logits = torch.cat(found)
        return logits if logits.dtype == torch.float64 else logits.float()

    def _manifest(
        self, photographs: list[dict[str, Any]], methods: list[str], seconds: dict[str, float], settings: dict[str, Any]
    ) -> dict[str, Any]:
        network = self.network
        return {
            "format": FORMAT,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "photographs": photographs,
            "methods": methods,
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
            "settings": {**settings, "batch_size": self.batch_size},
            "device": str(self.device),
            "device_name": torch.cuda.get_device_name(self.device)
            if self.device.type == "cuda"
            else platform.machine(),
            "threads": torch.get_num_threads(),
            "precision": self.precision,
            "versions": versions(),
            "seconds": {name: round(value, 4) for name, value in seconds.items()},
        }


def versions() -> dict[str, str]:
    """Versions of everything that a map depends on."""
    return dict(_versions())


@lru_cache(maxsize=1)  # each takes a millisecond to be found
def _versions() -> dict[str, str]:
    found = {"attention-maps": __version__, "python": platform.python_version()}
    for package in ("torch", "torchvision", "captum", "grad-cam", "numpy", "pillow"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found
