"""Break it: each planted bug is caught by the check that is meant for it, and without it all checks pass."""

import contextlib
import re
import sys

import pytest

from tools import bugs
from vae_np import backend
from vae_np.run.gradient_table import all_checks, results_of


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """Bugs are planted into the core's own classes."""
    monkeypatch.setattr(backend, "FASTER", {})


def checks():
    """All of them, made anew: some hold a likelihood, which must be the core's own."""
    return all_checks() | bugs.SECOND_OPINIONS


def failures(names):
    return {name for name in names if not all(result.passed for result in results_of({name: checks()[name]}))}


def test_without_a_bug_all_checks_pass():
    assert failures(checks()) == set()


@pytest.mark.parametrize("name", bugs.BUGS)
def test_a_planted_bug_is_caught_by_the_check_that_is_meant_for_it_and_leaves_no_trace(name):
    bug = bugs.BUGS[name]
    with bugs.planted(bug):
        assert failures([bug.caught_by]) == {bug.caught_by}
    assert failures([bug.caught_by]) == set()


UNSEEN = ["log-var-as-log-std", "kl-averaged", "kernel-flipped", "adam-uncorrected", "float64-noise"]
# One by one; or together where all checks take long, but for the last, which replaces the same function as the first.
GROUPS = [UNSEEN[:-1], UNSEEN[-1:]] if backend.NAME == "cupy" else [[name] for name in UNSEEN]


@pytest.mark.parametrize("names", GROUPS, ids=" ".join)
def test_finite_differences_do_not_see_what_forward_and_backward_share(names):
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(bugs.planted(bugs.BUGS[name]))
        assert failures(all_checks()) == set()


def test_the_lines_of_other_gradients_stay_right():
    # What a check says about the place of a bug must be true, or it sends the reader to the wrong file.
    with bugs.planted(bugs.BUGS["bias-averaged"]):
        wrong = {result.part.rstrip("'") for result in results_of(checks()) if not result.passed}
    whole = {"encoder", "decoder", "parameters"}
    assert wrong == {"bias", *whole}, "sum_rows, where the bug is planted, is for biases alone"
    with bugs.planted(bugs.BUGS["gradient-twice"]):
        wrong = {result.part for result in results_of(checks()) if not result.passed}
    assert wrong == {"encoder"}


def test_the_bugs_are_the_twelve_that_the_lesson_speaks_of():
    assert len(bugs.BUGS) == 12
    for name, bug in bugs.BUGS.items():
        assert bug.name == name
        assert len(bug.__doc__.splitlines()) in (3, 4)
        assert bug.functions


def test_planting_replaces_a_function_wherever_it_was_imported_and_puts_it_back():
    def places():
        return {key: module.kl_divergence for key, module in sys.modules.items()
                if key.startswith("vae_np.") and hasattr(module, "kl_divergence")}

    before = places()
    assert {"vae_np.losses", "vae_np.vae", "vae_np.run.gradient_table"} <= before.keys()
    with bugs.planted(bugs.BUGS["kl-averaged"]):
        assert not set(before.values()) & set(places().values())
    assert places() == before
    with pytest.raises(RuntimeError), bugs.planted(bugs.BUGS["kl-averaged"]):
        raise RuntimeError
    assert places() == before


def test_the_demonstration_shows_the_code_and_the_errors(capsys, monkeypatch):
    if backend.NAME == "cupy":  # where all checks, before and after, take long
        few = {name: all_checks()[name] for name in ("Dense", "LeakyReLU")}
        monkeypatch.setattr(bugs, "all_checks", lambda: few)
    bugs.demonstrate(bugs.BUGS["slope-forgotten"])
    output = capsys.readouterr().out
    assert "slope-forgotten, planted in LeakyReLU.backward" in output
    assert "return dy * (self.y > 0)" in output
    line = next(line for line in output.splitlines() if line.startswith("LeakyReLU(0.2)"))
    before, after = map(float, line.split()[-2:])
    assert before < 1e-6 < 1e-2 < after
    assert re.search(r"^\d+ of \d+ checks catch it\. ", output, re.MULTILINE)
