"""vae_np: a convolutional variational autoencoder for faces in NumPy, every gradient by hand.

The lecture is the ten files beside this one, to be read in this order: errors, backend, layers, conv, losses, network,
vae, gradcheck, optim, train. They know nothing of fast/, disk/, study/ and run/.
"""

from vae_np import backend, fast
from vae_np.vae import VAE

if backend.NAME != "plain":
    backend.FASTER.update(fast.replacements())

__all__ = ["VAE"]
