"""A Keras model of any make as one flat model in the precision of the process, and its layers as rows.

Models inside the model are flattened (`outer/inner`), every layer is made again from its configuration, so that its number
format is that of the process, and given its weights; the layers at the input that only scale and crop are left out.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from keras_ref import KerasRefError
from keras_ref.front import SCALING, Front
from keras_ref.renewed import fill, made_again, random_weights
from keras_ref.rows import Config, canonical_tensors, kind_of, separable_tensors
from parity.contract.layers import Layer
from parity.contract.text import one_line

PROBABILITIES = ("softmax", "sigmoid", "log_softmax")
"""Activations before which the logits are."""

LEADING = object()
"""Stands for the tensor that the network will start from, as long as it is not known."""


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


class Flattener:
    """Walks a model in the order of its computation and makes every layer again."""

    def __init__(self, shape: tuple[int, int, int], random: np.random.RandomState | None, floatx: str) -> None:
        self.front = Front(shape, shape[:2])
        self.random, self.floatx = random, floatx
        self.rows: list[Row] = []
        self._layers: dict[tuple[str, int], tuple[Any, str]] = {}  # made again, and the name of its first row
        self._counts: dict[str, int] = {}
        self._names: dict[int, str] = {}  # of the row that gave a tensor
        self._flattened: dict[str, tuple[int, ...]] = {}
        self._functions: dict[int, Any] = {}  # operation → the functional model that it is, or None
        self._filled: set[str] = set()  # names of layers that have their weights
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
        (output,) = self._walk(function, [LEADING], "")
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
            alone = len(tensors) == 1 and readers[id(tensors[0])] == 1
            if any(values[id(tensor)] is LEADING for tensor in tensors):
                if alone and self.front.takes(node.operation, prefix + node.operation.name):
                    values[id(node.output_tensors[0])] = LEADING
                    continue
                if not (alone and self._function(node.operation, tensors)):
                    self._begin()
            given = [values[id(tensor)] for tensor in tensors]
            given = [self._start if value is LEADING and self._start is not None else value for value in given]
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
        operation = node.operation
        name = prefix + operation.name
        if node.arguments.kwargs.get("training") and not _trains_by_default(operation):
            raise KerasRefError(f"--model: layer {name} is called with training=True: its output is random")
        if (inner := self._function(operation, tensors)) is not None and len(inner._inputs) == len(given):
            return self._walk(inner, given, f"{name}/")
        try:
            if type(operation).__name__ == "SeparableConv2D":
                return [self._separable(operation, given[0], name)]
            return self._single(node, tensors, given, name)
        except KerasRefError:
            raise
        except Exception as error:  # whatever a layer's own code raises
            raise KerasRefError(f"--model: layer {name} cannot be called ({one_line(error, 200)})") from None

    def _single(self, node: Any, tensors: list[Any], given: list[Any], name: str) -> list[Any]:
        """The outputs of a layer, or of an operation: that becomes a layer, to have a name and to be a target."""
        import keras

        operation, arguments = node.operation, dict(zip(map(id, tensors), given, strict=True))
        is_layer = isinstance(operation, keras.Layer)
        key = (name, id(operation if is_layer else node))
        if key not in self._layers:
            lambda_ = keras.layers.Lambda(lambda values: _called(node, tensors, values), dtype=self.floatx)
            made = made_again(operation, self.floatx) if is_layer else lambda_
            self._layers[key] = (made, self._unique(name))
        made, first = self._layers[key]
        if is_layer:
            args, kwargs = node.arguments.fill_in(arguments)
            kwargs.pop("training", None)
            outputs = keras.tree.flatten(made(*args, **kwargs))
        else:
            outputs = keras.tree.flatten(made(given if len(given) > 1 else given[0]))
        if is_layer and operation.weights and first not in self._filled:
            self._randomized(operation)
            fill(made, operation)
        self._filled.add(first)
        made.name = keras_name(first)
        kind, config = kind_of(made) if is_layer else _operation(node)
        if len(outputs) == 1:
            self._row(self._row_name(name), first, kind, config, given, outputs[0], made)
        else:
            self._names.update({id(output): self._names[id(given[0])] for output in outputs})
        return list(outputs)

    def _randomized(self, layer: Any) -> None:
        """Random weights, where they are asked for, into the user's layer."""
        if self.random is not None and type(layer).__name__ not in SCALING:
            layer.set_weights([random_weights(self.random, layer, variable) for variable in layer.weights])

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

    def _behind_flatten(
        self, name: str, kind: str, inbound: tuple[str, ...], shape: tuple[int, ...]
    ) -> tuple[int, ...] | None:
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
        first, row_name = f"{name}/depthwise", self._row_name(name)
        if name not in self._filled:
            self._filled.add(name)
            self._randomized(layer)
            self._layers[name, id(layer)] = (self._halves(layer, given), name)
        depthwise, pointwise = self._layers[name, id(layer)][0]
        depthwise.name, pointwise.name = keras_name(first), keras_name(name)
        between = depthwise(given)
        output = pointwise(between)
        outer, inner = kind_of(depthwise)[1], kind_of(pointwise)[1]
        inner |= {"kernel": [1, 1], "strides": [1, 1], "padding": "valid", "dilation": [1, 1], "groups": 1}
        if again := row_name != name:
            outer, inner = outer | {"shared_with": first}, inner | {"shared_with": name}
        tensors = ({}, {}) if again else separable_tensors(layer)
        inbound = (self._names[id(given)],)
        row = Layer(self._row_name(first), "depthwise", tuple(between.shape[1:]), inbound, {}, outer)
        self._append(row, between, depthwise, tensors[0])
        self._append(
            Layer(row_name, "conv", tuple(output.shape[1:]), (row.name,), {}, inner), output, pointwise, tensors[1]
        )
        return output

    def _halves(self, layer: Any, given: Any) -> tuple[Any, Any]:
        """A separable convolution's two layers, with its weights."""
        import keras

        config = layer.get_config()
        sizes = {key: config[key] for key in ("strides", "padding", "dilation_rate", "depth_multiplier")}
        depthwise = keras.layers.DepthwiseConv2D(config["kernel_size"], **sizes, use_bias=False, dtype=self.floatx)
        pointwise = keras.layers.Dense(config["filters"], layer.activation, config["use_bias"], dtype=self.floatx)
        kernel, point, *bias = (array.astype(np.float32) for array in layer.get_weights())
        depthwise.build(given.shape)
        pointwise.build((*given.shape[:-1], point.shape[2]))
        depthwise.set_weights([kernel])
        pointwise.set_weights([point[0, 0], *bias])
        return depthwise, pointwise

    def _begin(self) -> None:
        """Here the network starts."""
        import keras

        if self._start is None:
            self._start = keras.Input(self.front.shape, name=self._input_name, dtype=self.floatx)
            layer = Layer(self._input_name, "input", self.front.shape)
            self._append(layer, self._start, self._start._keras_history.operation, {})

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


def _called(node: Any, tensors: list[Any], values: Any) -> Any:
    """An operation on these values instead of its symbolic tensors."""
    given = values if isinstance(values, (list, tuple)) else [values]
    args, kwargs = node.arguments.fill_in(dict(zip(map(id, tensors), given, strict=True)))
    return node.operation.call(*args, **kwargs)


def _trains_by_default(operation: Any) -> bool:
    """Whether a layer's `training` is True where nobody says (Keras's layers of pictures): a model's False takes its place."""
    parameter = inspect.signature(operation.call).parameters.get("training")
    return parameter is not None and parameter.default is True


def _operation(node: Any) -> tuple[str, Config]:
    """The kind of an operation (`x + y`, `keras.ops.relu(x)`): one of a tensor and a number scales."""
    kind, config = kind_of(node.operation)
    numbers = [value for value in node.arguments._flat_arguments if isinstance(value, (int, float))]
    if kind in ("add", "multiply") and len(node.arguments.keras_tensors) == 1:
        if len(numbers) != 1:
            return "other", {"class": type(node.operation).__name__}
        scale = kind == "multiply"
        return "rescale", {"scale": float(numbers[0]) if scale else 1.0, "offset": 0.0 if scale else float(numbers[0])}
    return kind, config
