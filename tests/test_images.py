"""Sheets, labels and files of pictures."""

import numpy as np
from PIL import Image

from vae_np.study import pictures as images


def test_to_uint8_rounds_and_clips():
    np.testing.assert_array_equal(images.to_uint8(np.array([-0.5, 0, 0.498, 0.503, 1, 2])), [0, 0, 127, 128, 255, 255])
    every_byte = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(images.to_uint8(every_byte.astype(np.float32) / 255), every_byte)


def test_grid_puts_images_in_reading_order():
    faces = np.stack([np.full((4, 3, 3), shade, np.uint8) for shade in (10, 20, 30, 40, 50)])
    sheet = images.grid(faces, 2)
    assert sheet.shape == (3 * 4 + 2 * images.GAP, 2 * 3 + images.GAP, 3)
    assert (sheet[0, 0, 0], sheet[0, -1, 0], sheet[6, 0, 0], sheet[-1, 0, 0]) == (10, 20, 30, 50)
    assert (sheet[4:6] == images.PAPER).all()
    assert (sheet[-1, -1] == images.PAPER).all()


def test_enlarge():
    np.testing.assert_array_equal(images.enlarge(np.array([[1, 2]]), 2), [[1, 1, 2, 2], [1, 1, 2, 2]])


def test_labelled_rows_keep_every_pixel_of_the_images(rng):
    rows = [("a", rng.random((3, 8, 8, 3))), ("a much longer label", rng.random((2, 8, 8, 3)))]
    sheet = images.labelled_rows(rows, scale=1)
    right = sheet[:8, -(3 * 8 + 2 * images.GAP):]
    np.testing.assert_array_equal(right, images.grid(rows[0][1], 3))
    margin = sheet.shape[1] - right.shape[1]
    np.testing.assert_array_equal(sheet[8 + images.GAP :, margin : margin + 18], images.grid(rows[1][1], 2))
    assert (sheet[:, :margin] < 128).any(), "labels are drawn"
    assert (sheet[:, 0] == images.PAPER).all()


def test_groups_of_a_row_are_set_apart(rng):
    first, second = rng.random((2, 8, 8, 3)), rng.random((3, 8, 8, 3))
    sheet = images.labelled_rows([("", first, second)], scale=1)
    left, right = images.grid(first, 2), images.grid(second, 3)
    np.testing.assert_array_equal(sheet[:, -right.shape[1] :], right)
    rest = sheet[:, : -right.shape[1]]
    assert (rest[:, -4 * images.GAP :] == images.PAPER).all()
    np.testing.assert_array_equal(rest[:, -4 * images.GAP - left.shape[1] : -4 * images.GAP], left)


def test_save_and_read_again(tmp_path, rng):
    sheet = rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)
    images.save(tmp_path / "new" / "sheet.png", sheet, scale=3)
    with Image.open(tmp_path / "new" / "sheet.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), images.enlarge(sheet, 3))
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["sheet.png"]


def test_animation_plays_all_frames(tmp_path):
    frames = [np.full((8, 8, 3), shade, np.uint8) for shade in (0, 80, 160, 240)]
    images.save_animation(tmp_path / "a.gif", frames, milliseconds=50)
    with Image.open(tmp_path / "a.gif") as gif:
        assert (gif.n_frames, gif.info["duration"], gif.info["loop"]) == (4, 50, 0)
        gif.seek(2)
        assert gif.convert("RGB").getpixel((4, 4)) == (160, 160, 160)


def test_plot_losses_draws_what_the_history_says(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(images, "save_figure", lambda path, chart: drawn.append(chart))
    history = [{"epoch": e, "loss": 9.0 - e, "recon": 7.0 - e, "kl": 2.0, "val_loss": 9.5 - e, "val_recon": 7.5 - e,
                "val_kl": 2.5, "val_psnr": 20.0 + e, "val_kl_max": 5.0, "val_kl_p90": 4.0, "val_kl_median": 1.0,
                "val_kl_p10": 0.0, "active_units": 10 * e, "gradient_norm": 100.0 / e, "sigma": 0.3 / e}
               for e in (1, 2, 3)]
    images.plot_losses(tmp_path / "losses.png", history)
    lines = [(ax.get_title(), line) for ax in drawn[0].axes for line in ax.lines]
    curves = {(title, line.get_label()): line.get_ydata().tolist() for title, line in lines}
    assert len(curves) == 6 + 4 + 4
    assert curves["total", "training"] == [8, 7, 6]
    assert curves["reconstruction", "validation"] == [6.5, 5.5, 4.5]
    assert curves["KL", "validation"] == [2.5, 2.5, 2.5]
    assert curves["KL of a latent, validation", "90% are below"] == [4, 4, 4]
    alone = {title: line.get_ydata().tolist() for title, line in lines}
    assert alone["PSNR, validation"] == [21, 22, 23]
    assert alone["active latents, validation"] == [10, 20, 30]
    assert alone["norm of the gradient"] == [100, 50, 100 / 3]
    assert alone["sigma"] == [0.3, 0.15, 0.3 / 3]
    images.plot_losses(tmp_path / "losses.png", [{**row, "sigma": None} for row in history])
    assert "sigma" not in {ax.get_title() for ax in drawn[1].axes}


def test_bars_draw_their_values_in_order_and_the_mark(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(images, "save_figure", lambda path, chart: drawn.append(chart))
    images.bars(tmp_path / "bars.png", {"slow": 0.5, "fast": 2000.0}, "images per second", (1500.0, "the machine"))
    (ax,) = drawn[0].axes
    assert [bar.get_width() for bar in ax.patches] == [0.5, 2000]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["slow", "fast"]
    assert ax.yaxis_inverted(), "the first is on top"
    assert [text.get_text() for text in ax.texts] == ["0.50", "2,000"]
    assert (ax.get_xscale(), ax.get_xlabel()) == ("log", "images per second (logarithmic)")
    assert ax.get_xlim()[0] < 0.5 < 2000 < ax.get_xlim()[1], "every bar begins and ends in the picture"
    assert [(line.get_xdata()[0], line.get_label()) for line in ax.lines] == [(1500, "the machine")]


def test_a_figure_becomes_a_picture_without_a_screen(tmp_path):
    chart, axes = images.figure(columns=2)
    axes[0, 1].plot([1, 2])
    images.save_figure(tmp_path / "chart.png", chart)
    with Image.open(tmp_path / "chart.png") as picture:
        assert picture.width > 500
