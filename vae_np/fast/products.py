"""Products of matrices in pieces so small that BLAS need not pack them.

Before a product BLAS packs both factors: it copies them into the order in which its inner loop reads them. Of matrices
with a thousand rows and columns that is a hundredth of the work, of the narrow ones of a convolution up to a fifth. On
cores with AVX-512, OpenBLAS has kernels that read the factors where they are, and takes them for products of a million
multiplications at the most. So cut one into such pieces: b (K, N) into strips of some columns, a (M, K) into groups of
rows. Group i times strip j is then rows i and columns j of the product. One call of np.matmul goes through all pairs:

    256 x 128 tiles @ 128 x 64 kernels, 2.1 million multiplications: 4 groups of 64 rows, one strip

That is for one thread: BLAS does not share so small a product among its own, of which it has one here (cores.py). Other
BLAS and other cores get a product whole, and so does a number of rows or columns without a divisor that suits.
"""

import functools

import numpy as np

from vae_np.backend import xp
from vae_np.fast.cores import blas

LIMIT = 100**3  # multiplications: OpenBLAS packs no factor of a product that has at most so many
LEAST, WIDEST = 16, 64  # columns of a strip, one to four registers of 16 numbers; LEAST also for the rows of a group
LONGEST = 1024  # numbers that one product adds up; more would leave too little of the limit for rows and columns
# As measured: for how many rows of x a dense layer sooner makes x W and dy W^T as W^T x^T and W dy^T; and how many are
# worth a copy of what they are multiplied with.
FEW, MANY = range(8, 25), 512


@functools.cache
def has_small_kernels():
    """Whether the BLAS that is loaded is an OpenBLAS with its kernels for AVX-512."""
    return xp is np and any(library.info().get("architecture") in ("SkylakeX", "Cooperlake", "SapphireRapids")
                            for library in blas().lib_controllers)


@functools.cache
def parts(number, limit):
    """Into how many equal parts to cut a number, each from LEAST to `limit`: as few as can be, or 1 if none can."""
    return next((count for count in range(1, number // LEAST + 1)
                 if number % count == 0 and number // count <= limit), 1)


def strips(b):
    """A view of matrices b (..., K, N) as strips (..., J, K, N / J), so narrow that a group can have LEAST rows."""
    *batch, k, n = b.shape
    count = parts(n, min(WIDEST, LIMIT // (LEAST * max(1, k))))
    return b.reshape(*batch, k, count, n // count).swapaxes(-3, -2)


def prepared(b, rows):
    """Matrices b as `product` takes them: of many rows a copy as strips, each a run of memory; of few, one strip."""
    if not has_small_kernels():
        return b
    return np.ascontiguousarray(strips(b)) if rows >= MANY else b[..., None, :, :]


def few(x):
    """Whether x (N, I) has so few rows that a weight should come first in a product with it."""
    return has_small_kernels() and len(x) in FEW


def in_runs(array):
    """Whether rows of matrices are runs of memory, as small kernels want them of b and out; a may be transposed."""
    return array.strides[-1] == array.itemsize


def product(a, b, out):
    """out (..., M, N) = a (..., M, K) @ a matrix (..., K, N), of which b is `prepared`, or `strips`."""
    if not has_small_kernels():
        return xp.matmul(a, b, out=out)
    (*batch, m, k), (count, _, columns) = a.shape, b.shape[-3:]
    small = columns <= WIDEST and in_runs(b) and in_runs(out)
    cuts = parts(m, LIMIT // max(1, k * columns)) if small else 1
    pieces = out.reshape(*batch, cuts, m // cuts, count, columns).swapaxes(-3, -2)  # a view, as axes are only cut
    np.matmul(a.reshape(*batch, cuts, 1, m // cuts, k), b[..., None, :, :, :], out=pieces)
    return out


def product_of_columns(a, b, out):
    """out (..., M, N) = a^T b, of a (..., T, M) and b (..., T, N): a sum over T, in pieces as well."""
    if not has_small_kernels():
        return xp.matmul(a.swapaxes(-1, -2), b, out=out)
    t = a.shape[-2]
    cuts = parts(t, LONGEST)
    if cuts == 1:
        return product(a.swapaxes(-1, -2), strips(b), out)
    a, b = (np.moveaxis(c.reshape(*c.shape[:-2], cuts, t // cuts, c.shape[-1]), -3, 0) for c in (a, b))
    return product(a.swapaxes(-1, -2), strips(b), np.empty((cuts, *out.shape), out.dtype)).sum(axis=0, out=out)
