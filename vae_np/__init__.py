"""vae_np: a convolutional variational autoencoder for faces in NumPy, every gradient by hand."""

from vae_np.vae import VAE

__all__ = ["VAE"]
