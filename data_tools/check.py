"""See whether a prepared dataset is still as it was written: all files, byte by byte.

    python -m data_tools.check data/celeba64

Opening a dataset compares only sizes and types, since reading all of CelebA takes seconds.
"""

import argparse
import sys

from vae_np.disk.dataset import Dataset
from vae_np.run.command import OneLineParser, run


def check(folder):
    """Print what a dataset holds. Raises DatasetError if a file differs from its checksum."""
    data = Dataset(folder)
    data.check_sums()
    print(f"whole: {data}")


def main(arguments=None):
    """Run the command; return its exit status."""
    parser = OneLineParser(prog="python -m data_tools.check", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="DIR", help="a prepared dataset")
    return run(check, **vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
