import os
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

from data_tools import celeba, toy_faces
from data_tools.face_painter import SQUARE, Canvas, Pose, draw_face, draw_window, ellipse, smooth_max
from data_tools.toy_faces import ATTRIBUTE_NAMES, CELEBA_ATTRIBUTES, FACTOR_NAMES, attributes_of, face_factors, main
from vae_np.disk.dataset import Dataset

SEED = 5
NAMES = [f"{number:06}.jpg" for number in range(1, 13)]
ABSENT = ("turn nod tilt light_x hair_lean hair_flare recede part sweep wave curl bun bangs hair_red hair_gray gaze_x "
          "mouth_open makeup lipstick beard beard_length moustache glasses glasses_gold glasses_tint hat earrings")
PLAIN = dict.fromkeys(ABSENT.split(), 0.0) | {
    "light_y": -0.5, "male": 0.5, "age": 0.2, "skin_tone": 0.3, "hair_density": 1.0, "hair_short": 1.0,
    "hair_top": 0.09, "hair_side": 0.03, "hair_length": 0.06, "hair_opening": 0.92, "hairline": 0.43, "hair_dark": 0.6,
    "eye_open": 0.95, "smile": 0.3, "blush": 0.1,
}


def plain_face(**factors):
    """The factors of an unremarkable face seen from the front, some of them replaced."""
    return face_factors(SEED, 0) | PLAIN | factors


def drawn(**factors):
    return draw_face(plain_face(**factors), 64).astype(np.float32)


def patch(picture, row, column):
    """The mean colour of 4x4 pixels."""
    return picture[row : row + 4, column : column + 4].mean(axis=(0, 1))


def test_distances_to_shapes():
    angle = np.linspace(0.0, 2.0 * np.pi, 50)
    normal = np.stack([np.cos(angle) / 0.5, np.sin(angle) / 0.2])
    normal /= np.hypot(*normal)
    for distance in (-0.005, 0.0, 0.005):  # from the edge, along the normal
        x, y = 0.3 + 0.5 * np.cos(angle) + distance * normal[0], 0.2 * np.sin(angle) + distance * normal[1]
        np.testing.assert_allclose(ellipse(x, y, 0.3, 0.0, 0.5, 0.2), distance, rtol=0.1, atol=1e-5)
    a, b = np.array([1.0, -2.0, 0.5]), np.array([-1.0, 3.0, 0.5])
    np.testing.assert_allclose(smooth_max(a, b, 0.01), [1.0, 3.0, 0.505], atol=1e-4)  # rounded where they are equal


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
    if turn:  # the face moves with it, the head against it
        assert pose.place_head(0.0, 0.0)[0] * turn < -1.0 < 1.0 < pose.place(0.0, 0.0)[0] * turn


def test_a_face_depends_on_seed_and_index_only(tmp_path):
    path = tmp_path / "images.npy"
    np.save(path, np.zeros((6, 16, 16, 3), dtype=np.uint8))
    for start, stop in ((4, 6), (0, 1), (1, 4)):
        toy_faces.draw_rows(start, stop, SEED, 16, path)
    faces = [draw_face(face_factors(SEED, index), 16) for index in range(6)]
    np.testing.assert_array_equal(np.load(path), faces)
    assert len(np.unique(faces, axis=0)) == 6
    assert face_factors(SEED, 0) != face_factors(SEED + 1, 0)


@pytest.mark.parametrize(("index", "small"), [(0, 32), (1, 32), (2, 64), (3, 64)])
def test_the_same_face_at_every_size(index, small):
    factors = face_factors(SEED, index)
    before = dict(factors)
    large = draw_face(factors, 256).astype(np.float32)
    block = 256 // small
    reduced = large.reshape(small, block, small, block, 3).mean(axis=(1, 3))
    difference = np.abs(reduced - draw_face(factors, small))
    other = np.abs(reduced - draw_face(face_factors(SEED, index + 10), small))
    assert difference.mean() < min(1.0, 0.05 * other.mean())
    assert factors == before


def test_random_faces_are_drawn_without_numerical_trouble():
    with np.errstate(divide="raise", over="raise", invalid="raise"):
        faces = [draw_face(face_factors(SEED, index), 16) for index in range(100)]
    assert {(face.shape, face.dtype.name) for face in faces} == {((16, 16, 3), "uint8")}
    assert min(face.std() for face in faces) > 10


def test_a_head_turned_left_mirrors_one_turned_right():
    left, right = drawn(turn=-15.0), drawn(turn=15.0)
    # The gleam in the eyes and single locks of hair are not symmetric.
    assert np.abs(left[:, ::-1] - right).mean() < 0.15 * np.abs(left - right).mean()


@pytest.mark.parametrize(("factor", "top", "bottom", "left", "right"), [
    ("glasses", 0.33, 0.67, 0.15, 0.85),
    ("hat", 0.0, 0.45, 0.1, 0.9),
    ("bangs", 0.0, 0.55, 0.15, 0.85),
    ("smile", 0.4, 0.85, 0.2, 0.8),
    ("mouth_open", 0.6, 0.85, 0.3, 0.7),
    ("beard", 0.45, 0.95, 0.15, 0.85),
    ("moustache", 0.6, 0.8, 0.3, 0.7),
    ("gaze_x", 0.4, 0.56, 0.25, 0.75),
    ("earrings", 0.4, 0.85, 0.1, 0.9),
])
def test_a_factor_changes_only_its_place(factor, top, bottom, left, right):
    places = np.argwhere(np.abs(drawn() - drawn(**{factor: 1.0})).max(axis=2) > 4) / 64
    assert len(places), "the pictures are equal"
    assert top <= places[:, 0].min() < places[:, 0].max() <= bottom
    assert left <= places[:, 1].min() < places[:, 1].max() <= right


def test_colours_and_light_follow_their_factors():
    forehead, crown, chin, eye, lips = (20, 30), (8, 30), (51, 30), (28, 21), (44, 30)
    assert patch(drawn(skin_tone=0.0), *forehead).mean() > patch(drawn(skin_tone=1.0), *forehead).mean() + 80
    assert patch(drawn(hair_dark=0.1), *crown).mean() > patch(drawn(hair_dark=1.0), *crown).mean() + 60
    assert np.ptp(patch(drawn(hair_gray=1.0), *crown)) < 0.3 * np.ptp(patch(drawn(), *crown))
    assert patch(drawn(beard=1.0, beard_cover=1.0), *chin).mean() < patch(drawn(), *chin).mean() - 30
    assert patch(drawn(glasses=1.0, glasses_tint=1.0), *eye).max() < patch(drawn(glasses=1.0), *eye).min()
    assert patch(drawn(lipstick=1.0), *lips)[1] < patch(drawn(), *lips)[1] - 15  # less green
    bald, haired = drawn(hair_density=0.0), drawn()
    assert np.abs(patch(bald, *crown) - patch(bald, *forehead)).mean() < 30
    assert np.abs(patch(haired, *crown) - patch(haired, *forehead)).mean() > 60
    for light_x, bright, dark in ((-0.7, (37, 20), (37, 40)), (0.7, (37, 40), (37, 20))):
        picture = drawn(light_x=light_x)
        assert patch(picture, *bright).mean() > patch(picture, *dark).mean() + 10


@pytest.mark.parametrize(("factors", "gained", "lost"), [
    ({"glasses": 0.9, "hat": 2.0, "bangs": 0.6, "mouth_open": 0.5, "smile": 0.9, "lipstick": 0.8},
     "Eyeglasses Wearing_Hat Bangs Mouth_Slightly_Open Smiling Wearing_Lipstick", ""),
    ({"age": 0.8, "male": 0.8, "eye_open": 0.5}, "Bags_Under_Eyes Male Narrow_Eyes", "Young"),
    ({"makeup": 0.8, "blush": 0.8, "skin_tone": 0.05, "earrings": 1.0, "recede": 0.1},
     "Heavy_Makeup Rosy_Cheeks Pale_Skin Wearing_Earrings Receding_Hairline", ""),
    ({"brow_arch": 1.5, "brow_thickness": 1.2, "lip_fullness": 1.3, "nose_width": 1.3, "cheeks": 0.8},
     "Arched_Eyebrows Bushy_Eyebrows Big_Lips Big_Nose Chubby", ""),
    ({"hair_dark": 0.95}, "Black_Hair", "Brown_Hair"),
    ({"hair_dark": 0.1}, "Blond_Hair", "Brown_Hair"),
    ({"hair_dark": 0.95, "hair_gray": 0.9}, "Gray_Hair", "Brown_Hair"),
    ({"hair_dark": 0.1, "hair_red": 0.9}, "", "Brown_Hair"),
    ({"hair_gray": 0.9, "hair_density": 0.0, "recede": 0.1}, "Bald", "Brown_Hair"),
    ({"hair_short": 0.0, "hair_density": 0.0, "hat": 1.0}, "Wearing_Hat", "Brown_Hair"),
    ({"hair_short": 0.0}, "Straight_Hair", ""),
    ({"hair_short": 0.0, "wave": 0.8}, "Wavy_Hair", ""),
    ({"hair_short": 0.0, "curl": 0.8}, "Wavy_Hair", ""),
    ({"curl": 0.8}, "", ""),
    ({"beard": 0.3}, "5_o_Clock_Shadow", "No_Beard"),
    ({"beard": 0.9, "beard_cover": 0.1}, "Goatee", "No_Beard"),
    ({"beard": 0.9, "beard_cover": 0.9}, "Sideburns", "No_Beard"),
    ({"moustache": 0.8}, "Mustache", "No_Beard"),
])
def test_attributes_follow_from_factors(factors, gained, lost):
    before, after = attributes_of(plain_face()), attributes_of(plain_face(**factors))
    assert {name for name in before if after[name] > before[name]} == set(gained.split())
    assert {name for name in before if after[name] < before[name]} == set(lost.split())


def test_attributes_are_celebas_and_neither_rare_nor_universal():
    assert len(CELEBA_ATTRIBUTES) == 40
    assert list(ATTRIBUTE_NAMES) == [name for name in CELEBA_ATTRIBUTES if name in ATTRIBUTE_NAMES]
    faces = [face_factors(SEED, index) for index in range(2000)]
    assert {tuple(factors) for factors in faces} == {FACTOR_NAMES}
    values = np.array([list(attributes_of(factors).values()) for factors in faces])
    share = dict(zip(ATTRIBUTE_NAMES, values.mean(axis=0), strict=True))
    assert {name: part for name, part in share.items() if not 0.01 < part < 0.99} == {}
    male, lipstick = (values[:, ATTRIBUTE_NAMES.index(name)] for name in ("Male", "Wearing_Lipstick"))
    assert lipstick[male].mean() < 0.1 * lipstick.mean()


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
    assert data.splits == {"train": slice(0, 10), "validation": slice(10, 11), "test": slice(11, 12)}
    for count, parts in ((10, [8, 1, 1]), (18, [14, 2, 2]), (toy_faces.COUNT, [6000, 600, 600])):
        assert list(toy_faces.split_counts(count).values()) == parts
    assert data.info["file_names"] == NAMES
    assert "train             10 images\n" in printed
    faces = [face_factors(SEED, index) for index in range(12)]
    np.testing.assert_array_equal(data.images, [draw_face(factors, 32) for factors in faces])
    np.testing.assert_array_equal(data.attributes, [list(attributes_of(factors).values()) for factors in faces])
    assert data.attribute_names == list(ATTRIBUTE_NAMES)
    factors = np.load(folder / "toy" / "factors.npy")
    assert factors.dtype == np.float32
    np.testing.assert_array_equal(factors, [list(factors.values()) for factors in faces])  # nothing is rounded
    assert data.info["factor_names"] == list(FACTOR_NAMES)
    assert data.info["seed"] == SEED


def test_the_archive_has_kaggles_layout_and_is_prepared_as_celebas(made, tmp_path):
    with zipfile.ZipFile(made[0] / "celeba.zip") as archive:
        assert archive.namelist() == [*(f"img_align_celeba/img_align_celeba/{name}" for name in NAMES),
                                      "list_attr_celeba.csv", "list_eval_partition.csv"]
        assert archive.read("list_attr_celeba.csv").startswith(b"image_id,5_o_Clock_Shadow,Arched_Eyebrows,Attractive,")
    celeba.prepare(made[0] / "celeba.zip", tmp_path / "out", size=148)
    data = Dataset(tmp_path / "out")
    assert (data.info["file_names"], data.splits) == (NAMES, Dataset(made[0] / "toy").splits)
    assert tuple(data.attribute_names) == CELEBA_ATTRIBUTES
    faces = [face_factors(SEED, index) for index in range(12)]
    expected = [[attributes_of(factors).get(name, False) for name in CELEBA_ATTRIBUTES] for factors in faces]
    np.testing.assert_array_equal(data.attributes, expected)
    assert np.abs(data.images[2].astype(np.float32) - draw_face(faces[2], 148)).mean() < 3.0
    # The middle of a photo is the face that models see. What is around is drawn, too: shoulders reach the lower edge.
    photo = draw_window(faces[2], toy_faces.photo_window(), 218, 178).astype(np.float32)
    assert np.abs(photo[35:183, 15:163] - draw_face(faces[2], 148)).mean() < 0.1
    assert np.abs(photo[-1, 89] - photo[20, 10]).mean() > 10


@pytest.mark.parametrize("option", ["--out", "--celeba-zip"])
def test_what_exists_is_not_replaced_and_a_broken_off_run_leaves_nothing(option, tmp_path, monkeypatch, capsys):
    def breaks(*args, **kwargs):
        assert len(os.listdir(tmp_path)) == 2  # the second is what is being written
        raise KeyboardInterrupt

    target = tmp_path / "precious"
    target.write_text("mine")
    assert main([option, str(target), "--count", "10"]) == 1
    assert capsys.readouterr().err.startswith(f"error: {target} exists; choose another {option}")
    monkeypatch.setattr(toy_faces, "map_rows", breaks)
    assert main([option, str(tmp_path / "made"), "--count", "10"]) == 130
    assert os.listdir(tmp_path) == ["precious"]
    assert target.read_text() == "mine"
