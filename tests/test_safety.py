"""What nobody must have to fear: that a program calls out, starts others, runs data as code, or fails silently."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_dataset
from PIL import Image

from data_tools import celeba, toy_faces
from vae_np import backend, gradcheck
from vae_np.fast.workers import Workers
from vae_np.run import benchmark

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
    sys.argv += ["--count", "40", "--size", "16"]  # where a lesson draws 6,000 of 64x64
"""


@pytest.fixture
def watched(tmp_path):
    """A function that runs Python and returns what it, and all that it started, did: a list of (event, arguments, files
    of the code that led to it)."""
    log = tmp_path / "log.txt"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        HOOK.format(root=str(ROOT), folders=FOLDERS, log=str(log)), encoding="utf-8")
    path = os.pathsep.join(filter(None, [str(tmp_path / "site"), os.environ.get("PYTHONPATH")]))

    def run(*arguments, status=0):
        done = subprocess.run([sys.executable, *map(str, arguments)], cwd=tmp_path, capture_output=True, text=True,
                              env={**os.environ, "PYTHONPATH": path}, timeout=300, check=False)
        assert done.returncode == status, done.stderr
        return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []

    return run


# Everything that can be imported, and a reader's way through the lessons, the first of which draws the faces.
LESSONS = """
import importlib, pkgutil, runpy, sys
import data_tools, vae_np

for package in (vae_np, data_tools):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
sys.path.insert(0, sys.argv[1])
for command in (
    "01_data.py --components 8",
    "02_model.py --image-size 16 --channels 4 --latent-dim 3",
    "03_train.py --epochs 1 --channels 4 8 --latent-dim 5 --save-every 1",
    "04_reconstruct.py",
    "05_sample.py",
    "06_interpolate.py --steps 2 --pairs 1",
    "07_attributes.py",
    "08_objectives.py --epochs 8 --channels 4 8 --latent-dim 3",
    "09_compress.py --limit 3",
):
    sys.argv[1:] = command.split()
    sys.argv[0] = sys.path[0] + "/" + sys.argv.pop(1)
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def is_allowed(event, arguments, files):
    """Whether an event is one that the lessons need, or one of a library that hands over no data of ours."""
    files = [file.replace(os.sep, "/") for file in files]
    if event == "subprocess.Popen":
        # matplotlib asks for the names of fonts, once a computer, and ctypes where a library is.
        libraries = ("/matplotlib/font_manager.py", "/ctypes/util.py")
        return "data_tools.toy_faces" in arguments[1] or any(file.endswith(libraries) for file in files)
    # The workers of toy_faces get their tasks from the process that started them.
    return event == "pickle.find_class" and ("/multiprocessing/" in files[0] or "/concurrent/futures/" in files[0])


@pytest.mark.skipif(backend.NAME != "numpy", reason="CuPy loads libraries and starts compilers")
def test_lessons_call_nobody_start_nothing_else_and_run_no_data(watched, tmp_path):
    events = watched("-c", LESSONS, ROOT / "lessons")
    assert (tmp_path / "runs" / "06_interpolate").is_dir()
    drawn = [arguments for event, arguments, _ in events
             if event == "subprocess.Popen" and "data_tools.toy_faces" in arguments[1]]
    assert len(drawn) == 1, "the faces are drawn once"
    events = [event for event in events if not is_allowed(*event)]
    assert not events, "\n".join(map(str, events))


@pytest.mark.parametrize(("code", "event"), [
    ("import socket; socket.socket().connect_ex(('127.0.0.1', 9))", "socket.connect"),
    ("import socket; socket.getaddrinfo('127.0.0.1', 9)", "socket.getaddrinfo"),
    ("import urllib.request; urllib.request.urlopen('data:,x')", "urllib.Request"),
    ("import os; os.system('')", "os.system"),
    ("import subprocess, sys; subprocess.run([sys.executable, '-c', ''])", "subprocess.Popen"),
    ("import pickle; pickle.loads(pickle.dumps(print))", "pickle.find_class"),
])
def test_the_watch_would_see_it(watched, code, event):
    events = watched("-c", code)
    assert event in [name for name, *_ in events]
    assert not all(is_allowed(*event) for event in events)


# By reading the source.

CALLS = {"eval", "exec", "compile", "__import__", "breakpoint"}
MODULES = {"pickle", "marshal", "shelve", "dill", "joblib", "requests", "httpx", "aiohttp", "urllib", "urllib3", "http",
           "socket", "socketserver", "ssl", "ftplib", "smtplib", "telnetlib", "xmlrpc", "webbrowser", "code", "pty"}
ATTRIBUTES = {"system", "popen", "execv", "execve", "execvp", "execl", "execlp", "spawnv", "spawnl", "posix_spawn",
              "startfile", "fork"}  # of os
KEYWORDS = {"shell", "allow_pickle"}  # which must not be anything but False
SUBPROCESSES = {"lessons/tools/common.py"}  # may start programs


def dangers(source, may_start_programs=False):
    """What in a source could run data as code, or reach the network or a shell: a list of "line: what"."""
    found = []
    modules = MODULES if may_start_programs else MODULES | {"subprocess"}
    for node in ast.walk(ast.parse(source)):
        what = None
        if isinstance(node, ast.Import):
            what = next((alias.name for alias in node.names if alias.name.split(".")[0] in modules), None)
        elif isinstance(node, ast.ImportFrom) and node.module:
            bad = {alias.name for alias in node.names} & ATTRIBUTES if node.module == "os" else set()
            what = node.module if node.module.split(".")[0] in modules else next(iter(bad), None)
        elif isinstance(node, ast.Name) and node.id in CALLS:
            what = node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            what = f"os.{node.attr}" if node.attr in ATTRIBUTES else None
        elif isinstance(node, ast.keyword) and node.arg in KEYWORDS:
            what = None if isinstance(node.value, ast.Constant) and node.value.value is False else node.arg
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "load":
            what = "allow_pickle by position" if len(node.args) > 2 else None
        if what:
            found.append(f"{getattr(node, 'lineno', 0)}: {what}")
    return found


def test_no_source_runs_data_as_code_or_reaches_out():
    found = []
    for path in SOURCES:
        name = path.relative_to(ROOT).as_posix()
        found += [f"{name}:{danger}" for danger in dangers(path.read_text(encoding="utf-8"), name in SUBPROCESSES)]
    assert len(SOURCES) > 25
    assert not found, "\n".join(found)


@pytest.mark.parametrize("source", [
    "eval('1')", "exec('1')", "f = eval", "import pickle", "import urllib.request", "from urllib import request",
    "from pickle import loads", "import os; os.system('ls')", "from os import system", "import subprocess",
    "import marshal as m", "np.load(file, allow_pickle=True)", "np.load(file, allow_pickle=flag)",
    "np.load(file, None, True)", "run('ls', shell=True)", "def f():\n    import socket",
])
def test_a_danger_would_be_found(source):
    assert len(dangers(source)) == 1


def test_what_is_safe_is_not_taken_for_a_danger():
    assert not dangers("np.load(file, mmap_mode='r', allow_pickle=False); model.evaluate(); run(shell=False)")
    assert not dangers("import subprocess", may_start_programs=True)


# How commands end: 0 done, 1 failed, 2 wrong usage.


def no_memory(*args):
    raise MemoryError


def photos(folder):
    """A folder of photographs as CelebA has them, one for each split."""
    (folder / "img_align_celeba").mkdir(parents=True)
    for number in (1, 162_771, 182_638):
        Image.new("RGB", (178, 218)).save(folder / "img_align_celeba" / f"{number:06d}.jpg")


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """What the cases below need, in the current folder."""
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos")
    (tmp_path / "mine.txt").write_text("precious", encoding="utf-8")
    return tmp_path


CASES = {
    "gradcheck": [
        (gradcheck, "--only KL", 0),
        (gradcheck, "--only KL", 1),
        (gradcheck, "--only Nothing", 2),
    ],
    "benchmark": [
        (benchmark, "--batch-size 1 --steps 1", 0),
        (benchmark, "--batch-size 1 --steps 1", 1),
        (benchmark, "--steps 0", 2),
    ],
    "celeba": [
        (celeba, "photos --out new --size 8 --workers 1", 0),
        (celeba, "nowhere --out new", 1),
        (celeba, "photos", 2),
    ],
    "toy_faces": [
        (toy_faces, "--out new --count 10 --size 8 --workers 1", 0),
        (toy_faces, "--out mine.txt --count 10", 1),
        (toy_faces, "--count 10", 2),
    ],
}


@pytest.mark.parametrize(("module", "arguments", "status"), [
    pytest.param(*case, id=f"{name}-{case[-1]}") for name, cases in CASES.items() for case in cases])
def test_a_command_s_status_and_where_it_writes(prepared, monkeypatch, capfd, module, arguments, status):
    if status == 1:
        monkeypatch.setattr(gradcheck, "TOLERANCE", 0)
        monkeypatch.setattr(Workers, "loss_and_gradient", no_memory)
    try:
        ended = module.main(arguments.split())
    except SystemExit as stopped:
        ended = stopped.code
    output, errors = capfd.readouterr()
    assert ended == status, errors
    assert "Traceback" not in output + errors
    assert "error: " not in output
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == (1 if status else 0), errors
    if status == 2:
        assert (output, errors.count("\n")) == ("", 1)
    assert (prepared / "mine.txt").read_text(encoding="utf-8") == "precious"
    assert (prepared / "new").exists() == (status == 0 and module in (celeba, toy_faces))


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faces") / "faces"
    write_dataset(folder)
    return folder


def train(faces, tmp_path, *flags, **environment):
    command = [sys.executable, ROOT / "lessons" / "03_train.py", "--data", faces, "--epochs", "1", "--channels", "4",
               "--latent-dim", "3", "--out", tmp_path / "out", *flags]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120,
                          check=False)


@pytest.mark.parametrize(("flags", "status", "line"), [
    (["--data", "nowhere"], 1, "error: nowhere holds no prepared dataset (no dataset.json); make one with"),
    (["--epochs", "none"], 2, "error: argument --epochs: invalid whole number value: 'none'; see python "),
])
def test_a_failing_lesson_s_status_and_where_it_writes(faces, tmp_path, flags, status, line):
    done = train(faces, tmp_path, *flags)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith(line)
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)


def test_a_traceback_is_for_those_who_ask_for_it(faces, tmp_path):
    plain = train(faces, tmp_path, "--data", "nowhere")
    for value, shown in (("1", 1), ("0", 0)):
        done = train(faces, tmp_path, "--data", "nowhere", VAE_DEBUG=value)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.count("Traceback (most recent call last):") == shown
        assert ('dataset.py", line' in done.stderr) == bool(shown)
        assert done.stderr.endswith(plain.stderr)


def test_a_command_shows_its_traceback_to_those_who_ask_for_it(prepared, monkeypatch, capsys):
    for value, shown in (("1", 1), ("0", 0)):
        monkeypatch.setenv("VAE_DEBUG", value)
        assert celeba.main(["nowhere", "--out", "new"]) == 1
        output, errors = capsys.readouterr()
        assert "Traceback" not in output
        assert errors.count("Traceback (most recent call last):") == shown
        assert errors.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize("value", ["1", "0"])
def test_a_bug_is_one_line_too(prepared, monkeypatch, capsys, value):
    monkeypatch.setenv("VAE_DEBUG", value)
    monkeypatch.setattr(gradcheck, "print_table", lambda checks: 1 / 0)
    assert gradcheck.main(["--only", "KL"]) == 1
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.count("Traceback (most recent call last):") == int(value)
    assert errors.splitlines()[-1] == (
        "error: this is a bug: ZeroDivisionError: division by zero; VAE_DEBUG=1 shows where")
