"""Nothing that a run reads, and nothing that minprune did not write, is lost to an output."""

import json
import os
import shutil
from pathlib import Path

import pytest

import minprune as mp
from minprune.models import extras
from minprune.pipeline.layer_pruner import LayerPruner
from minprune.training import recover as training

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")
MAGNITUDE = ("--method", "magnitude", "--no-test")


def refused(result, *parts):
    code, out, err = result
    return code == 2 and out == "" and err.count("\n") == 1 and all(part in err for part in parts)


@pytest.fixture
def output(run, tiny_folder):
    assert run("prune", tiny_folder, *MAGNITUDE, "--output", "out")[0] == 0
    return Path("out")


@pytest.fixture
def no_work(monkeypatch):
    """Pruning a layer and training a step are mistakes."""

    def reached(*_):
        raise AssertionError("the work was begun")

    monkeypatch.setattr(LayerPruner, "prune", reached)
    monkeypatch.setattr(training._Run, "learn", reached)


ADDED = ["mine.txt", "thesis/t.tex", "README.md.orig"]


@pytest.mark.parametrize(
    ("name", "listed"),
    [(name, listed) for name in ADDED for listed in (True, False)]
    + [("vocab.txt", True), ("model-mine.safetensors", True)],  # an output without a list might have written these
)
def test_an_output_to_which_something_was_added_is_never_replaced(run, tiny_folder, output, name, listed):
    if not listed:
        (output / "minprune.json").write_text("{}")
    (output / name).parent.mkdir(exist_ok=True)
    (output / name).write_text("years of work")
    for command in (("prune", *MAGNITUDE), ("export",), ("recover",)):
        again = run(command[0], tiny_folder, *command[1:], "--output", "out", "--overwrite")
        assert refused(again, f"'{name.split('/')[0]}'", "which minprune did not write")
    assert (output / name).read_text() == "years of work"
    shutil.rmtree(output / "thesis", ignore_errors=True)
    (output / name).unlink(missing_ok=True)
    assert run("prune", tiny_folder, *MAGNITUDE, "--output", "out", "--overwrite")[0] == 0


@pytest.mark.parametrize("place", ["out", "out.partial"])
def test_an_input_in_the_output_is_never_lost(run, tiny_folder, text_file, no_work, place):
    shutil.copytree(tiny_folder, Path(place) / "model")
    shutil.copy(text_file, Path(place) / "a.txt")
    Path(place, "table.json").write_text("{}")
    text, to = f"{place}/a.txt", ("--output", "out", "--overwrite")
    for words in (
        ("prune", f"{place}/model", *MAGNITUDE),
        ("prune", tiny_folder, "--calibration", text),
        ("prune", tiny_folder, "--test", text),
        ("prune", tiny_folder, "--allocation", f"{place}/table.json"),
        ("recover", f"{place}/model"),
        ("recover", tiny_folder, "--teacher", f"{place}/model"),
        ("recover", tiny_folder, "--data", text),
        ("recover", tiny_folder, "--test", f"news,{text}"),
        ("export", f"{place}/model"),
    ):
        assert refused(run(*words, *to), place, "lies in out, the output")
    assert sorted(os.listdir(place)) == ["a.txt", "model", "table.json"]


@pytest.mark.parametrize("place", ["model/out", "model/a/b/out", "link/out", "model/../model/out", "other/out"])
def test_an_output_in_the_folder_of_a_model_is_refused(run, tiny_folder, text_file, no_work, place):
    for name in ("model", "other"):
        shutil.copytree(tiny_folder, name)
    Path("link").symlink_to("model")
    before = sorted(Path().rglob("*"))
    model, to = "other" if place == "other/out" else "model", ("--output", place)
    read = f"lie in {model}, which is read"
    for words in (
        ("prune", model, *MAGNITUDE),
        ("recover", model),
        ("recover", tiny_folder, "--teacher", model),
        ("export", model),
        ("quantize", model, "--method", "rtn", "--no-test"),
        ("shrink", model, "--remove", "blocks:1", "--no-test"),
    ):
        assert refused(run(*words, *to), read), words
    with pytest.raises(mp.PruneError, match=read):
        mp.prune_checkpoint(model, place, None, "magnitude")
    assert sorted(Path().rglob("*")) == before


def test_the_teacher_is_not_the_output(run, tiny_folder, output, no_work):
    more = ("--teacher", "out", "--output", "./out", "--overwrite")
    assert refused(run("recover", tiny_folder, *more), "is read by the same run")
    assert (output / "model.safetensors.index.json").exists() or (output / "model.safetensors").exists()


def test_a_text_that_would_be_the_output_is_called_what_it_is(run, tiny_folder, text_file, no_work):
    words = ("prune", tiny_folder, "--calibration", text_file, "--output", text_file)
    assert refused(run(*words), f"{text_file} is read by the same run, and would be lost")


# --- files that are copied


@pytest.fixture
def licensed(tiny_folder):
    shutil.copytree(tiny_folder, "model")
    Path("secret").write_text("not of this model")
    return Path("model/LICENSE")


@pytest.mark.parametrize("command", ["prune", "recover", "export"])
@pytest.mark.parametrize("fault", ["link", "unreadable"])
def test_a_licence_that_cannot_be_copied_costs_no_work(run, licensed, text_file, no_work, monkeypatch, command, fault):
    if fault == "link":
        licensed.symlink_to(Path("secret").absolute())
    else:
        licensed.write_text("free")
        real = Path.read_bytes

        def read(path):  # for root, every file can be read
            if path.name == "LICENSE":
                raise PermissionError(13, "Permission denied")
            return real(path)

        monkeypatch.setattr(extras.Path, "read_bytes", read)
    texts = ("--data", text_file, "--test", text_file, "--length", 16, "--test-samples", 2)
    more = {"prune": MAGNITUDE, "recover": texts, "export": ()}[command]
    assert refused(run(command, "model", *more, "--output", "out"), "model/LICENSE")
    assert sorted(os.listdir()) == ["model", "secret"]


def test_what_is_copied_is_asked_of_the_disk(run, licensed, monkeypatch):
    asked = []
    for command in ("prune", "export"):
        home = {"prune": "minprune.pipeline.checkpoint", "export": "minprune.output.model_files"}[command]
        monkeypatch.setattr(f"{home}.check_space", lambda folder, model, there: asked.append(-there))
        more = MAGNITUDE if command == "prune" else ()
        for number, size in enumerate((1, 50_001)):
            licensed.write_text("x" * size)
            assert run(command, "model", *more, "--output", f"{command}{number}")[0] == 0
        assert asked[1] - asked[0] >= 50_000
        asked.clear()


# --- files of results


def test_a_file_of_results_replaces_nothing_unasked(run, tiny_folder, text_file):
    shutil.copy(text_file, "a.txt")
    shutil.copytree(tiny_folder, "model")
    Path("notes.json").write_text("my notes")
    before = Path("model/config.json").read_text()
    small = ("--samples", 2, "--length", 16)
    for words, option in (
        (("eval", "model", "--text", "a.txt", *small), "--json"),
        (("eval", tiny_folder, "--against", "model", "--text", "a.txt", *small), "--json"),
        (("sensitivity", "model", "--calibration", "a.txt", "--samples", 4, "--length", 16), "--output"),
    ):
        assert refused(run(*words, option, "notes.json"), "notes.json exists", "--overwrite")
        assert refused(run(*words, option, "a.txt", "--overwrite"), "a.txt is read by the same command")
        for name in ("config.json", "new.json"):
            assert refused(run(*words, option, f"model/{name}", "--overwrite"), "lies in the model's folder")
        assert Path("notes.json").read_text() == "my notes"
        assert run(*words, option, "notes.json", "--overwrite")[0] == 0
        json.loads(Path("notes.json").read_text())
        Path("notes.json").write_text("my notes")
    assert Path("a.txt").read_text() == Path(text_file).read_text()
    assert Path("model/config.json").read_text() == before and not Path("model/new.json").exists()


def test_the_notebook_that_is_graded_is_never_replaced(run):
    Path("mine.ipynb").write_text("mine")
    Path("link").symlink_to("mine.ipynb")
    Path("folder").mkdir()
    for name in ("mine.ipynb", "./folder/../mine.ipynb", "link"):
        assert refused(run("grade", "mine.ipynb", "--json", name, "--overwrite"), "read by the same command")
    for name, reason in (("folder", "is a folder"), ("none/x.json", "does not exist"), ("a\0b", "leads nowhere")):
        assert refused(run("grade", "mine.ipynb", "--json", name, "--overwrite"), reason)
    assert Path("mine.ipynb").read_text() == "mine"


# --- paths without a name


@pytest.mark.parametrize("root", ["/", "//", "/..", "/usr/.."])
def test_the_root_is_no_output(run, tiny_folder, root, no_work):
    for words in (("prune", tiny_folder, *MAGNITUDE), ("export", tiny_folder), ("recover", tiny_folder),
                  ("sweep", tiny_folder), ("sensitivity", tiny_folder), ("demo",)):  # fmt: skip
        assert refused(run(*words, "--output", root), "is a whole file system")


def test_a_path_that_no_file_can_have_is_refused(run, tiny_folder):
    assert refused(run("prune", tiny_folder, "--allocation", "a\0b"), "'a\\x00b' is no name of a file")


NO_PATHS = [5, 2.5, True, b"out", ["out"], object()]


@pytest.mark.parametrize("value", [None, *NO_PATHS], ids=lambda value: type(value).__name__)
def test_what_is_no_path_is_refused_in_a_line_wherever_one_is_asked_for(value, tmp_path):
    asked = [
        lambda: mp.load_model(value),
        lambda: mp.load_text(value),
        lambda: mp.prune_checkpoint(value, tmp_path / "out", None, "magnitude"),
        lambda: mp.prune_checkpoint("smollm2", value, None, "magnitude"),
    ]
    for ask in asked:
        with pytest.raises(mp.PruneError) as caught:
            ask()
        assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [0, -1, 2.5, "2", None, True])
def test_a_size_of_files_that_is_none_is_refused_before_anything_is_made(size, tmp_path):
    with pytest.raises(mp.PruneError, match="max_shard_size"):
        mp.prune_checkpoint("smollm2", tmp_path / "out", None, "magnitude", max_shard_size=size)
    assert list(tmp_path.iterdir()) == []
