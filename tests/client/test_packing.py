"""Packed numbers: the bytes are the contract."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider import packing
from outrider.errors import InvalidRequest

seeded = settings(derandomize=True, deadline=None)
i32 = st.lists(st.integers(-(2**31), 2**31 - 1))
f32 = st.lists(st.floats(width=32, allow_nan=False))


@seeded
@given(i32)
def test_integers_are_four_little_endian_bytes_each(values: list[int]) -> None:
    packed = packing.pack_i32(values)
    assert packed == struct.pack(f"<{len(values)}i", *values)
    assert packing.unpack_i32(packed) == values


@seeded
@given(f32)
def test_floats_are_four_little_endian_bytes_each(values: list[float]) -> None:
    packed = packing.pack_f32(values)
    assert packed == struct.pack(f"<{len(values)}f", *values)
    assert packing.unpack_f32(packed) == values


@seeded
@given(i32)
def test_a_machine_of_the_other_byte_order_speaks_the_same_bytes(values: list[int]) -> None:
    # With the flag turned, this machine plays one whose arrays are the other way round.
    ours = packing.pack_i32(values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_IS_LITTLE_ENDIAN", False)
        theirs = packing.pack_i32(values)
        assert packing.unpack_i32(theirs) == values
    assert theirs == struct.pack(f">{len(values)}i", *values)
    assert len(theirs) == len(ours)


@pytest.mark.parametrize("num_bytes", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("unpack", [packing.unpack_i32, packing.unpack_f32])
def test_a_part_of_a_number_is_refused(num_bytes: int, unpack: object) -> None:
    assert callable(unpack)
    with pytest.raises(InvalidRequest, match=f"{num_bytes} bytes"):
        unpack(bytes(num_bytes))


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1])
def test_a_number_that_does_not_fit_is_never_wrapped(value: int) -> None:
    with pytest.raises(OverflowError):
        packing.pack_i32([value])
