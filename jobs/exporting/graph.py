"""A function of JAX as an ONNX graph, for runtimes that know no JAX.

The function is traced once, for any number of examples. What does not depend on its input (the scale and shift that a
BatchNorm comes to, the grid that a film is sampled at) is computed here and becomes a constant; every other operation
becomes the one or the few of ONNX that mean the same.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import numpy as np

OPSET = 18
IR_VERSION = 10  # which runtimes since 2024 read
BATCH = "N"  # what the size of the batch is called in the graph

_SAME = {
    **{"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min", "neg": "Neg"},
    **{"exp": "Exp", "log": "Log", "sqrt": "Sqrt", "floor": "Floor", "logistic": "Sigmoid"},
    **{"lt": "Less", "eq": "Equal", "stop_gradient": "Identity", "copy": "Identity"},
}
_REDUCTIONS = {"reduce_sum": "ReduceSum", "reduce_max": "ReduceMax"}
_CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "remote2", "checkpoint")


class NoSuchOperation(Exception):
    """A function does something that cannot be written as ONNX here; the message names it."""


class _Value(NamedTuple):
    """A result in the graph. Its shape may be smaller than what it stands for, by the rules of broadcasting."""

    name: str
    shape: tuple[Any, ...]  # the size of the batch is a symbol


def to_onnx(
    function: Callable[[jax.Array], Mapping[str, jax.Array]],
    name: str,
    shape: Sequence[int],
    dtype: Any,
    metadata: Mapping[str, str],
) -> Any:
    """Traces a function and writes it down.

    Args:
      function: of one array (N, *shape), for any N, to arrays by name, each with N first.
      name: of its input.
      shape: of one example.
      dtype: of the input.
      metadata: texts by name, stored in the model.

    Returns:
      onnx.ModelProto, checked. Needs the package onnx (requirements-export.txt).

    Raises:
      NoSuchOperation: the function does something that has no form here.
    """
    import onnx

    (batch,) = jax.export.symbolic_shape(BATCH.lower())
    try:
        traced, outputs = jax.make_jaxpr(function, return_shape=True)(jax.ShapeDtypeStruct((batch, *shape), dtype))
    except Exception as error:  # code that wants a number where the size of the batch is a symbol fails as it may
        reason = " ".join(str(error).split())[:200]
        raise NoSuchOperation(
            f"it cannot be traced for any number of examples: {reason} (such as by len(x))"
        ) from error
    writer = _Writer(name, batch)
    results = writer.run(traced.jaxpr, traced.consts, [_Value(name, (batch, *shape))])

    def info(name: str, like: Any) -> Any:
        sizes = [size if isinstance(size, int) else BATCH for size in like.shape]
        return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(like.dtype), sizes)

    for label, result, like in zip(sorted(outputs), results, traced.jaxpr.outvars, strict=True):
        writer.emit("Identity", [writer.whole(result, like.aval.shape)], like.aval.shape, label)
    graph = onnx.helper.make_graph(
        writer.nodes,
        "network",
        [info(name, jax.ShapeDtypeStruct((batch, *shape), np.dtype(dtype)))],
        [info(label, outputs[label]) for label in sorted(outputs)],
        writer.constants,
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    return model


class _Writer:
    """Walks a traced function; holds the nodes and the constants that have been written."""

    def __init__(self, source: str, batch: Any):
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._source, self._batch = source, batch
        self._count = 0

    def emit(
        self, kind: str, inputs: Sequence[Any], shape: Sequence[Any], label: str = "", **attributes: Any
    ) -> _Value:
        """Writes a node; inputs are values of the graph, or numpy arrays that become constants."""
        import onnx

        names = [one.name if isinstance(one, _Value) else self._constant(one) for one in inputs]
        self._count += 1
        label = label or f"{kind.lower()}_{self._count}"
        self.nodes.append(onnx.helper.make_node(kind, names, [label], label, **attributes))
        return _Value(label, tuple(shape))

    def _constant(self, array: Any) -> str:
        import onnx

        self._count += 1
        label = f"constant_{self._count}"
        self.constants.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), label))
        return label

    def run(self, jaxpr: jex.Jaxpr, constants: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        """The results of a traced function: values of the graph, or arrays where they do not depend on its input."""
        known: dict[Any, Any] = dict(zip(jaxpr.constvars, constants, strict=True))
        known |= dict(zip(jaxpr.invars, arguments, strict=True))

        def read(variable: Any) -> Any:
            if isinstance(variable, jex.Literal):
                dtype: Any = variable.aval
                return np.asarray(variable.val, dtype.dtype)
            return known[variable]

        for equation in jaxpr.eqns:
            inputs = [read(variable) for variable in equation.invars]
            if equation.primitive.name in _CALLS:
                inner = equation.params.get("jaxpr") or equation.params["call_jaxpr"]
                results = self.run(inner.jaxpr, inner.consts, inputs)
            elif equation.primitive.name != "dim_as_value" and _is_fixed(inputs, equation.outvars):
                results = equation.primitive.bind(*inputs, **equation.params)
                results = results if equation.primitive.multiple_results else [results]
            else:
                result = self._operation(equation, inputs)
                results = result if equation.primitive.multiple_results else [result]
            known |= dict(zip(equation.outvars, results, strict=True))
        return [read(variable) for variable in jaxpr.outvars]

    def whole(self, value: Any, shape: Sequence[Any]) -> Any:
        """A value at its full shape; until something asks for it, what is broadcast stays small."""
        if tuple(value.shape) == tuple(shape):
            return value
        if all(isinstance(size, int) for size in shape):
            return self.emit("Expand", [value, np.array(shape, np.int64)], shape)
        if shape[0] != self._batch or not all(isinstance(size, int) for size in shape[1:]):
            raise NoSuchOperation(f"a value is broadcast to {shape}, in which the batch is not the first; rewrite that")
        if value.shape[0] == 1:  # the batch is not in it yet
            size = self.emit("Shape", [_Value(self._source, ())], ())
            batch = self.emit("Slice", [size, np.zeros(1, np.int64), np.ones(1, np.int64)], ())
            sizes: Any = self.emit("Concat", [batch, np.array(shape[1:], np.int64)], (), axis=0)
        else:
            sizes = np.array([1, *shape[1:]], np.int64)
        return self.emit("Expand", [value, sizes], shape)

    def _operation(self, equation: Any, inputs: list[Any]) -> Any:
        """One operation of JAX, some of whose inputs are values of the graph."""
        name, parameters = equation.primitive.name, equation.params
        unknown = NoSuchOperation(
            f"{name} with {parameters} has no form in ONNX here; add it to jobs/exporting/graph.py"
        )
        if not inputs:  # the size of the batch as a number
            raise unknown
        shape = equation.outvars[0].aval.shape
        first, small = inputs[0], _broadcast(inputs)  # elementwise operations broadcast by themselves
        match name:
            case _ if name in _SAME:
                return self.emit(_SAME[name], inputs, small)
            case "square":
                return self.emit("Mul", [first, first], first.shape)
            case "integer_pow" if parameters["y"] > 0:
                return self.emit("Pow", [first, np.int64(parameters["y"])], first.shape)
            case "rsqrt":
                return self.emit("Reciprocal", [self.emit("Sqrt", inputs, first.shape)], first.shape)
            case "select_n" if len(inputs) == 3:
                chosen, otherwise, value = inputs
                return self.emit("Where", [chosen, value, otherwise], small)
            case "convert_element_type":
                return self._cast(first, parameters["new_dtype"])
            case "broadcast_in_dim":
                sizes: list[Any] = [1] * len(shape)
                for place, size in zip(parameters["broadcast_dimensions"], first.shape, strict=True):
                    sizes[place] = size
                return self._reshape(first, sizes)
        operands = [self.whole(one, variable.aval.shape) for one, variable in zip(inputs, equation.invars, strict=True)]
        first = operands[0]
        match name:
            case "reshape" | "squeeze" | "expand_dims":
                return self._reshape(first, shape)
            case "transpose":
                return self._transpose(first, parameters["permutation"])
            case "concatenate":
                return self.emit("Concat", operands, shape, axis=parameters["dimension"])
            case "slice":
                strides = parameters["strides"] or [1] * len(shape)
                return self._slice(first, parameters["start_indices"], parameters["limit_indices"], strides, shape)
            case "pad":
                low, high, inner = zip(*parameters["padding_config"], strict=True)
                if min(low + high) >= 0 and not any(inner):
                    return self.emit("Pad", [first, np.array(low + high, np.int64), operands[1]], shape)
            case _ if name in _REDUCTIONS:
                return self.emit(_REDUCTIONS[name], [first, np.array(parameters["axes"], np.int64)], shape, keepdims=0)
            case "dot_general":
                return self._product(operands, parameters["dimension_numbers"], shape)
            case "conv_general_dilated" if {parameters["batch_group_count"], *parameters["lhs_dilation"]} == {1}:
                return self._convolution(operands, parameters, shape)
            case "reduce_window_sum" if _is_pool(parameters):
                return self._sum_pool(first, parameters, shape)
            case "gather" if not isinstance(operands[1], _Value):
                return self._gather(first, np.asarray(operands[1]), parameters, shape)
        raise unknown

    def _cast(self, value: Any, dtype: Any) -> Any:
        import onnx

        return self.emit("Cast", [value], value.shape, to=onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def _reshape(self, value: Any, shape: Sequence[Any]) -> Any:
        if not isinstance(value, _Value):
            return np.reshape(value, shape)
        if tuple(value.shape) == tuple(shape):
            return value
        sizes = [size if isinstance(size, int) else -1 for size in shape]
        if sizes.count(-1) > 1:
            raise NoSuchOperation(f"a reshape to {shape} has no form in ONNX here; rewrite it")
        return self.emit("Reshape", [value, np.array(sizes, np.int64)], shape)

    def _transpose(self, value: Any, order: Sequence[int]) -> Any:
        if not isinstance(value, _Value):
            return np.transpose(value, order)
        return self.emit("Transpose", [value], [value.shape[axis] for axis in order], perm=list(order))

    def _slice(self, value: Any, starts: Any, stops: Any, strides: Any, shape: Sequence[Any]) -> Any:
        spans = enumerate(zip(starts, stops, strides, strict=True))
        cuts = [(*span, axis) for axis, span in spans if span != (0, value.shape[axis], 1)]
        first, last, stride, axes = np.array(cuts, np.int64).reshape(-1, 4).T
        return self.emit("Slice", [value, first, last, axes, stride], shape)

    def _product(self, operands: Sequence[Any], numbers: Any, shape: Sequence[Any]) -> Any:
        (left, right), (left_batch, right_batch) = numbers
        ranks = [len(one.shape) for one in operands]
        if not left_batch and ranks[1] == 2 and (tuple(left), tuple(right)) == ((ranks[0] - 1,), (0,)):
            return self.emit("MatMul", operands, shape)
        letters = iter(string.ascii_letters)
        of_left = [next(letters) for _ in range(ranks[0])]
        of_right = [next(letters) for _ in range(ranks[1])]
        for one, other in zip((*left, *left_batch), (*right, *right_batch), strict=True):
            of_right[other] = of_left[one]
        result = [of_left[axis] for axis in left_batch]
        result += [letter for axis, letter in enumerate(of_left) if axis not in (*left, *left_batch)]
        result += [letter for axis, letter in enumerate(of_right) if axis not in (*right, *right_batch)]
        words = f"{''.join(of_left)},{''.join(of_right)}->{''.join(result)}"
        return self.emit("Einsum", operands, shape, equation=words)

    def _convolution(self, operands: Sequence[Any], parameters: Mapping[str, Any], shape: Sequence[Any]) -> Any:
        """ONNX has the channels second; a runtime moves the transpositions together and drops them."""
        numbers = parameters["dimension_numbers"]
        images, kernel = (
            self._transpose(one, order)
            for one, order in zip(operands, (numbers.lhs_spec, numbers.rhs_spec), strict=True)
        )
        result = self.emit(
            "Conv",
            [images, kernel],
            [shape[axis] for axis in numbers.out_spec],
            strides=list(parameters["window_strides"]),
            pads=_pads(parameters["padding"]),
            dilations=list(parameters["rhs_dilation"]),
            group=parameters["feature_group_count"],
        )
        return self._transpose(result, np.argsort(numbers.out_spec).tolist())

    def _sum_pool(self, value: Any, parameters: Mapping[str, Any], shape: Sequence[Any]) -> Any:
        """Sums over windows of (N, ..., C) that span neither examples nor channels."""
        window, strides = parameters["window_dimensions"], parameters["window_strides"]
        order = (0, len(shape) - 1, *range(1, len(shape) - 1))
        sizes = [shape[axis] for axis in order]
        means = self.emit(
            "AveragePool",
            [self._transpose(value, order)],
            sizes,
            kernel_shape=list(window[1:-1]),
            strides=list(strides[1:-1]),
            pads=_pads(parameters["padding"][1:-1]),
            count_include_pad=1,
        )
        sums = self.emit("Mul", [means, np.float32(math.prod(window))], sizes)
        return self._transpose(sums, np.argsort(order).tolist())

    def _gather(self, value: Any, places: np.ndarray, parameters: Mapping[str, Any], shape: Sequence[Any]) -> Any:
        """A fixed grid of places of every example; which they are, gathering from the numbers of the places says."""
        if value.shape[0] != self._batch or shape[0] != self._batch:
            raise NoSuchOperation(f"gather gives {shape}, in which the batch is not the first; rewrite that")
        sizes = value.shape[1:]
        numbers = np.arange(math.prod(sizes), dtype=np.int32).reshape(1, *sizes)
        span = {"slice_sizes": (1, *parameters["slice_sizes"][1:]), "fill_value": -1}
        found = np.asarray(jax.lax.gather_p.bind(numbers, places, **{**parameters, **span})).ravel()
        if found.min(initial=0) < 0:
            raise NoSuchOperation("gather reaches beyond what it gathers from; rewrite that")
        lines = [np.unique(line) for line in np.unravel_index(found, sizes)]
        if not np.array_equal(np.ravel_multi_index(np.meshgrid(*lines, indexing="ij"), sizes).ravel(), found):
            raise NoSuchOperation("gather takes places that are no rising grid; rewrite that")
        for axis, line in enumerate(lines, 1):
            left = [*value.shape[:axis], len(line), *value.shape[axis + 1 :]]
            step = line[1] - line[0] if len(line) > 1 else 1
            if len(line) != value.shape[axis] and (np.diff(line) == step).all():
                cut = [[line[0]], [line[-1] + 1], [axis], [step]]
                value = self.emit("Slice", [value, *np.array(cut, np.int64)], left)
            elif len(line) != value.shape[axis]:
                value = self.emit("Gather", [value, line.astype(np.int64)], left, axis=axis)
        return self._reshape(value, shape)


def _is_fixed(inputs: Sequence[Any], results: Sequence[Any]) -> bool:
    """Whether an operation can be done now: its inputs are arrays, and its results do not grow with the batch."""
    sizes = [size for variable in results for size in variable.aval.shape]
    return not any(isinstance(one, _Value) for one in inputs) and all(isinstance(size, int) for size in sizes)


def _is_pool(parameters: Mapping[str, Any]) -> bool:
    window, strides = parameters["window_dimensions"], parameters["window_strides"]
    ones = (
        window[0],
        window[-1],
        strides[0],
        strides[-1],
        *parameters["base_dilation"],
        *parameters["window_dilation"],
    )
    return {*ones} == {1}


def _broadcast(inputs: Sequence[Any]) -> tuple[Any, ...]:
    """The shape of what an elementwise operation makes of its inputs."""
    rank = max(len(one.shape) for one in inputs)
    sizes: list[Any] = [1] * rank
    for one in inputs:
        for axis, size in enumerate(one.shape, rank - len(one.shape)):
            if size != 1:
                sizes[axis] = size
    return tuple(sizes)


def _pads(padding: Sequence[tuple[int, int]]) -> list[int]:
    """[(before, after), ...] as ONNX has them: all before, then all after."""
    return [before for before, _ in padding] + [after for _, after in padding]
