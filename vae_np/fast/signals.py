"""Ctrl-C and SIGTERM: a signal raises at once where that harms nothing, and elsewhere at the end of a block.

Elsewhere is: between two changes that belong together, and in most libraries. A KeyboardInterrupt in the midst of
threading, zipfile or tqdm leaves locks behind that nobody releases, comes out as some other error, or is swallowed.
"""

import contextlib
import signal
import threading

STOPS = signal.SIGINT, signal.SIGTERM


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM; number is the signal's, and source says to whom it came, if that is not this process alone."""

    def __init__(self, number, source=""):
        super().__init__()
        self.number, self.source = number, source


def let_go():
    """From now on, Ctrl-C and SIGTERM do what they do in any program."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def handled_by(handler, numbers=STOPS):
    """In this block, these signals call handler(number, frame); on other threads than the main one they cannot."""
    on_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in numbers if on_main}
    try:
        yield
    finally:
        for number, old in before.items():
            if signal.getsignal(number) is handler:  # and not what `let_go` has set
                signal.signal(number, old)


def interruptible():
    """In this block, the first Ctrl-C or SIGTERM raises Interrupted; a second one is the system's."""
    def interrupt(number, frame):
        let_go()
        raise Interrupted(number)

    return handled_by(interrupt)


@contextlib.contextmanager
def uninterrupted():
    """This block is done whole: what Ctrl-C or SIGTERM raises is raised at its end; a second one is not made to wait.

    It is given a list, empty until there is something to raise. Inside of another such block, it is that which raises.
    """
    noted = []

    def note(number, frame):
        try:
            before[number](number, frame)
        except KeyboardInterrupt as stop:
            let_go()
            noted.append(stop)

    before = {number: handler for number in STOPS if callable(handler := signal.getsignal(number))}
    with handled_by(note, before):
        yield noted
    if noted:
        raise noted[0]
