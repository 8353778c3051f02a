"""What the lessons share: the command line, the dataset (drawn where there is none), the trained model, error lines."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_tools.command import OneLineParser
from vae_np.checkpoint import load_model
from vae_np.data import Dataset, to_float
from vae_np.errors import CheckpointError, InputError, VAEError

TOY_FACES = Path("data/toy64")
CHECKPOINT = Path("runs/03_train/checkpoint.npz")


def one_line(kind, error, trace):
    """Print the project's own errors as one line; everything else keeps its traceback, for it is a bug."""
    if issubclass(kind, VAEError):
        print(f"error: {error}", file=sys.stderr)
    elif issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = one_line


def command_line(lesson_doc, out):
    """An argument parser with the first paragraph of a lesson's docstring, --data and --out."""
    parser = OneLineParser(description=lesson_doc.split("\n\n")[0],
                           formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR",
                        help=f"a prepared dataset; without it, toy faces are drawn once to {TOY_FACES}")
    parser.add_argument("--out", type=Path, default=Path(out), metavar="DIR", help="where the pictures go")
    return parser


def parse(parser):
    """The arguments; in a notebook, whose command line is the editor's own, the defaults."""
    if "ipykernel" in sys.modules:
        os.chdir(Path(__file__).parent.parent)
        return parser.parse_args([])
    return parser.parse_args()


def open_dataset(folder):
    """Open a prepared dataset. Where none is named, it is the toy faces, which are drawn first if need be."""
    if folder is None and not TOY_FACES.exists():
        print(f"No --data given: drawing toy faces, once, to {TOY_FACES}.\n"
              "For real faces, download CelebA, run python -m data_tools.celeba SOURCE --out data/celeba64,\n"
              "and give the lessons --data data/celeba64.", flush=True)
        # A process of its own, since it starts workers, and they would run this script again.
        drawing = subprocess.run([sys.executable, "-m", "data_tools.toy_faces", "--out", TOY_FACES], check=False)
        if drawing.returncode:
            sys.exit(drawing.returncode)
    return Dataset(folder or TOY_FACES)


def open_checkpoint(path, folder):
    """The model of a checkpoint, its info, and a dataset to look at: the one it was trained on, or the one in `folder`.

    Ends the program with status 2 where there is no checkpoint yet.
    """
    if not path.is_file():
        command = "python lessons/03_train.py" + ("" if path == CHECKPOINT else f" --out {path.parent}")
        print(f"error: there is no checkpoint {path}; make it with: {command}", file=sys.stderr)
        sys.exit(2)
    model, _, info = load_model(path)
    dataset = Dataset(folder or info["data"]["folder"])
    if dataset.image_size != model.image_size:
        raise InputError(f"{dataset.folder} holds images of size {dataset.image_size}, but {path} was trained on size "
                         f"{model.image_size}; prepare the dataset with --size {model.image_size}")
    if dataset.fingerprint != info["data"]["fingerprint"]:
        if folder is None:
            raise CheckpointError(f"{dataset.folder} has changed since {path} was trained on it; train again, or name "
                                  "a dataset with --data")
        print(f"Note: the model was trained on {info['data']['folder']}, not on {dataset.folder}.")
    print(f"{model}, trained for {len(info['history'])} epochs on {info['data']['source']}\n{dataset}")
    return model, info, dataset


def encode_all(model, images, label="encoding"):
    """The posterior of many uint8 images, with a progress bar: mu, log_var (N, Z)."""
    parts = []
    with tqdm(total=len(images), desc=label, unit="img", leave=False) as bar:
        for start in range(0, len(images), 256):
            x = to_float(images[start : start + 256])
            parts.append(model.encode(x))
            bar.update(len(x))
    mu, log_var = zip(*parts, strict=True)
    return np.concatenate(mu), np.concatenate(log_var)


def spread(count, total):
    """The indices of `count` items spread evenly over `total`, for pictures that show more than the first few."""
    return np.linspace(0, total - 1, min(count, total)).astype(int)
