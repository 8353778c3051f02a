"""Both convolutions by their definition, one product of two numbers at a time. Shares no code with vae_np; slow."""

import numpy as np


class NaiveConv:
    """y[n, i, j, f] = b[f] + sum over a, b, c of x[n, i s + a - p, j s + b - p, c] w[a, b, c, f], x = 0 outside."""

    def __init__(self, weight, bias, stride, padding):
        self.weight, self.bias, self.stride, self.padding = weight, bias, stride, padding

    def size(self, size):
        """The height or width of the output: every s-th place, from p before the image to p behind, is one."""
        return len(range(-self.padding, size + self.padding - len(self.weight) + 1, self.stride))

    def output_shape(self, x_shape):
        n, h, w, _ = x_shape
        return n, self.size(h), self.size(w), len(self.bias)

    def products(self, x_shape):
        """Every product that is added to y: where its factors are in x and in the weight, and where in y it goes."""
        k, s, p = len(self.weight), self.stride, self.padding
        _, h, w, channels = x_shape
        for image, i, j, f in np.ndindex(self.output_shape(x_shape)):
            for a, b in np.ndindex(k, k):
                row, column = i * s + a - p, j * s + b - p
                if 0 <= row < h and 0 <= column < w:
                    for c in range(channels):
                        yield (image, row, column, c), (a, b, c, f), (image, i, j, f)

    def forward(self, x):
        y = np.zeros(self.output_shape(x.shape)) + self.bias
        for in_x, in_weight, in_y in self.products(x.shape):
            y[in_y] += x[in_x] * self.weight[in_weight]
        return y

    def backward(self, x, dy):
        """(dx, dweight, dbias). A product x w, added to y, adds w dy to the gradient of x and x dy to that of w."""
        dx, dweight, dbias = np.zeros(x.shape), np.zeros(self.weight.shape), np.zeros(self.bias.shape)
        for in_x, in_weight, in_y in self.products(x.shape):
            dx[in_x] += self.weight[in_weight] * dy[in_y]
            dweight[in_weight] += x[in_x] * dy[in_y]
        for in_y in np.ndindex(dy.shape):
            dbias[in_y[-1]] += dy[in_y]
        return dx, dweight, dbias


class NaiveConvTranspose(NaiveConv):
    """Pixel (i, j) of x adds x[n, i, j, c] w[a, b, f, c] to y[n, i s + a - p, j s + b - p, f], where that is in y."""

    def size(self, size):
        """The height or width of the output: from the first kernel's start to the last one's end, less p at each."""
        return (size - 1) * self.stride + len(self.weight) - 2 * self.padding

    def products(self, x_shape):
        k, s, p = len(self.weight), self.stride, self.padding
        _, h, w, outputs = self.output_shape(x_shape)
        for image, i, j, c in np.ndindex(x_shape):
            for a, b in np.ndindex(k, k):
                row, column = i * s + a - p, j * s + b - p
                if 0 <= row < h and 0 <= column < w:
                    for f in range(outputs):
                        yield (image, i, j, c), (a, b, f, c), (image, row, column, f)
