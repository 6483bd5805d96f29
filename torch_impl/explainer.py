"""What a user of the library calls: photographs in, maps out."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from parity.contract.methods import DEFAULT, Options, canonical_names
from parity.contract.network import Network
from torch_impl import framing, images, maps, several  # noqa: F401  (maps fills the registry)
from torch_impl.arrays import Images, Target
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
        names: list[str | None] = [name_of(model, layer) for layer in layers]
        self.target_layer, self.more_layers = (names or [None])[0], names[1:]
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
        where = choose_device(device)
        check_precision(precision, where)  # before the weights, which may be a long download
        network = _network(weights, input, progress)
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
        if self.more_layers:
            return several.explanation(self, photographs, classes, names, options, progress)
        return self._on_one_layer(photographs, classes, names, options, progress)

    def _on_one_layer(
        self, photographs: Any, classes: Classes, names: Sequence[str], options: Options, progress: Report | None
    ) -> Explanation:
        """A call, with its arguments checked, of an explainer that has one target layer."""
        photographs = listed_photographs(photographs)
        rows, wanted = expanded(photographs, None if self.score else classes)
        seconds: dict[str, float] = {}
        with numerics(self.precision):
            with _timed(seconds, "photographs"):
                read, pixels, inputs = self.prepared(photographs)
            if rows != list(range(len(read))):
                read, pixels, inputs = [read[row] for row in rows], pixels[rows], inputs[rows]
            capture, chosen = self._opened(inputs), choose(wanted, len(rows), self.labels)
            drawn = self._draw(capture, inputs, chosen, names, options, seconds, progress)
            with _timed(seconds, "finish"):  # all maps on the device, before the first of them is waited for
                size = (int(inputs.shape[-2]), int(inputs.shape[-1]))
                there = {name: finish(drawn.raw[name], size) for name in names}
                finished = {name: maps.cpu().numpy() for name, maps in there.items()}
        drawn = drawn.answers_on_host()
        assert drawn.logits is not None
        outputs = self._outputs(drawn)
        answers = photograph_rows(read, drawn, self.labels, single=drawn.single, outputs=outputs)
        logits = drawn.logits[:, 1:] if drawn.single else drawn.logits
        said = manifest(self, capture, answers, names, seconds, options, outputs)
        origin = Origin(self, read, drawn.target.tolist(), options)
        return Explanation(finished, pixels, logits.numpy(), said, origin)

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
            inputs = self._inputs(pixels)
            chosen = choose(target, len(pixels), self.labels)
            return self._draw(self._opened(inputs), inputs, chosen, names, options, {}, None)

    def _opened(self, inputs: Images) -> Capture:
        """A double of the model, to be looked into; the target layer is found, if there is none yet."""
        if self.target_layer is None:
            self.target_layer = name_of(self.model, found_layer(self.model, inputs[:1]))
        return opened(
            self.model,
            find_layer(self.model, self.target_layer),
            engine=self.engine,
            compile=self.compile,
            batch_size=self.batch_size,
            score=self.score,
            feature_layout=self.feature_layout,
        )

    def _draw(
        self,
        capture: Capture,
        inputs: Images,
        chosen: ChooseRows,
        names: Sequence[str],
        options: Options,
        seconds: dict[str, float],
        progress: Report | None,
    ) -> Drawn:
        """Every map; what each part took is noted down in `seconds`."""
        target: Target | ChooseRows = chosen
        logits: Tensor | None = None
        raw: dict[str, Tensor] = {}
        no_gradient: dict[str, Tensor] = {}
        for what, group in groups(names, capture.one_by_one):
            report = partial(progress, what) if progress else None
            with _timed(seconds, what):  # which ends with a question to the device: see `check_finite`
                drawn = draw(capture, inputs, target, group, options, progress=report)
            target, logits = drawn.target, drawn.logits if logits is None else logits
            raw |= drawn.raw
            no_gradient |= drawn.no_gradient
        assert isinstance(target, Tensor)
        return Drawn(target, raw, no_gradient, logits, single=bool(capture.model.single))

    def _outputs(self, drawn: Drawn) -> str:
        """What the model's outputs are: `score`, `logits` or `probabilities`; a warning where the last was not said."""
        if self.score is not None:
            return "score"
        assert drawn.logits is not None
        if self.outputs is None and not drawn.single and are_probabilities(drawn.logits):
            warnings.warn(PROBABILITIES, stacklevel=4)
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
        if isinstance(self.preprocess, str):
            pixels = np.stack([p.pixels for p in read])
            return read, pixels, self._inputs(pixels)
        inputs = transformed(self.preprocess, [p.pixels for p in read], [p.name for p in read])
        check_pictures(inputs)
        inputs = inputs.to(self.device, self.dtype).contiguous(memory_format=self._layout)
        return read, visible(inputs), inputs

    def _inputs(self, pixels: np.ndarray) -> Images:
        """Decoded photographs uint8 (N, H, W, 3) → (N, C, H, W) on the device."""
        if isinstance(self.preprocess, str):
            inputs = preprocess(pixels, input=self.preprocess, dtype=self.dtype, device=self.device)
        else:
            inputs = transformed(self.preprocess, pixels, [str(i) for i in range(len(pixels))])
            inputs = inputs.to(self.device, self.dtype)
        return inputs.contiguous(memory_format=self._layout)


def _network(weights: str | Network, input: str | None, progress: bool) -> Network:
    """Weights as `Explainer.vgg16` takes them."""
    from torch_impl.weights import load_network

    return weights if isinstance(weights, Network) else load_network(weights, input=input, progress=progress)


@contextlib.contextmanager
def _timed(seconds: dict[str, float], what: str) -> Iterator[None]:
    """Note down what the block takes."""
    clock = time.perf_counter()
    yield
    seconds[what] = time.perf_counter() - clock
