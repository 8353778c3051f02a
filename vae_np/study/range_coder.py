"""A range coder: symbols become bytes, as many as their probabilities ask for, with integers alone.

A message is an interval of [0, 1). Start with all of it. Every symbol of the alphabet owns a part of the interval in
proportion to its frequency; the part of the symbol that comes is the new interval, and so on: after the symbols
s_1 .. s_n its length is p(s_1) ... p(s_n) = 2^-bits, with bits = the sum of log2 1/p. Any number in the interval says
which message it was. n bytes say the numbers k / 256^n, which are 256^-n apart, so that one is inside as soon as
256^-n <= 2^-bits: ceil(bits / 8) bytes always do, which is the entropy, rounded up to a whole byte.

Here the interval is exact: [low, low + width) / whole in whole numbers, which Python lets grow: simple, and equal on
every machine, but the time grows with the square of the message. Coders for long ones keep the leading digits of low
and width, and write those that can no longer change (Pasco 1976; Rissanen 1976; as a "range encoder": Martin 1979).

Of the cumulative frequencies of an alphabet, [0, f_0, f_0 + f_1, ..., total], symbol s owns the part from
cumulative[s] to cumulative[s + 1].
"""

import itertools
from bisect import bisect_right

from vae_np.errors import InputError

COIN = (0, 1, 2)  # cumulative frequencies of a bit, 0 or 1, at one bit each


class Encoder:
    """Put symbols, each by the frequencies of its own alphabet, then `finish`."""

    def __init__(self):
        self.low, self.width, self.whole = 0, 1, 1  # the interval [low, low + width) / whole

    def put(self, symbol, cumulative):
        """Narrow the interval to a symbol's part. Raises InputError for a symbol of frequency 0, which has none."""
        start, stop = cumulative[symbol], cumulative[symbol + 1]
        if stop <= start:
            raise InputError(f"symbol {symbol} has frequency 0 and cannot be coded")
        self.low = self.low * cumulative[-1] + self.width * start
        self.width *= stop - start
        self.whole *= cumulative[-1]

    def put_integer(self, number):
        """Put a whole number of 1 or more in 2 floor(log2(number)) + 1 bits, its gamma code (Elias 1975)."""
        digits = number.bit_length() - 1  # after the leading 1: how many they are, in unary, then they themselves
        for bit in [1] * digits + [0] + [number >> place & 1 for place in range(digits - 1, -1, -1)]:
            self.put(bit, COIN)

    def finish(self):
        """The fewest bytes that name a number in the interval."""
        for count in itertools.count():
            number = -(-(self.low << 8 * count) // self.whole)  # the first at or above low, so rounded up
            if number * self.whole < (self.low + self.width) << 8 * count:
                return number.to_bytes(count, "big")


class Decoder:
    """Get the symbols back, in their order, by the same frequencies. Any bytes decode to something."""

    def __init__(self, content):
        # The number is at value / whole of the interval so far.
        self.value, self.whole = int.from_bytes(content, "big"), 1 << 8 * len(content)

    def get(self, cumulative):
        """The symbol in whose part the number lies."""
        self.value *= cumulative[-1]
        symbol = bisect_right(cumulative, self.value // self.whole) - 1
        self.value -= self.whole * cumulative[symbol]
        self.whole *= cumulative[symbol + 1] - cumulative[symbol]
        return symbol

    def get_integer(self):
        """What put_integer put. It ends for any bytes: each bit 1 doubles the way from the number to 1."""
        digits, number = 0, 1
        while self.get(COIN):
            digits += 1
        for _ in range(digits):
            number = 2 * number + self.get(COIN)
        return number
