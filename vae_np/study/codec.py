"""Faces as .vaez files of a few dozen bytes: the posterior mean, rounded, entropy-coded by the range coder.

**Rounding.** Dimension j is rounded to multiples of step * scale_j, scale_j being the posterior's deviation, the root
of the mean of exp(log_var_j) over training faces. The decoder was trained on codes with noise of that size: smaller
errors change a face little. Multiples of d make errors of variance d^2 / 12: the noise's at a step of sqrt(12) = 3.5.

**Coding.** How often each rounded value comes up in training faces, plus one, is its frequency. Values that do not
stand in the table follow an escape symbol, which has a frequency as well: nothing has probability 0.

**The file.** Eight bytes, then the code:

    b"z1"           what it is, and the version of this format
    2 bytes         the first of the codec's fingerprint, the SHA-256 of the model's parameters and the tables
    4 bytes         the CRC-32 of the whole fingerprint and the code
    the rest        the range coder's bytes

Both sides need the same checkpoint and tables; all machines then decode one code, and, but for rounding, one face.
"""

import hashlib
import math
import zlib

import numpy as np

from vae_np.backend import to_cpu
from vae_np.disk import sealed
from vae_np.disk.files import replacing
from vae_np.errors import CheckpointError, InputError
from vae_np.study.range_coder import COIN, Decoder, Encoder

MAGIC, VERSION = b"z", b"1"
HEADER = 8
WIDEST = 1000  # the largest rounded value, of either sign, that may stand in a table
LARGEST = 2**31  # and that can be coded at all
MOST_BYTES = 32  # of a dimension's code: one of LARGEST takes fewer


class Codec:
    """A model's codes to bytes and back. Raises InputError for numbers that do not fit.

    step, scale  a float, and float64 (Z,): dimension j is rounded to multiples of step * scale_j
    lengths      int64 (Z,), how many symbols each dimension's table has: the values lowest, lowest + 1, ..., the escape
    lowest       int64 (Z,), the first value of each table
    frequencies  int64, of the symbols of all tables, one after the other
    """

    def __init__(self, model, step, scale, lowest, frequencies, lengths):
        conditions = (0 < step < np.inf, scale > 0, scale < np.inf, lengths > 1, frequencies > 0,
                      lengths.sum() == len(frequencies))
        if not all(map(np.all, conditions)):
            raise InputError("the numbers of this codec do not fit")
        self.step, self.scale, self.lowest, self.frequencies, self.lengths = step, scale, lowest, frequencies, lengths
        self.arrays = {"scale": scale, "lowest": lowest, "frequencies": frequencies, "lengths": lengths}
        # What the range coder takes: cumulative frequencies.
        self.tables = [[0, *np.cumsum(part).tolist()] for part in np.split(frequencies, np.cumsum(lengths)[:-1])]
        self.model = fingerprint_of(model)
        content = b"".join(array.tobytes() for array in (np.float64(step), *self.arrays.values()))
        self.fingerprint = hashlib.sha256(self.model.encode() + content).digest()

    @classmethod
    def fit(cls, model, mu, log_var, step):
        """The codec of a model by the posteriors of training faces, mu and log_var (N, Z). Raises as quantise does."""
        scale = np.sqrt(np.exp(log_var, dtype=np.float64).mean(axis=0))
        values = rounded(mu, step * scale)
        lowest, highest = (np.clip(extreme(axis=0), -WIDEST, WIDEST) for extreme in (values.min, values.max))
        escape = highest - lowest + 1
        symbols = np.where(np.abs(values) <= WIDEST, values - lowest, escape)
        counts = [np.bincount(column, minlength=last + 1) for column, last in zip(symbols.T, escape, strict=True)]
        return cls(model, float(step), scale, lowest, 1 + np.concatenate(counts).astype(np.int64), escape + 1)

    def quantise(self, mu):
        """Posterior means (N, Z) -> whole numbers (N, Z). Raises InputError if one is not finite or too large."""
        return rounded(mu, self.step * self.scale)

    def dequantise(self, values):
        """Whole numbers (N, Z) -> codes for the decoder, float32 (N, Z)."""
        return (values * (self.step * self.scale)).astype(np.float32)

    def _coder(self, values):
        """An Encoder into which the whole numbers (Z,) of one face have been put."""
        coder = Encoder()
        for value, lowest, table in zip(values.tolist(), self.lowest.tolist(), self.tables, strict=True):
            place, escape = value - lowest, len(table) - 2
            if 0 <= place < escape:
                coder.put(place, table)
            else:
                coder.put(escape, table)
                coder.put(int(place > 0), COIN)
                coder.put_integer(place - escape + 1 if place > 0 else -place)
        return coder

    def bits(self, values):
        """The ideal code length of each face, -log2 of the width of its interval: whole numbers (N, Z) -> (N,)."""
        return np.array([math.log2(coder.whole) - math.log2(coder.width) for coder in map(self._coder, values)])

    def pack(self, values):
        """The whole numbers (Z,) of one face -> the content of its .vaez file."""
        code = self._coder(values).finish()
        checksum = zlib.crc32(self.fingerprint + code).to_bytes(4, "big")
        return MAGIC + VERSION + self.fingerprint[:2] + checksum + code

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
        if int.from_bytes(content[4:HEADER], "big") != zlib.crc32(self.fingerprint + code):
            raise InputError(f"{name} is damaged (its checksum is another)")
        values, coder = [], Decoder(code)
        for lowest, table in zip(self.lowest.tolist(), self.tables, strict=True):
            place, escape = coder.get(table), len(table) - 2
            if place == escape:
                above, excess = coder.get(COIN), coder.get_integer()
                place = escape - 1 + excess if above else -excess
            values.append(lowest + place)
        if max(map(abs, values)) > LARGEST:
            raise InputError(f"{name} holds no code of a face")
        return np.array(values, np.int64)

    def write(self, path, values):
        """Write the whole numbers (Z,) of one face to a .vaez file, whole or not at all; return its size in bytes."""
        with replacing(path) as partial:
            return partial.write_bytes(self.pack(values))

    def read(self, path):
        """The whole numbers (Z,) of a .vaez file. Raises InputError if it is none, and OSError if it is not there."""
        with open(path, "rb") as file:
            return self.unpack(file.read(HEADER + MOST_BYTES * len(self.tables) + 1), path)

    def save(self, path):
        """Write all but the model's parameters to path, sealed as a checkpoint is."""
        sealed.save(path, self.arrays, {"codec_of": self.model, "step": self.step})

    @classmethod
    def load(cls, path, model):
        """What `save` wrote. Raises CheckpointError if it is missing, damaged, or belongs to another model."""
        if not path.is_file():
            raise CheckpointError(f"there is no codec {path}; fit one, or copy the one that the files were made with")
        try:
            arrays, info = sealed.load(path)
            if info["codec_of"] == fingerprint_of(model):
                each = (model.latent_dim,)
                sealed.check_arrays(arrays, {"scale": (each, "float64"), "lowest": (each, "int64"),
                                             "lengths": (each, "int64"), "frequencies": ((None,), "int64")})
                return cls(model, info["step"], **arrays)
        except (CheckpointError, KeyError, TypeError, ValueError):
            raise CheckpointError(f"{path} is damaged, of another version, or no codec; make it again") from None
        raise CheckpointError(f"{path} belongs to another model; name the one that stands beside this checkpoint")


def rounded(mu, width):
    """mu / width to the nearest whole numbers, int64. Raises InputError unless all are finite and can be coded."""
    values = np.rint(mu / width)
    if not (np.abs(values) <= LARGEST).all():  # as it is for none that is not a number
        raise InputError("a code is not finite, or the step is too small for it")
    return values.astype(np.int64)


def fingerprint_of(model):
    """The SHA-256 of a model's parameters, as hex digits."""
    return hashlib.sha256(to_cpu(model.values).tobytes()).hexdigest()
