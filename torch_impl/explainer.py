"""What a user of the library calls: photographs in, maps out."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from parity.contract.methods import DEFAULT, METHODS, Options, canonical_names
from parity.contract.network import Network
from torch_impl import framing, images, maps, several  # noqa: F401  (maps fills the registry)
from torch_impl.arrays import Images, Logits, Target
from torch_impl.batching import BatchSize
from torch_impl.capture import check_compile
from torch_impl.capture.draw import ChooseRows, Drawn, draw, groups, opened
from torch_impl.capture.layout import FeatureLayout, checked_layout
from torch_impl.capture.passes import Capture
from torch_impl.capture.target_layer import find_layer, found_layer, name_of
from torch_impl.explanation import Explanation, Origin
from torch_impl.manifest import manifest, photograph_rows
from torch_impl.maps.postprocess import finish
from torch_impl.network import layout_of, prepared
from torch_impl.precision import check_precision, choose_device, numerics
from torch_impl.precision import name_of as format_of
from torch_impl.preprocess import preprocess
from torch_impl.preserve import Double, unwrapped
from torch_impl.question import Classes, check_words, choose, expanded, listed_photographs, names_for
from torch_impl.score import PROBABILITIES, Score, are_probabilities, check_pictures
from torch_impl.stock import check_narrow
from torch_impl.transform import Transform, transformed, visible

if TYPE_CHECKING:
    from torch_impl.images import Photograph

Report = Callable[[str, int, int], None]
"""Progress: called with (what, passes done, passes in all)."""


class Explainer:
    """Draws attention maps of one classifier: any of PyTorch's, on any of its layers.

    Example:
        explainer = Explainer.vgg16(weights="auto", device="cuda")
        maps = explainer(["cat.jpg", image_array], classes=[282, "espresso"], methods=("gradcam", "gradcam++"))
        maps["gradcam"]  # (2, 224, 224)

    Args:
        model: gives logits (N, classes), an object with `.logits`, or a dict of one entry; anything else with `score`.
            A network with one output has the classes 1 (score: the output) and 0 (score: its negative). It stays as it
            is: what runs is a double of its modules over the same weights, in eval mode.
        target_layer: of the CAMs: a module, or its name; None: the last layer with feature maps of more than one place
            that computes something, found with the first photograph. Of a list of several layers each gets maps of its own.
        preprocess: `caffe`, `torchvision`, or a function from a Pillow image (RGB) to one input (C, H, W).
        size: of the input, pixels: the side of a square, or (height, width); not used with a function.
        resize: `lab` (nearest neighbour, aspect ratio ignored: Keras's `load_img`) or `torchvision` (bilinear, then
            centre crop); None: the one that belongs to `preprocess`, `torchvision` to torchvision's and `lab` to Keras's.
        device: None: where the model is. Otherwise a copy of the model is moved there, if it is elsewhere.
        precision: None: as the model is. Otherwise one of `fp64, fp32, tf32, fp16, bf16`, on a copy if it differs.
        batch_size: images in one pass; "auto" or a number.
        engine: `library`: each map by Captum or pytorch-grad-cam. `shared`: the same maps in the fewest passes; the
            libraries' own maps (`gradcam@pytorch-grad-cam`) are still theirs.
        compile: compile SmoothGrad's passes when a size of micro-batch first comes, which takes some 20 s; engine `shared`.
        labels: one for each class; "imagenet"; None: ImageNet's for networks known to be ImageNet's, else `class 3`.
        score: what is explained instead of a class's logit: the model's whole output → one number a photograph.
        outputs: `logits` or `probabilities`; None: seen (probabilities are not negative and sum to 1).
        feature_layout: of the target layer's output, where it cannot be told: `nchw`, `nhwc`, `tokens`, (h, w) for
            tokens of that grid, or a rearrangement to (N, K, h, w).
        weights: where the model's weights come from, for the manifest.

    Raises:
        LayerError: no such layer.
        ModelError: a model that cannot be explained.
        DeviceError: no such device.
        ValueError: unknown preprocessing, resize, precision, engine, labels or layout.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layer: str | nn.Module | int | Sequence[str | nn.Module] | None = None,
        *,
        preprocess: str | Transform = "torchvision",
        size: framing.Size = 224,
        resize: str | None = None,
        device: str | torch.device | None = None,
        precision: str | None = None,
        batch_size: BatchSize = "auto",
        engine: str = "library",
        compile: bool = False,
        labels: str | Sequence[str] | None = None,
        score: Score | None = None,
        outputs: str | None = None,
        feature_layout: FeatureLayout = None,
        weights: Network | None = None,
    ) -> None:
        unwrapped(model)
        resize = resize or framing.usual_resize(preprocess)
        check_words(engine, outputs, preprocess, resize)
        check_compile(compile, engine)
        floating = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
        self.device = choose_device(device) if device is not None else floating.device
        self.precision = precision or format_of(floating.dtype)
        self.dtype = check_precision(self.precision, self.device)
        missing = target_layer in (None, -1)  # -1: tf-keras-vis's "the last"
        layers = [] if missing else several.found(model, target_layer)
        if floating.device != self.device or floating.dtype != self.dtype:
            double = Double(model, device=self.device, dtype=self.dtype)
            model, layers = double.model, [double.of(layer) for layer in layers]
        self.model = model
        names = [name_of(model, layer) for layer in layers]
        self.target_layer, self.more_layers = names[0] if names else None, names[1:]
        self.preprocess, self.size, self.resize = preprocess, framing.checked_size(size), resize
        self.batch_size, self.engine, self.compile, self.weights = batch_size, engine, compile, weights
        self.score, self.outputs, self.feature_layout = score, outputs, checked_layout(feature_layout)
        self.labels = names_for(labels, weights)
        self._layout = layout_of(model)

    @classmethod
    def vgg16(
        cls,
        weights: str | Network = "auto",
        *,
        input: str | None = None,
        target_layer: str | nn.Module | Sequence[str | nn.Module] | None = None,
        resize: str | None = None,
        device: str | torch.device = "auto",
        precision: str = "fp32",
        batch_size: BatchSize = "auto",
        engine: str = "library",
        compile: bool = False,
        labels: str | Sequence[str] | None = None,
        progress: bool = False,
    ) -> Explainer:
        """torchvision's VGG16.

        Args:
            weights: `auto`, `imagenet`, `keras`, `offline`, `offline-random:N`, `seeded:N`, a path, or a `Network`.
            input: `caffe` or `torchvision`; None: the preprocessing that these weights were trained with.
            target_layer: by Keras's name or torchvision's; None: the last convolution's ReLU. See `Explainer`.
            resize: `lab` or `torchvision`; see `Explainer`.
            device: `auto`, `cpu`, `cuda`, `cuda:1`.
            precision: see `Explainer`.
            batch_size: images in one pass; "auto" or a number.
            engine: `library` or `shared`; see `Explainer`.
            compile: see `Explainer`.
            labels: see `Explainer`.
            progress: show a download's bar.

        Raises:
            WeightsError, DeviceError: the weights cannot be had or used; there is no such device.
            ValueError: unknown preprocessing, resize, precision or engine.
        """
        from torch_impl.weights import load_network

        where = choose_device(device)
        check_precision(precision, where)  # before the weights, which may be a long download
        network = weights if isinstance(weights, Network) else load_network(weights, input=input, progress=progress)
        return cls(
            prepared(network, where, precision),
            several.torchvision_names(network.table, target_layer),
            preprocess=input or network.input,
            size=network.table.size[0],
            resize=resize,
            precision=precision,
            batch_size=batch_size,
            engine=engine,
            compile=compile,
            labels=labels,
            weights=network,
        )

    def __call__(
        self,
        photographs: Any,
        classes: Classes = None,
        methods: str | Sequence[str] = DEFAULT,
        *,
        n_samples: int = 20,
        noise_level: float = 0.2,
        seed: int = 0,
        channels: int | None = None,
        relu: bool = True,
        progress: Report | None = None,
    ) -> Explanation:
        """Draw the maps.

        Args:
            photographs: files, arrays uint8 (H, W, 3), Pillow images, or `images.Photograph`s already read; also a single one.
            classes: one for all or one for each, an index or a label; a list of several for a photograph gives a map for
                each of them; None: each photograph's top-1. Not used where the explainer has a `score`.
            methods: names of `parity.contract.methods.METHODS`, as a list or with commas between them.
            n_samples: SmoothGrad's noisy copies.
            noise_level: SmoothGrad's σ as a fraction of each image's range.
            seed: of SmoothGrad's noise.
            channels: feature maps that Faster-ScoreCAM takes; None: 10, or all where there are fewer.
            relu: whether class activation maps end in their ReLU.
            progress: called after each pass.

        Raises:
            ImagesError: photographs that cannot be read; all of them are named.
            ClassError: a class that does not exist.
            LayerError: the target layer cannot carry a map.
            ModelError: the model's output cannot be explained.
            MapError: a map is not finite.
            ValueError: no photograph, no method, an unknown method, or settings out of range.
        """
        names, options = canonical_names(methods), Options(n_samples, noise_level, seed, channels, relu)
        check_narrow(names, self.precision)
        if self.more_layers and not any(METHODS[name].overlay for name in names):
            first = several.on_layers(self, self.target_layer)
            return first(photographs, classes, names, **vars(options), progress=progress)
        photographs = listed_photographs(photographs)
        rows, wanted = expanded(len(photographs), None if self.score else classes)
        seconds: dict[str, float] = {}
        with numerics(self.precision):
            with _timed(seconds, "photographs"):
                read, pixels, inputs = self.prepared(photographs)
            if rows != list(range(len(read))):
                read, pixels, inputs = [read[row] for row in rows], pixels[rows], inputs[rows]
            chosen = choose(wanted, len(rows), self.labels)
            captures, drawn = self._drawn(inputs, chosen, names, options, seconds, progress)
            with _timed(seconds, "finish"):  # all maps on the device, before the first of them is waited for
                size = (int(inputs.shape[-2]), int(inputs.shape[-1]))
                there = {name: torch.cat([finish(at.raw[name], size) for at in drawn]) for name in names}
                finished = {name: maps.cpu().numpy() for name, maps in there.items()}
        drawn = [at.answers_on_host() for at in drawn]
        logits, single, count = drawn[0].logits, drawn[0].single, len(drawn)
        assert logits is not None
        outputs = self._outputs(logits, single)
        answers = [photograph_rows(read, at, self.labels, outputs) for at in drawn]
        said = manifest(self, captures, answers, names, seconds, options, outputs)
        origin = Origin(self, read * count, drawn[0].target.tolist() * count, options)
        shown = (logits[:, 1:] if single else logits).numpy()
        return Explanation(finished, np.concatenate([pixels] * count), np.concatenate([shown] * count), said, origin)

    def compute(
        self,
        pixels: np.ndarray,
        target: Sequence[int | None] | None = None,
        methods: str | Sequence[str] = DEFAULT,
        *,
        n_samples: int = 20,
        noise_level: float = 0.2,
        seed: int = 0,
        channels: int | None = None,
    ) -> Drawn:
        """Logits and raw maps of decoded photographs: for those who finish and keep them themselves.

        Args:
            pixels: uint8 (N, H, W, 3), RGB, of the network's size.
            target: the class of each; None: its top-1.
            methods: as of a call; none: logits alone.
            n_samples: SmoothGrad's noisy copies.
            noise_level: SmoothGrad's σ as a fraction of each image's range.
            seed: of SmoothGrad's noise.
            channels: feature maps that Faster-ScoreCAM takes.

        Returns:
            Tensors on the device; `methods.finish(raw, (H, W))` makes a raw map one in [0, 1] of the photograph's size.

        Raises:
            ClassError: a class that does not exist, or not one for all or for each.
            ValueError: no photograph, pixels that are not uint8 (N, H, W, 3), or an unknown method.
            MapError: a value is not finite.
        """
        names = canonical_names(methods) if len(methods) else ()
        options = Options(n_samples, noise_level, seed, channels)
        several.check_one(self)
        if len(pixels) == 0:
            raise ValueError("no photograph was given")
        with numerics(self.precision):
            inputs = self._inputs(list(pixels), range(len(pixels)))
            chosen = choose(target, len(pixels), self.labels)
            return self._drawn(inputs, chosen, names, options, {}, None)[1][0]

    def _drawn(
        self,
        inputs: Images,
        target: Target | ChooseRows,
        names: Sequence[str],
        options: Options,
        seconds: dict[str, float],
        progress: Report | None,
    ) -> tuple[list[Capture], list[Drawn]]:
        """The maps at each target layer, and of what; saliency is drawn with the first one's, and stands at each.

        What each part took is noted down in `seconds`. The target layer is found, if there is none yet.
        """
        if self.target_layer is None:
            self.target_layer = name_of(self.model, found_layer(self.model, inputs[:1]))
        captures: list[Capture] = []
        drawn: list[Drawn] = []
        logits: Logits | None = None
        raw: dict[str, Tensor] = {}
        no_gradient: dict[str, Tensor] = {}
        for layer in (self.target_layer, *self.more_layers):
            capture = opened(
                self.model,
                find_layer(self.model, layer),
                engine=self.engine,
                compile=self.compile,
                batch_size=self.batch_size,
                score=self.score,
                feature_layout=self.feature_layout,
            )
            if drawn:
                names = [name for name in names if METHODS[name].overlay]
            for what, group in groups(names, capture.one_by_one):
                report = partial(progress, f"{what}, {layer}" if drawn else what) if progress else None
                with _timed(seconds, what):  # which ends with a question to the device: see `check_finite`
                    found = draw(capture, inputs, target, group, options, progress=report)
                target, logits = found.target, found.logits if logits is None else logits
                raw, no_gradient = {**raw, **found.raw}, {**no_gradient, **found.no_gradient}
            drawn.append(Drawn(found.target, raw, no_gradient, logits, single=found.single))
            captures.append(capture)
        return captures, drawn

    def _outputs(self, logits: Logits, single: bool) -> str:
        """What the model's outputs are: `score`, `logits` or `probabilities`; a warning where the last was not said."""
        if self.score is not None:
            return "score"
        if self.outputs is None and not single and are_probabilities(logits):
            warnings.warn(PROBABILITIES, stacklevel=3)
            return "probabilities"
        return self.outputs or "logits"

    @property
    def reads_with(self) -> str:
        """How photographs are made the network's size: one of `framing.RESIZES`; as they are for a function of one's own."""
        return self.resize if isinstance(self.preprocess, str) else framing.AS_IT_IS

    def prepared(self, photographs: list[Any]) -> tuple[list[Photograph], np.ndarray, Images]:
        """Photographs read, the pixels that the network sees (N, H, W, 3) uint8, and its inputs (N, C, H, W)."""
        fresh = [p for p in photographs if not isinstance(p, images.Photograph)]
        loaded = iter(images.load_all(fresh, size=self.size, resize=self.reads_with)[0] if fresh else [])
        read = [p if isinstance(p, images.Photograph) else next(loaded) for p in photographs]
        inputs = self._inputs([p.pixels for p in read], [p.name for p in read])
        return read, np.stack([p.pixels for p in read]) if isinstance(self.preprocess, str) else visible(inputs), inputs

    def _inputs(self, pixels: Sequence[np.ndarray], names: Iterable[object]) -> Images:
        """Decoded photographs uint8 (H, W, 3) → (N, C, H, W) on the device."""
        if isinstance(self.preprocess, str):
            inputs = preprocess(np.stack(pixels), input=self.preprocess, dtype=self.dtype, device=self.device)
        else:
            inputs = transformed(self.preprocess, pixels, names)
            check_pictures(inputs)
            inputs = inputs.to(self.device, self.dtype)
        return inputs.contiguous(memory_format=self._layout)


@contextlib.contextmanager
def _timed(seconds: dict[str, float], what: str) -> Iterator[None]:
    """Note down what the block takes."""
    clock = time.perf_counter()
    yield
    seconds[what] = seconds.get(what, 0.0) + time.perf_counter() - clock
