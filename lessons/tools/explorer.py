"""The page of lesson 12: a trained decoder as JSON and float16 numbers, put into explorer/template.html."""

import base64
import io
import json
import zlib

from tools.common import LESSONS

import numpy as np
from PIL import Image

from vae_np.backend import to_cpu
from vae_np.disk.files import replacing
from vae_np.errors import InputError
from vae_np.study.flow import WAVES

TEMPLATE = LESSONS / "explorer" / "template.html"


class Numbers:
    """Arrays as float16, one after the other; each is named by where it is, {"at": first, "end": last + 1}."""

    def __init__(self):
        self.parts, self.count = [], 0

    def add(self, array):
        """Append an array of any shape, row by row, and return where it is. Raises InputError for too large numbers."""
        with np.errstate(over="ignore"):
            part = to_cpu(array).astype("<f2").ravel()
        if not np.isfinite(part).all():
            raise InputError("some numbers are not finite in float16, which ends at 65,504")
        self.parts.append(part)
        self.count += part.size
        return {"at": self.count - part.size, "end": self.count}

    def bytes(self):
        """All of them."""
        return b"".join(part.tobytes() for part in self.parts)


def described(layer, numbers):
    """A layer of a decoder as what JSON can hold, its parameters in `numbers`: weights as rows, one for each output."""
    said = {"name": repr(layer).partition("(")[0]}
    if said["name"] == "Dense":
        said |= {"weight": numbers.add(layer.rate * layer.weight.value.T), "bias": numbers.add(layer.bias.value)}
    elif said["name"] == "LeakyReLU":
        said |= {"slope": layer.slope}
    elif said["name"] == "Reshape":
        said |= {"side": layer.shape[0], "channels": layer.shape[-1]}
    elif said["name"] == "ConvTranspose2d":
        said |= dict(zip(("kernel", "stride", "padding"), layer.geometry, strict=True), outputs=layer.outputs,
                     weight=numbers.add(layer.weight.value), bias=numbers.add(layer.bias.value))
    else:
        said |= {"factor": layer.factor}
    return said


def described_prior(prior, numbers):
    """What the page draws codes from: Gaussians, each with its probability, and a flow before them, if there is one."""
    if prior is None:
        return None
    weights = getattr(prior, "weights", [1.0])
    components = getattr(prior, "components", [getattr(prior, "gaussian", prior)])
    said = {"name": f"the {prior.name}", "gaussians": [
        {"weight": float(weight), "mean": numbers.add(one.mean), "factor": numbers.add(one.factor)}
        for weight, one in zip(weights, components, strict=True)]}
    if prior.name == "flow":
        network = [described(layer, numbers) for layer in prior.velocity.network.layers]
        said["flow"] = {"steps": 50, "waves": WAVES, "network": network}
    return said


def as_png(face):
    """A uint8 image as a URL that holds it."""
    file = io.BytesIO()
    Image.fromarray(face).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def write_page(path, settings, numbers):
    """Fill the template; return how many bytes the page has. `settings` may be anything that JSON can hold."""
    said = json.dumps(settings).replace("<", "\\u003c")
    weights = base64.b64encode(numbers.bytes()).decode()
    checksum = zlib.adler32((said + weights).encode())
    page = TEMPLATE.read_text(encoding="utf-8")
    for name, text in (("@SETTINGS@", said), ("@WEIGHTS@", weights), ("@CHECKSUM@", str(checksum))):
        page = page.replace(name, text)
    with replacing(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return path.stat().st_size
