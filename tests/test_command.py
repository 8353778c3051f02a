"""Commands and lessons in consoles as people have them: any encoding, any shell, any way to start Python."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_dataset

from vae_np import backend
from vae_np.run.command import OneLineParser, threads

LESSONS = Path(__file__).parent.parent / "lessons"


def python(*arguments, cwd, **environment):
    """Run Python, which must end with status 0 and say nothing of an error; return what it printed, as bytes."""
    command = [sys.executable, *map(str, arguments)]
    result = subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr
    assert b"error" not in result.stderr
    return result.stdout


@pytest.mark.parametrize(("encoding", "command"), [
    ("cp1252", [LESSONS / "01_data.py", "--data", "faces", "--components", "4"]),
    ("ascii", ["-m", "data_tools.toy_faces", "--count", "10", "--size", "8", "--workers", "1"])])
def test_what_an_encoding_lacks_is_printed_all_the_same(tmp_path, encoding, command):
    write_dataset(tmp_path / "faces")
    printed = python(*command, "--out", "\u043b\u0438\u0446\u0430", cwd=tmp_path, PYTHONIOENCODING=encoding)
    assert rb"\u043b\u0438\u0446\u0430" in printed
    assert list((tmp_path / "\u043b\u0438\u0446\u0430").glob("*"))


def test_the_home_folder_is_where_a_shell_would_have_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    parser = OneLineParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("names", nargs="*")
    for arguments in (["--out=~/faces"], ["--out", "~/faces"]):
        assert parser.parse_args(arguments).out == tmp_path / "faces"
    assert parser.parse_args(["--out=~"]).out == tmp_path
    assert parser.parse_args(["~/a", "b~", "c=~/d", "--out=e=~/f"]).names == [f"{tmp_path}/a", "b~", "c=~/d"]
    monkeypatch.setattr(sys, "argv", ["command", "--out=~/faces"])
    assert parser.parse_args().out == tmp_path / "faces"


@pytest.mark.parametrize("command", [
    [LESSONS / "01_data.py", "--help"], [LESSONS / "02_model.py", "--break", "kl-averaged"],
    ["-m", "vae_np.gradcheck", "--only", "KL"], ["-m", "vae_np.benchmark", "--help"],
], ids=lambda command: Path(command[-2]).name)
def test_nothing_needs_the_texts_that_python_oo_leaves_out(tmp_path, command):
    assert python("-OO", *command, cwd=tmp_path)


@pytest.mark.parametrize(("name", "text", "problem"), [
    ("numpy", "2", None), ("plain", "1", None), ("cupy", "1", None), ("numpy", "0", "0 is not between 1 and 16"),
    ("plain", "2", "VAE_BACKEND=plain takes one thread, not 2"),
    ("cupy", "4", "VAE_BACKEND=cupy takes one thread, not 4"), ("numpy", "two", "invalid whole number value: 'two'")])
def test_threads_are_not_asked_for_where_there_is_one(name, text, problem, monkeypatch, capsys):
    monkeypatch.setattr(backend, "NAME", name)
    parser = OneLineParser(prog="command")
    parser.add_argument("--threads", type=threads)
    if problem is None:
        assert parser.parse_args(["--threads", text]).threads == int(text)
    else:
        with pytest.raises(SystemExit):
            parser.parse_args(["--threads", text])
        assert capsys.readouterr().err == f"error: argument --threads: {problem}; see command --help\n"
