"""Lesson 12, and its page in a real browser: it draws what the model draws, and all that can be pressed works."""

import base64
import itertools
import json
import re
import zlib

from tools.common import PRETRAINED

import numpy as np
import pytest
from browser import Page, find_browser
from conftest import write_dataset
from PIL import Image
from test_lessons import LESSONS, SMALL, here, pictures_in, succeed

from tools.explorer import TEMPLATE, Numbers, described, described_prior, write_page
from vae_np.backend import to_cpu, to_device
from vae_np.run.checkpoint import load, load_model
from vae_np.study.flow import RIGHT_ANGLE, heun
from vae_np.study.pictures import to_uint8
from vae_np.study.priors import prior_kind
from vae_np.vae import VAE

assert here  # a fixture
READY = LESSONS / "explorer" / "explorer.html"
in_browser = pytest.mark.skipif(not find_browser(), reason="needs Chromium, on a system with pipes")
DATA = re.compile(r'(?<=id="settings">).*?(?=</script>)|(?<=">)[\w+/]{1000}[\w+/=]*(?=</script>)', re.DOTALL)
CONTROLS = "[...document.querySelectorAll('button, input, canvas, summary, img')]"


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A folder with a small dataset, a model of it, and its page, with faces of the dataset."""
    folder = tmp_path_factory.mktemp("room")
    write_dataset(folder / "faces", train=80, validation=4, test=12)
    succeed("03_train.py", "--data", "faces", *SMALL, "--prior", "flow", cwd=folder)
    output = succeed("12_explore.py", "--data", "faces", cwd=folder)
    (folder / "output.txt").write_text(output, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """An empty page."""
    with Page(tmp_path_factory.mktemp("profile")) as page:
        yield page


def made_for(room, name):
    """A page and the model that it is of: the small one, or the one that comes with the lessons."""
    path, checkpoint = {"small": (room / "runs/12_explore/explorer.html", room / "runs/03_train/checkpoint.npz"),
                        "ready": (READY, PRETRAINED)}[name]
    return path, load_model(checkpoint)[0]


def canvas(page):
    """The picture on the canvas, once it is drawn: uint8 (S, S, 3)."""
    page.run("new Promise(resolve => requestAnimationFrame(() => requestAnimationFrame(resolve)))")
    size, text = page.run("(() => { const {data, width} = find('face').getContext('2d').getImageData(0, 0, "
                          "find('face').width, find('face').height); return [width, data.join()]; })()")
    return np.array(text.split(","), dtype=np.uint8).reshape(size, size, 4)[..., :3]


def opened(page, path):
    """The page, with another file in it."""
    page.open(path)
    assert page.run("find('problem').hidden && !find('page').hidden"), page.run("find('problem').textContent")
    return page


@in_browser
@pytest.mark.parametrize("name", ["small", "ready"])
def test_the_page_draws_what_the_model_draws(room, page, name, rng):
    path, model = made_for(room, name)
    opened(page, path)
    codes = (1.5 * rng.standard_normal((20, model.latent_dim))).astype(np.float32)
    for code, face in zip(codes, to_uint8(model.decode(codes)), strict=True):
        page.run(f"show(Float32Array.from({code.tolist()}), 'a face')")
        assert np.abs(canvas(page).astype(int) - face).max() <= 2
    assert not page.problems


@in_browser
@pytest.mark.parametrize("name", ["small", "ready"])
def test_every_slider_moves_the_face_and_its_button_sets_it_back(room, page, name):
    opened(page, made_for(room, name)[0])
    before = canvas(page)
    count = page.run("sliders.length")
    assert count == {"small": 5 + 2, "ready": 10 + 32}[name]
    for k in range(count):
        page.run(f"sliders[{k}].input.value = 1.5; sliders[{k}].input.dispatchEvent(new Event('input'))")
        assert (canvas(page) != before).any(), k
        assert page.run(f"sliders[{k}].output.textContent") == "1.5"
        page.run(f"sliders[{k}].input.parentElement.querySelector('button').click()")
        assert (canvas(page) == before).all(), k
    for k in (0, count - 1):
        page.run(f"sliders[{k}].input.value = -1; sliders[{k}].input.dispatchEvent(new Event('input'))")
    assert (canvas(page) != before).any()
    page.run("find('back').click()")
    assert (canvas(page) == before).all()
    assert not page.problems


@in_browser
def test_faces_come_and_the_last_ten_can_be_had_again(room, page):
    opened(page, made_for(room, "small")[0])
    seen = [canvas(page)]
    for number in range(1, 13):
        page.run(f"find('{'new' if number % 2 else 'standard'}').click()")
        seen.append(canvas(page))
        prior = "the flow" if number % 2 else "N(0, I)"
        assert page.run("find('status').textContent") == f"Face {number} from {prior}."
    assert all((face != other).any() for face, other in itertools.pairwise(seen))
    assert page.run("find('strip').children.length") == 10
    page.run("find('strip').children[9].click(); sliders[0].input.value = 1; sliders[0].input.oninput()")
    assert (canvas(page) != seen[2]).any()
    page.run("find('strip').children[9].click()")
    assert page.run("sliders[0].input.value") == "0", "another face starts as it is"
    assert (canvas(page) == seen[3]).all()
    page.run("find('strip').children[0].click()")
    assert (canvas(page) != seen[2]).any(), "and the one that was left is kept as it was left"
    for k in range(page.run("find('held-out').children.length")):
        page.run(f"find('held-out').children[{k}].click()")
        count = page.run("find('strip').children[0].title")
        page.run(f"find('held-out').children[{k}].click()")
        assert page.run("find('strip').children[0].title") == count, "the same face again"
        assert page.run("find('status').textContent") == f"The code of held-out face {k + 1}."
    assert k == 7 and not page.problems


@in_browser
def test_ways_between_faces_are_those_of_lesson_6(room, page, rng):
    path, model = made_for(room, "small")
    opened(page, path)
    a, b = rng.standard_normal((2, model.latent_dim)).astype(np.float32)
    for name, code in (("first", a), ("second", b)):
        page.run(f"show(Float32Array.from({code.tolist()}), '{name}'); find('{name}').click()")
    angle = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    ways = {"linear": 0.7 * a + 0.3 * b,
            "spherical": (np.sin(0.7 * angle) * a + np.sin(0.3 * angle) * b) / np.sin(angle)}
    strip = page.run("find('strip').children.length")
    page.run("find('way').value = 0.3; document.querySelector('[value=linear]').onchange()")
    np.testing.assert_allclose(page.run("Array.from(code())"), b, rtol=1e-4, atol=1e-5)  # it is not on the way
    for kind, code in ways.items():
        page.run(f"document.querySelector('[value={kind}]').checked = true; find('way').oninput()")
        np.testing.assert_allclose(page.run("Array.from(code())"), code, rtol=1e-4, atol=1e-5)
    assert page.run("find('strip').children.length") == strip + 1, "not one face for each place on the way"
    page.run("sliders[0].input.value = 1; find('way').oninput()")
    assert page.run("[find('strip').children.length, sliders[0].input.value]") == [strip + 2, "0"], "what was moved"
    assert page.run("Array.from(ways.spherical([1, 0], [2, 0], 0.5))") == [1.5, 0], "no way turns where nothing does"
    assert not page.problems


@in_browser
@pytest.mark.parametrize("name", ["gaussian", "mixture", "flow"])
def test_the_page_draws_codes_as_each_prior_does(tmp_path, page, name, rng):
    mu = rng.standard_normal((40, 5)).astype(np.float32) @ rng.standard_normal((5, 5)).astype(np.float32)
    model, numbers = VAE(16, (4,), 5), Numbers()
    prior = prior_kind(name).fit(mu, np.full((40, 5), -2, np.float32), rng)
    if name == "flow":  # one of large velocities, as the page will have it
        prior.velocity.values[...] = (8 * prior.velocity.values).astype(np.float16)
    tiny = np.array([6e-8, -3e-6, 6.2e-5, 0, -1], np.float16)
    decoder = [[described(layer, numbers) for layer in path.layers] for path in model.decoder.paths]
    write_page(tmp_path / "page.html", {"about": "", "notice": "", "latents": 5, "decoder": decoder,
                                        "prior": described_prior(prior, numbers), "axes": [], "attributes": [],
                                        "faces": [], "tiny": numbers.add(tiny)}, numbers)
    opened(page, tmp_path / "page.html")
    assert page.run("Array.from(settings.tiny)") == tiny.tolist()
    eps, chance = rng.standard_normal(5).astype(np.float32), 0.3
    code = page.run(f"Array.from(codeOf(Float32Array.from({eps.tolist()}), settings.prior, {chance}))")
    if name == "gaussian":
        expected = prior.colour(eps)
    elif name == "mixture":
        expected = prior.components[int(np.searchsorted(np.cumsum(prior.weights), chance))].colour(eps)
    else:
        velocity, start = prior.velocity.forward, to_device(eps[None])
        carried, euler = (to_cpu(heun(velocity, start, 0.0, RIGHT_ANGLE, steps))[0] for steps in (50, 25))
        assert np.abs(carried - euler).max() > 2e-3, "where fewer steps end elsewhere"
        expected = prior.gaussian.colour(carried)
    np.testing.assert_allclose(code, expected, rtol=2e-3, atol=2e-3)
    noise = np.array(page.run("Array.from(noise(20000))"))
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05 and 0.02 < np.mean(np.abs(noise) > 2) < 0.07
    assert not page.problems


@in_browser
def test_keys_a_finger_and_screen_readers(room, page):
    opened(page, made_for(room, "small")[0])
    page.run("sliders[0].input.focus()")
    for _ in range(3):
        page.press("ArrowRight")
    assert page.run("Number(sliders[0].input.value)") == pytest.approx(0.15)
    page.press("0")
    assert page.run("Number(sliders[0].input.value)") == 0
    page.press("n")
    assert page.run("find('status').textContent") == "Face 1 from the flow."
    page.press("l")
    look = page.run("getComputedStyle(document.body).backgroundColor")
    page.press("L")
    assert page.run("getComputedStyle(document.body).backgroundColor") != look
    page.resize(375, 800, touch=True)
    assert page.run("document.documentElement.scrollWidth") == 375
    x, y = page.run("(({left, top}) => [left + 50, top + 90])(find('face').getBoundingClientRect())")
    for kind, dx, dy in (("touchStart", 0, 0), ("touchMove", 40, -20)):
        page.call("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x + dx, "y": y + dy}])
    page.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    right, up = page.run("sliders.slice(0, 2).map(slider => Number(slider.input.value))")
    assert right == pytest.approx(2 * up, abs=0.1) and up > 0.3
    page.resize(1280, 900)
    page.call("Accessibility.enable")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    named = [(node["role"]["value"], node.get("name", {}).get("value")) for node in nodes if not node["ignored"]]
    controls = [name for role, name in named if role in ("button", "slider", "radio", "image")]
    assert len(controls) > 20 and all(controls), named
    assert page.run("find('face').getAttribute('aria-label')") == "Face 1 from the flow"
    assert not page.problems


@in_browser
@pytest.mark.parametrize("name", ["small", "ready"])
def test_layers_are_shown_and_nothing_is_fetched(room, page, tmp_path, name):
    path, model = made_for(room, name)
    opened(page, path)
    page.run("find('inside').open = true; find('way').focus()")
    canvas(page)
    captions = page.run("[...document.querySelectorAll('figcaption')].map(each => each.textContent)")
    channels = model.settings["channels"][::-1]
    side = model.image_size // 2 ** len(channels)
    assert captions == [*(f"{count} maps of {side * 2**k} x {side * 2**k}" for k, count in enumerate(channels)),
                        "the convolutions alone", "the one layer alone", "the sum of both"]
    drawn = "[...document.querySelectorAll('figure canvas')].map(each => each.toDataURL())"
    before = page.run(drawn)
    page.run("find('new').click()")
    canvas(page)
    assert all(one != other for one, other in zip(before, page.run(drawn), strict=True))
    whole, sums = page.run("(() => { const made = decode(code()); return [made.logits.values.join(), "
                           "made.paths.map(path => path.at(-1).values.join())]; })()")
    parts = [np.array(part.split(","), float) for part in sums]
    np.testing.assert_allclose(sum(parts), np.array(whole.split(","), float), atol=1e-4)
    fetched = page.run("performance.getEntriesByType('resource').map(each => each.name)")
    assert all(name.startswith("data:") for name in fetched)
    page.screenshot(tmp_path / "page.png", whole=True)
    assert pictures_in(tmp_path) == {"page.png"}
    assert not page.problems


@in_browser
def test_damage_is_said_and_nothing_else(room, page, tmp_path):
    whole = (room / "runs/12_explore/explorer.html").read_text(encoding="utf-8")
    settings, weights = DATA.finditer(whole)
    at = weights.start() + 1000
    number = whole.index('"slope": 0.2') + 9
    damages = [whole[:at] + ("A" if whole[at] != "A" else "B") + whole[at + 1 :], whole[:at] + "*" + whole[at + 1 :],
               whole[:number] + "0.3" + whole[number + 3 :], whole[: settings.start()] + whole[settings.end() :],
               whole[: weights.start()] + whole[weights.end() :]]
    for text in damages:
        (tmp_path / "page.html").write_text(text, encoding="utf-8")
        page.open(tmp_path / "page.html")
        line = page.run("find('problem').textContent")
        assert line.startswith("This file is damaged or incomplete (its checksum is another); fetch it anew")
        assert page.run("find('page').hidden && !find('problem').hidden && document.body.innerText.trim()") == line
    for end in (weights.start() - 5, at, whole.index("function product")):
        (tmp_path / "page.html").write_text(whole[:end], encoding="utf-8")  # of a download that was broken off
        page.open(tmp_path / "page.html")
        line = "Loading. If this line stays, the file is incomplete: fetch it anew."
        assert page.run("document.body.innerText.trim()") == line
    assert not page.problems or all("SyntaxError" in repr(problem) for problem in page.problems)
    page.problems.clear()


# Without a browser.


def test_the_lesson_says_what_it_writes_and_names_where_its_pictures_come_from(room, tmp_path, here):
    out = room / "runs/12_explore"
    assert {path.name for path in out.iterdir()} == {"explorer.html", "weights.npz", "directions.png"}
    output = (room / "output.txt").read_text(encoding="utf-8")
    float32, float16 = (float(quality) for quality in re.findall(r"float\d\d .* ([\d.]+) dB", output))
    assert abs(float32 - float16) < 0.01
    settings, _ = DATA.findall((out / "explorer.html").read_text(encoding="utf-8"))
    said = json.loads(settings)
    assert len(said["faces"]) == 8 and "learned from ramps" in said["notice"] and "do not pass it on" in said["notice"]
    status, output, errors = here(f"12_explore.py --out {tmp_path}", room)
    assert status == 0, errors
    settings, _ = DATA.findall((tmp_path / "explorer.html").read_text(encoding="utf-8"))
    assert json.loads(settings)["faces"] == [], "photographs only where --data asks for them"
    status, output, errors = here("12_explore.py --checkpoint runs/12_explore/weights.npz --data faces", room)
    assert status == 0 and f"{room}" not in (out / "explorer.html").read_text(encoding="utf-8"), errors


def test_numbers_that_float16_cannot_hold_are_refused():
    with pytest.raises(Exception, match="65,504"):
        Numbers().add(np.array([1e5]))


def test_the_ready_page_is_the_template_with_the_weights_that_are_here(rng):
    text = READY.read_text(encoding="utf-8")
    settings, weights = DATA.findall(text)
    filled = TEMPLATE.read_text(encoding="utf-8").replace("@SETTINGS@", settings).replace("@WEIGHTS@", weights)
    filled = filled.replace("@CHECKSUM@", str(zlib.adler32((settings + weights).encode())))
    assert filled == text, "make it anew: python lessons/12_explore.py --pretrained, and copy the page"
    numbers, model = Numbers(), load_model(PRETRAINED)[0]
    for path in model.decoder.paths:
        for layer in path.layers:
            described(layer, numbers)
    assert base64.b64decode(weights).startswith(numbers.bytes())
    assert json.loads(settings)["notice"] == "" and json.loads(settings)["prior"]["name"] == "the flow"
    decoder = text.split('<script id="decoder">')[1].split("</script>")[0]
    assert decoder.count("\n") <= 200
    assert "http" not in text.replace(weights, "")


def test_the_weights_that_come_with_the_lessons(rng):
    assert PRETRAINED.stat().st_size <= 6e6
    arrays, info = load(PRETRAINED)
    assert info["data"]["source"] == "toy faces", "CelebA's may not be passed on"
    assert "/" not in info["data"]["folder"]
    assert arrays["values"].dtype == np.float16 and "m" not in arrays
    model, *_ = load_model(PRETRAINED)
    assert VAE().settings == model.settings and model.prior.name == "flow"
    card = PRETRAINED.with_suffix(".md").read_text(encoding="utf-8")
    assert f"{info['training']['epochs']} epochs" in card and f"seed {info['training']['seed']}" in card


@pytest.mark.slow
def test_lessons_that_look_at_a_model_look_at_the_one_that_is_here(tmp_path):
    write_dataset(tmp_path / "data/toy64", size=64)  # where toy faces would be drawn to
    before = {path.name: path.read_bytes() for path in PRETRAINED.parent.iterdir()}
    for lesson in ("04_reconstruct", "09_compress", "12_explore"):  # all open it alike, and these write beside it
        output = succeed(f"{lesson}.py", "--pretrained", cwd=tmp_path)
        assert "VAE(image_size=64, channels=(24, 48, 96, 192), latent_dim=160)" in output
        assert "Note: this model has learned from other faces, and more" in output and "trained on" not in output
    Image.new("RGB", (64, 64), "gray").save(tmp_path / "a.png")
    for command in ("encode a.png a.vaez", "decode a.vaez b.png"):
        succeed("09_compress.py", *command.split(), "--pretrained", cwd=tmp_path)
    assert (tmp_path / "b.png").is_file() and (tmp_path / "runs/09_compress/codec.npz").is_file()
    assert before == {path.name: path.read_bytes() for path in PRETRAINED.parent.iterdir()}, "it stays as it is"
