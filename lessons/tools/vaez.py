"""The two commands of lesson 9: one image to a .vaez file, and one .vaez file to an image."""

import argparse
from pathlib import Path

from tools.common import add_model, is_pretrained, load_trained, positive

from data_tools.files import PlainFile
from data_tools.photograph import crop_choice, read_photograph, share_kept
from vae_np.study import pictures
from vae_np.study.codec import HEADER, Codec
from vae_np.study.metrics import psnr
from vae_np.train import to_float


def add_commands(parser):
    """Add --step, `encode IN OUT` and `decode IN OUT` to a parser with --checkpoint; args.command tells which."""
    parser.add_argument("--step", type=positive, default=9.0, help="width of the steps that codes are rounded to, in "
                        "posterior deviations")
    commands = parser.add_subparsers(dest="command", metavar="encode | decode", help="one file, instead of the lesson")
    for name, source, target in (("encode", "IN.png", "OUT.vaez"), ("decode", "IN.vaez", "OUT.png")):
        command = commands.add_parser(name, help=f"{source} to {target}")
        command.add_argument("source", metavar=source, type=Path,
                             help="any picture that Pillow reads" if name == "encode" else "what encode wrote")
        command.add_argument("target", metavar=target, type=Path, help="replaced, if it is there")
        add_model(command, argparse.SUPPRESS)
        command.add_argument("--codec", metavar="FILE", type=Path, default=argparse.SUPPRESS,
                             help="(default: codec.npz beside the checkpoint; with --pretrained, in --out)")
    commands.choices["encode"].add_argument("--crop", type=crop_choice, metavar="none|square|N", help="the part "
                                            "of the picture to keep (default: as the dataset's, whatever its size)")


def codec_of(args):
    """Where the codec is: as --codec says, or beside the checkpoint, or for the model of the lessons in --out."""
    folder = args.out if is_pretrained(args.checkpoint) else args.checkpoint.parent
    return getattr(args, "codec", folder / "codec.npz")


def run_command(args, codec_path, parser):
    """Encode or decode one file. Ends with status 2 for a name of the wrong kind, or without a model or codec."""
    ending = ".vaez" if args.command == "encode" else ".png"
    if args.target.suffix.lower() != ending:  # or else encode with swapped names would replace a picture by its code
        parser.error(f"{args.command} writes {ending} files, and {args.target} is not named so")
    if args.step != parser.get_default("step"):
        parser.error(f"{args.command} takes the step that {codec_path} was made for; leave --step out")
    model, info = load_trained(args.checkpoint)
    if not codec_path.is_file():
        parser.error(f"there is no {codec_path}; copy it from where the checkpoint was trained, or make it, and new "
                     f".vaez files, with: python lessons/09_compress.py --checkpoint {args.checkpoint}")
    codec = Codec.load(codec_path, model)
    if args.command == "decode":
        pictures.save(args.target, model.decode(codec.dequantise(codec.read(args.source)[None]))[0])
        print(f"{args.target}: {model.image_size}x{model.image_size} pixels")
        return
    crop = args.crop or info["data"]["crop"]
    pixels, frame, _ = read_photograph(PlainFile(str(args.source)), crop, model.image_size)
    face = to_float(pixels[None])
    values = codec.quantise(model.encode(face)[0])
    count = codec.write(args.target, values[0])
    quality = psnr(face, model.decode(codec.dequantise(values)))[0]
    kept = f"crop {crop}, {share_kept(*frame, crop):.0%} of the picture"
    if crop == "none" and frame[0] != frame[1]:
        kept = "the whole picture, squeezed to a square, where --crop square would keep its middle"
    print(f"{args.target}: {count} bytes, {HEADER} of them the header; {kept}, {quality:.2f} dB")
