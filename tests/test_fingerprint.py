"""Fingerprints of memory: whatever changes shows, and nothing else does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import combinations, product

import numpy as np
import pytest

import rnnfast

BLOCK = 128 << 10  # one thread's piece of an array, in bytes


@pytest.fixture
def fingerprint(native):
    return native.fingerprint


def random_bytes(rng, count):
    return rng.integers(0, 256, count, np.uint8)


def assert_all_differ(fingerprints):
    fingerprints = list(fingerprints)
    assert len(set(fingerprints)) == len(fingerprints)


def with_changes(fingerprint, arrays, array, changes):
    """The fingerprints of `arrays` after each change alone of `array`, one of them.

    changes : pairs of an index and what is XORed to the elements there.
    """
    for at, bits in changes:
        array[at] ^= bits
        yield fingerprint(arrays)
        array[at] ^= bits


class TestChanges:
    """Each of these has another fingerprint than the array before, and than every other."""

    @pytest.mark.parametrize("zeros", [False, True])
    def test_any_bit(self, fingerprint, rng, zeros):
        for size in range(301):
            array = np.zeros(size, np.uint8) if zeros else random_bytes(rng, size)
            bits = ((at, np.uint8(1 << bit)) for at in range(size) for bit in range(8))
            changed = with_changes(fingerprint, (array,), array, bits)
            assert_all_differ([fingerprint((array,)), *changed])

    @pytest.mark.parametrize("size", [BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK + 9])
    def test_any_bit_at_the_borders_of_blocks(self, fingerprint, rng, size):
        array = random_bytes(rng, size)
        near = {border + k for border in range(0, size + 1, BLOCK) for k in (-9, -1, 0, 1, 8)}
        places = sorted({at for at in near if 0 <= at < size} | {size - 1})
        bits = ((at, np.uint8(1 << bit)) for at in places for bit in range(8))
        changed = with_changes(fingerprint, (array,), array, bits)
        assert_all_differ([fingerprint((array,)), *changed])

    def test_any_bit_of_several_arrays(self, fingerprint, rng):
        arrays = tuple(random_bytes(rng, size) for size in (5, 0, 64, 1, 17))
        seen = [fingerprint(arrays)]
        for array in arrays:
            bits = ((at, np.uint8(1 << bit)) for at in range(array.size) for bit in range(8))
            seen += with_changes(fingerprint, arrays, array, bits)
        assert_all_differ(seen)

    @pytest.mark.parametrize("width", [1, 2, 4, 8])
    def test_swaps_of_neighbours(self, fingerprint, rng, width):
        array = rng.permutation(256 * width).astype(f"u{width}")[:256]
        seen = [fingerprint((array,))]
        for i in range(255):
            swapped = array.copy()
            swapped[[i, i + 1]] = array[[i + 1, i]]
            seen.append(fingerprint((swapped,)))
        assert_all_differ(seen)

    def test_swaps_of_any_two_words(self, fingerprint, rng):
        """Vectors of 16 to 64 bytes, in eight chains: lanes, vectors and rows are among them."""
        array = rng.integers(0, 1 << 63, 3 * 64 + 5)
        seen = [fingerprint((array,))]
        for i, j in combinations(range(array.size), 2):
            array[i], array[j] = array[j], array[i]
            seen.append(fingerprint((array,)))
            array[i], array[j] = array[j], array[i]
        assert_all_differ(seen)

    def test_swaps_of_rows(self, fingerprint, rng):
        for width in (2, 4, 8, 16, 32, 64):  # words
            array = rng.integers(0, 1 << 63, (9, width))
            swapped = [array.copy() for _ in range(8)]
            for i, other in enumerate(swapped):
                other[[i, i + 1]] = array[[i + 1, i]]
            assert_all_differ(fingerprint((other,)) for other in (array, *swapped))

    def test_swaps_of_blocks(self, fingerprint, rng):
        blocks = random_bytes(rng, 4 * BLOCK).reshape(4, BLOCK)
        orders = [(0, 1, 2, 3), (1, 0, 2, 3), (0, 2, 1, 3), (3, 1, 2, 0), (1, 2, 3, 0)]
        assert_all_differ(fingerprint((blocks[list(order)],)) for order in orders)

    def test_swaps_of_arrays(self, fingerprint, rng):
        a, b, c = (random_bytes(rng, size) for size in (40, 40, BLOCK))
        orders = [(a, b, c), (b, a, c), (a, c, b), (c, b, a), (b, c, a), (c, a, b)]
        assert_all_differ(fingerprint(order) for order in orders)

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize("content", ["zeros", "ones", "normal"])
    def test_signs(self, fingerprint, rng, content, dtype):
        size = 300
        array = {
            "zeros": np.zeros(size, dtype),
            "ones": np.ones(size, dtype),
            "normal": rng.standard_normal(size).astype(dtype),
        }[content]
        bits = array.view(f"u{array.itemsize}")
        sign = bits.dtype.type(1 << (8 * array.itemsize - 1))
        places = [*range(size), *map(list, combinations(range(size), 2)), slice(None)]
        places += [slice(k, None, step) for step in (2, 4, 64) for k in range(step)]
        changed = with_changes(fingerprint, (array,), bits, ((at, sign) for at in places))
        assert_all_differ([fingerprint((array,)), *changed])

    @pytest.mark.parametrize("content", ["zeros", "normal"])
    def test_signs_of_two_words(self, fingerprint, rng, content):
        """One sign of a word of 64 bits, or both; in no word after it does this cancel out."""
        shape = 2 * 3 * 64  # float32: the words of three rows of the widest vectors
        array = np.zeros(shape, "f4") if content == "zeros" else normal(rng, shape)
        words = array.view("u8")
        upper, lower = 1 << 63, 1 << 31
        seen = [fingerprint((array,))]
        for first, second in product((upper, lower, upper | lower), repeat=2):
            both = np.array([first, second], "u8")
            places = map(list, combinations(range(words.size), 2))
            seen += with_changes(fingerprint, (array,), words, ((at, both) for at in places))
        assert_all_differ(seen)

    def test_appended_zeros(self, fingerprint, rng):
        for array in (np.zeros(0, np.uint8), random_bytes(rng, 3)):
            sizes = [*range(600), *(k * BLOCK + j for k in (1, 2, 3) for j in (-1, 0, 1))]
            padded = (np.append(array, np.zeros(size, np.uint8)) for size in sizes)
            assert_all_differ(fingerprint((p,)) for p in padded)

    def test_splits(self, fingerprint, rng):
        for array in (np.zeros(300, np.uint8), random_bytes(rng, 300)):
            halves = ((array[:k], array[k:]) for k in range(301))
            assert_all_differ([fingerprint((array,)), *map(fingerprint, halves)])

    def test_splits_at_the_borders_of_blocks(self, fingerprint, rng):
        array = random_bytes(rng, 3 * BLOCK)
        borders = [[], [1], [2], [1, 2], [0], [3]]
        splits = (np.split(array, [k * BLOCK for k in own]) for own in borders)
        assert_all_differ(fingerprint(tuple(own)) for own in splits)

    def test_numbers_of_arrays(self, fingerprint):
        empty = np.zeros(0, np.float32)
        assert_all_differ(fingerprint((empty,) * count) for count in range(20))


def normal(rng, shape, dtype="float32"):
    return rng.standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 63, 64, 65, 511, 512, 513, 2000, BLOCK + 77])
def test_only_the_content_counts(fingerprint, rng, size):
    content = random_bytes(rng, size)
    want = fingerprint((content,))
    memory = np.zeros(size + 128, np.uint8)
    for offset in range(65):
        memory[:] = random_bytes(rng, memory.size)
        memory[offset : offset + size] = content
        assert fingerprint((memory[offset : offset + size],)) == want
    content.flags.writeable = False
    assert fingerprint((content,)) == want == fingerprint((content,))


def test_shapes_and_dtypes_do_not_count(fingerprint, rng):
    array = normal(rng, (6, 8))
    want = fingerprint((array,))
    for other in (array.ravel(), array.view("f8"), array.reshape(2, 3, 8), array.view(">u2")):
        assert fingerprint((other,)) == want
    assert fingerprint((array[:1],)) == fingerprint((array[0],))
    assert fingerprint((array[0, :1].reshape(()),)) == fingerprint((array[0, :1],))


@pytest.mark.usefixtures("keep_threads")
@pytest.mark.parametrize("sizes", [(3 << 20,), (5, BLOCK, 2 * BLOCK - 1), (40, 1 << 20, 0, 9999)])
def test_any_number_of_threads(native, rng, sizes):
    arrays = tuple(random_bytes(rng, size) for size in sizes)
    rnnfast.set_num_threads(1)
    want = native.fingerprint(arrays)
    for threads in (2, 3, 5):
        rnnfast.set_num_threads(threads)
        assert {native.fingerprint(arrays) for _ in range(20)} == {want}


@pytest.mark.usefixtures("keep_threads")
def test_calls_at_the_same_time(fingerprint, rng):
    rnnfast.set_num_threads(2)
    arrays = [(random_bytes(rng, size),) for size in (100, BLOCK, 3 * BLOCK, 1 << 20) * 2]
    want = [fingerprint(own) for own in arrays]
    with ThreadPoolExecutor(len(arrays)) as pool:
        for _ in range(20):
            assert list(pool.map(fingerprint, arrays)) == want


class Array(np.ndarray):
    pass


@pytest.mark.parametrize(
    "arrays",
    [
        None,
        np.zeros(3),
        [np.zeros(3)],
        ([1.0, 2.0],),
        (None,),
        (b"bytes",),
        (memoryview(b"bytes"),),
        (np.float32(1),),
        (np.zeros(3), 1),
        (np.zeros(8)[::2],),
        (np.zeros(8)[::-1],),
        (np.zeros((2, 3)).T,),
        (np.zeros((2, 3))[:, :2],),
        (np.broadcast_to(np.zeros(1), 5),),
        (np.zeros(3).view(Array),),
        (np.ma.zeros(3),),
        (np.ndarray,),
    ],
    ids=lambda arrays: type(arrays[0] if isinstance(arrays, tuple) else arrays).__name__,
)
def test_what_is_no_tuple_of_contiguous_arrays(fingerprint, arrays):
    with pytest.raises(TypeError, match=r"^arrays: expected .*, got another object$"):
        fingerprint(arrays)


def test_other_numbers_of_arguments(fingerprint):
    for arguments in ((), ((), ())):
        with pytest.raises(TypeError):
            fingerprint(*arguments)
    with pytest.raises(TypeError):
        fingerprint(arrays=())


def test_it_spreads(fingerprint, rng):
    """Of 10^5 pairs that differ in one bit, none collide, and every bit changes in half of them."""
    pairs, size = 100_000, 104
    content = random_bytes(rng, (pairs, size))
    other = content.copy()
    at = np.arange(pairs), rng.integers(0, size, pairs)
    other[at] ^= np.left_shift(1, rng.integers(0, 8, pairs)).astype(np.uint8)
    seen = np.array([[fingerprint((row,)) for row in rows] for rows in (content, other)], "u8")
    assert np.unique(seen).size == seen.size
    changed = np.unpackbits((seen[0] ^ seen[1]).view(np.uint8).reshape(pairs, 8), axis=1)
    # Six standard deviations of a fair coin, over all pairs.
    assert np.abs(changed.mean(0) - 0.5).max() < 6 * 0.5 / np.sqrt(pairs)
    ones = np.unpackbits(seen.view(np.uint8).reshape(-1, 8), axis=1)
    assert np.abs(ones.mean(0) - 0.5).max() < 6 * 0.5 / np.sqrt(len(ones))
