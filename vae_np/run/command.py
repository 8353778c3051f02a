"""What all commands share: wrong usage, errors and interruption each end with one line and a status of their own."""

import argparse
import contextlib
import os
import signal
import sys
import threading
import traceback

from vae_np.errors import VAEError


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that reports wrong usage in one line, as all other errors are, with status 2."""

    def error(self, message):
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def number_in(allowed):
    """The argparse type of whole numbers in a range."""
    def whole_number(text):
        number = int(text)
        if number not in allowed:
            raise argparse.ArgumentTypeError(f"{number} is not between {allowed[0]:,} and {allowed[-1]:,}")
        return number

    whole_number.__name__ = "whole number"  # argparse says "invalid whole number value: 'x'"
    return whole_number


POSITIVE = number_in(range(1, 1_000_000))


def report(error):
    """Print an error as one line on standard error, after its traceback where VAE_DEBUG=1 asks for it."""
    if os.environ.get("VAE_DEBUG") == "1":
        traceback.print_exception(error)
    if isinstance(error, (VAEError, OSError, MemoryError)):
        print(f"error: {str(error) or type(error).__name__}", file=sys.stderr)
    else:  # not what a user can mend
        print(f"error: this is a bug: {type(error).__name__}: {error}; VAE_DEBUG=1 shows where", file=sys.stderr)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM; number is the signal's."""

    def __init__(self, number):
        super().__init__()
        self.number = number


def let_go():
    """From now on, Ctrl-C and SIGTERM do what they do in any program."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def handled_by(handler):
    """In this block, Ctrl-C and SIGTERM call handler(number, frame); on other threads than the main one they cannot."""
    on_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if on_main else ()
    before = {number: signal.signal(number, handler) for number in numbers}
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
    """This block is done whole: a Ctrl-C or SIGTERM raises Interrupted at its end; a second one is not made to wait."""
    noted = []

    def note(number, frame):
        let_go()
        noted.append(number)

    with handled_by(note):
        yield
    if noted:
        raise Interrupted(noted[0])


def run(command, **options):
    """Call command(**options); return the exit status: 0 done, 1 failed, 130 or 143 stopped by Ctrl-C or SIGTERM."""
    try:
        with interruptible():
            command(**options)
    except Exception as error:
        report(error)
        return 1
    except KeyboardInterrupt as stop:
        print("interrupted: nothing was left unfinished", file=sys.stderr)
        return 128 + getattr(stop, "number", signal.SIGINT)
    return 0
