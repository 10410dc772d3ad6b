"""Every operation means in ONNX what it means in JAX, for any number of examples."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jobs.exporting import graph

onnxruntime = pytest.importorskip("onnxruntime", reason="not installed: pip install -r requirements-export.txt")
RANDOM = np.random.default_rng(0)
KERNEL = jnp.asarray(RANDOM.normal(size=(3, 3, 4, 6)), jnp.float32)
DENSE = jnp.asarray(RANDOM.normal(size=(4, 5)), jnp.float32)


def converted(function, shape=(8, 10, 4), dtype=np.float32):
    model = graph.to_onnx(lambda x: {"y": function(x)}, "x", shape, dtype, {"note": "made here"})
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map == {"note": "made here"}
    return model, lambda x: session.run(["y"], {"x": x})[0]


def convolve(x, kernel=KERNEL, strides=(1, 1), padding="SAME", groups=1, dilation=(1, 1)):
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, None, dilation, ("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


def attend(x):
    tokens = x.reshape(x.shape[0], -1, 4)
    weights = jax.nn.softmax(jnp.einsum("nqc,nkc->nqk", tokens, tokens))
    return jnp.einsum("nqk,nkc->nqc", weights, tokens)


def norm(x):
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * DENSE[:, 0] + DENSE[:, 1]


FUNCTIONS = {
    "elementwise": lambda x: jnp.exp(-x) + jnp.log(jnp.square(x) + 1) - x / (2 + x**2) + jnp.floor(x),
    "powers": lambda x: x**2 + x**3 + jnp.sqrt(x**4) + jax.lax.rsqrt(1 + x**4),
    "activations": lambda x: jax.nn.silu(x) + jax.nn.relu(x) + jax.nn.sigmoid(x),
    "choices": lambda x: jnp.where(x < 0.5, x, jnp.where(x == x[:, :1], 0.0, -x)) + jnp.minimum(x, 0),
    "softmax": jax.nn.softmax,
    "layer norm": norm,
    "reductions": lambda x: x.mean((1, 2)) + x.max((1, 2)) * x.sum((1, 2)),
    "constants of the batch": lambda x: jnp.concatenate([jnp.zeros_like(x), jnp.ones((x.shape[0], 8, 1, 4)), x], 2),
    "a token for each": lambda x: jnp.concatenate(
        [jnp.broadcast_to(DENSE[None], (x.shape[0], 4, 5)), x[:, :4, :5, 0]], 1
    ),
    "a bias": lambda x: jnp.broadcast_to(x.mean((1, 2), keepdims=True), x.shape).reshape(x.shape[0], -1),
    "transpose": lambda x: x.transpose(0, 3, 1, 2)[:, :, None].squeeze(2),
    "slices": lambda x: x[:, 1:-1:2, ::3] + x[:, :3, 3:7, :1],
    "a place": lambda x: x[:, 3, :, 2],
    "far places": lambda x: x[:, jnp.array([0, 5, 6])] * x[:, 4:7] + x[:, -3:],
    "pad": lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 3), (0, 0)), constant_values=-2.5),
    "repeat": lambda x: jnp.repeat(x[..., :1], 3, axis=-1),
    "matmul": lambda x: x @ DENSE,
    "attention": attend,
    "products": lambda x: jnp.einsum("nhwc,nhvc->nwv", x, x) + jnp.einsum("nhwc,ck->nwh", x, DENSE)[:, :, :1],
    "convolution": convolve,
    "strided convolution": lambda x: convolve(x, strides=(2, 3), padding=((1, 1), (2, 0))),
    "dilated convolution": lambda x: convolve(x, padding=((2, 2), (1, 1)), dilation=(2, 1)),
    "depthwise convolution": lambda x: convolve(x, KERNEL[:, :, :1, :4], groups=4),
    "grouped convolution": lambda x: convolve(x, KERNEL[:, :, :2], groups=2),
    "average pool": lambda x: nn.avg_pool(x, (2, 2), (2, 2)),
    "padded average pool": lambda x: nn.avg_pool(x, (3, 3), (2, 2), ((1, 1), (1, 0))),
    "nothing": lambda x: x,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_operation_means_the_same(name):
    function = FUNCTIONS[name]
    _, run = converted(function)
    for count in (1, 2, 5):
        x = RANDOM.normal(size=(count, 8, 10, 4)).astype(np.float32)
        expected = np.asarray(function(jnp.asarray(x)))
        got = run(x)
        assert got.shape == expected.shape and got.dtype == expected.dtype
        np.testing.assert_allclose(got, expected, atol=2e-5, rtol=1e-5)


def test_what_does_not_depend_on_the_input_is_computed_once():
    model, run = converted(lambda x: x * jnp.sqrt(DENSE[:, 0] ** 2 + 1e-5) + jnp.linspace(0, 1, 4))
    kinds = [node.op_type for node in model.graph.node]
    assert kinds == ["Mul", "Add", "Identity"] and len(model.graph.initializer) == 2
    assert {opset.version for opset in model.opset_import} == {graph.OPSET}
    np.testing.assert_allclose(run(np.zeros((1, 8, 10, 4), np.float32))[0, 0, 0], [0, 1 / 3, 2 / 3, 1], atol=1e-7)


def test_integers_are_cast():
    _, run = converted(lambda x: x.astype(jnp.float32) / 255, (3,), np.uint8)
    np.testing.assert_array_equal(run(np.uint8([[0, 255, 51]])), np.float32([[0, 1, 0.2]]))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: jnp.sort(x), "sort with"),
        (lambda x: x[:, jnp.argmax(x[0, 0, 0])], "has no form in ONNX here; add it to jobs/exporting/graph.py"),
        (lambda x: x.reshape(-1, 4)[::2], "iota with .* has no form"),
        (lambda x: jnp.cumsum(x, axis=1), "cumsum with"),
        (lambda x: x[:, ::-1], "rev with"),
        (lambda x: x.reshape(len(x), -1), "cannot be traced for any number of examples: .*as an integer"),
        (lambda x: nn.max_pool(x, (2, 2), (2, 2)), "reduce_window_max with"),
        (lambda x: x[:, jnp.array([5, 0, 5])], "gather takes places that are no rising grid"),
        (lambda x: x.at[:, jnp.array([0, 20])].get(mode="fill"), "gather reaches beyond what it gathers from"),
        (
            lambda x: x.reshape(-1, 4)[jnp.array([0, 1])],
            "dim_as_value with .* has no form",
        ),
        (lambda x: jnp.broadcast_to(x[:1], (3, *x.shape[1:])) @ DENSE, "has no form|not the first"),
    ],
)
def test_what_has_no_form_is_said(function, message):
    with pytest.raises(graph.NoSuchOperation, match=message):
        converted(function)
