"""Time training steps of the reference model: noise, forward, loss, backward and update, just as training takes them.

    python -m vae_np.benchmark --batch-size 128 --threads 2
    python -m vae_np.benchmark --profile            with a table of the time by layer and pass

The last line is JSON; images_per_second is the median over the steps that were timed.
"""

import json
import statistics
import sys
import threading
import time
from collections import defaultdict

import numpy as np

from vae_np import backend
from vae_np.backend import to_device
from vae_np.fast.cores import one_blas_thread
from vae_np.fast.gpu import synchronize
from vae_np.fast.workers import ParallelVAE, Workers
from vae_np.losses import LIKELIHOODS
from vae_np.run.command import POSITIVE, OneLineParser, run, threads
from vae_np.train import Settings, Training, to_float
from vae_np.vae import VAE

# The model that steps in other frameworks were written for: wider than the default, and nothing but convolutions.
REFERENCE = {"channels": (32, 64, 128, 256), "latent_dim": 128, "centred": False, "shortcut": False, "steady": False}
WARM_UP = 3  # steps that fill workspaces, and are not timed


class Profile:
    """Seconds spent in the layers, added up over all threads, and in the update."""

    def __init__(self, models, threads, adam):
        self.threads, self.seconds, self.lock = threads, defaultdict(float), threading.Lock()
        for model in models:
            for part, network in (("encoder", model.encoder), ("decoder", model.decoder)):
                firsts = [path.layers[0] for path in model.encoder.paths]  # which need no gradient of the images
                for number, layer in enumerate(layer for path in network.paths for layer in path.layers):
                    name = f"{part}.{number} {layer!r}"
                    self._watch(layer, "forward", (name, "forward"))
                    first = layer in firsts
                    self._watch(layer, "backward_parameters" if first else "backward", (name, "backward"))
        self._watch(adam, "update", "Adam")

    def _watch(self, owner, method, key):
        original = getattr(owner, method)

        def timed(*args, **kwargs):
            start = time.perf_counter()
            result = original(*args, **kwargs)
            synchronize()
            elapsed = time.perf_counter() - start
            with self.lock:
                self.seconds[key] += elapsed
            return result

        setattr(owner, method, timed)

    def print_table(self, images, seconds):
        """Print where the time of an image went: `seconds` on the clock for so many images."""
        def row(name, *columns):
            print(f"{name:74s}" + "".join(f"{1e3 * column / images:9.3f}" for column in columns))

        print(f"{'milliseconds an image, on the clock':74s}{'forward':>9s}{'backward':>9s}")
        layers = {key: value / self.threads for key, value in self.seconds.items() if isinstance(key, tuple)}
        for name in dict.fromkeys(name for name, _ in layers):
            row(name, layers[name, "forward"], layers[name, "backward"])
        row("Adam", self.seconds["Adam"])
        row("noise, losses, sums of gradients, clipping, waiting",
            seconds - sum(layers.values()) - self.seconds["Adam"])
        row("all", seconds)


def peak_memory():
    """The most memory that this process has held so far, in MB, or None where Python does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3))  # bytes on macOS, kilobytes elsewhere


def measure(batch_size=128, steps=12, threads=None, likelihood="bernoulli", profile=False):
    """Time `steps` training steps after WARM_UP others; print the profile if asked for, and one line of JSON."""
    model = VAE(**REFERENCE)
    images = np.random.default_rng(0).integers(0, 256, (batch_size, 64, 64, 3), dtype=np.uint8)
    training = Training(model, images, Settings(batch_size=batch_size, likelihood=likelihood,
                                                learning_rate=1e-4))  # random images throw a model off at more
    models, count = [model], 1
    if isinstance(model, ParallelVAE):
        model.workers = Workers(model, threads)
        training.adam.model = model
        models, count = models + model.workers.replicas, model.workers.busy(batch_size)
    x = to_float(to_device(images))
    with one_blas_thread():
        for _ in range(WARM_UP):
            training.step(x)
        synchronize()
        watch = Profile(models, count, training.adam) if profile else None
        seconds = []
        for _ in range(steps):
            start = time.perf_counter()
            training.step(x)
            synchronize()
            seconds.append(time.perf_counter() - start)
    if watch:
        watch.print_table(batch_size * steps, sum(seconds))
    print(json.dumps({"backend": backend.NAME, "batch_size": batch_size, "threads": count,
                      "images_per_second": round(batch_size / statistics.median(seconds), 1),
                      "peak_memory_mb": peak_memory()}))


def main(arguments=None):
    """The command line; returns its exit status."""
    parser = OneLineParser(prog="python -m vae_np.benchmark", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--batch-size", type=POSITIVE, default=128, metavar="N", help="images in a step (128)")
    parser.add_argument("--steps", type=POSITIVE, default=12, metavar="N", help="steps to time (12)")
    parser.add_argument("--threads", type=threads, metavar="N",
                        help="worker threads at the most (one for each core); a batch takes as many as pay")
    parser.add_argument("--likelihood", choices=LIKELIHOODS, default="bernoulli", help="(bernoulli)")
    parser.add_argument("--profile", action="store_true", help="print a table of the time by layer and pass")
    return run(measure, **vars(parser.parse_args(arguments)))
