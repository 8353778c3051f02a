"""The 4x4 stride-2 convolution of images with few channels, such as RGB: plane by plane.

Three channels are runs of three numbers, and NumPy handles short runs a number at a time. So pixels are first put into
planes, in which a whole row of an image is a run: one for each channel and each of the four places in a block of 2x2
pixels. Pixel (a, b) of all patches is then a part of one plane, shifted by at most a row and a column.
"""

from vae_np.fast.arrays import Unfolding, cut

PIXELS = 1 << 16  # of images that go through a layer at a time, for what one step writes to be in cache for the next
PLACES = [(i, j) for i in range(2) for j in range(2)]
TAPS = [(a, b) for a in range(4) for b in range(4)]


def pixels_of_planes(x, planes):
    """For each plane, its part that is no border, and the pixels of x (N, H, W, C) that belong there.

    planes (2, 2, C, N, H/2 + 1, W/2 + 1): in [i, j] every second row of the padded images from the i-th on, and every
    second column from the j-th on. The padding is row 0 of the planes of even rows, and the last one of odd rows.
    """
    _, _, _, _, h, w = planes.shape
    for i, j in PLACES:
        yield planes[i, j, :, :, 1 - i : h - i, 1 - j : w - j], x[:, 1 - i :: 2, 1 - j :: 2].transpose(3, 0, 1, 2)


def pixels_of_patches(planes, patches):
    """For each pixel (a, b) of a patch: where it is in the planes, and in patches (4, 4, C, N, OH, OW)."""
    h, w = patches.shape[-2:]
    for a, b in TAPS:
        yield planes[a % 2, b % 2, :, :, a // 2 : a // 2 + h, b // 2 : b // 2 + w], patches[a, b]


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
        return self.workspace.get(name, (16 * c, n * (h // 2) * (w // 2)), x.dtype).T

    def split(self, patches, x):
        """A view of patches, with axes (4, 4, C, N, H/2, W/2)."""
        n, h, w, c = x.shape
        return patches.T.reshape(4, 4, c, n, h // 2, w // 2)

    def input(self, x, name):
        planes, patches = self.planes_for(x, "planes"), self.patches_for(x, name)
        planes[0, ..., 0, :] = planes[1, ..., -1, :] = planes[:, 0, ..., 0] = planes[:, 1, ..., -1] = 0  # the padding
        for part, pixels in pixels_of_planes(x, planes):
            part[...] = pixels
        for pixels, taps in pixels_of_patches(planes, self.split(patches, x)):
            taps[...] = pixels
        return patches

    def input_adjoint(self, patches, x):
        planes = self.planes_for(x, "sums")
        planes[...] = 0
        for pixels, taps in pixels_of_patches(planes, self.split(patches, x)):
            pixels += taps
        for part, pixels in pixels_of_planes(x, planes):
            for plane, channel in zip(part, pixels, strict=True):  # or NumPy would go from channel to channel
                channel[...] = plane
