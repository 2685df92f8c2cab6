"""documents.py: every kind of file with the same rows is the same text, and what is not as it should be is named."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
from contextlib import suppress

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import minprune as mp
from minprune.data import documents as module
from minprune.data.documents import documents

DOCUMENTS = [
    "1 2 3\n4",
    'a "quoted"\u2028line, and\tmore',
    "naïve 東京 🌍",
    "the moon goes " * 12_000,
    "{not json}",
    "rivers carry water ",
]
ROWS = [{"url": f"https://example.org/{number}", "text": text} for number, text in enumerate(DOCUMENTS)]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def separated(rows):
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def parquet(rows):
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    return out.getvalue()


def arrow(rows, new):
    table, out = pyarrow.Table.from_pylist(rows), io.BytesIO()
    with new(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return out.getvalue()


KINDS = {  # name -> the content of a file with these rows
    "a.jsonl": lines,
    "a.ndjson": lines,
    "c4-validation.json": lines,
    "array.json": lambda rows: json.dumps(rows, indent=1).encode(),
    "one-line.json": lambda rows: json.dumps(rows, ensure_ascii=False).encode(),
    "wrapped.json": lambda rows: json.dumps({"version": 1, "data": rows}).encode(),
    "columns.json": lambda rows: json.dumps({key: [row[key] for row in rows] for key in rows[0]}).encode(),
    "bom.jsonl": lambda rows: b"\xef\xbb\xbf" + lines(rows),
    "a.csv": lambda rows: separated(rows),
    "a.parquet": parquet,
    "stream.arrow": lambda rows: arrow(rows, pyarrow.ipc.new_stream),
    "file.arrow": lambda rows: arrow(rows, pyarrow.ipc.new_file),
}
PACKED = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pyarrow.compress(content, codec="zstd", asbytes=True),
}


@pytest.fixture(scope="module")
def tokenizer(tiny_folder):
    return mp.load_model(tiny_folder)[1]


@pytest.fixture(scope="module")
def expected(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("prose") / "a.txt"
    path.write_text("\n\n".join(DOCUMENTS), encoding="utf-8")
    return mp.load_text(path), mp.load_tokens(tokenizer, path, samples=40, length=32, seed=0)


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("kind", [*KINDS, "a.txt", "a.md", "A"])
def test_the_same_rows_give_the_same_windows_in_every_kind_of_file(tokenizer, expected, tmp_path, kind, packed):
    content = KINDS[kind](ROWS) if kind in KINDS else expected[0].encode()
    for name in (kind + packed, (kind + packed).upper()):
        (tmp_path / name).write_bytes(PACKED[packed](content))
        assert mp.load_text(tmp_path / name) == expected[0]
        assert torch.equal(mp.load_tokens(tokenizer, tmp_path / name, samples=40, length=32, seed=0), expected[1])


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=5), st.sampled_from(sorted(KINDS)), st.sampled_from(["text", "content"]))
def test_any_documents_come_out_as_they_went_in(tmp_path_factory, texts, kind, field):
    path = tmp_path_factory.mktemp("any") / kind
    path.write_bytes(KINDS[kind]([{"id": "7", field: text} for text in texts]))
    assert documents(path, "train") == texts


def test_folders_that_datasets_has_saved_are_read_with_their_splits(expected, tmp_path):
    rows = datasets.Dataset.from_list(ROWS)
    rows.save_to_disk(tmp_path / "one", num_shards=3)
    datasets.DatasetDict({"train": rows.select([0]), "dev": rows}).save_to_disk(tmp_path / "several")
    assert mp.load_text(tmp_path / "one") == expected[0]
    assert mp.load_text(tmp_path / "several", "dev") == expected[0]
    assert mp.load_text(tmp_path / "several", "train") == DOCUMENTS[0]
    with pytest.raises(mp.PruneError, match="no split 'test': choose one of train, dev"):
        mp.load_text(tmp_path / "several", "test")
    state = json.loads((tmp_path / "one/state.json").read_text())
    state["_data_files"][0]["filename"] = "../several/dev/data-00000-of-00001.arrow"
    (tmp_path / "one/state.json").write_text(json.dumps(state))
    with pytest.raises(mp.PruneError, match="no file of its folder"):
        mp.load_text(tmp_path / "one")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.sampled_from("\"'a, \u2028\\"), min_size=1).filter(str.strip), min_size=1, max_size=6))
def test_a_tsv_has_no_quotes_every_line_is_a_row(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("any") / "a.tsv"
    path.write_text("id\ttext\n" + "".join(f"{i}\t{text}\n" for i, text in enumerate(texts)), encoding="utf-8")
    assert documents(path, "train") == texts


FILLED = [
    {"text": None, "content": "1", "messages": None},
    {"text": "", "content": "2", "messages": None},
    {"text": " ", "content": None, "messages": [{"role": "user", "content": "3"}]},
    {"text": "4", "content": "title", "messages": []},
    {"text": None, "content": "", "messages": []},
]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "a.csv"])
def test_the_first_field_that_is_filled_in_holds_the_text(chatty, tmp_path, kind, caplog):
    (tmp_path / kind).write_bytes(KINDS[kind](FILLED))
    assert documents(tmp_path / kind, "train", chatty) == ["1", "2", "<user>3\n", "4"]
    assert caplog.messages == [f"1 of 5 rows of {tmp_path / kind} are empty and were skipped"]


def test_the_first_field_that_is_filled_in_of_a_csv_and_of_a_saved_data_set(chatty, tmp_path):
    (tmp_path / "a.csv").write_text("content,text\na,\nb,c\n")
    assert documents(tmp_path / "a.csv", "train") == ["a", "c"]
    datasets.Dataset.from_list(FILLED).save_to_disk(tmp_path / "saved")
    assert documents(tmp_path / "saved", "train", chatty) == ["1", "2", "<user>3\n", "4"]


@pytest.mark.parametrize("kind", ["a.csv", "a.tsv", "a.parquet", "stream.arrow", "file.arrow"])
def test_two_columns_of_one_name_are_refused_by_it(tmp_path, kind):
    table = pyarrow.table([pyarrow.array([word]) for word in "abc"], names=["id", "text", "text"])
    write = {"stream.arrow": pyarrow.ipc.new_stream, "file.arrow": pyarrow.ipc.new_file}.get(kind)
    if kind == "a.parquet":
        pyarrow.parquet.write_table(table, tmp_path / kind)
    elif write:
        with write(tmp_path / kind, table.schema) as writer:
            writer.write_table(table)
    else:
        (tmp_path / kind).write_text("id,text,text\na,b,c\n".replace(",", "," if kind == "a.csv" else "\t"))
    with pytest.raises(mp.PruneError, match="2 columns 'text'"):
        mp.load_text(tmp_path / kind)


@pytest.mark.parametrize("new", [pyarrow.ipc.new_stream, pyarrow.ipc.new_file])
@pytest.mark.parametrize("offsets", [(0, 900, 2), (0, 2, 1), (0, -5, 2)])
def test_arrow_values_that_lie_elsewhere_are_refused_before_they_are_read(tmp_path, new, offsets):
    place = pyarrow.py_buffer(b"".join(n.to_bytes(4, "little", signed=True) for n in offsets))
    column = pyarrow.Array.from_buffers(pyarrow.string(), 2, [None, place, pyarrow.py_buffer(b"ab")])
    batch = pyarrow.RecordBatch.from_arrays([column], ["text"])
    with new(tmp_path / "a.arrow", batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(mp.PruneError, match="cannot be read"):
        mp.load_text(tmp_path / "a.arrow")


@pytest.mark.parametrize("value", [5, None, "data", {"a": 1}, [5], [["train"]]])
@pytest.mark.parametrize(("name", "key"), [("state.json", "_data_files"), ("dataset_dict.json", "splits")])
def test_a_folder_whose_lists_are_something_else_is_refused(tmp_path, name, key, value):
    (tmp_path / name).write_text(json.dumps({key: value}))
    with pytest.raises(mp.PruneError, match=f"{name}.* has no list|names None"):
        mp.load_text(tmp_path)


@pytest.mark.parametrize("first", ["null", '"a"', "3", "[1]", "NaN"])
def test_json_lines_are_lines_whatever_the_first_of_them_is(tmp_path, first):
    (tmp_path / "a.json").write_text(f'{first}\n{{"text": "a"}}\n{{"text": "b"}}\n')
    if first == "null":
        assert documents(tmp_path / "a.json", "train") == ["a", "b"]
        return
    with pytest.raises(mp.PruneError, match=r"line 1 of .* is a"):
        mp.load_text(tmp_path / "a.json")


# --- chats


CHATS = [
    [{"role": "user", "content": "where is the moon?"}, {"role": "assistant", "content": "up"}],
    [{"role": "system", "content": "be brief"}, {"role": "user", "content": "who?"}],
]
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
WRITTEN = "<user>where is the moon?\n<assistant>up\n\n\n<system>be brief\n<user>who?\n"


@pytest.fixture
def chatty(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE, raising=False)
    return tokenizer


@pytest.mark.parametrize("kind", ["a.jsonl", "array.json", "a.parquet", "stream.arrow", "file.arrow"])
def test_chats_are_written_by_the_tokenizers_own_template(chatty, tmp_path, kind):
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    for rows in (
        [{"id": 1, "messages": chat} for chat in CHATS],
        [{"conversations": [{"from": names[t["role"]], "value": t["content"]} for t in chat]} for chat in CHATS],
    ):
        (tmp_path / kind).write_bytes(KINDS[kind](rows))
        assert mp.load_text(tmp_path / kind, tokenizer=chatty) == WRITTEN
        ids = chatty(WRITTEN, add_special_tokens=False)["input_ids"]
        assert mp.load_tokens(chatty, tmp_path / kind, samples=1, length=len(ids))[0].tolist() == ids


@pytest.mark.parametrize(
    ("chat", "said"),
    [
        ("hello", "a chat is a list"),
        (["hello"], "a chat is a list"),
        ([{"speaker": "a", "line": "b"}], "this one has 'speaker', 'line'"),
        ([{"role": "user", "content": None}], "this one has 'role', 'content'"),
        ([{"role": "user", "content": None, "tool_calls": []}], "this one has 'role', 'content', 'tool_calls'"),
        ([{"role": "user", "content": 5}], "this one has 'role', 'content'"),
        ([{"role": "nobody", "content": "x"}], "template refuses this chat"),
    ],
)
def test_a_chat_that_cannot_be_written_is_named(chatty, tmp_path, monkeypatch, chat, said):
    monkeypatch.setattr(
        chatty, "chat_template", TEMPLATE + "{{ raise_exception('no') if 'nobody' in messages[0].role }}"
    )
    (tmp_path / "a.jsonl").write_bytes(lines([{"messages": CHATS[0]}, {"messages": chat}]))
    with pytest.raises(mp.PruneError, match=f"line 2 of .*{said}"):
        mp.load_tokens(chatty, tmp_path / "a.jsonl", samples=1, length=4)


@pytest.mark.parametrize("kind", ["a.jsonl", "array.json", "a.parquet", "stream.arrow"])
def test_a_turn_that_calls_tools_needs_no_content(chatty, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(
        chatty,
        "chat_template",
        "{% for m in messages %}<{{ m.role }}>{{ m.content or '' }}"
        "{% if m.tool_calls is defined %}{% for c in m.tool_calls %}[{{ c.function.name }}]{% endfor %}{% endif %}"
        "{% endfor %}",
    )
    call = {"id": "1", "type": "function", "function": {"name": "moon", "arguments": "{}"}}
    chat = [
        {"role": "user", "content": "where?", "tool_calls": None},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "up", "tool_calls": None},
    ]
    (tmp_path / kind).write_bytes(KINDS[kind]([{"messages": chat}]))
    assert mp.load_text(tmp_path / kind, tokenizer=chatty) == "<user>where?<assistant>[moon]<tool>up"


PARTS = [{"type": "text", "text": "where is"}, {"type": "text", "text": "the moon?"}]
FROM_PARTS = {  # what a template does with a turn's content -> what it makes of two parts that are texts
    "{{ m.content }}": "where is\nthe moon?",
    "{{ m.content | trim }}": "where is\nthe moon?",
    "{{ m.content | tojson }}": '"where is\\nthe moon?"',
    "{{ '' + m.content }}": "where is\nthe moon?",
    "{% for part in m.content %}{{ part.text }}|{% endfor %}": "where is|the moon?|",
}


@pytest.mark.parametrize("kind", ["a.jsonl", "a.parquet"])
@pytest.mark.parametrize("writes", FROM_PARTS)
def test_parts_of_a_turn_are_its_text_and_never_what_a_list_looks_like(chatty, tmp_path, monkeypatch, writes, kind):
    monkeypatch.setattr(chatty, "chat_template", "{% for m in messages %}" + writes + "{% endfor %}")
    (tmp_path / kind).write_bytes(KINDS[kind]([{"messages": [{"role": "user", "content": PARTS}]}]))
    assert mp.load_text(tmp_path / kind, tokenizer=chatty) == FROM_PARTS[writes]


@pytest.mark.parametrize("part", [{"type": "image", "url": "moon.png"}, "moon.png"])
def test_parts_that_a_template_does_not_know_are_named(chatty, tmp_path, part):
    chat = [{"role": "user", "content": [*PARTS, part]}]
    (tmp_path / "a.jsonl").write_bytes(lines([{"messages": CHATS[0]}, {"messages": chat}]))
    with pytest.raises(mp.PruneError, match=r"line 2 of .*would write the parts of a turn"):
        mp.load_text(tmp_path / "a.jsonl", tokenizer=chatty)


def test_chats_need_a_tokenizer_with_a_template(tokenizer, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines([{"messages": CHATS[0]}]))
    for given_ in (None, tokenizer):
        with pytest.raises(mp.PruneError, match="no chat template"):
            mp.load_text(tmp_path / "a.jsonl", tokenizer=given_)


# --- rows that are no texts


@pytest.mark.parametrize("kind", KINDS)
def test_empty_rows_are_skipped_and_counted(tmp_path, kind, caplog):
    nothing = "" if kind.endswith("csv") else None
    rows = [
        {"text": "a", "id": "1"},
        {"text": nothing, "id": "2"},
        {"text": " \n", "id": "3"},
        {"text": "b", "id": "4"},
    ]
    (tmp_path / kind).write_bytes(KINDS[kind](rows))
    assert mp.load_text(tmp_path / kind) == "a\n\nb"
    assert caplog.messages == [f"2 of 4 rows of {tmp_path / kind} are empty and were skipped"]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_a_text_are_refused_with_the_fields_that_were_found(tmp_path, kind):
    (tmp_path / kind).write_bytes(KINDS[kind]([{"url": "https://a", "title": "b"}] * 2))
    with pytest.raises(mp.PruneError, match=r"'url', 'title'|'version', 'data'"):
        mp.load_text(tmp_path / kind)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not valid JSON"),
        ('{"words": "a"}', "only 'words'"),
        ('{"text": 1}', "'text' is a int"),
        ('"a"', "is a str"),
        ("[1]", "is a list"),
        ("[" * 100_000, "nested too deeply"),
        ('{"text": ' + "9" * 6000 + "}", "line 3"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json"])
def test_a_line_that_holds_no_text_is_named(tmp_path, name, line, said):
    (tmp_path / name).write_text(f'{{"text": "fine"}}\n\n{line}\n')
    with pytest.raises(mp.PruneError, match=f"line 3 of .*{said}|{said}") as caught:
        mp.load_text(tmp_path / name)
    assert "line 3" in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "id,text\n1,a\n2\n", "line 3 .* has 1 fields and the first line 2"),
        ("a.csv", "id,text\n1,a,b\n", "line 2 .* has 3 fields"),
        ("a.tsv", 'id\ttext\n1\t"a\nb"\n', "line 3 .* has 1 fields .* no line break"),
        ("a.json", '{"text": ["a", "b"], "content": ["c"]}', "2 in 'text', 1 in 'content'"),
        ("a.csv", 'id,text\n1,"a\n', "cannot be read"),
        ("a.csv", "id;text\n1;a\n", "only 'id;text'"),
        ("a.json", '{"text": ', "not valid JSON"),
        ("a.json", "3", "holds a JSON int"),
        ("a.json", '{"a": [{"text": "x"}], "b": [{"text": "x"}]}', "fields 'a', 'b'"),
        ("a.parquet", "text", "cannot be read"),
        ("a.arrow", "text", "cannot be read"),
        ("a.arrow", "", "cannot be read"),
        ("a.txt.gz", "text", "cannot be read"),
        ("a.jsonl.zst", "text", "cannot be read"),
        ("a.jsonl.xz", "text", "cannot be read"),
        ("a.txt", "a\0b", "looks binary"),
        ("a.csv", "te\0xt\na\n", "looks binary"),
        ("a.jsonl", "", "is empty"),
        ("a.json", "", "is empty"),
        ("a.csv", "", "is empty"),
        ("a.csv", "text\n", "is empty"),
        ("a.json", "[]", "is empty"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused_in_one_line(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(mp.PruneError, match=said) as caught:
        mp.load_text(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.json"])
def test_what_is_no_utf_8_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes('text\n{"text": "naïve"}\n'.encode("latin-1"))
    with pytest.raises(mp.PruneError, match="UTF-8"):
        mp.load_text(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json"])
@pytest.mark.parametrize(
    "row", [{"text": "thanks \ud83d"}, {"messages": [{"role": "user", "content": "thanks \udc00"}]}]
)
def test_half_a_surrogate_pair_becomes_a_replacement_character(chatty, tmp_path, name, row):
    (tmp_path / name).write_bytes(lines([row]))  # json.dumps writes the escape \ud83d, as scraped logs have it
    text = mp.load_text(tmp_path / name, tokenizer=chatty)
    assert "thanks \ufffd" in text and text.encode()
    assert mp.load_tokens(chatty, tmp_path / name, samples=1, length=4).shape == (1, 4)


def test_a_pipe_a_device_and_another_folder_are_no_text(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    for path in (tmp_path / "pipe.txt", "/dev/zero", tmp_path):
        with pytest.raises(mp.PruneError, match=r"is a pipe|is a device|is a folder"):
            mp.load_text(path)


def test_json_lines_in_a_file_of_prose_stay_prose_and_are_pointed_out(tmp_path, caplog):
    (tmp_path / "a.txt").write_bytes(lines(ROWS[:2]))
    assert mp.load_text(tmp_path / "a.txt") == lines(ROWS[:2]).decode()
    assert len(caplog.messages) == 1 and "call it .jsonl" in caplog.messages[0]


@pytest.mark.parametrize("name", ["a.txt", "a.ipynb", "a"])
@pytest.mark.parametrize("value", [ROWS[:2], {"rows": ROWS[:2]}, [["the moon"]]])
def test_json_of_several_lines_in_a_file_of_prose_stays_prose_and_is_pointed_out(tmp_path, caplog, name, value):
    content = json.dumps(value, indent=1)
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert mp.load_text(tmp_path / name) == content
    assert len(caplog.messages) == 1 and "call it .json " in caplog.messages[0]


def test_prose_that_begins_with_a_bracket_is_prose(tmp_path, caplog):
    (tmp_path / "a.txt").write_text("[1] The moon goes around.\n{Its light} comes from the sun.", encoding="utf-8")
    assert mp.load_text(tmp_path / "a.txt").startswith("[1] The moon")
    assert not caplog.messages


@pytest.mark.parametrize("kind", ["a.jsonl", "a.parquet", "a.csv", "a.txt"])
def test_of_a_file_without_end_only_the_beginning_is_read_and_that_is_said(tmp_path, monkeypatch, kind, caplog):
    monkeypatch.setattr(module, "MOST", 1000)
    rows = [{"text": "the moon goes around " * 5}] * 100
    content = KINDS[kind](rows) if kind in KINDS else b"the moon goes around " * 500
    (tmp_path / kind).write_bytes(content)
    assert 1000 <= len(mp.load_text(tmp_path / kind)) < 1200
    assert len(caplog.messages) == 1 and "only its first" in caplog.messages[0]


@pytest.mark.parametrize("beside", ["data", "rows"])
def test_one_object_with_a_text_and_with_rows_of_text_is_refused_not_read_by_half(tmp_path, beside):
    path = tmp_path / "both.json"
    path.write_text(json.dumps({"text": "about this file", beside: [{"text": "one"}, {"text": "two"}]}, indent=1))
    with pytest.raises(mp.PruneError, match=f"the field \"text\" and with rows, '{beside}'"):
        documents(path, "train")
    path.write_text(json.dumps({"text": "a document", "tags": [{"name": "moon"}]}, indent=1))
    assert documents(path, "train") == ["a document"]


@pytest.mark.parametrize("content", [b"text\nriver\n", b'text\n"river', b"other\nriver\n"])
def test_the_limit_of_the_csv_module_is_as_it_was(tmp_path, content):
    (tmp_path / "rows.csv").write_bytes(content)
    before = csv.field_size_limit(1234)
    try:
        with suppress(mp.PruneError):
            documents(tmp_path / "rows.csv", "train")
        assert csv.field_size_limit() == 1234
    finally:
        csv.field_size_limit(before)
