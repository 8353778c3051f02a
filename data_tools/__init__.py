import vae_np  # noqa: F401  first, since it ends a command in one line where its backend is missing
