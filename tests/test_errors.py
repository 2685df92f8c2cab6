"""How values are written in messages, and read from them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import minprune as mp
from minprune.errors import amount, read_amount


@pytest.mark.parametrize("text, value", [("24GB", 24e9), ("1.5 TB", 1.5e12), ("800MB", 8e8), ("2e3kB", 2e6)])
def test_amounts_are_read_in_units_of_a_thousand(text, value):
    assert read_amount(text) == value and read_amount(f"{text}/s", per_second=True) == value


@pytest.mark.parametrize("text", ["24", "GB", "-1GB", "0GB", "nanGB", "infGB", "1_0GB", "24Gb", "", "24GB/s"])
def test_what_is_no_amount_is_refused(text):
    with pytest.raises(mp.PruneError, match="amount"):
        read_amount(text)


@given(st.floats(1e3, 1e14))
def test_what_is_written_is_read_again_to_three_digits(size):
    text = amount(size)
    assert read_amount(text.replace(",", "")) == pytest.approx(size, rel=5e-3)
    digits = text.split()[0].replace(".", "").replace(",", "")
    assert len(digits) == 3


@pytest.mark.parametrize(
    "size, text", [(512, "512 bytes"), (0, "0 bytes"), (3.214e6, "3.21 MB"), (999_600, "1.00 MB"), (1.2e15, "1,200 TB")]
)
def test_amounts_are_written_in_the_unit_that_reads_well(size, text):
    assert amount(size) == text
