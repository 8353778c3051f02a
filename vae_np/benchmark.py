"""python -m vae_np.benchmark: the command is vae_np/run/benchmark.py."""

import sys

from vae_np.run.benchmark import main

if __name__ == "__main__":
    sys.exit(main())
