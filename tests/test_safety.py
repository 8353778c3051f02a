"""What nobody must have to fear: that a program calls out, starts others, runs data as code, or fails silently."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from data_tools import celeba, toy_faces
from vae_np import backend
from vae_np.fast.workers import ParallelVAE
from vae_np.run import benchmark, gradient_table

ROOT = Path(__file__).parent.parent
FOLDERS = ("vae_np", "lessons", "data_tools")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))

# A sitecustomize.py, which every Python that starts runs first, programs that are started by programs among them. It
# writes each event to a file, with the files of the code that led to it.
HOOK = """
import json, os, sys

WATCHED = ("socket.", "urllib.", "http.", "ftplib.", "smtplib.", "webbrowser.", "os.system", "os.exec",
           "os.posix_spawn", "os.spawn", "os.fork", "os.startfile", "pty.spawn", "subprocess.", "pickle.")
SOURCES = tuple(os.path.join({root!r}, folder, "") for folder in {folders!r})

def watch(event, arguments):
    if event not in ("exec", "compile") and not event.startswith(WATCHED):
        return
    files, caller = [], sys._getframe().f_back  # there is none where Python starts
    while caller:
        files.append(caller.f_code.co_filename)
        caller = caller.f_back
    if event in ("exec", "compile") and not (files and os.path.abspath(files[0]).startswith(SOURCES)):
        return  # libraries do, such as dataclasses
    record = json.dumps([event, [str(argument) for argument in arguments], files]) + chr(10)
    file = os.open({log!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, record.encode())
    os.close(file)

sys.addaudithook(watch)
if "data_tools.toy_faces" in sys.orig_argv and "--count" not in sys.orig_argv:
    sys.argv += ["--count", "96", "--size", "16"]  # where a lesson draws thousands of 64x64
"""


@pytest.fixture
def watched(tmp_path):
    """A function that runs Python and returns what it, and all that it started, did: a list of (event, arguments, files
    of the code that led to it)."""
    log, site = tmp_path / "log.txt", tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(HOOK.format(root=str(ROOT), folders=FOLDERS, log=str(log)), "utf-8")
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))

    def run(*arguments):
        done = subprocess.run([sys.executable, "-c", *map(str, arguments)], env={**os.environ, "PYTHONPATH": path},
                              cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]

    return run


# Everything that can be imported, and a reader's way through the lessons, the first of which draws the faces.
WALK = """
import importlib, pkgutil, runpy, sys
import data_tools, vae_np

for package in (vae_np, data_tools):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
folder, *commands = sys.argv[1:]
sys.path.insert(0, folder)
for command in commands:
    lesson, *sys.argv[1:] = command.split()
    sys.argv[0] = folder + "/" + lesson
    runpy.run_path(sys.argv[0], run_name="__main__")
"""
COMMANDS = """\
01_data.py --components 8
02_model.py --image-size 16 --channels 4 --latent-dim 3
03_train.py --epochs 1 --channels 4 8 --latent-dim 5 --save-every 1 --prior gaussian
04_reconstruct.py
05_sample.py
06_interpolate.py --steps 2 --pairs 1
07_attributes.py
08_objectives.py --epochs 8 --channels 4 8 --latent-dim 3
09_compress.py --limit 3""".splitlines()


def is_allowed(event, arguments, files):
    """Whether an event is one that the lessons need, or one of a library that hands over no data of ours."""
    files = [file.replace(os.sep, "/") for file in files]
    if event in ("subprocess.Popen", "os.posix_spawn"):  # newer Pythons tell of both
        # matplotlib asks for the names of fonts, once a computer, and ctypes where a library is.
        libraries = ("/matplotlib/font_manager.py", "/ctypes/util.py")
        return "data_tools.toy_faces" in arguments[1] or any(file.endswith(libraries) for file in files)
    # The workers of toy_faces get their tasks from the process that started them.
    return event == "pickle.find_class" and ("/multiprocessing/" in files[0] or "/concurrent/futures/" in files[0])


@pytest.mark.skipif(backend.NAME != "numpy", reason="CuPy loads libraries and starts compilers")
@pytest.mark.parametrize("count", [1, pytest.param(len(COMMANDS), marks=pytest.mark.slow)])
def test_lessons_call_nobody_start_nothing_else_and_run_no_data(watched, tmp_path, count):
    events = watched(WALK, ROOT / "lessons", *COMMANDS[:count])
    assert len(list((tmp_path / "runs").iterdir())) == count
    events = [event for event in events if not is_allowed(*event)]
    assert not events, "\n".join(map(str, events))


def test_the_watch_would_see_it(watched):
    events = watched("; ".join([
        "import os, pickle, socket, subprocess, sys, urllib.request", "socket.socket().connect_ex(('127.0.0.1', 9))",
        "socket.getaddrinfo('127.0.0.1', 9)", "urllib.request.urlopen('data:,x')", "os.system('')",
        "subprocess.run([sys.executable, '-c', ''])", "pickle.loads(pickle.dumps(print))"]))
    assert {"socket.connect", "socket.getaddrinfo", "urllib.Request", "os.system", "subprocess.Popen",
            "pickle.find_class"} <= {event[0] for event in events if not is_allowed(*event)}  # fmt: skip


# By reading the source.

# Imports are written "import module.name" here. Of keywords, anything but False is one.
DANGERS = re.compile(
    r"(eval|exec|compile|__import__|breakpoint)$|(shell|allow_pickle)=(?!False$)"
    r"|(import )?os\.(system|popen|exec\w+|spawn\w+|posix_spawn\w*|startfile|fork)$"
    r"|import (pickle|marshal|shelve|dill|joblib|requests|httpx|aiohttp|urllib|urllib3|http|socket|socketserver|ssl"
    r"|ftplib|smtplib|telnetlib|xmlrpc|webbrowser|code|pty|subprocess)\b")
# Lessons draw faces in a process of their own, and start several, the first of which has a witness that all connect to.
ALLOWED = {"lessons/12_explore.py": ["import webbrowser"],
           "lessons/tools/common.py": ["import subprocess"],
           "lessons/tools/machines.py": ["import subprocess"],
           "vae_np/fast/voices.py": ["import socket", "import subprocess"]}


def dangers(source):
    """What in a source could run data as code, or reach the network, a shell or a program: a list of texts."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [f"import {alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"import {node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, (ast.Name, ast.Attribute)):
            found.append(ast.unparse(node))
        elif isinstance(node, ast.keyword):
            found.append(f"{node.arg}={ast.unparse(node.value)}")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "load":
            found += [f"allow_pickle={ast.unparse(argument)}" for argument in node.args[2:]]
    return list(filter(DANGERS.match, found))


def test_no_source_runs_data_as_code_or_reaches_out():
    assert len(SOURCES) > 25
    found = {path.relative_to(ROOT).as_posix(): dangers(path.read_text(encoding="utf-8")) for path in SOURCES}
    assert {name: what for name, what in found.items() if what} == ALLOWED


def test_a_danger_would_be_found_and_what_is_safe_is_not_taken_for_one():
    for source in (
        "eval('1')", "exec('1')", "f = eval", "import pickle", "import urllib.request", "from urllib import request",
        "from pickle import loads", "import os; os.system('ls')", "from os import system", "import subprocess",
        "import marshal as m", "np.load(file, allow_pickle=True)", "np.load(file, allow_pickle=flag)",
        "np.load(file, None, True)", "run('ls', shell=True)", "def f():\n    import socket",
    ):  # fmt: skip
        assert len(dangers(source)) == 1, source
    assert not dangers("np.load(file, mmap_mode='r', allow_pickle=False); model.evaluate(); run(shell=False); code = 1")


# How commands end: 0 done, 1 failed, 2 wrong usage. tests/test_lessons.py does the same for lessons.


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """What the cases below need, in the current folder: photographs as CelebA has them, one for each split, a file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "img_align_celeba").mkdir(parents=True)
    for number in (1, 162_771, 182_638):
        Image.new("RGB", (178, 218)).save(tmp_path / "photos" / "img_align_celeba" / f"{number:06d}.jpg")
    (tmp_path / "mine.txt").write_text("precious", encoding="utf-8")
    return tmp_path


def no_memory(*args):
    raise MemoryError


@pytest.mark.parametrize(("module", "arguments", "status"), [
    (module, arguments, status) for module, *cases in (
        (gradient_table, "--only KL", "--only KL", "--only Nothing"),
        (benchmark, "--batch-size 1 --steps 1", "--batch-size 1 --steps 1", "--steps 0"),
        (celeba, "photos --out new --size 8 --workers 1", "nowhere --out new", "photos"),
        (toy_faces, "--out new --count 10 --size 8 --workers 1", "--out mine.txt --count 10", "--count 10"),
    ) for status, arguments in enumerate(cases)])
def test_a_command_s_status_and_where_it_writes(prepared, monkeypatch, capfd, module, arguments, status):
    if status == 1:
        monkeypatch.setattr(gradient_table, "TOLERANCE", 0)
        monkeypatch.setattr(ParallelVAE, "loss_and_gradient", no_memory)
    try:
        ended = module.main(arguments.split())
    except SystemExit as stopped:
        ended = stopped.code
    output, errors = capfd.readouterr()
    assert ended == status, errors
    assert "Traceback" not in output + errors
    assert "error: " not in output
    assert sum(line.startswith("error: ") for line in errors.splitlines()) == (status > 0), errors
    assert status < 2 or (output, errors.count("\n")) == ("", 1)
    assert (prepared / "mine.txt").read_text(encoding="utf-8") == "precious"
    assert (prepared / "new").exists() == (status == 0 and module in (celeba, toy_faces))


@pytest.mark.parametrize("value", ["1", "0"])
def test_an_error_or_a_bug_is_one_line_after_a_traceback_for_those_who_ask(prepared, monkeypatch, capsys, value):
    monkeypatch.setenv("VAE_DEBUG", value)
    monkeypatch.setattr(gradient_table, "print_table", lambda checks: 1 / 0)
    for module, arguments, line in (
        (celeba, "nowhere --out new", "error: "),
        (gradient_table, "--only KL",
         "error: this is a bug: ZeroDivisionError: division by zero; VAE_DEBUG=1 shows where"),
    ):
        assert module.main(arguments.split()) == 1
        output, errors = capsys.readouterr()
        assert "Traceback" not in output
        assert errors.count("Traceback (most recent call last):") == int(value)
        assert errors.count("\n") == 1 or value == "1"
        assert errors.splitlines()[-1].startswith(line)
