"""Label Studio's run lengths of brush masks: bits, not bytes, over the four channels of every pixel.

A header of 53 bits: 32 for the number of values (4 H W), 5 for the bits of a value minus one, four times 4 for the
lengths, minus one, of the fields that a run's length may be written in. Then runs: a bit that says "one value,
repeated", 2 bits that choose the field, the run's length minus one, the value. Zeros fill the last byte.

Source: the published format of label-studio-converter's ``brush`` module; written anew.
"""

from __future__ import annotations

import numpy as np

_VALUE_BITS = 8
_LENGTH_BITS = (3, 4, 8, 16)
_LONGEST = 1 << _LENGTH_BITS[-1]


def encode_brush(mask: np.ndarray) -> list[int]:
    """A mask as Label Studio's ``"rle"``: every pixel is four values, 255 inside and 0 outside.

    Args:
        mask: bool ``[H, W]``, at least one pixel large.

    Returns:
        Bytes, JSON-ready.
    """
    flat = mask.reshape(-1).astype(bool)
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    lengths = 4 * np.diff(starts, append=flat.size)
    values = np.where(flat[starts], 255, 0)
    # Runs that no field can hold are cut into several.
    pieces = -(-lengths // _LONGEST)
    values = values.repeat(pieces)
    last = np.cumsum(pieces) - 1
    cut = np.full(len(values), _LONGEST, dtype=np.int64)
    cut[last] = lengths - (pieces - 1) * _LONGEST
    field = np.searchsorted(1 << np.array(_LENGTH_BITS), cut)
    length_bits = np.array(_LENGTH_BITS)[field]
    runs = (((4 | field) << length_bits) | (cut - 1)) << _VALUE_BITS | values
    header = _bits(np.array([4 * flat.size]), np.array([32]))
    widths = _bits(np.array([_VALUE_BITS - 1]), np.array([5]))
    fields = _bits(np.array(_LENGTH_BITS) - 1, np.full(4, 4))
    bits = np.concatenate([header, widths, fields, _bits(runs, 3 + length_bits + _VALUE_BITS)])
    return np.packbits(bits).tolist()


def _bits(numbers: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """The last ``widths`` bits of each number (below 2^32), one after the other."""
    rows = np.unpackbits(numbers.astype(">u4").view(np.uint8).reshape(-1, 4), axis=1)
    return rows[np.arange(32) >= 32 - widths[:, None]]
