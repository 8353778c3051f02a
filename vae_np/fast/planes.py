"""The 4x4 stride-2 convolution of images with few channels, such as RGB: plane by plane.

Three channels are runs of three numbers, and NumPy handles short runs a number at a time. So pixels are first put into
planes, in which a whole row of an image is a run: one for each channel and each of the four places in a block of 2x2
pixels. Pixel (a, b) of all patches is then a part of one plane, shifted by at most a row and a column.
"""

from numpy.lib.stride_tricks import as_strided

from vae_np.fast.arrays import Unfolding, cut

PIXELS = 1 << 16  # of images that go through a layer at a time, for what one step writes to be in cache for the next
# The row and column of a pixel in its block, or of a block in its patch of 2x2 blocks.
PLACES = [(i, j) for i in range(2) for j in range(2)]


def pixels_of_planes(x, planes):
    """For each plane, its part that is no border, and the pixels of x (N, H, W, C) that belong there.

    planes (2, 2, C, N, H/2 + 1, W/2 + 1): in [i, j] every second row of the padded images from the i-th on, and every
    second column from the j-th on. The padding is row 0 of the planes of even rows, and the last one of odd rows.
    """
    _, _, _, _, h, w = planes.shape
    for i, j in PLACES:
        yield planes[i, j, :, :, 1 - i : h - i, 1 - j : w - j], x[:, 1 - i :: 2, 1 - j :: 2].transpose(3, 0, 1, 2)


def patches_of(planes):
    """A view of planes as patches (2, 2, 2, 2, C, N, H/2, W/2): pixel (2 p + i, 2 q + j) of each is at [p, i, q, j].

    p and q shift a plane by a row and a column. Only numbers of different p or q share memory: those of one p and q
    may be added to in one operation.
    """
    i, j, c, n, h, w = planes.shape
    one, other, *others, row, column = planes.strides
    return as_strided(planes, (2, i, 2, j, c, n, h - 1, w - 1), (row, one, column, other, *others, row, column))


class Planes(Unfolding):
    """The way of few channels: the matrix of patches is as ever, but its columns, not its rows, are runs in memory."""

    def groups(self, shape):
        n, h, w, _ = shape
        return cut(n, max(1, PIXELS // (h * w)))

    def planes_for(self, x, name):
        n, h, w, c = x.shape
        return self.workspace.get(name, (2, 2, c, n, h // 2 + 1, w // 2 + 1), x.dtype)

    def patches_for(self, x, name="products of patches"):
        n, h, w, c = x.shape
        return self.workspace.get(name, (16 * c, n * (h // 2) * (w // 2)), x.dtype).T  # a row of memory is a column

    def split(self, patches, x):
        """A view of patches, with the axes of patches_of."""
        n, h, w, c = x.shape
        return patches.T.reshape(2, 2, 2, 2, c, n, h // 2, w // 2)

    def input(self, x, name):
        planes, patches = self.planes_for(x, "planes"), self.patches_for(x, name)
        planes[0, ..., 0, :] = planes[1, ..., -1, :] = planes[:, 0, ..., 0] = planes[:, 1, ..., -1] = 0  # the padding
        for part, pixels in pixels_of_planes(x, planes):
            part[...] = pixels
        self.split(patches, x)[...] = patches_of(planes)
        return patches

    def input_adjoint(self, patches, x):
        planes = self.planes_for(x, "sums")
        planes[...] = 0
        sums, parts = patches_of(planes), self.split(patches, x)
        for p, q in PLACES:
            sums[p, :, q] += parts[p, :, q]
        for part, pixels in pixels_of_planes(x, planes):
            for plane, channel in zip(part, pixels, strict=True):  # or NumPy would go from channel to channel
                channel[...] = plane
