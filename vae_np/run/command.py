"""What all commands share: wrong usage, errors and interruption each end with one line and a status of their own."""

import argparse
import functools
import math
import os
import signal
import sys
import traceback

from vae_np.errors import VAEError


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that reports wrong usage in one line, as all other errors are, with status 2."""

    def error(self, message):
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def whole_number(text, allowed):
    """A whole number in a range."""
    number = int(text)
    if number not in allowed:
        raise argparse.ArgumentTypeError(f"{number} is not between {allowed[0]:,} and {allowed[-1]:,}")
    return number


def number_in(allowed):
    """The argparse type of whole numbers in a range."""
    convert = functools.partial(whole_number, allowed=allowed)
    convert.__name__ = "whole number"  # argparse says "invalid whole number value: 'x'"
    return convert


POSITIVE = number_in(range(1, 1_000_000))


def finite_number(text, holds, words):
    """A finite number for which holds(number) is true; words say when it is."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and holds(number)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number {words}")
    return number


def not_negative(text):
    """The argparse type of finite numbers of 0 or more."""
    return finite_number(text, lambda number: number >= 0, "of 0 or more")


def positive(text):
    """The argparse type of finite numbers above 0."""
    return finite_number(text, lambda number: number > 0, "above 0")


def report(error):
    """Print an error as one line on standard error, after its traceback where VAE_DEBUG=1 asks for it."""
    if os.environ.get("VAE_DEBUG") == "1":
        traceback.print_exception(error)
    if isinstance(error, (VAEError, OSError, MemoryError)):
        print(f"error: {str(error) or type(error).__name__}", file=sys.stderr)
    else:  # not what a user can mend
        print(f"error: this is a bug: {type(error).__name__}: {error}; VAE_DEBUG=1 shows where", file=sys.stderr)


def run(command, **options):
    """Call command(**options); return the exit status: 0 done, 1 failed, 130 or 143 stopped by Ctrl-C or SIGTERM."""
    status = 130

    def stop(number, frame):
        nonlocal status
        status = 143
        raise KeyboardInterrupt  # whatever cleans up after Ctrl-C cleans up after SIGTERM

    before = signal.signal(signal.SIGTERM, stop)
    try:
        command(**options)
    except Exception as error:
        report(error)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing was left unfinished", file=sys.stderr)
        return status
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0
