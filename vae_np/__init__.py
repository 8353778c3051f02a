"""vae_np: a convolutional variational autoencoder for faces in NumPy, every gradient by hand.

The lecture is the ten files beside this one, to be read in this order: errors, backend, layers, conv, losses, network,
vae, gradcheck, optim, train. They know nothing of fast/, disk/, study/ and run/.
"""

import sys

from vae_np.errors import BackendError

try:
    from vae_np import backend, fast
except BackendError as error:
    if sys.argv[0] == "-m":  # python -m vae_np.something, whose own code has yet to run
        sys.exit(f"error: {error}")
    raise
from vae_np.vae import VAE

if backend.NAME != "plain":
    backend.FASTER.update(fast.replacements())

__all__ = ["VAE"]
