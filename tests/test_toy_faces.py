import io
import os
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from data_tools import celeba_source, toy_faces
from data_tools.face_painter import SQUARE, Canvas, Pose, draw_face, draw_window, ellipse, smooth_max
from data_tools.toy_faces import (
    ATTRIBUTE_NAMES,
    CELEBA_ATTRIBUTES,
    FACTOR_NAMES,
    attributes_of,
    draw_photos,
    draw_rows,
    face_factors,
    main,
    photo_window,
    split_counts,
)
from vae_np.disk.dataset import Dataset

SEED = 5
PLAIN = {
    "turn": 0.0, "nod": 0.0, "tilt": 0.0, "light_x": 0.0, "light_y": -0.5, "male": 0.5, "age": 0.2, "skin_tone": 0.3,
    "hair_density": 1.0, "hair_short": 1.0, "hair_top": 0.09, "hair_side": 0.03, "hair_lean": 0.0, "hair_length": 0.06,
    "hair_flare": 0.0, "hair_opening": 0.92, "hairline": 0.43, "recede": 0.0, "part": 0.0, "sweep": 0.0, "wave": 0.0,
    "curl": 0.0, "bun": 0.0, "bangs": 0.0, "hair_dark": 0.6, "hair_red": 0.0, "hair_gray": 0.0, "eye_open": 0.95,
    "gaze_x": 0.0, "smile": 0.3, "mouth_open": 0.0, "makeup": 0.0, "lipstick": 0.0, "blush": 0.1, "beard": 0.0,
    "beard_length": 0.0, "moustache": 0.0, "glasses": 0.0, "glasses_gold": 0.0, "glasses_tint": 0.0,
    "hat": 0.0, "earrings": 0.0,
}


def plain_face(**factors):
    """The factors of an unremarkable face seen from the front, some of them replaced."""
    return face_factors(SEED, 0) | PLAIN | factors


def drawn(**factors):
    return draw_face(plain_face(**factors), 64).astype(np.float32)


def changed_rows_and_columns(first, second):
    """The first and last row and column, as fractions of the size, in which two pictures differ visibly."""
    where = np.argwhere(np.abs(first - second).max(axis=2) > 4)
    assert len(where), "the pictures are equal"
    return (*where.min(axis=0) / len(first), *where.max(axis=0) / len(first))


# --- primitives ------------------------------------------------------------------------------------------------------


def test_the_distance_to_an_ellipse():
    angle = np.linspace(0.0, 2.0 * np.pi, 50)
    x, y = 0.3 + 0.5 * np.cos(angle), 0.2 * np.sin(angle)
    np.testing.assert_allclose(ellipse(x, y, 0.3, 0.0, 0.5, 0.2), 0.0, atol=1e-5)
    assert ellipse(0.3, 0.0, 0.3, 0.0, 0.5, 0.2) < -0.1
    # A little outside, along the normal (cos / rx, sin / ry), it is the distance itself.
    normal = np.stack([np.cos(angle) / 0.5, np.sin(angle) / 0.2])
    normal *= 0.01 / np.hypot(*normal)
    np.testing.assert_allclose(ellipse(x + normal[0], y + normal[1], 0.3, 0.0, 0.5, 0.2), 0.01, rtol=0.1)


def test_smooth_max_is_the_maximum_away_from_the_corner():
    a, b = np.array([1.0, -2.0, 0.5]), np.array([-1.0, 3.0, 0.5])
    np.testing.assert_allclose(smooth_max(a, b, 0.01), [1.0, 3.0, 0.505], atol=1e-4)


@pytest.mark.parametrize("turn", [-20.0, 0.0, 20.0])
def test_points_of_the_face_are_placed_where_they_are_painted(turn):
    pose = Pose(SimpleNamespace(turn=turn, nod=5.0, tilt=-8.0, head_width=0.48))
    canvas = Canvas.blank(pose, SQUARE, 200, 200)
    for u, v in ((0.0, 0.0), (0.25, 0.4), (-0.2, -0.1)):
        x, y = pose.place(u, v)
        row, column = int((y - SQUARE[1]) / canvas.pixel), int((x - SQUARE[0]) / canvas.pixel)
        assert abs(canvas.u[row, column] - u) < 1.5 * canvas.pixel
        assert abs(canvas.v[row, column] - v) < 1.5 * canvas.pixel
        assert np.shares_memory(canvas.around(u, v, 0.1, 0.1).planes, canvas.planes[:, row, column])


def test_a_turned_head_moves_against_its_turn():
    pose = Pose(SimpleNamespace(turn=20.0, nod=0.0, tilt=0.0, head_width=0.48))
    assert pose.place_head(0.0, 0.0)[0] < -0.05
    assert pose.place(0.0, 0.0)[0] > 0.05


# --- drawing ---------------------------------------------------------------------------------------------------------


def test_a_face_depends_on_seed_and_index_only(tmp_path):
    path = tmp_path / "images.npy"
    pictures = []
    for chunks in ([(0, 6)], [(4, 6), (0, 1), (1, 4)]):
        np.save(path, np.zeros((6, 16, 16, 3), dtype=np.uint8))
        for start, stop in chunks:
            draw_rows(start, stop, SEED, 16, path)
        pictures.append(np.load(path))
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert len(np.unique(pictures[0].reshape(6, -1), axis=0)) == 6


def test_seeds_and_indices_give_different_faces():
    faces = {tuple(face_factors(seed, index).values()) for seed in (0, 1) for index in (0, 1)}
    assert len(faces) == 4


def test_drawing_leaves_the_factors_alone_and_repeats_itself():
    factors = face_factors(SEED, 3)
    before = dict(factors)
    np.testing.assert_array_equal(draw_face(factors, 32), draw_face(factors, 32))
    assert factors == before


def test_stored_factors_are_exactly_the_drawn_ones():
    factors = face_factors(SEED, 1)
    assert all(np.float32(value) == value for value in factors.values())


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("small", [32, 64])
def test_the_same_face_at_every_size(index, small):
    factors = face_factors(SEED, index)
    large = draw_face(factors, 256).astype(np.float32)
    block = 256 // small
    reduced = large.reshape(small, block, small, block, 3).mean(axis=(1, 3))
    difference = np.abs(reduced - draw_face(factors, small))
    other = np.abs(reduced - draw_face(face_factors(SEED, index + 10), small))
    assert difference.mean() < 1.0
    assert difference.mean() < 0.05 * other.mean()


def test_random_faces_are_drawn_without_numerical_trouble():
    with np.errstate(divide="raise", over="raise", invalid="raise"):
        faces = [draw_face(face_factors(SEED, index), 16) for index in range(100)]
    assert {(face.shape, face.dtype.name) for face in faces} == {((16, 16, 3), "uint8")}
    assert min(face.std() for face in faces) > 10


def test_a_head_turned_left_mirrors_one_turned_right():
    left, right = drawn(turn=-15.0), drawn(turn=15.0)
    # The gleam in the eyes and single locks of hair are not symmetric.
    assert np.abs(left[:, ::-1] - right).mean() < 0.15 * np.abs(left - right).mean()


def test_the_face_moves_with_the_turn():
    # The lips are the red of the lower half of the picture.
    columns = []
    for turn in (-15.0, 0.0, 15.0):
        picture = drawn(turn=turn, lipstick=1.0, skin_tone=0.1)[38:52]
        red = np.maximum(picture[..., 0] - 1.6 * picture[..., 1], 0.0)
        columns.append((red * np.arange(64)).sum() / red.sum())
    assert columns[0] < columns[1] - 2 < columns[2] - 4


@pytest.mark.parametrize(("factor", "on", "top", "bottom", "left", "right"), [
    ("glasses", 1.0, 0.33, 0.67, 0.15, 0.85),
    ("hat", 1.0, 0.0, 0.45, 0.1, 0.9),
    ("bangs", 1.0, 0.0, 0.55, 0.15, 0.85),
    ("smile", 1.0, 0.4, 0.85, 0.2, 0.8),
    ("mouth_open", 1.0, 0.6, 0.85, 0.3, 0.7),
    ("beard", 1.0, 0.45, 0.95, 0.15, 0.85),
    ("moustache", 1.0, 0.6, 0.8, 0.3, 0.7),
    ("gaze_x", 1.0, 0.4, 0.56, 0.25, 0.75),
])
def test_a_factor_changes_only_its_place(factor, on, top, bottom, left, right):
    first_row, first_column, last_row, last_column = changed_rows_and_columns(drawn(), drawn(**{factor: on}))
    assert top <= first_row < last_row <= bottom
    assert left <= first_column < last_column <= right


def patch(picture, row, column):
    """The mean colour of 4x4 pixels."""
    return picture[row : row + 4, column : column + 4].mean(axis=(0, 1))


def test_colours_follow_their_factors():
    forehead, crown, chin, eye = (20, 30), (8, 30), (51, 30), (28, 21)
    assert patch(drawn(skin_tone=0.0), *forehead).mean() > patch(drawn(skin_tone=1.0), *forehead).mean() + 80
    assert patch(drawn(hair_dark=0.1), *crown).mean() > patch(drawn(hair_dark=1.0), *crown).mean() + 60
    assert np.ptp(patch(drawn(hair_gray=1.0), *crown)) < 0.3 * np.ptp(patch(drawn(), *crown))
    assert patch(drawn(beard=1.0, beard_cover=1.0), *chin).mean() < patch(drawn(), *chin).mean() - 30
    assert patch(drawn(glasses=1.0, glasses_tint=1.0), *eye).max() < patch(drawn(glasses=1.0), *eye).min()
    bald, haired = drawn(hair_density=0.0), drawn()
    assert np.abs(patch(bald, *crown) - patch(bald, *forehead)).mean() < 30
    assert np.abs(patch(haired, *crown) - patch(haired, *forehead)).mean() > 60


def test_light_from_the_left_lights_the_left_cheek():
    left, right = (37, 20), (37, 40)
    for light_x in (-0.7, 0.7):
        picture = drawn(light_x=light_x)
        brighter = patch(picture, *left).mean() > patch(picture, *right).mean() + 10
        darker = patch(picture, *left).mean() < patch(picture, *right).mean() - 10
        assert brighter == (light_x < 0)
        assert darker == (light_x > 0)


# --- attributes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "off", "on"), [
    ("5_o_Clock_Shadow", {"beard": 0.9}, {"beard": 0.3}),
    ("Bald", {}, {"hair_density": 0.0}),
    ("Bald", {"hair_density": 0.0, "hat": 1.0}, {"hair_density": 0.0}),
    ("Bangs", {}, {"bangs": 0.6}),
    ("Black_Hair", {"hair_dark": 0.95, "hair_gray": 0.9}, {"hair_dark": 0.95}),
    ("Blond_Hair", {"hair_dark": 0.1, "hair_density": 0.0}, {"hair_dark": 0.1}),
    ("Eyeglasses", {}, {"glasses": 0.9}),
    ("Goatee", {"beard": 0.9, "beard_cover": 0.9}, {"beard": 0.9, "beard_cover": 0.1}),
    ("Gray_Hair", {}, {"hair_gray": 0.9}),
    ("Male", {"male": 0.2}, {"male": 0.8}),
    ("Mouth_Slightly_Open", {}, {"mouth_open": 0.5}),
    ("Narrow_Eyes", {}, {"eye_open": 0.5}),
    ("No_Beard", {"moustache": 0.8}, {}),
    ("Sideburns", {"beard": 0.9, "beard_cover": 0.1}, {"beard": 0.9, "beard_cover": 0.9}),
    ("Smiling", {"smile": -0.2}, {"smile": 0.9}),
    ("Straight_Hair", {"hair_short": 0.0, "wave": 0.8}, {"hair_short": 0.0}),
    ("Wavy_Hair", {"curl": 0.8}, {"hair_short": 0.0, "curl": 0.8}),
    ("Wearing_Hat", {}, {"hat": 2.0}),
    ("Wearing_Lipstick", {}, {"lipstick": 0.8}),
    ("Young", {"age": 0.8}, {"age": 0.1}),
])
def test_attributes_follow_from_factors(name, off, on):
    assert attributes_of(plain_face(**off))[name] is False
    assert attributes_of(plain_face(**on))[name] is True


def test_attributes_are_celebas_in_its_order():
    assert len(CELEBA_ATTRIBUTES) == 40
    assert list(ATTRIBUTE_NAMES) == [name for name in CELEBA_ATTRIBUTES if name in ATTRIBUTE_NAMES]
    assert len(ATTRIBUTE_NAMES) >= 12


def test_attributes_are_neither_rare_nor_universal():
    faces = [face_factors(SEED, index) for index in range(2000)]
    assert {tuple(factors) for factors in faces} == {FACTOR_NAMES}
    values = np.array([list(attributes_of(factors).values()) for factors in faces])
    share = dict(zip(ATTRIBUTE_NAMES, values.mean(axis=0), strict=True))
    assert {name: part for name, part in share.items() if not 0.01 < part < 0.99} == {}
    column = {name: values[:, i] for i, name in enumerate(ATTRIBUTE_NAMES)}
    assert column["Wearing_Lipstick"][column["Male"]].mean() < 0.1 * share["Wearing_Lipstick"]
    assert not np.any(column["Goatee"] & column["No_Beard"])
    colours = sum(column[name].astype(int) for name in ("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair"))
    assert colours.max() == 1


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small dataset and archive, made as a user makes them: (the folder that has both, what was printed)."""
    folder = tmp_path_factory.mktemp("toy")
    command = [sys.executable, "-m", "data_tools.toy_faces", "--out", folder / "toy", "--celeba-zip",
               folder / "celeba.zip", "--count", "12", "--size", "32", "--seed", str(SEED), "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_the_dataset(made):
    folder, printed = made
    assert sorted(os.listdir(folder)) == ["celeba.zip", "toy"]
    data = Dataset(folder / "toy")
    assert data.splits == {"train": slice(0, 4), "validation": slice(4, 6), "test": slice(6, 12)}
    assert "train              4 images\n" in printed
    faces = [face_factors(SEED, index) for index in range(12)]
    np.testing.assert_array_equal(data.images, [draw_face(factors, 32) for factors in faces])
    np.testing.assert_array_equal(data.attributes, [list(attributes_of(factors).values()) for factors in faces])
    assert data.attribute_names == list(ATTRIBUTE_NAMES)
    factors = np.load(folder / "toy" / "factors.npy")
    assert factors.dtype == np.float32
    np.testing.assert_array_equal(factors, [list(factors.values()) for factors in faces])
    assert data.info["factor_names"] == list(FACTOR_NAMES)
    assert data.info["seed"] == SEED


def test_the_archive_is_read_as_celebas(made):
    download = celeba_source.find_celeba(made[0] / "celeba.zip")
    names = [f"{number:06}.jpg" for number in range(1, 13)]
    assert sorted(download.images) == names
    listed, rows = celeba_source.read_attributes(download.attribute_list)
    assert tuple(listed) == CELEBA_ATTRIBUTES
    for index, name in enumerate(names):
        has = attributes_of(face_factors(SEED, index))
        assert list(rows[name]) == [has.get(attribute, False) for attribute in CELEBA_ATTRIBUTES]
    splits = [0] * 4 + [1] * 2 + [2] * 6
    assert celeba_source.read_partition(download.partition_list) == dict(zip(names, splits, strict=True))
    image = Image.open(io.BytesIO(download.images["000003.jpg"].read()))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (178, 218))
    crop = np.asarray(image)[35:183, 15:163].astype(np.float32)
    assert np.abs(crop - draw_face(face_factors(SEED, 2), 148)).mean() < 3.0


def test_the_archive_has_kaggles_layout(made):
    with zipfile.ZipFile(made[0] / "celeba.zip") as archive:
        assert archive.namelist()[0] == "img_align_celeba/img_align_celeba/000001.jpg"
        assert archive.namelist()[-2:] == ["list_attr_celeba.csv", "list_eval_partition.csv"]
        assert archive.testzip() is None
        header, first = archive.read("list_attr_celeba.csv").decode().splitlines()[:2]
    assert header.startswith("image_id,5_o_Clock_Shadow,Arched_Eyebrows,Attractive,")
    assert set(first.split(",")[1:]) == {"1", "-1"}


def test_the_middle_of_a_photo_is_the_face_that_models_see():
    factors = face_factors(SEED, 4)
    photo = draw_window(factors, photo_window(), 218, 178).astype(np.float32)
    assert np.abs(photo[35:183, 15:163] - draw_face(factors, 148)).mean() < 0.1
    # What is around it is drawn as well: the shoulders reach the lower edge.
    assert np.abs(photo[-1, 89] - photo[20, 10]).mean() > 10
    assert draw_photos(4, 5, SEED)[0][1] == attributes_of(factors)


@pytest.mark.parametrize(("count", "expected"), [(10, (6, 1, 3)), (14, (6, 2, 6)), (6000, (3000, 750, 2250))])
def test_splits(count, expected):
    assert tuple(split_counts(count).values()) == expected


@pytest.mark.parametrize(("arguments", "message"), [
    (["--out", "x", "--count", "0"], "argument --count: 0 is not between 10 and 999,999"),
    (["--out", "x", "--count", "many"], "invalid whole number value: 'many'"),
    (["--out", "x", "--size", "5"], "argument --size: 5 is not between 8 and 512"),
    (["--count", "10"], "give --out, --celeba-zip, or both"),
])
def test_wrong_usage_is_one_line_and_status_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ") and error.count("\n") == 1
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("option", ["--out", "--celeba-zip"])
def test_what_exists_is_not_replaced(option, tmp_path, capsys):
    target = tmp_path / "precious"
    target.write_text("mine")
    assert main([option, str(target), "--count", "10"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {target} exists; choose another {option}") and error.count("\n") == 1
    assert target.read_text() == "mine"
    assert os.listdir(tmp_path) == ["precious"]


@pytest.mark.parametrize("option", ["--out", "--celeba-zip"])
@pytest.mark.parametrize(("problem", "status"), [(KeyboardInterrupt, 130), (OSError("disk full"), 1)])
def test_a_broken_off_run_leaves_nothing_behind(option, problem, status, tmp_path, monkeypatch, capsys):
    def breaks(*args, **kwargs):
        assert len(os.listdir(tmp_path)) == 1  # what is being written
        raise problem

    monkeypatch.setattr(toy_faces, "map_rows", breaks)
    assert main([option, str(tmp_path / "made"), "--count", "10"]) == status
    assert os.listdir(tmp_path) == []
    assert capsys.readouterr().err.count("\n") == 1
