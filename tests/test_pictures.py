"""Sheets, labels and files of pictures."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tools import figures
from vae_np.study import pictures


def test_to_uint8_rounds_and_clips_and_enlarge_repeats():
    np.testing.assert_array_equal(pictures.enlarge(np.array([[1, 2]]), 2), [[1, 1, 2, 2], [1, 1, 2, 2]])
    floats = np.array([-0.5, 0, 0.498, 0.503, 1, 2])
    np.testing.assert_array_equal(pictures.to_uint8(floats), [0, 0, 127, 128, 255, 255])
    every_byte = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(pictures.to_uint8(every_byte.astype(np.float32) / 255), every_byte)


def test_grid_puts_images_in_reading_order():
    faces = np.stack([np.full((4, 3, 3), shade, np.uint8) for shade in (10, 20, 30, 40, 50)])
    sheet = pictures.grid(faces, 2)
    assert sheet.shape == (3 * 4 + 2 * pictures.GAP, 2 * 3 + pictures.GAP, 3)
    assert (sheet[0, 0, 0], sheet[0, -1, 0], sheet[6, 0, 0], sheet[-1, 0, 0]) == (10, 20, 30, 50)
    assert (sheet[4:6] == pictures.PAPER).all()
    assert (sheet[-1, -1] == pictures.PAPER).all()


def test_labelled_rows_keep_every_pixel_of_the_images_and_set_groups_apart(rng):
    a, b, c = (rng.random((count, 8, 8, 3)) for count in (2, 3, 2))
    sheet = pictures.labelled_rows([("a", a, b), ("a much longer label", c)], scale=1)
    left, right = pictures.grid(a, 2), pictures.grid(b, 3)
    apart = 4 * pictures.GAP
    margin = sheet.shape[1] - right.shape[1] - apart - left.shape[1]
    np.testing.assert_array_equal(sheet[:8, -right.shape[1] :], right)
    np.testing.assert_array_equal(sheet[:8, margin : margin + left.shape[1]], left)
    assert (sheet[:, margin + left.shape[1] :][:, :apart] == pictures.PAPER).all()
    np.testing.assert_array_equal(sheet[8 + pictures.GAP :, margin:][:, : left.shape[1]], pictures.grid(c, 2))
    assert (sheet[:8, :margin] < 128).any(), "labels are drawn"
    assert (sheet[8 + pictures.GAP :, :margin] < 128).any()
    assert (sheet[:, 0] == pictures.PAPER).all()


def test_save_and_read_again(tmp_path, rng):
    sheet = rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)
    pictures.save(tmp_path / "new" / "sheet.png", sheet, scale=3)
    with Image.open(tmp_path / "new" / "sheet.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), pictures.enlarge(sheet, 3))
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["sheet.png"]


def test_animation_plays_all_frames(tmp_path):
    frames = [np.full((8, 8, 3), shade, np.uint8) for shade in (0, 80, 160, 240)]
    figures.save_animation(tmp_path / "a.gif", frames, milliseconds=50)
    with Image.open(tmp_path / "a.gif") as gif:
        assert (gif.n_frames, gif.info["duration"], gif.info["loop"]) == (4, 50, 0)
        gif.seek(2)
        assert gif.convert("RGB").getpixel((4, 4)) == (160, 160, 160)


@pytest.mark.parametrize("backend", ["nowhere", "module://nowhere"])
def test_a_figure_needs_no_backend_that_the_environment_names(tmp_path, backend):
    # A notebook names its own to all programs that it starts, also to those that have it not.
    program = ("from vae_np.study import pictures; chart, axes = pictures.figure(); axes[0, 0].plot([1, 2]); "
               "pictures.save_figure('chart.png', chart)")
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env={**os.environ, "MPLBACKEND": backend}, check=True)
    with Image.open(tmp_path / "chart.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 1


@pytest.fixture
def drawn(monkeypatch):
    """The figures that have been saved."""
    charts, save = [], pictures.save_figure
    monkeypatch.setattr(pictures, "save_figure", lambda path, chart: (save(path, chart), charts.append(chart)))
    return charts


def test_plot_losses_draws_what_the_history_says(drawn, tmp_path):
    history = [{"epoch": e, "loss": 9.0 - e, "recon": 7.0 - e, "kl": 2.0, "val_loss": 9.5 - e, "val_recon": 7.5 - e,
                "val_kl": 2.5, "val_psnr": 20.0 + e, "val_kl_max": 5.0, "val_kl_p90": 4.0, "val_kl_median": 1.0,
                "val_kl_p10": 0.0, "active_units": 10 * e, "gradient_norm": 100.0 / e, "sigma": 0.3 / e}
               for e in (1, 2, 3)]
    figures.plot_losses(tmp_path / "a.png", history)
    lines = [(ax.get_title(), line) for ax in drawn[0].axes for line in ax.lines]
    curves = {(title, line.get_label()): line.get_ydata().tolist() for title, line in lines}
    assert len(curves) == 6 + 4 + 4
    for (title, label), expected in {
        ("total", "training"): [8, 7, 6], ("reconstruction", "validation"): [6.5, 5.5, 4.5],
        ("KL", "validation"): [2.5, 2.5, 2.5], ("KL of a latent, validation", "90% are below"): [4, 4, 4],
        ("PSNR, validation", "PSNR"): [21, 22, 23], ("active latents, validation", "active"): [10, 20, 30],
        ("norm of the gradient", "norm"): [100, 50, 100 / 3], ("sigma", "sigma"): [0.3, 0.15, 0.3 / 3],
    }.items():
        assert curves[title, label] == expected
    figures.plot_losses(tmp_path / "a.png", [{**row, "sigma": None} for row in history])
    assert "sigma" not in {ax.get_title() for ax in drawn[1].axes}


def test_bars_draw_their_values_in_order_and_the_mark(drawn, tmp_path):
    figures.bars(tmp_path / "a.png", {"slow": 0.5, "fast": 2000.0}, "images per second", (1500.0, "the machine"))
    (ax,) = drawn[0].axes
    assert [bar.get_width() for bar in ax.patches] == [0.5, 2000]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["slow", "fast"]
    assert ax.yaxis_inverted(), "the first is on top"
    assert [text.get_text() for text in ax.texts] == ["0.50", "2,000"]
    assert (ax.get_xscale(), ax.get_xlabel()) == ("log", "images per second (logarithmic)")
    assert ax.get_xlim()[0] < 0.5 < 2000 < ax.get_xlim()[1], "every bar begins and ends in the picture"
    assert [(line.get_xdata()[0], line.get_label()) for line in ax.lines] == [(1500, "the machine")]
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 500, "it needs no screen"
