"""Faces as .vaez files of a few dozen bytes: the posterior mean, rounded, entropy-coded by the range coder.

**Rounding.** Dimension j is rounded to multiples of step * scale_j, where scale_j is the posterior's deviation, the
root of the mean of exp(log_var_j) over training faces. The decoder was trained on codes with noise of that size, so an
error well inside of it changes the face little. Rounding to multiples of d makes errors of variance d^2 / 12: at a step
of sqrt(12) = 3.5 they are as large as that noise. A dimension that says nothing has scale 1 and is rounded to 0.

**Coding.** How often each rounded value comes up in training faces, plus one, is its frequency. Values that do not
stand in the table follow an escape symbol, which has a frequency as well: nothing has probability 0.

**The file.** Eight bytes, then the code:

    b"z1"           what it is, and the version of this format
    2 bytes         the first of the codec's fingerprint, the SHA-256 of the model's parameters and the tables
    4 bytes         the CRC-32 of the whole fingerprint and the code
    the rest        the range coder's bytes

The size of the image is the model's. Both sides need the same model and the same tables: the checkpoint and the file
that `Codec.save` writes. Decoding gives the same code on every machine, and the same face but for the rounding of
float32 sums.

All of this is plain NumPy on the host: `VAE.encode` and `VAE.decode` deal in NumPy arrays.
"""

import hashlib
import zlib

import numpy as np

from vae_np.backend import to_cpu
from vae_np.disk.files import replacing
from vae_np.errors import CheckpointError, InputError
from vae_np.run import checkpoint
from vae_np.study.range_coder import COIN, Decoder, Encoder

MAGIC, VERSION = b"z", b"1"
HEADER = 8
WIDEST = 1000  # the largest rounded value, of either sign, that may stand in a table
LARGEST = 2**31  # and that can be coded at all
MOST_BYTES = 32  # of a dimension's code: one of LARGEST takes fewer
ARRAYS = {"scale": "float64", "lowest": "int64", "frequencies": "int64", "lengths": "int64"}  # of Codec.save


class Codec:
    """A model's codes to bytes and back.

    step    float, in posterior deviations
    scale   float64 (Z,), the posterior deviation of each dimension
    lowest  int64 (Z,), the first value of each dimension's table
    tables  Z lists of cumulative frequencies: of the values lowest, lowest + 1, ..., and last of the escape
    """

    def __init__(self, model, step, scale, lowest, frequencies, lengths):
        self.step, self.scale, self.lowest = step, scale, lowest
        self.frequencies, self.lengths = frequencies, lengths  # of all tables, one after the other
        self.tables = [[0, *np.cumsum(part).tolist()] for part in np.split(frequencies, np.cumsum(lengths)[:-1])]
        self.model = fingerprint_of(model)
        arrays = (np.float64(step), scale, lowest, frequencies, lengths)
        self.fingerprint = hashlib.sha256(self.model.encode() + b"".join(array.tobytes() for array in arrays)).digest()

    @classmethod
    def fit(cls, model, mu, log_var, step):
        """The codec of a model by the posteriors of training faces, mu and log_var (N, Z).

        Raises InputError if a code is not finite or the step is too small for it.
        """
        scale = np.sqrt(np.exp(log_var, dtype=np.float64).mean(axis=0))
        values = rounded(mu, step * scale)
        lowest, highest = (np.clip(extreme(axis=0), -WIDEST, WIDEST) for extreme in (values.min, values.max))
        lengths = highest - lowest + 2  # all values from the lowest to the highest, and the escape
        columns = zip(values.T, lowest, lengths, strict=True)
        frequencies = [1 + np.bincount(symbols(*column), minlength=column[-1]) for column in columns]
        return cls(model, float(step), scale, lowest, np.concatenate(frequencies).astype(np.int64), lengths)

    def quantise(self, mu):
        """Posterior means (N, Z) -> whole numbers (N, Z). Raises InputError if one is not finite or too large."""
        return rounded(mu, self.step * self.scale)

    def dequantise(self, values):
        """Whole numbers (N, Z) -> codes for the decoder, float32 (N, Z)."""
        return (values * (self.step * self.scale)).astype(np.float32)

    def bits(self, values):
        """The ideal code length of whole numbers (N, Z): the sum of log2(total / frequency) -> (N,), in float64."""
        total = np.zeros(len(values))
        for column, lowest, table in zip(values.T, self.lowest, self.tables, strict=True):
            index = symbols(column, lowest, len(table) - 1)
            total -= np.log2(np.diff(table) / table[-1])[index]
            excess = np.where(column < lowest, lowest - column, column - lowest - len(table) + 3)
            escaped = index == len(table) - 2
            total[escaped] += 2 + 2 * np.floor(np.log2(excess[escaped]))  # the side, and Encoder.put_integer
        return total

    def pack(self, values):
        """The whole numbers (Z,) of one face -> the content of its .vaez file."""
        coder = Encoder()
        for value, lowest, table in zip(values.tolist(), self.lowest.tolist(), self.tables, strict=True):
            escape = len(table) - 2
            if 0 <= value - lowest < escape:
                coder.put(value - lowest, table)
            else:
                coder.put(escape, table)
                coder.put(int(value > lowest), COIN)
                coder.put_integer(lowest - value if value < lowest else value - lowest - escape + 1)
        code = coder.finish()
        return MAGIC + VERSION + self.fingerprint[:2] + self._checksum(code) + code

    def unpack(self, content, name):
        """The content of a .vaez file -> the whole numbers (Z,). Raises InputError, naming the file, if it is none."""
        if content[:1] != MAGIC:
            raise InputError(f"{name} is " + ("no .vaez file" if content else "empty"))
        if content[1:2] != VERSION:
            raise InputError(f"{name} is no .vaez file of version {VERSION.decode()}, which this program reads")
        code = content[HEADER:]
        if len(content) < HEADER or len(code) > MOST_BYTES * len(self.tables):
            raise InputError(f"{name} is damaged (its length is wrong)")
        if content[2:4] != self.fingerprint[:2]:
            raise InputError(f"{name} was made with another checkpoint or codec than these")
        if content[4:HEADER] != self._checksum(code):
            raise InputError(f"{name} is damaged (its checksum is another)")
        values, coder = [], Decoder(code)
        for lowest, table in zip(self.lowest.tolist(), self.tables, strict=True):
            symbol, escape = coder.get(table), len(table) - 2
            if symbol == escape:
                above = coder.get(COIN)
                excess = coder.get_integer()
                symbol = escape - 1 + excess if above else -excess
            values.append(lowest + symbol)
        if max(map(abs, values)) > LARGEST:
            raise InputError(f"{name} holds no code of a face")
        return np.array(values, np.int64)

    def write(self, path, values):
        """Write the whole numbers (Z,) of one face to a .vaez file, whole or not at all; return its size in bytes."""
        content = self.pack(values)
        with replacing(path) as partial:
            partial.write_bytes(content)
        return len(content)

    def read(self, path):
        """The whole numbers (Z,) of a .vaez file. Raises InputError if it is none, and OSError if it is not there."""
        with open(path, "rb") as file:
            return self.unpack(file.read(HEADER + MOST_BYTES * len(self.tables) + 1), path)

    def _checksum(self, code):
        return zlib.crc32(self.fingerprint + code).to_bytes(4, "big")

    def save(self, path):
        """Write all but the model's parameters to path, sealed as a checkpoint is."""
        arrays = {name: getattr(self, name) for name in ARRAYS}
        checkpoint.save(path, arrays, {"codec_of": self.model, "step": self.step})

    @classmethod
    def load(cls, path, model):
        """What `save` wrote. Raises CheckpointError if it is missing, damaged, or belongs to another model."""
        if not path.is_file():
            raise CheckpointError(f"there is no codec {path}; fit one, or copy the one that the files were made with")
        try:
            arrays, info = checkpoint.load(path)
            if info["codec_of"] == fingerprint_of(model):
                return cls(model, info["step"], **checked(arrays, info["step"], model.latent_dim))
        except (CheckpointError, KeyError, TypeError, ValueError):
            raise CheckpointError(f"{path} is damaged, of another version, or no codec; make it again") from None
        raise CheckpointError(f"{path} belongs to another model; name the one that stands beside this checkpoint")


def checked(arrays, step, latent_dim):
    """The arrays of a codec. Raises ValueError, TypeError or KeyError unless they and the step make sense."""
    arrays = {name: arrays[name] for name in ARRAYS}
    for name, dtype in ARRAYS.items():
        count = arrays["lengths"].sum() if name == "frequencies" else latent_dim
        if arrays[name].dtype != dtype or arrays[name].shape != (count,):
            raise ValueError(name)
    positive = arrays["scale"].min() > 0 and arrays["frequencies"].min() > 0 and arrays["lengths"].min() > 1
    if not (positive and np.isfinite(arrays["scale"]).all() and 0 < step < np.inf):
        raise ValueError("not positive")
    return arrays


def rounded(mu, width):
    """mu / width to the nearest whole numbers, int64. Raises InputError unless all are finite and can be coded."""
    values = np.rint(mu / width)
    if not (np.abs(values) <= LARGEST).all():  # as it is for none that is not a number
        raise InputError("a code is not finite, or the step is too small for it")
    return values.astype(np.int64)


def symbols(values, lowest, length):
    """The symbols (N,) of one dimension's values (N,) in a table of that length: the last is the escape."""
    index = values - lowest
    return np.where((index >= 0) & (index < length - 1), index, length - 1)


def fingerprint_of(model):
    """The SHA-256 of a model's parameters, as hex digits."""
    return hashlib.sha256(to_cpu(model.values).tobytes()).hexdigest()
