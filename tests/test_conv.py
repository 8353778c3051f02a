"""Convolutions: adjoints, and what layers refuse and print; test_conv_properties.py says that they are right."""

import numpy as np
import pytest

from vae_np import conv
from vae_np.backend import to_cpu, to_device
from vae_np.conv import Conv2d, ConvTranspose2d
from vae_np.errors import InputError
from vae_np.fast import arrays


@pytest.fixture(params=["plain", "fast"])
def steps(request):
    """unfold and fold of the core, or those of fast/ with a workspace for both, as in a layer."""
    if request.param == "plain":
        return conv.unfold, conv.fold
    workspace = arrays.Workspace()
    return lambda *args: arrays.unfold(*args, workspace), lambda *args: arrays.fold(*args, workspace)


def assert_adjoint(y, dy, x, dx):
    """Assert <y, dy> = <x, dx>. The products may cancel, so rounding is measured by |y| |dy|, not by their sum."""
    rounding = 1e-13 * np.linalg.norm(to_cpu(y)) * np.linalg.norm(to_cpu(dy))
    assert float((y * dy).sum()) == pytest.approx(float((x * dx).sum()), rel=0, abs=rounding)


def test_unfold_lays_patches_out_as_rows(steps, rng):
    x = rng.standard_normal((2, 5, 6, 3))
    patches = to_cpu(steps[0](to_device(x), 3, 2, 1)).reshape(2, 3, 3, 27)
    np.testing.assert_array_equal(patches[1, 1, 2], x[1, 1:4, 3:6].ravel())
    assert not patches[0, 0, 0].reshape(3, 3, 3)[0].any(), "the first row of the first patch is padding"


@pytest.mark.parametrize(("geometry", "shape"), [
    ((4, 2, 1), (2, 8, 12, 3)),
    ((4, 2, 1), (2, 9, 7, 2)),
    ((3, 1, 1), (3, 5, 4, 1)),
    ((3, 2, 0), (1, 7, 9, 2)),
    ((5, 3, 2), (2, 8, 11, 3)),
    ((2, 3, 1), (2, 7, 5, 2)),  # some pixels are in no patch
    ((1, 1, 0), (2, 3, 2, 4)),
    ((4, 4, 2), (2, 9, 12, 1)),
])
def test_fold_is_the_adjoint_of_unfold(steps, geometry, shape, rng):
    unfold, fold = steps
    x = to_device(rng.standard_normal(shape))
    patches = unfold(x, *geometry).copy()
    v = to_device(rng.standard_normal(patches.shape))
    assert_adjoint(patches, v, x, fold(v, shape, *geometry))


@pytest.mark.parametrize(("kernel_size", "stride", "padding"), [(4, 2, 1), (3, 2, 0), (5, 3, 2)])
def test_transposed_convolution_is_the_adjoint_of_the_convolution(way, kernel_size, stride, padding, rng):
    down = Conv2d(4, 5, kernel_size, rng, stride, padding, dtype="float64")
    up = ConvTranspose2d(5, 4, kernel_size, rng, stride, padding, dtype="float64")
    up.weight.value[...] = down.weight.value
    y = to_device(rng.standard_normal((2, 4, 2, 5)))
    x = to_device(rng.standard_normal(up.forward(y).shape))
    assert_adjoint(down.forward(x), y, x, up.forward(y))


def test_a_workspace_keeps_memory_by_name_which_grows():
    workspace, float32 = arrays.Workspace(), np.dtype("float32")
    first, other = workspace.get("patches", (2, 3), float32), workspace.get("tiles", (2, 3), float32)
    first[...], other[...] = 1, 2
    for shape in ((2, 3), (3, 2), (1, 5), (0, 3)):
        array = workspace.get("patches", shape, float32)
        assert array.shape == shape and (to_cpu(array) == 1).all(), "what was there"
    for shape, dtype in (((3, 3), "float32"), ((3, 3), "float64")):
        array = workspace.get("patches", shape, np.dtype(dtype))
        assert (array.shape, array.dtype) == (shape, dtype)
        array[...] = 3
    assert (to_cpu(first) == 1).all() and (to_cpu(other) == 2).all()


def test_a_border_of_zeros_is_zero_whatever_was_there(rng):
    workspace = arrays.Workspace()
    for shape, padding in (((2, 4, 6, 3), 2), ((1, 3, 3, 2), 1), ((2, 2, 5, 1), 0), ((2, 4, 6, 3), 1)):
        x = rng.standard_normal(shape)
        image = arrays.padded(to_device(x), padding, workspace)
        np.testing.assert_array_equal(to_cpu(image), np.pad(x, [(0, 0), (padding,) * 2, (padding,) * 2, (0, 0)]))
        image[...] = np.nan


@pytest.mark.parametrize(("kind", "geometry", "shape", "complaint"), [
    (Conv2d, (4, 2, 0), (2, 5, 8, 8), r"expects images \(N, H, W, 5\) but got an array of shape \(2, 5, 8, 8\)"),
    (Conv2d, (4, 2, 0), (8, 8, 5), r"expects images \(N, H, W, 5\)"),
    (Conv2d, (4, 2, 0), (2, 3, 8, 5), "got an image of 3x8, smaller than its kernel"),
    (ConvTranspose2d, (4, 2, 1), (2, 8, 8, 3), r"expects images \(N, H, W, 5\)"),
    (ConvTranspose2d, (2, 1, 1), (2, 1, 4, 5), "got an image of 1x4, of which its padding leaves nothing"),
])
def test_bad_inputs_are_refused(way, kind, geometry, shape, complaint, rng):
    layer = kind(5, 6, geometry[0], rng, *geometry[1:])
    with pytest.raises(InputError, match=complaint):
        layer.forward(to_device(np.zeros(shape)))


def test_repr_says_what_the_layer_does(way, rng):
    for kind in (Conv2d, ConvTranspose2d):
        layer = kind(5, 3, 4, rng, stride=2, padding=1)
        assert repr(layer) == f"{kind.__name__}(5 -> 3, 4x4, stride 2, padding 1)"
        assert (type(layer) is kind) == (way == "plain")
