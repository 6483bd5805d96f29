"""A Keras model of any make as one flat model in the precision of the process, and its layers as rows.

Models inside the model are flattened (`outer/inner`), every layer is made again from its configuration, so that its number
format is that of the process, and given its weights; the layers at the input that only scale and crop are left out.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from keras_ref import KerasRefError
from keras_ref.rows import Config, affine_of, canonical_tensors, each_channel_alone, kind_of, separable_tensors
from parity.contract.layers import Layer
from parity.contract.text import one_line

PROBABILITIES = ("softmax", "sigmoid", "log_softmax")
"""Activations before which the logits are."""

SCALING = ("Rescaling", "Normalization")
CROPPING = ("Cropping2D", "CenterCrop", "Resizing")


@dataclass(eq=False)
class Front:
    """What the layers at the input do that are left out: the network starts behind them.

    Attributes:
        shape: (H, W, C) behind them.
        pictures: (H, W) of the pictures that are cropped to it.
        corner: (top, left) of what is kept of the picture.
        scale, offset: of each channel, float64.
        layers: names of those layers.
        resized: whether a Resizing layer is among them.
    """

    shape: tuple[int, int, int]
    pictures: tuple[int, int]
    corner: tuple[int, int] = (0, 0)
    scale: np.ndarray = field(default_factory=lambda: np.ones(1))
    offset: np.ndarray = field(default_factory=lambda: np.zeros(1))
    layers: list[str] = field(default_factory=list)
    resized: bool = False


@dataclass(eq=False)
class Row:
    """A row of the table, and what it is in Keras.

    Attributes:
        layer: of the contract.
        output: its symbolic tensor in the flat model.
        keras_layer: of the flat model.
        tensors: what it is (`weight`, …) → canonical array.
    """

    layer: Layer
    output: Any
    keras_layer: Any
    tensors: Mapping[str, np.ndarray]


@dataclass(eq=False)
class Flat:
    """The flat model.

    Attributes:
        model: of Keras, one input and one output, linear.
        rows: in the order of the computation; the last gives the logits.
        front: what was left out at the input.
        ended: the activation that was left out at the output: `softmax`, or "".
    """

    model: Any
    rows: list[Row]
    front: Front
    ended: str


class _Leading:
    """Stands for the tensor that the network will start from, as long as it is not known."""


class Flattener:
    """Walks a model in the order of its computation and makes every layer again."""

    def __init__(self, shape: tuple[int, int, int], random: np.random.RandomState | None, floatx: str) -> None:
        self.front = Front(shape, shape[:2])
        self.random, self.floatx = random, floatx
        self.rows: list[Row] = []
        self._layers: dict[tuple[str, int], tuple[Any, str]] = {}  # of the model → made again, and name of its first row
        self._counts: dict[str, int] = {}
        self._names: dict[int, str] = {}  # of the row that gave a tensor
        self._flattened: dict[str, tuple[int, ...]] = {}
        self._functions: dict[int, Any] = {}  # operation → the functional model that it is, or None
        self._filled: set[str] = set()  # names of layers that have their weights
        self._leading: Any = _Leading()
        self._start: Any = None
        self._ended = ""

    def flatten(self, model: Any) -> Flat:
        """The flat model.

        Raises:
            KerasRefError: a layer that cannot be made again, or a model that is more than one input and output.
        """
        import keras

        function = as_function(model)
        self._input_name = function._inputs[0]._keras_history.operation.name
        (output,) = self._walk(function, [self._leading], "")
        if self._start is None:
            raise KerasRefError("--model: it has no layers but preprocessing")
        output = self._linear(output)
        flat = keras.Model(self._start, output)
        return Flat(flat, self.rows, self.front, self._ended)

    def _walk(self, function: Any, inputs: list[Any], prefix: str) -> list[Any]:
        """Compute a functional model's outputs from these inputs."""
        values: dict[int, Any] = {id(tensor): value for tensor, value in zip(function._inputs, inputs, strict=True)}
        nodes = [n for depth in sorted(function._nodes_by_depth, reverse=True) for n in function._nodes_by_depth[depth]]
        nodes = [node for node in nodes if not node.is_input]
        readers: dict[int, int] = {}
        for node in nodes:
            for tensor in node.arguments.keras_tensors:
                readers[id(tensor)] = readers.get(id(tensor), 0) + 1
        for node in nodes:
            tensors = node.arguments.keras_tensors
            if len(tensors) == 1 and values[id(tensors[0])] is self._leading:
                alone = readers[id(tensors[0])] == 1
                if alone and self._absorbed(node.operation, prefix):
                    values[id(node.output_tensors[0])] = self._leading
                    continue
                inner = self._function(node.operation, tensors)
                if not (alone and inner):
                    self._begin()
            elif any(values[id(tensor)] is self._leading for tensor in tensors):
                self._begin()
            given = [self._start if values[id(t)] is self._leading and self._start is not None else values[id(t)] for t in tensors]
            outputs = self._node(node, tensors, given, prefix)
            values.update({id(tensor): value for tensor, value in zip(node.output_tensors, outputs, strict=True)})
        return [values[id(tensor)] for tensor in function._outputs]

    def _function(self, operation: Any, tensors: list[Any]) -> Any:
        """See `as_function`; asked once for each."""
        if id(operation) not in self._functions:
            self._functions[id(operation)] = as_function(operation, tensors)
        return self._functions[id(operation)]

    def _node(self, node: Any, tensors: list[Any], given: list[Any], prefix: str) -> list[Any]:
        """The outputs of one call of one layer, operation or model."""
        import keras

        operation = node.operation
        if node.arguments.kwargs.get("training"):
            raise KerasRefError(f"--model: layer {prefix}{operation.name} is called with training=True: its output is random")
        if (inner := self._function(operation, tensors)) is not None and len(inner._inputs) == len(given):
            return self._walk(inner, given, f"{prefix}{operation.name}/")
        if type(operation).__name__ == "SeparableConv2D":
            return [self._separable(operation, given[0], prefix + operation.name)]
        made, first = self._again(operation, tensors, prefix + operation.name, node)
        arguments = dict(zip(map(id, tensors), given, strict=True))
        try:
            if isinstance(operation, keras.Layer):
                args, kwargs = node.arguments.fill_in(arguments)
                kwargs.pop("training", None)
                outputs = keras.tree.flatten(made(*args, **kwargs))
                self._fill(operation, made, first)
            else:
                outputs = keras.tree.flatten(made(given if len(given) > 1 else given[0]))
        except Exception as error:  # whatever a layer's own code raises
            said = one_line(error, 200)
            raise KerasRefError(f"--model: layer {prefix}{operation.name} cannot be called ({said})") from None
        name = self._row_name(prefix + operation.name)
        made.name = keras_name(first)
        kind, config = _operation(node, made) if not isinstance(operation, keras.Layer) else kind_of(made)
        if len(outputs) == 1:
            self._row(name, first, kind, config, given, outputs[0], made)
        else:
            self._names.update({id(output): self._names[id(given[0])] for output in outputs})
        return outputs

    def _again(self, operation: Any, tensors: list[Any], name: str, node: Any) -> tuple[Any, str]:
        """The layer made again, once; an operation becomes a layer, so that it has a name and can be the target."""
        import keras

        key = (name, id(operation) if isinstance(operation, keras.Layer) else id(node))
        if key not in self._layers:
            if isinstance(operation, keras.Layer):
                made = _made_again(operation, self.floatx)
            else:
                made = keras.layers.Lambda(lambda values: _called(node, tensors, values), dtype=self.floatx)
            first = self._unique(name)
            self._layers[key] = (made, first)
        return self._layers[key]

    def _unique(self, name: str) -> str:
        taken = {first for _, first in self._layers.values()}
        return name if name not in taken else next(f"{name}_{i}" for i in range(1, 10**6) if f"{name}_{i}" not in taken)

    def _row_name(self, name: str) -> str:
        count = self._counts.get(name, 0)
        self._counts[name] = count + 1
        return f"{name}:{count}" if count else name

    def _row(self, name: str, first: str, kind: str, config: Config, given: list[Any], output: Any, made: Any) -> None:
        shape = tuple(output.shape[1:])
        inbound = tuple(dict.fromkeys(self._names[id(tensor)] for tensor in given))
        flattened = self._behind_flatten(name, kind, inbound, shape)
        tensors: dict[str, np.ndarray] = {}
        if name != first:
            config = config | {"shared_with": first}
        elif made.weights and kind != "rescale":
            tensors = canonical_tensors(kind, made, flattened)
        if flattened and kind in ("dense", "batchnorm", "layernorm"):
            config = config | {"flattened": list(flattened)}
        self._append(Layer(name, kind, shape, inbound, {}, config), output, made, tensors)

    def _append(self, layer: Layer, output: Any, made: Any, tensors: Mapping[str, np.ndarray]) -> None:
        for what, array in tensors.items():
            if not np.isfinite(array).all():
                raise KerasRefError(f"--model: layer {layer.name}: its {what} holds NaN or infinity")
        shapes = {f"{layer.name}.{what}": array.shape for what, array in tensors.items()}
        self.rows.append(Row(replace(layer, tensors=shapes), output, made, tensors))
        self._names[id(output)] = layer.name

    def _behind_flatten(self, name: str, kind: str, inbound: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """(h, w, channels) of the maps that this row's inputs were, where they are a flattened map."""
        before = next(row.layer.shape for row in self.rows if row.layer.name == inbound[0])
        flattened = self._flattened.get(inbound[0])
        if kind in ("flatten", "reshape") and len(before) == 3 and len(shape) == 1:
            self._flattened[name] = before
        elif flattened and shape == (int(np.prod(flattened)),) and kind != "dense":
            self._flattened[name] = flattened
        return flattened

    def _separable(self, layer: Any, given: Any, name: str) -> Any:
        """Two layers for one, so that there is a value between them: a depthwise convolution, and 1×1 as a dense layer.

        A dense layer, because tf-keras-vis's `penultimate_layer=-1` passes a separable convolution by.
        """
        import keras

        c = layer.get_config()
        first_name, row_name = f"{name}/depthwise", self._row_name(name)
        shared = row_name != name
        if not shared:
            sizes = {key: c[key] for key in ("strides", "padding", "dilation_rate", "depth_multiplier")}
            depthwise = keras.layers.DepthwiseConv2D(c["kernel_size"], **sizes, use_bias=False, dtype=self.floatx)
            pointwise = keras.layers.Dense(c["filters"], layer.activation, c["use_bias"], dtype=self.floatx)
            self._layers[first_name, id(layer)], self._layers[name, id(layer)] = (depthwise, first_name), (pointwise, name)
        depthwise, pointwise = self._layers[first_name, id(layer)][0], self._layers[name, id(layer)][0]
        between = depthwise(given)
        output = pointwise(between)
        if not shared:
            self._fill(layer, None, name)
            kernel, point, *bias = layer.get_weights()
            depthwise.set_weights([np.float32(kernel)])
            pointwise.set_weights([np.float32(point[0, 0]), *map(np.float32, bias)])
            depthwise.name, pointwise.name = keras_name(first_name), keras_name(name)
        one, two = separable_tensors(layer) if not shared else ({}, {})
        more = {"shared_with": first_name} if shared else {}
        _, config = kind_of(depthwise)
        row = Layer(self._row_name(first_name), "depthwise", tuple(between.shape[1:]), (self._names[id(given)],), {}, config | more)
        self._append(row, between, depthwise, one)
        config = {"kernel": [1, 1], "strides": [1, 1], "padding": "valid", "dilation": [1, 1], "groups": 1}
        more = {"shared_with": name} if shared else {}
        config |= kind_of(pointwise)[1] | more
        self._append(Layer(row_name, "conv", tuple(output.shape[1:]), (row.name,), {}, config), output, pointwise, two)
        return output

    def _fill(self, layer: Any, made: Any, name: str) -> None:
        """The layer's weights, rounded to float32, into the one made again; random ones first, where they are asked for."""
        if name in self._filled or not layer.weights:
            return
        self._filled.add(name)
        if self.random is not None and type(layer).__name__ not in SCALING:
            layer.set_weights([_random(self.random, layer, variable) for variable in layer.weights])
        if made is not None:
            made.set_weights([array.astype(np.float32) for array in layer.get_weights()])
            if each_channel_alone(made):
                made.convolution_op = _depthwise(made)
            if hasattr(made, "finalize_state"):
                made.finalize_state()

    def _begin(self) -> None:
        """Here the network starts."""
        if self._start is None:
            import keras

            self._start = keras.Input(self.front.shape, name=self._input_name, dtype=self.floatx)
            layer = Layer(self._input_name, "input", self.front.shape)
            self._append(layer, self._start, self._start._keras_history.operation, {})

    def _absorbed(self, layer: Any, prefix: str) -> bool:
        """Whether a layer at the input is left out."""
        name = type(layer).__name__
        front = self.front
        height, width, channels = front.shape
        if name in SCALING:
            scale, offset = affine_of(layer)
            try:
                scale, offset = np.broadcast_to(scale, (channels,)), np.broadcast_to(offset, (channels,))
            except ValueError:
                return False
            front.scale, front.offset = front.scale * scale, front.offset * scale + offset
        elif name in CROPPING and (name != "Resizing" or front.corner == (0, 0)):
            self._crop(layer, name, height, width, channels)
        elif kind_of(layer)[0] not in ("identity", "dropout"):
            return False
        if name in SCALING or name in CROPPING:
            front.layers.append(prefix + layer.name)
        return True

    def _crop(self, layer: Any, name: str, height: int, width: int, channels: int) -> None:
        front = self.front
        if name == "Cropping2D":
            (top, bottom), (left, right) = layer.cropping
            front.corner = (front.corner[0] + top, front.corner[1] + left)
            front.shape = (height - top - bottom, width - left - right, channels)
        elif name == "Resizing" or height < layer.height or width < layer.width:
            front.resized, front.shape, front.pictures = True, (layer.height, layer.width, channels), (layer.height, layer.width)
        else:
            top, left = (height - layer.height) // 2, (width - layer.width) // 2
            front.corner = (front.corner[0] + top, front.corner[1] + left)
            front.shape = (layer.height, layer.width, channels)

    def _linear(self, output: Any) -> Any:
        """The output before its softmax or sigmoid, as tf-keras-vis's ReplaceToLinear makes it."""
        import keras

        behind = len(self.rows) - 1
        while behind > 0 and self.rows[behind].layer.kind in ("reshape", "flatten", "dropout", "identity"):
            behind -= 1
        row = self.rows[behind]
        if row.layer.config.get("activation") in PROBABILITIES:
            self._ended = row.layer.config["activation"]
            if row.layer.kind == "activation" and behind == len(self.rows) - 1:
                del self.rows[behind]
                return self.rows[-1].output
            if not hasattr(row.keras_layer, "activation"):
                raise KerasRefError(f"--model: behind {row.layer.name} come more layers: end the model there")
            row.keras_layer.activation = keras.activations.linear
            row.layer = replace(row.layer, config={**row.layer.config, "activation": "linear"})
        return output


def keras_name(row_name: str) -> str:
    """A row's name as Keras takes it, which has no slash."""
    return row_name.replace("/", ".")


def as_function(model: Any, inputs: list[Any] | None = None) -> Any:
    """The functional model that a model is, or that a layer made of layers computes; None: neither.

    Args:
        model: a Keras layer, operation or model.
        inputs: symbolic tensors like those that it is called with, for one that must be called to be known.
    """
    import keras

    if hasattr(model, "_nodes_by_depth"):
        return model
    if isinstance(model, keras.Sequential):
        return getattr(model, "_functional", None)
    own = [*getattr(model, "_trainable_variables", ()), *getattr(model, "_non_trainable_variables", ())]
    if inputs is None or not isinstance(model, keras.Layer) or own or not getattr(model, "_layers", None):
        return None
    if len(inputs) != 1 or hasattr(model, "layer"):
        return None
    try:
        x = keras.Input(batch_shape=inputs[0].shape, dtype=inputs[0].dtype)
        return keras.Model(x, model.call(x))
    except Exception:  # whatever its code does with a symbolic tensor: then it stays one layer
        return None


def _made_again(layer: Any, floatx: str) -> Any:
    """The same layer in another number format."""
    import keras

    if type(layer).__name__ == "Lambda":
        return keras.layers.Lambda(layer.function, arguments=layer.arguments, dtype=floatx)
    try:
        own = {f.__name__: f for f in vars(layer).values() if inspect.isfunction(f)}
        with keras.saving.custom_object_scope(own):
            return type(layer).from_config(_in_format(layer.get_config(), floatx))
    except Exception as error:  # whatever a layer's own code raises
        raise KerasRefError(
            f"--model: layer {layer.name} ({type(layer).__name__}) cannot be made from its configuration "
            f"({one_line(error, 200)}): give it a get_config that from_config takes"
        ) from None


def _depthwise(layer: Any) -> Any:
    """A grouped convolution by TensorFlow's own depthwise one: Keras has XLA do it, fifty times slower in float64."""
    import keras

    def convolve(inputs: Any, kernel: Any) -> Any:
        height, width, _, filters = kernel.shape
        kernel = keras.ops.reshape(kernel, (height, width, layer.groups, filters // layer.groups))
        sizes = {"strides": layer.strides, "padding": layer.padding, "dilation_rate": layer.dilation_rate}
        return keras.ops.depthwise_conv(inputs, kernel, **sizes)

    return convolve


def _in_format(config: Any, floatx: str) -> Any:
    """A configuration with every policy of floating point numbers replaced."""
    if isinstance(config, list):
        return [_in_format(value, floatx) for value in config]
    if not isinstance(config, dict):
        return config
    return {key: floatx if key == "dtype" and "float" in str(value) else _in_format(value, floatx) for key, value in config.items()}


def _called(node: Any, tensors: list[Any], values: Any) -> Any:
    """An operation on these values instead of its symbolic tensors."""
    given = values if isinstance(values, (list, tuple)) else [values]
    args, kwargs = node.arguments.fill_in(dict(zip(map(id, tensors), given, strict=True)))
    return node.operation.call(*args, **kwargs)


def _operation(node: Any, made: Any) -> tuple[str, Config]:
    """The kind of an operation (`x + y`, `keras.ops.relu(x)`): one of a tensor and a number scales."""
    kind, config = kind_of(node.operation)
    numbers = [value for value in node.arguments._flat_arguments if isinstance(value, (int, float))]
    if kind in ("add", "multiply") and len(node.arguments.keras_tensors) == 1:
        if len(numbers) != 1:
            return "other", {"class": type(node.operation).__name__}
        scale = kind == "multiply"
        return "rescale", {"scale": float(numbers[0]) if scale else 1.0, "offset": 0.0 if scale else float(numbers[0])}
    return kind, config


def _random(generator: np.random.RandomState, layer: Any, variable: Any) -> np.ndarray:
    """Random weights and batch statistics: fresh ones hide a wrong epsilon or a missing bias."""
    name, shape = variable.path.rsplit("/", 1)[-1], tuple(variable.shape)
    if name in ("gamma", "moving_variance"):
        return generator.uniform(0.7, 1.3, shape).astype(np.float32)
    if name in ("beta", "moving_mean", "bias"):
        return generator.normal(0, 0.1, shape).astype(np.float32)
    fan = shape[0] * shape[1] if "depthwise" in name or type(layer).__name__ == "DepthwiseConv2D" else np.prod(shape[:-1])
    return generator.normal(0, np.sqrt(1.6 / fan), shape).astype(np.float32)
