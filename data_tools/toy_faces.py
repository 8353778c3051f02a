"""The embedded default dataset: synthetic faces, each drawn from some 70 known factors.

    python -m data_tools.toy_faces --out data/toy64

Needs no download. Attributes carry CelebA's names and follow from the factors, which are stored beside the images as
factors.npy, float32 (N, F). The same seed and index give the same face, whatever the count, the size or the number of
workers. --celeba-zip writes the faces as photos of 178x218 pixels in the layout of CelebA's archive, to try
`python -m data_tools.celeba` without the real one.
"""

import argparse
import functools
import io
import os
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from data_tools.face_painter import SQUARE, draw_face, draw_window
from data_tools.prepared import DatasetWriter, map_rows
from vae_np.disk.dataset import SPLITS
from vae_np.disk.files import replacing
from vae_np.errors import DatasetError
from vae_np.run.command import OneLineParser, number_in, run

# The 40 attributes in the order of CelebA's own list; `attributes_of` tells which of them the toy faces have.
CELEBA_ATTRIBUTES = (
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips", "Big_Nose",
    "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses",
    "Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache", "Narrow_Eyes",
    "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks", "Sideburns", "Smiling",
    "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick", "Wearing_Necklace",
    "Wearing_Necktie", "Young",
)

COUNT, SHARE = 7_200, 12  # how many faces by default; of SHARE faces, one is for validation, and one for testing
SIZES = range(8, 513)
PHOTO_WIDTH, PHOTO_HEIGHT, PHOTO_CROP = 178, 218, 148  # CelebA's frame, and the central square that models see of it

# --- factors ---------------------------------------------------------------------------------------------------------


def normal(rng, mean, spread, low, high):
    """A normal number, limited to low..high."""
    return float(min(max(rng.normal(mean, spread), low), high))


def chance(rng, probability):
    """1.0 with a probability, else 0.0: multiplied with the amount of a thing, it says whether the thing is there."""
    return float(rng.random() < probability)


def sample_factors(rng):
    """Draw the factors of a face from a random generator: {name: number}, always with the same names in the same order.

    Angles are in degrees. Lengths are in the painter's units (the picture is 1.72 wide). Colours are hue (0..1 around
    the circle), saturation and lightness, or a place 0..1 along a palette of the painter. The rest are amounts, 0 for
    none and 1 for much, or multiples of an average face's value, around 1.
    """
    f = sample_scene(rng) | sample_head(rng)
    f |= sample_hair(rng, f["male"] > 0.5, f["age"], f["skin_tone"])
    f |= sample_features(rng, f["male"], f["skin_tone"])
    f |= sample_worn(rng, f["male"] > 0.5, f["age"], shows_ears=f["hair_opening"] > 0.87)
    if f["hat"]:
        f |= {"hair_top": min(f["hair_top"], 0.05), "hair_side": min(f["hair_side"], 0.11), "bun": 0.0}
    # What is stored, as float32, is then exactly what is drawn.
    return {name: float(np.float32(value)) for name, value in f.items()}


def sample_scene(rng):
    """Pose (turn to the right, nod downwards, tilt clockwise, in degrees), light, background and clothes."""
    background_hue = rng.uniform(0.0, 1.0)
    # Neighbours of the background's hue, and hues opposite to it, go well with it.
    clothes_hue = background_hue + rng.choice([0.06, -0.06, 0.5, 0.42]) + normal(rng, 0.0, 0.03, -0.1, 0.1)
    return {
        "turn": normal(rng, 0.0, 10.0, -22.0, 22.0),
        "nod": normal(rng, 0.0, 3.0, -7.0, 7.0),
        "tilt": normal(rng, 0.0, 3.5, -9.0, 9.0),
        "light_x": rng.uniform(-0.75, 0.75),
        "light_y": rng.uniform(-0.75, -0.25),
        "background_hue": background_hue,
        "background_saturation": rng.uniform(0.08, 0.34),
        "background_light": rng.uniform(0.34, 0.78),
        "clothes_hue": clothes_hue % 1.0,
        "clothes_saturation": rng.uniform(0.10, 0.50),
        "clothes_light": rng.uniform(0.20, 0.80),
        "neckline": rng.uniform(0.0, 0.45),
    }


def sample_head(rng):
    """Who it is: sex (0 female .. 1 male, two groups), age, skin, and the shape of the head."""
    male = min(max(0.12 + 0.76 * chance(rng, 0.45) + normal(rng, 0.0, 0.09, -0.2, 0.2), 0.0), 1.0)
    return {
        "male": male,
        "age": rng.beta(1.4, 2.4),
        "skin_tone": rng.beta(1.1, 1.5),
        "undertone": rng.uniform(-1.0, 1.0),
        "head_width": normal(rng, 0.462 + 0.022 * male, 0.018, 0.42, 0.53),
        "face_length": normal(rng, 0.98 + 0.05 * male, 0.03, 0.90, 1.12),
        "jaw": normal(rng, 0.05 + 0.75 * male, 0.18, -0.2, 1.1),
        "cheeks": rng.beta(1.5, 3.0),
    }


# For each hair style: its weight among women and among men; hair_top and hair_side (thickness of the hair), hair_length
# (how far it reaches below the eyes), and hair_opening (half of the width that it leaves of the face, in head widths).
HAIR_STYLES = {
    "bald": (0.005, 0.12, 0.00, 0.000, 0.00, 0.95),
    "buzz": (0.02, 0.16, 0.02, 0.012, 0.02, 0.93),
    "short": (0.09, 0.34, 0.09, 0.030, 0.06, 0.92),
    "quiff": (0.03, 0.20, 0.17, 0.030, 0.04, 0.92),
    "bob": (0.22, 0.02, 0.12, 0.130, 0.55, 0.80),
    "long": (0.40, 0.06, 0.10, 0.110, 1.20, 0.80),
    "bun": (0.12, 0.02, 0.05, 0.010, 0.02, 0.91),
    "curly": (0.115, 0.08, 0.22, 0.220, 0.36, 0.84),
}


def sample_hair(rng, is_man, age, skin_tone):
    """Hair: a style is chosen first, and is visible only in what it makes of the continuous factors."""
    weights = np.array([values[is_man] for values in HAIR_STYLES.values()])
    if is_man:
        weights[0] *= 0.4 + 2.0 * age
    style = str(rng.choice(list(HAIR_STYLES), p=weights / weights.sum()))
    _, _, top, side, length, opening = HAIR_STYLES[style]
    close = style in ("bald", "buzz", "short", "quiff", "bun")
    thickness = normal(rng, 1.0, 0.15, 0.7, 1.4)
    has_bangs = chance(rng, 0.06 if is_man else 0.32) * (style in ("short", "bob", "long", "bun"))
    return {
        "hair_density": {"bald": 0.0, "buzz": 0.78}.get(style, 1.0),
        "hair_short": float(close),
        "hair_top": top * thickness,
        "hair_side": side * thickness,
        "hair_lean": normal(rng, 0.0, 0.10, -0.25, 0.25) * (close and style != "bun"),
        "hair_length": length * normal(rng, 1.0, 0.12, 0.75, 1.3),
        "hair_flare": rng.uniform(-0.7, -0.3) if style == "curly" else rng.uniform(-0.05, 0.22),
        "hair_opening": opening + normal(rng, 0.0, 0.015, -0.03, 0.03),
        "hairline": normal(rng, 0.43, 0.03, 0.36, 0.50),
        "recede": 0.14 * is_man * max(age - 0.3, 0.0) * rng.uniform(0.0, 2.0),
        "part": rng.uniform(-0.26, 0.26),
        "sweep": rng.uniform(-0.05, 0.10) if close else rng.uniform(0.10, 0.30),
        "wave": rng.uniform(0.0, 1.0) * chance(rng, 0.6) * (style in ("bob", "long")),
        "curl": rng.uniform(0.6, 1.0) * (style == "curly"),
        "bun": rng.uniform(0.13, 0.19) * (style == "bun"),
        "bangs": rng.uniform(0.45, 1.0) * has_bangs,
        "bangs_slant": rng.uniform(-1.0, 1.0),
        "hair_dark": min(rng.beta(1.1, 1.0) + max(skin_tone - 0.3, 0.0), 1.0),
        "hair_red": rng.uniform(0.5, 1.0) * chance(rng, 0.09),
        "hair_gray": 1.0 / (1.0 + np.exp((0.68 - age + normal(rng, 0.0, 0.08, -0.2, 0.2)) / 0.05)),
    }


def sample_features(rng, male, skin_tone):
    """Eyes, brows, nose, mouth and make-up."""
    makeup = rng.uniform(0.2, 1.0) * chance(rng, 0.02 if male > 0.5 else 0.62)
    smile = normal(rng, 0.55, 0.38, -0.40, 1.0)
    return {
        "eye_size": normal(rng, 1.14 - 0.10 * male, 0.06, 0.85, 1.25),
        "eye_open": normal(rng, 0.92, 0.20, 0.42, 1.25),
        "eye_tilt": normal(rng, 0.03, 0.06, -0.10, 0.22),
        "eye_spacing": normal(rng, 1.0, 0.04, 0.90, 1.10),
        "gaze_x": normal(rng, 0.0, 0.45, -1.0, 1.0),
        "gaze_y": normal(rng, 0.0, 0.35, -1.0, 1.0),
        "iris": rng.beta(0.8, 1.0) * max(1.0 - 1.3 * skin_tone, 0.0),
        "brow_thickness": normal(rng, 0.62 + 0.36 * male, 0.18, 0.35, 1.45),
        "brow_arch": normal(rng, 1.0 - 0.4 * male, 0.3, 0.1, 1.7),
        "brow_raise": normal(rng, 0.1, 0.4, -0.7, 1.0),
        "brow_slant": normal(rng, 0.0, 0.35, -0.8, 0.8),
        "nose_width": normal(rng, 0.95 + 0.14 * male, 0.11, 0.75, 1.35),
        "nose_length": normal(rng, 1.0, 0.06, 0.85, 1.15),
        "smile": smile,
        "mouth_open": max(0.0, rng.uniform(-0.5, 0.9)) * (1.0 if smile > 0.1 else 0.6),
        "mouth_width": normal(rng, 1.0, 0.08, 0.82, 1.2),
        "lip_fullness": normal(rng, 1.05 - 0.25 * male, 0.16, 0.55, 1.45),
        "makeup": makeup,
        "lipstick": makeup * chance(rng, 0.85),
        "lip_hue": rng.uniform(-1.0, 1.0),
        "blush": rng.beta(1.2, 3.5) + 0.25 * makeup,
    }


def sample_worn(rng, is_man, age, shows_ears):
    """Beard, glasses, hat (0 none, 1 knitted cap, 2 with a brim) and earrings."""
    beard = is_man * chance(rng, 0.48) * rng.choice([0.35, 0.7, 1.0]) * rng.uniform(0.8, 1.0)
    goatee = chance(rng, 0.35)
    return {
        "beard": beard,
        "beard_cover": rng.uniform(0.0, 0.15) if goatee else rng.uniform(0.75, 1.0),
        "beard_length": rng.uniform(0.1, 1.0) * (beard > 0.6),
        "moustache": beard * rng.uniform(0.7, 1.0) if beard else is_man * chance(rng, 0.07),
        "glasses": rng.uniform(0.88, 1.15) * chance(rng, 0.16 + 0.18 * age),
        "glasses_round": rng.uniform(0.0, 1.0),
        "glasses_gold": rng.choice([0.0, 0.0, 0.35, 1.0]),
        "glasses_tint": rng.uniform(0.8, 1.0) * chance(rng, 0.28),
        "hat": float(rng.integers(1, 3)) * chance(rng, 0.09),
        "hat_hue": rng.uniform(0.0, 1.0),
        "earrings": rng.uniform(0.3, 1.0) * shows_ears * chance(rng, 0.03 if is_man else 0.6),
    }


def face_factors(seed, index):
    """The factors of one face of the dataset that a seed stands for."""
    return sample_factors(np.random.default_rng([seed, index]))


FACTOR_NAMES = tuple(face_factors(0, 0))


# --- attributes ------------------------------------------------------------------------------------------------------


def attributes_of(f):
    """The attributes that follow from the factors f: {CelebA's name: bool}, in the order of CelebA's list."""
    hair = f["hair_density"] > 0.0
    coloured = hair and f["hair_gray"] < 0.5 and f["hair_red"] < 0.5
    falls = hair and not f["hair_short"]
    beard = f["beard"] >= 0.5
    return {
        "5_o_Clock_Shadow": 0.0 < f["beard"] < 0.5,
        "Arched_Eyebrows": f["brow_arch"] > 1.1,
        "Bags_Under_Eyes": f["age"] > 0.6,
        "Bald": not hair and not f["hat"],
        "Bangs": f["bangs"] > 0.0,
        "Big_Lips": f["lip_fullness"] > 1.1,
        "Big_Nose": f["nose_width"] > 1.12,
        "Black_Hair": coloured and f["hair_dark"] > 0.85,
        "Blond_Hair": coloured and f["hair_dark"] < 0.33,
        "Brown_Hair": coloured and 0.33 <= f["hair_dark"] <= 0.85,
        "Bushy_Eyebrows": f["brow_thickness"] > 1.0,
        "Chubby": f["cheeks"] > 0.6,
        "Eyeglasses": f["glasses"] > 0.0,
        "Goatee": beard and f["beard_cover"] < 0.5,
        "Gray_Hair": hair and f["hair_gray"] >= 0.5,
        "Heavy_Makeup": f["makeup"] > 0.5,
        "Male": f["male"] > 0.5,
        "Mouth_Slightly_Open": f["mouth_open"] > 0.2,
        "Mustache": f["moustache"] > 0.5,
        "Narrow_Eyes": f["eye_open"] < 0.75,
        "No_Beard": f["beard"] == 0.0 and f["moustache"] == 0.0,
        "Pale_Skin": f["skin_tone"] < 0.12,
        "Receding_Hairline": hair and f["recede"] > 0.04,
        "Rosy_Cheeks": f["blush"] > 0.5,
        "Sideburns": beard and f["beard_cover"] > 0.5,
        "Smiling": f["smile"] > 0.5,
        "Straight_Hair": falls and f["curl"] == 0.0 and f["wave"] < 0.35,
        "Wavy_Hair": falls and (f["curl"] > 0.0 or f["wave"] >= 0.35),
        "Wearing_Earrings": f["earrings"] > 0.0,
        "Wearing_Hat": f["hat"] > 0.0,
        "Wearing_Lipstick": f["lipstick"] > 0.3,
        "Young": f["age"] < 0.45,
    }


ATTRIBUTE_NAMES = tuple(attributes_of(face_factors(0, 0)))


# --- the dataset -----------------------------------------------------------------------------------------------------


def split_counts(count):
    """How many of `count` images go to train, validation and test, in this order."""
    share = max(1, round(count / SHARE))
    return dict(zip(SPLITS, (count - 2 * share, share, share), strict=True))


def file_name(index):
    """The name of a face, as CelebA numbers its photos, from 1."""
    return f"{index + 1:06}.jpg"


def draw_rows(start, stop, seed, size, images_path):
    """Draw the faces start..stop into the array on disk at images_path; run by worker processes.

    Returns their factors, float32 (n, F), and attributes, bool (n, A).
    """
    images = np.load(images_path, mmap_mode="r+")
    faces = [face_factors(seed, index) for index in range(start, stop)]
    for row, factors in zip(images[start:stop], faces, strict=True):
        row[...] = draw_face(factors, size)
    attributes = [list(attributes_of(factors).values()) for factors in faces]
    return np.array([list(f.values()) for f in faces], dtype=np.float32), np.array(attributes, dtype=np.bool_)


def write_dataset(out, count, size, seed, workers, overwrite=False):
    """Write a prepared dataset of toy faces into the folder `out`. Raises DatasetError if that exists."""
    with DatasetWriter(out, count, size, overwrite) as writer:
        task = functools.partial(draw_rows, seed=seed, size=size, images_path=writer.images_path)
        chunks = [rows for _, _, rows in map_rows(task, count, workers, "drawing")]
        factors, attributes = (np.concatenate(arrays) for arrays in zip(*chunks, strict=True))
        writer.finish(source="toy faces", crop="none", attributes=attributes, attribute_names=ATTRIBUTE_NAMES,
                      splits=split_counts(count), file_names=[file_name(i) for i in range(count)],
                      arrays={"factors": factors}, info={"factor_names": list(FACTOR_NAMES), "seed": seed})


# --- the same faces as CelebA's archive ------------------------------------------------------------------------------


def photo_window():
    """What a photo of 178x218 pixels shows, such that its central 148x148 pixels show SQUARE."""
    left, top, right, bottom = SQUARE
    pixel = (right - left) / PHOTO_CROP
    beside, above = (PHOTO_WIDTH - PHOTO_CROP) / 2 * pixel, (PHOTO_HEIGHT - PHOTO_CROP) / 2 * pixel
    return left - beside, top - above, right + beside, bottom + above


def draw_photos(start, stop, seed):
    """The faces start..stop as photos: a list of (JPEG file as bytes, attributes); run by worker processes."""
    photos = []
    for index in range(start, stop):
        factors = face_factors(seed, index)
        jpeg = io.BytesIO()
        Image.fromarray(draw_window(factors, photo_window(), PHOTO_HEIGHT, PHOTO_WIDTH)).save(jpeg, "JPEG", quality=92)
        photos.append((jpeg.getvalue(), attributes_of(factors)))
    return photos


def write_celeba_zip(path, count, seed, workers, overwrite=False):
    """Write toy faces as an archive in the layout of CelebA on Kaggle. Raises DatasetError if the file exists.

    Attributes that toy faces do not have are -1, as absent ones are.
    """
    check_zip(path, overwrite)
    attributes = ["image_id," + ",".join(CELEBA_ATTRIBUTES)]
    partition = ["image_id,partition"]
    splits = np.repeat(range(len(SPLITS)), list(split_counts(count).values()))
    with replacing(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        for start, _, photos in map_rows(functools.partial(draw_photos, seed=seed), count, workers, "photos"):
            for index, (jpeg, has) in enumerate(photos, start):
                add(archive, f"img_align_celeba/img_align_celeba/{file_name(index)}", jpeg)
                values = ("1" if has.get(name) else "-1" for name in CELEBA_ATTRIBUTES)
                attributes.append(f"{file_name(index)},{','.join(values)}")
                partition.append(f"{file_name(index)},{splits[index]}")
        add(archive, "list_attr_celeba.csv", "\n".join(attributes) + "\n", zipfile.ZIP_DEFLATED)
        add(archive, "list_eval_partition.csv", "\n".join(partition) + "\n", zipfile.ZIP_DEFLATED)


def add(archive, name, data, compression=zipfile.ZIP_STORED):
    """Add a member to a zip archive, without the time of day: the same faces are the same bytes."""
    member = zipfile.ZipInfo(name)
    member.external_attr = 0o644 << 16
    archive.writestr(member, data, compression)


def check_zip(path, overwrite):
    """Raise DatasetError if the archive cannot be written for a reason that is known before anything is drawn."""
    if Path(path).exists() and not (overwrite and Path(path).is_file()):
        raise DatasetError(f"{path} exists; choose another --celeba-zip or give --overwrite")


# --- the command -----------------------------------------------------------------------------------------------------


def parse_arguments(arguments):
    """The options of the command. Wrong usage ends the program with status 2."""
    parser = OneLineParser(prog="python -m data_tools.toy_faces", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", metavar="DIR", help="the folder to make, a prepared dataset")
    parser.add_argument("--celeba-zip", metavar="FILE", help="the archive to make, of photos in CelebA's layout")
    parser.add_argument("--count", metavar="N", type=number_in(range(10, 1_000_000)), default=COUNT,
                        help=f"number of faces; of {SHARE}, one is for validation, one for testing (default {COUNT})")
    parser.add_argument("--size", type=number_in(SIZES), default=64,
                        help="width and height of the images in DIR, in pixels (default 64)")
    parser.add_argument("--seed", metavar="N", type=number_in(range(2**32)), default=0,
                        help="which faces: another seed gives others (default 0)")
    parser.add_argument("--workers", metavar="N", type=number_in(range(1, 1025)), default=os.cpu_count() or 1,
                        help="processes that draw (default: one per processor)")
    parser.add_argument("--overwrite", action="store_true", help="replace a prepared dataset in DIR, and FILE")
    options = parser.parse_args(arguments)
    if not (options.out or options.celeba_zip):
        parser.error("give --out, --celeba-zip, or both")
    return options


def make(options):
    """Write what the options ask for, and print what was written. Raises DatasetError."""
    started = time.perf_counter()
    common = {"count": options.count, "seed": options.seed, "workers": options.workers, "overwrite": options.overwrite}
    if options.celeba_zip:
        check_zip(options.celeba_zip, options.overwrite)
    if options.out:
        write_dataset(options.out, size=options.size, **common)
    if options.celeba_zip:
        write_celeba_zip(options.celeba_zip, **common)
    for split, count in split_counts(options.count).items():
        print(f"{split:10} {count:9,} images")
    seconds = time.perf_counter() - started
    made = " and ".join(filter(None, (options.out, options.celeba_zip)))
    print(f"{'all':10} {options.count:9,} images in {seconds:.1f} s, {options.count / seconds:,.0f} per second: {made}")


def main(arguments=None):
    """Run the command; return its exit status."""
    return run(make, options=parse_arguments(arguments))


if __name__ == "__main__":
    from data_tools import toy_faces  # workers look for functions in modules by name, and not in the main program

    sys.exit(toy_faces.main())
