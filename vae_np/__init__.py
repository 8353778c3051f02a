"""vae_np: a convolutional variational autoencoder for faces in NumPy, every gradient by hand."""
