"""What all commands share: wrong usage, errors and interruption each end with one line and a status of their own."""

import argparse
import io
import os
import signal
import sys
import traceback

from vae_np import backend
from vae_np.errors import VAEError
from vae_np.fast.cores import MAX_THREADS
from vae_np.fast.signals import interruptible


def expanded(argument):
    """An argument with ~ as the home folder, which shells leave alone in --out=~/faces, and some everywhere."""
    option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return option + equals + os.path.expanduser(value)


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that reports wrong usage in one line, as all other errors are, with status 2."""

    def parse_known_args(self, args=None, namespace=None):
        """What every command begins with. From now on, it prints \\x.. for what the console's encoding lacks."""
        if isinstance(sys.stdout, io.TextIOWrapper):  # and not a notebook's
            sys.stdout.reconfigure(errors="backslashreplace")
        return super().parse_known_args([*map(expanded, sys.argv[1:] if args is None else args)], namespace)

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


def threads(text):
    """The argparse type of --threads."""
    number = number_in(range(1, MAX_THREADS + 1))(text)
    if number > 1 and backend.NAME != "numpy":
        raise argparse.ArgumentTypeError(f"VAE_BACKEND={backend.NAME} takes one thread, not {number}")
    return number


threads.__name__ = "whole number"  # as argparse names what is none


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
