"""python -m vae_np.benchmark: the command is in vae_np/run/benchmark.py."""

from vae_np.run.benchmark import main

if __name__ == "__main__":
    raise SystemExit(main())
