"""What the lessons share: the command line, the dataset (drawn where there is none), the trained model, error lines."""

import argparse
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

try:
    import numpy as np
    from tqdm import tqdm

    from vae_np.disk.dataset import Dataset
    from vae_np.errors import CheckpointError, DatasetError, InputError
    from vae_np.fast import processes, voices
    from vae_np.run import checkpoint
    from vae_np.run.command import OneLineParser, number_in, report
    from vae_np.train import to_float
except ModuleNotFoundError as missing:
    sys.exit(f"error: {missing.name} is not installed here; activate the environment that the README makes "
             "(. .venv/bin/activate), or install the project into this one (pip install -e .)")
except ImportError as missing:  # of the backend
    sys.exit(f"error: {missing}")

LESSONS = Path(__file__).resolve().parents[1]
SEED = number_in(range(2**32))
TOY_FACES = Path("data/toy64")
CHECKPOINT = Path("runs/03_train/checkpoint.npz")
PRETRAINED = LESSONS / "weights" / "faces.npz"


def positive(text):
    """The argparse type of finite numbers above 0."""
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def one_line(kind, error, trace):
    """Print an error as one line."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    report(error)


sys.excepthook = one_line


class Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Help that names the default of each option that has one."""

    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)


def command_line(lesson_doc, out):
    """An argument parser with the first line of a lesson's docstring, and --out."""
    first, *_ = (lesson_doc or "").split("\n\n")  # there is none under python -OO
    parser = OneLineParser(f"python {sys.argv[0]}", description=first, formatter_class=Defaults)
    parser.add_argument("--out", type=Path, default=Path(out), metavar="DIR", help="folder for all that is written")
    return parser


def add_data(parser):
    """Add --data, for lessons that draw toy faces where there is no dataset."""
    parser.add_argument("--data", type=Path, metavar="DIR",
                        help=f"a prepared dataset; without it, toy faces are drawn once to {TOY_FACES}")


def add_model(parser, default=CHECKPOINT):
    """Add --checkpoint and --pretrained, which say which trained model."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--checkpoint", type=Path, default=default, metavar="FILE",
                       help=f"the trained model (default: {CHECKPOINT})")
    which.add_argument("--pretrained", dest="checkpoint", action="store_const", const=PRETRAINED, default=default,
                       help=f"the model that comes with the lessons, {PRETRAINED.relative_to(LESSONS.parent)}")


def add_checkpoint(parser):
    """Add --checkpoint, --pretrained and --data, for lessons that look at a trained model."""
    add_model(parser)
    parser.add_argument("--data", type=Path, metavar="DIR", help="a prepared dataset; without it, the one that the "
                        "model was trained on, and for --pretrained the toy faces, which are drawn once")


def parse(parser):
    """The arguments. In a cell of a notebook, where sys.argv is the kernel's own and no lesson's, the defaults."""
    voices.speak_as_one()
    if "IPython" in sys.modules and Path(sys.argv[0]).resolve().parent != LESSONS:  # with %run it is the lesson's
        os.chdir(LESSONS.parent)
        return parser.parse_args([])
    args = parser.parse_args()
    if vars(args).get("prior") and is_pretrained(vars(args).get("checkpoint", CHECKPOINT)):
        parser.error(f"--prior would change {PRETRAINED.name}, which comes with the lessons; copy it, and name the "
                     f"copy with --checkpoint, and --data {TOY_FACES}")
    return args


def is_pretrained(path):
    """Whether a file is the model that comes with the lessons."""
    return path.resolve() == PRETRAINED


def open_dataset(folder):
    """Open a prepared dataset. Where none is named, it is the toy faces, which are drawn first if need be."""
    if voices.rank():
        processes.check()  # the first one draws
    if folder is None and not TOY_FACES.exists():
        print(f"No --data given: drawing toy faces, once, to {TOY_FACES}.\n"
              "For real faces, download CelebA, run python -m data_tools.celeba SOURCE --out data/celeba64, or have\n"
              "python -m data_tools.pictures FOLDER --out data/mine take your own; then give the lessons --data.",
              flush=True)
        draw_toy_faces()
    if not voices.rank():
        processes.check()
    return Dataset(folder or TOY_FACES)


def draw_toy_faces():
    """Draw the default dataset in a process of its own: its workers would otherwise run the lesson again."""
    command = [sys.executable, "-m", "data_tools.toy_faces", "--out", TOY_FACES]
    drawing = subprocess.Popen(command, env={**os.environ, "VAE_BACKEND": "numpy"})  # it has no use for a GPU
    try:
        status = drawing.wait()
    except KeyboardInterrupt:
        drawing.wait()  # Ctrl-C has reached it, too, and it removes what it has drawn so far
        raise
    # Another lesson may have been quicker: then the faces are there all the same.
    if status and not (TOY_FACES / "dataset.json").is_file():
        sys.exit(status)


def load_trained(path):
    """The model of a checkpoint and its info. Ends the program with status 2 where there is no checkpoint yet."""
    if path.is_dir():
        wrong_usage(f"{path} is a folder; name the file in it, such as {path / CHECKPOINT.name}")
    if not path.is_file():
        command = "python lessons/03_train.py" + ("" if path == CHECKPOINT else f" --out {path.parent}")
        hint = f"make it with: {command}" if path.name == CHECKPOINT.name else f"lesson 03 makes {CHECKPOINT}"
        hint += ", or take the trained one that is here: --pretrained" if path == CHECKPOINT else ""
        place = "" if Path("lessons").is_dir() else " (lessons run from the top of the repository)"
        wrong_usage(f"there is no checkpoint {path}; {hint}{place}")
    model, _, info = checkpoint.load_model(path)
    return model, info


def open_checkpoint(path, folder):
    """load_trained, and a dataset to look at: the one that the model was trained on, or the one in `folder`."""
    model, info = load_trained(path)
    trained_on = Path(info["data"]["folder"])
    note = f"Note: the model was trained on {trained_on}, not on {folder}."
    if is_pretrained(path):
        folder = open_dataset(folder).folder
        note = ("Note: this model has learned from other faces, and more (lessons/weights/faces.md). What is called\n"
                "training faces below is new to it, too, and figures in the text of this lesson are of the default "
                "run.")
    if folder is None and not trained_on.exists():
        raise CheckpointError(f"{path} was trained on {trained_on}, which is not there; name a dataset with --data")
    dataset = Dataset(folder or trained_on)
    if dataset.image_size != model.image_size:
        raise InputError(f"{dataset.folder} holds images of size {dataset.image_size}, but {path} was trained on size "
                         f"{model.image_size}; prepare the dataset with --size {model.image_size}")
    if dataset.fingerprint != info["data"]["fingerprint"]:
        if folder is None:
            raise CheckpointError(f"{dataset.folder} has changed since {path} was trained on it; train again, or name "
                                  "a dataset with --data")
        print(note)
    print(f"{model}, trained for {len(info['history'])} epochs on {info['data']['source']}\n{dataset}")
    return model, info, dataset


def wrong_usage(message):
    """End the program with one line and status 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def require(images, count, name):
    """Raise DatasetError unless there are at least `count` images."""
    if len(images) < count:
        raise DatasetError(f"this lesson needs {count} {name} images or more, and there are {len(images)}")


def resumed(parser, path):
    """The arguments of the run whose checkpoint is at `path`; what the command line says anew must not differ.

    Only --epochs may: the cosine of the learning rate then stretches to the new end. Ends the program with status 2
    where there is no checkpoint. Raises CheckpointError, naming what differs.
    """
    if not path.is_file():
        wrong_usage(f"--resume, but there is no checkpoint {path}; leave --resume out")
    _, _, info = checkpoint.load_training(path)
    saved = {"mirror": False, **info["training"], "channels": info["model"]["channels"],
             "latent_dim": info["model"]["latent_dim"]}
    parser.set_defaults(data=info["data"]["folder"], **saved)
    args = parse(parser)
    changed = [f"{name} {value}, not {getattr(args, name)}" for name, value in saved.items()
               if name != "epochs" and getattr(args, name) != value]
    if changed:
        raise CheckpointError(f"{path} was trained with other settings than asked for: {', '.join(changed)}")
    return args


def set_aside(path):
    """Rename the file of an earlier run to the first free of name-1, name-2, ..., so that a new run loses nothing."""
    if path.exists() and not voices.rank():
        numbers = itertools.count(1)
        free = next(name for n in numbers if not (name := path.with_stem(f"{path.stem}-{n}")).exists())
        path.rename(free)
        print(f"the {path.name} of an earlier run is now {free}")


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
