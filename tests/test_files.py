"""Files from outside end in a value or one line; files of ours are whole."""

import json
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minprune.errors import PruneError
from minprune.files import check_regular, parse_json, read_json, to_json, whole_characters, write_text

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
)


@given(VALUES)
def test_json_comes_back_as_it_was(value):
    assert parse_json(json.dumps(value)) == value


@given(st.text())
def test_every_text_can_be_encoded_afterwards(text):
    whole = whole_characters(text)
    whole.encode()
    assert len(whole) == len(text)
    assert all(new == old or new == "\ufffd" for new, old in zip(whole, text, strict=True))


def test_half_a_surrogate_pair_in_json_is_replaced_and_a_whole_one_kept():
    assert parse_json(r'{"a": ["x\ud83d", "\ud83d\ude00"]}') == {"a": ["x\ufffd", "\U0001f600"]}


@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b"9" * 6000, b"\xff\xfe", b"{", b"", b"[1]"],
    ids=["deep", "digits", "utf", "cut", "empty", "list"],
)
def test_what_is_no_json_object_is_one_line(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(PruneError, match=r"config\.json") as caught:
        read_json(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_pipe_a_device_and_a_folder_are_refused_without_being_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/null")):
        with pytest.raises(PruneError, match="not a regular file"):
            read_json(path)
    check_regular(tmp_path / "missing")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "text"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud83d")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "value, text",
    [
        (np.int64(4), "4"),
        (np.float32(0.5), "0.5"),
        (np.float32("nan"), "null"),
        (np.bool_(True), "true"),
        (np.array(7), "7"),
        (torch.tensor(3), "3"),
        (torch.tensor(0.25), "0.25"),
        (Fraction(1, 4), "0.25"),
        (True, "true"),
        (10**20, str(10**20)),
        ({np.int64(1): np.float16(2)}, '{"1": 2.0}'),
    ],
)
def test_numbers_of_other_libraries_are_numbers_in_json(value, text):
    assert to_json(value) == f"{text}\n"
    assert json.loads(to_json([value])) == [json.loads(text)]
