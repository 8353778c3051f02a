"""The range coder gives back what it was given, in no more bytes than the entropy, rounded up."""

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_np.errors import InputError
from vae_np.study.range_coder import COIN, Decoder, Encoder

ALPHABET = (0, 1, 3, 8)


def encode(message):
    """Bytes of a message, a list of (symbol, cumulative)."""
    coder = Encoder()
    for symbol, cumulative in message:
        coder.put(symbol, cumulative)
    return coder.finish()


def bits(message):
    return sum(math.log2(cumulative[-1] / (cumulative[symbol + 1] - cumulative[symbol]))
               for symbol, cumulative in message)


@st.composite
def messages(draw):
    """Symbols of random alphabets, some with frequency 0, some as skew as they come; only symbols that can be coded."""
    message = []
    for _ in range(draw(st.integers(0, 40))):
        frequencies = draw(st.lists(st.sampled_from((0, 1, 1, 2, 7, 1000, 10**9)), min_size=1, max_size=6))
        frequencies[draw(st.integers(0, len(frequencies) - 1))] += 1
        cumulative = (0, *itertools.accumulate(frequencies))
        message.append((draw(st.sampled_from([s for s, count in enumerate(frequencies) if count])), cumulative))
    return message


@pytest.mark.parametrize("examples", [50, pytest.param(300, marks=pytest.mark.slow)])
def test_any_message_comes_back_in_as_many_bytes_as_its_entropy_needs(examples):
    @settings(max_examples=examples, derandomize=True, database=None, deadline=None)
    @given(messages())
    def check(message):
        content = encode(message)
        decoder = Decoder(content)
        assert [decoder.get(cumulative) for _, cumulative in message] == [symbol for symbol, _ in message]
        assert len(content) <= math.ceil(bits(message) / 8 + 1e-9)

    check()


def test_every_short_message_is_in_its_interval():
    """Against fractions: the bytes as a number lie in the interval that the definition gives, no shorter ones do, and
    the intervals of all messages of a length fill [0, 1) without overlap."""
    cumulative, end = ALPHABET, Fraction(0)
    for message in itertools.product(range(3), repeat=4):
        low, width = Fraction(0), Fraction(1)
        for symbol in message:
            low += width * Fraction(cumulative[symbol], cumulative[-1])
            width *= Fraction(cumulative[symbol + 1] - cumulative[symbol], cumulative[-1])
        assert low == end
        end = low + width
        content = encode([(symbol, cumulative) for symbol in message])
        count = len(content)
        assert low <= Fraction(int.from_bytes(content, "big"), 256**count) < end
        if count:
            shorter = 256 ** (count - 1)
            assert not low <= Fraction(math.ceil(low * shorter), shorter) < end
    assert end == 1


@pytest.mark.parametrize("numbers", [[1], [2, 3], list(range(1, 70)), [2**31, 1, 2**31 - 1, 10**30]])
def test_whole_numbers_come_back_in_the_bits_of_elias(numbers):
    coder = Encoder()
    for number in numbers:
        coder.put_integer(number)
    assert coder.whole == 2 ** sum(2 * math.floor(math.log2(number)) + 1 for number in numbers)
    decoder = Decoder(coder.finish())
    assert [decoder.get_integer() for _ in numbers] == numbers


def test_a_symbol_of_frequency_0_is_refused():
    for symbol in (0, 2):
        with pytest.raises(InputError, match=f"symbol {symbol} has frequency 0"):
            encode([(1, (0, 0, 3, 3)), (symbol, (0, 0, 3, 3))])


@pytest.mark.parametrize("content", [b"", b"\0", b"\xff" * 50, bytes(range(256))])
def test_decoding_anything_ends(content):
    decoder = Decoder(content)
    for cumulative in (ALPHABET, (0, 5), (0, 999_999, 1_000_000), COIN):
        assert 0 <= decoder.get(cumulative) < len(cumulative) - 1
        assert decoder.get_integer() >= 1
