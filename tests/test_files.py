"""A file is written whole or not at all."""

import pytest

from vae_np.disk.files import replacing


def test_writes_into_new_folders(tmp_path):
    with replacing(tmp_path / "a" / "b.txt") as partial:
        partial.write_text("all that is new")
        assert not (tmp_path / "a" / "b.txt").exists()
        assert partial.suffix == ".txt"
    assert (tmp_path / "a" / "b.txt").read_text() == "all that is new"


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "b.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as partial:
        partial.write_text("half of the n")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
