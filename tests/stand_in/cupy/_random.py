"""cupy.random.Generator of the pretended device. What it draws is NumPy's, not CuPy's."""

import numpy as np

from . import _array, _memory, stand_in


class Generator:
    """NumPy's generator with the methods of CuPy's, which has no normal, permutation and shuffle."""

    def __init__(self, seed):
        self._host = np.random.default_rng(seed)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        stand_in.require("cupy.random.Generator", name)
        check, draw = stand_in.signature("cupy.random.Generator", name), getattr(self._host, name)

        def call(*args, **kwargs):
            check(self, *args, **kwargs)
            _memory.check_kernel()
            found = []
            result = draw(*(_array.to_host(arg, found) for arg in args),
                          **{key: _array.to_host(arg, found) for key, arg in kwargs.items()})
            return _array.to_device(result) if kwargs.get("out") is None else kwargs["out"]

        return call


def default_rng(seed=None):
    return Generator(seed)
