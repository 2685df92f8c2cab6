"""minprune.json: a record that is read says what was written, older ones too; a damaged one is refused by its field."""

import json
import math
import random

import pytest
from tiny import tiny_model, tiny_tokens

import minprune as mp
from minprune.output.model_files import write_record
from minprune.output.page import render
from minprune.output.record import VERSION, RunRecord, read_record

PROTOCOL = {"windows": 2, "window": 16, "sha256": "ab", "text": "news", "split": None, "stride": 16}


@pytest.fixture(scope="module")
def written():
    report = mp.prune(tiny_model("llama"), tiny_tokens(), "wanda", "50%", allocation={"*.mlp.*": 0.6})
    report.perplexity = {"before": 20.0, "after": 30.5, "protocol": PROTOCOL}
    more = {"model": "tiny", "dtype": "float32", "include": None, "exclude": ["a"], "sequential": True}
    return json.loads(json.dumps(RunRecord.of(report, **more).as_dict()))


def put(folder, content):
    (folder / "minprune.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_what_is_read_is_what_was_written_with_nothing_added(written, tmp_path):
    assert read_record(put(tmp_path, written)).as_dict() == written | {
        "layers": [row | {"shape": tuple(row["shape"])} for row in written["layers"]]
    }
    assert "rows" not in written and "parameters" not in written and "format" not in written
    assert written["include"] is None and written["version"] == VERSION
    assert written["perplexity"]["protocol"] == PROTOCOL


def test_a_record_from_before_there_was_a_version_is_read_with_the_fields_it_has(written, tmp_path):
    older = {key: value for key, value in written.items() if key not in ("version", "allocation", "batch_size")}
    for row in older["layers"]:
        row.pop("note", None)
    found = read_record(put(tmp_path, older))
    assert found.version == 0 and found.method == "wanda" and found.layers[0].note == "" and not found.allocation.table
    assert read_record(put(tmp_path, {"method": "magnitude", "later": [1]})).as_dict() == {
        "method": "magnitude",
        "later": [1],
    }
    assert read_record(tmp_path / "nowhere").as_dict() == {}


def test_a_record_of_a_later_version_is_refused_with_what_to_do(written, tmp_path):
    with pytest.raises(mp.PruneError, match=rf"minprune\.json is a record of version {VERSION + 1}.*upgrade"):
        read_record(put(tmp_path, written | {"version": VERSION + 1}))


def places(value, path=()):
    """Every place in a JSON value, as a path of keys."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*path, key)
        if isinstance(inner, (dict, list)):
            yield from places(inner, (*path, key))


def test_a_value_of_another_type_is_refused_in_one_line_with_file_and_field(written, tmp_path):
    free = {"options", "later"}  # what a method's options are is the method's business
    paths = [path for path in places(written) if path[0] not in free and "stride" not in path]
    for path in random.Random(0).sample(paths, min(120, len(paths))):
        broken = json.loads(json.dumps(written))
        inside = broken
        for key in path[:-1]:
            inside = inside[key]
        inside[path[-1]] = [["no such thing"]]
        with pytest.raises(mp.PruneError) as caught:
            read_record(put(tmp_path, broken))
        said = str(caught.value)
        assert said.count("\n") == 0 and f"{tmp_path / 'minprune.json'} is damaged" in said
        assert f"field {'.'.join(map(str, path))}" in said, said


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"method": 3}', "[" * 100_000, '{"pruned": ' * 5000 + "1" + "}" * 5000]
)
def test_what_is_no_record_is_refused_in_one_line(text, tmp_path):
    with pytest.raises(mp.PruneError, match=r"minprune\.json is damaged: delete it") as caught:
        read_record(put(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_an_infinite_perplexity_comes_back_infinite_and_its_page_is_written(written, tmp_path):
    infinite = RunRecord.model_validate(written | {"perplexity": {"before": 20.0, "after": math.inf, "protocol": {}}})
    write_record(tmp_path, infinite)
    assert json.loads((tmp_path / "minprune.json").read_text())["perplexity"]["after"] is None
    found = read_record(tmp_path)
    assert found.perplexity.after == math.inf and "inf times dense" in render(found)


def test_half_characters_in_names_are_written_and_read(tmp_path):
    half = "a\ud800b"
    report = mp.Report("wanda", "50%", {half: half}, {"source": half}, notes=[half])
    write_record(tmp_path, RunRecord.of(report, model=half, command=["minprune", half]))
    found = read_record(tmp_path)
    assert found.model == "a\ufffdb" == found.command[1] == found.notes[0] == found.calibration.source
    assert found.files == []
