"""Convolutions against nested loops, gradients against finite differences, adjoints against each other."""

import numpy as np
import pytest
from naive import NaiveConv, NaiveConvTranspose

from vae_np.backend import to_cpu, to_device
from vae_np.conv import Conv2d, ConvTranspose2d, Workspace, conv_size, conv_transpose_size, fold, unfold
from vae_np.errors import InputError
from vae_np.gradcheck import check_layer

# (kernel_size, stride, padding), (height, width), channels in, channels out
GEOMETRIES = [
    ((4, 2, 1), (8, 6), 3, 5),
    ((4, 2, 1), (9, 7), 2, 3),
    ((3, 1, 1), (5, 4), 1, 2),
    ((3, 2, 0), (7, 9), 2, 1),
    ((5, 3, 2), (8, 11), 3, 2),
    ((2, 2, 0), (4, 6), 4, 3),
    ((2, 3, 1), (7, 5), 2, 2),
    ((1, 1, 0), (3, 2), 2, 4),
    ((4, 4, 2), (9, 12), 1, 2),
    ((3, 3, 1), (6, 8), 2, 2),
]


def make(kind, geometry, inputs, outputs, rng, dtype="float64"):
    layer = kind(inputs, outputs, geometry[0], rng, stride=geometry[1], padding=geometry[2], dtype=dtype)
    layer.bias.value[...] = to_device(rng.standard_normal(outputs))
    return layer


def assert_adjoint(y, dy, x, dx):
    """Assert <y, dy> = <x, dx>. The products may cancel, so rounding is measured by |y| |dy|, not by their sum."""
    rounding = 1e-13 * np.linalg.norm(to_cpu(y)) * np.linalg.norm(to_cpu(dy))
    assert float((y * dy).sum()) == pytest.approx(float((x * dx).sum()), rel=0, abs=rounding)


@pytest.mark.parametrize(("geometry", "size", "inputs", "outputs"), GEOMETRIES)
@pytest.mark.parametrize(("kind", "naive"), [(Conv2d, NaiveConv), (ConvTranspose2d, NaiveConvTranspose)])
def test_equals_nested_loops_and_its_gradient_is_right(kind, naive, geometry, size, inputs, outputs, rng):
    if kind is ConvTranspose2d:
        size = [max(1, n // 2) for n in size]
    layer = make(kind, geometry, inputs, outputs, rng)
    x = rng.standard_normal((2, *size, inputs))
    expected = naive(to_cpu(layer.weight.value), to_cpu(layer.bias.value), *geometry[1:]).forward(x)
    np.testing.assert_allclose(to_cpu(layer.forward(to_device(x))), expected, rtol=0, atol=1e-12)
    errors = check_layer(layer, to_device(x), rng)
    assert max(errors.values()) < 1e-6, errors


@pytest.mark.parametrize(("geometry", "size", "inputs", "outputs"), GEOMETRIES)
def test_fold_is_the_adjoint_of_unfold(geometry, size, inputs, outputs, rng):
    x = to_device(rng.standard_normal((2, *size, inputs)))
    patches = unfold(x, *geometry, Workspace())
    v = to_device(rng.standard_normal(patches.shape))
    assert_adjoint(patches, v, x, fold(v, x.shape, *geometry, Workspace()))


@pytest.mark.parametrize(("geometry", "size", "inputs", "outputs"), GEOMETRIES)
@pytest.mark.parametrize("kind", [Conv2d, ConvTranspose2d])
def test_backward_is_the_adjoint_of_forward_without_its_bias(kind, geometry, size, inputs, outputs, rng):
    layer = make(kind, geometry, inputs, outputs, rng)
    x = to_device(rng.standard_normal((2, *size, inputs)))
    y = layer.forward(x) - layer.bias.value
    dy = to_device(rng.standard_normal(y.shape))
    assert_adjoint(y, dy, x, layer.backward(dy))


@pytest.mark.parametrize(("geometry", "size", "inputs", "outputs"), GEOMETRIES)
def test_transposed_convolution_is_the_adjoint_of_the_convolution(geometry, size, inputs, outputs, rng):
    # Images that the strides of the convolution fill to the last pixel, so that the way back up leads to their size.
    small = [conv_size(n, *geometry) for n in size]
    large = [conv_transpose_size(n, *geometry) for n in small]
    down, up = make(Conv2d, geometry, inputs, outputs, rng), make(ConvTranspose2d, geometry, outputs, inputs, rng)
    up.weight.value[...] = down.weight.value
    down.bias.value[...] = 0
    up.bias.value[...] = 0
    x = to_device(rng.standard_normal((2, *large, inputs)))
    y = to_device(rng.standard_normal((2, *small, outputs)))
    assert_adjoint(down.forward(x), y, x, up.forward(y))


@pytest.mark.parametrize("size", [(3, 5), (4, 1), (1, 1)])
def test_transposed_convolution_at_stride_2_is_four_small_convolutions(size, rng):
    # Rows 2q and 2q + 1 of the output are 2x2 convolutions at stride 1 of x with a border of zeros. Pixel i meets row
    # 2q + r through row a = 2 (q - i) + r + 1 of its kernel: pixels q + r - 1 and q + r, through a = 3 - r and 1 - r.
    layer = make(ConvTranspose2d, (4, 2, 1), 3, 5, rng)
    weight, bias = to_cpu(layer.weight.value), to_cpu(layer.bias.value)
    x = rng.standard_normal((2, *size, 3))
    y = to_cpu(layer.forward(to_device(x)))
    padded, (h, w) = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), size
    for r, s in np.ndindex(2, 2):
        quarter = weight[3 - r :: -2, 3 - s :: -2]
        expected = bias + sum(
            np.einsum("nhwc,fc->nhwf", padded[:, r + a : r + a + h, s + b : s + b + w], quarter[a, b])
            for a, b in np.ndindex(2, 2))
        np.testing.assert_allclose(y[:, r::2, s::2], expected, rtol=0, atol=1e-12)


def test_unfold_lays_patches_out_as_rows(rng):
    x = rng.standard_normal((2, 5, 6, 3))
    patches = to_cpu(unfold(to_device(x), 3, 2, 1, Workspace())).reshape(2, 3, 3, 27)
    np.testing.assert_array_equal(patches[1, 1, 2], x[1, 1:4, 3:6].ravel())
    assert not patches[0, 0, 0].reshape(3, 3, 3)[0].any(), "the first row of the first patch is padding"


@pytest.mark.parametrize("kind", [Conv2d, ConvTranspose2d])
def test_non_contiguous_input_gives_the_same(kind, rng):
    layer = make(kind, (4, 2, 1), 3, 5, rng)
    wide = rng.standard_normal((2, 16, 3, 6))
    x = wide[:, ::2, :, ::2].transpose(0, 2, 1, 3).repeat(2, axis=1)[:, ::-1]
    straight = layer.forward(to_device(np.ascontiguousarray(x))).copy()
    np.testing.assert_allclose(to_cpu(layer.forward(to_device(x))), to_cpu(straight), rtol=1e-12)
    dy = rng.standard_normal(straight.shape)
    dx = layer.backward(to_device(dy)).copy()
    strided = np.repeat(dy, 2, axis=-1)[..., ::2]
    np.testing.assert_allclose(to_cpu(layer.backward(to_device(strided))), to_cpu(dx), rtol=1e-12)


@pytest.mark.parametrize("kind", [Conv2d, ConvTranspose2d])
def test_float32_stays_float32_and_inputs_are_left_alone(kind, rng):
    layer = make(kind, (4, 2, 1), 3, 5, rng, dtype="float32")
    x = rng.standard_normal((2, 8, 6, 3), dtype=np.float32)
    x.flags.writeable = False
    y = layer.forward(to_device(x))
    dy = rng.standard_normal(y.shape, dtype=np.float32)
    dy.flags.writeable = False
    dx = layer.backward(to_device(dy))
    assert {a.dtype for a in (y, dx, layer.weight.grad, layer.bias.grad)} == {np.dtype("float32")}


@pytest.mark.parametrize("kind", [Conv2d, ConvTranspose2d])
def test_results_do_not_depend_on_earlier_calls(kind, rng):
    # Workspaces keep what an earlier call left there, and results must not be views of them.
    layer = make(kind, (4, 2, 1), 3, 5, rng)
    x, other = (to_device(rng.standard_normal((2, 8, 6, 3))) for _ in range(2))
    first = layer.forward(x)
    kept = first.copy()
    dx = layer.backward(first)
    dx_kept, gradient = dx.copy(), layer.weight.grad.copy()
    layer.backward(layer.forward(other))
    layer.forward(to_device(rng.standard_normal((1, 4, 4, 3))))
    np.testing.assert_array_equal(to_cpu(first), to_cpu(kept))
    np.testing.assert_array_equal(to_cpu(dx), to_cpu(dx_kept))
    np.testing.assert_array_equal(to_cpu(layer.forward(x)), to_cpu(kept))
    np.testing.assert_array_equal(to_cpu(layer.backward(kept)), to_cpu(dx_kept))
    np.testing.assert_array_equal(to_cpu(layer.weight.grad), to_cpu(gradient), "backward overwrites, it does not add")


def test_sizes_are_inverse_to_each_other():
    for size, k, s, p in ((64, 4, 2, 1), (96, 4, 2, 1), (9, 3, 2, 0), (7, 5, 1, 2)):
        assert conv_transpose_size(conv_size(size, k, s, p), k, s, p) == size


def test_bad_inputs_are_refused(rng):
    conv = make(Conv2d, (4, 2, 0), 3, 5, rng)
    with pytest.raises(InputError, match=r"expects images \(N, H, W, 3\)"):
        conv.forward(to_device(np.zeros((2, 3, 8, 8))))
    with pytest.raises(InputError, match="smaller than its kernel"):
        conv.forward(to_device(np.zeros((2, 3, 8, 3))))
    with pytest.raises(InputError, match=r"expects images \(N, H, W, 5\)"):
        make(ConvTranspose2d, (4, 2, 1), 5, 3, rng).forward(to_device(np.zeros((2, 8, 8, 3))))
    with pytest.raises(InputError, match="its padding leaves nothing"):
        make(ConvTranspose2d, (2, 1, 1), 5, 3, rng).forward(to_device(np.zeros((2, 1, 4, 5))))


@pytest.mark.parametrize("kind", [Conv2d, ConvTranspose2d])
def test_initial_weights_keep_the_scale(kind, rng):
    layer = kind(64, 48, 4, rng, stride=2, padding=1)
    y = layer.forward(to_device(rng.standard_normal((4, 16, 16, 64), dtype=np.float32)))
    inner = to_cpu(y)[:, 2:-2, 2:-2]
    assert 0.93 < inner.std() < 1.07


def test_repr_says_what_the_layer_does(rng):
    assert repr(make(Conv2d, (4, 2, 1), 3, 5, rng)) == "Conv2d(3 -> 5, 4x4, stride 2, padding 1)"
    assert repr(make(ConvTranspose2d, (4, 2, 1), 5, 3, rng)) == "ConvTranspose2d(5 -> 3, 4x4, stride 2, padding 1)"
