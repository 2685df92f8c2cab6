"""`minprune recover`: what it writes, how it goes on after a kill, and the one line that each mistake gets."""

import json
import os
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import minprune as mp
from minprune.training import recover as module
from minprune.training.page import write_curves

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


@pytest.fixture
def recover(run, tmp_path, tiny_folder, text_file):
    """recover(...): `minprune recover` of the tiny model with 2:4 zeros, on a few short windows."""
    folder = tmp_path / "sparse"
    model, tokenizer = mp.load_model(tiny_folder)
    mp.prune(model, None, method="magnitude", pattern="2:4")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "minprune.json").write_text(json.dumps({"pattern": "2:4", "method": "magnitude"}))
    usual = {"--data": text_file, "--test": text_file, "--steps": 6, "--length": 16, "--batch-size": 2,
             "--test-samples": 2, "--evaluate": 4, "--save-every": 2, "--lr": 0.003, "--output": "out"}  # fmt: skip

    def recover(*more, model=folder, **changes):
        arguments = usual | {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
        given = ((name, value) for name, value in arguments.items() if value is not None)
        return run("recover", model, *(part for pair in given for part in pair), *more)

    return recover


def test_it_writes_a_model_that_loads_with_its_zeros_and_says_how_it_was_made(recover, tmp_path, text_file):
    code, out, err = recover()
    assert (code, err) == (0, "")
    assert "50.00% zeros, all kept" in out and "written to out" in out
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("sparse", "out"))
    assert before.keys() == after.keys()
    layers = [f"{layer.name}.weight" for layer in mp.find_layers(mp.load_model("out")[0])]
    for name in layers:
        assert torch.equal(before[name] == 0, after[name] == 0) and not torch.equal(before[name], after[name])
    record = json.loads(Path("out/minprune.json").read_text())
    assert (record["method"], record["pattern"], record["sparsity"]) == ("recover", "2:4", 0.5)
    assert [row["step"] for row in record["rows"]] == [0, 4, 6] and record["rows"][-1]["tokens"] == 6 * 2 * 16
    assert record["options"]["lr"] == 0.003 and record["pruned"] == {"pattern": "2:4", "method": "magnitude"}
    model, tokenizer = mp.load_model("out")
    windows = mp.load_tokens(tokenizer, text_file, samples=2, length=16)
    assert record["perplexity"]["after"] == pytest.approx(mp.perplexity(model, windows), rel=1e-5)
    assert record["perplexity"]["after"] < record["perplexity"]["before"]
    same = mp.measure(*mp.load_model("sparse"), text_file, samples=2, length=16).as_dict()["protocol"]
    assert same.items() <= record["perplexity"]["protocol"].items()
    assert {"README.md", "report.html", "minprune.json"} <= set(os.listdir("out"))
    assert "training.state" not in os.listdir("out") and sorted(os.listdir()) == ["out", "sparse"]
    AutoModelForCausalLM.from_pretrained("out")


@pytest.mark.parametrize("end", [KeyboardInterrupt, MemoryError])
def test_a_stopped_run_goes_on_to_the_same_bytes(recover, tmp_path, monkeypatch, end):
    assert recover(output="whole")[0] == 0
    save = module.save_state

    def stop(path, recipe, state):
        save(path, recipe, state)
        if state["step"] == 4:
            raise end

    monkeypatch.setattr(module, "save_state", stop)
    code, out, err = recover()
    assert (code, out) == (130 if end is KeyboardInterrupt else 2, "") and err.count("\n") == 1
    assert "continue with --resume" in err and os.listdir("out.partial") == ["unfinished"]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    code, _, err = recover()
    assert code == 2 and "out.partial is in the way" in err
    code, _, err = recover("--resume", lr=0.002)
    assert code == 2 and "with lr 0.003 instead of 0.002" in err
    assert recover("--resume")[0] == 0
    whole, resumed = (Path(name, "model.safetensors").read_bytes() for name in ("whole", "out"))
    assert whole == resumed and not Path("out.partial").exists()
    rows = [json.loads(Path(name, "minprune.json").read_text())["rows"] for name in ("whole", "out")]
    assert rows[0] == rows[1]


def test_a_run_that_was_killed_before_its_first_state_begins_anew(recover):
    os.makedirs("out.partial/unfinished")
    Path("out.partial/unfinished/kind").write_text("recover")
    Path("out.partial/unfinished/training.state.new").write_bytes(b"half")
    assert "out.partial is in the way: a run was stopped" in recover()[2]
    assert recover("--resume", steps=2)[0] == 0
    assert not list(Path("out").rglob("*state*"))


@pytest.mark.parametrize(("more", "rate"), [((), 3e-4), (("--adapters", 2), 3e-3)])
def test_each_way_has_its_usual_rate_and_products_may_be_in_bfloat16(recover, more, rate):
    code, _, err = recover("--bfloat16", *more, lr=None)
    assert (code, err) == (0, "")
    options = json.loads(Path("out/minprune.json").read_text())["options"]
    assert (options["lr"], options["bfloat16"]) == (rate, True)
    assert mp.load_model("out")[0].dtype == torch.float32
    code, _, _ = recover("--overwrite", *more, lr=0.002)
    options = json.loads(Path("out/minprune.json").read_text())["options"]
    assert code == 0 and (options["lr"], options["bfloat16"]) == (0.002, False)


def test_adapters_and_a_teacher(recover, tiny_folder):
    code, _, err = recover("--adapters", 2, "--teacher", tiny_folder, "--hidden", 0.5)
    assert (code, err) == (0, "")
    record = json.loads(Path("out/minprune.json").read_text())
    assert record["options"]["mode"] == "adapters" and record["options"]["rank"] == 2
    assert record["options"]["teacher"] == str(tiny_folder) and record["sparsity"] == 0.5
    taught = [record["options"][name] for name in ("share", "temperature", "hidden")]
    assert taught == [1.0, 1.0, 0.5]
    code, _, err = recover()
    assert code == 2 and "exists already" in err
    assert recover("--overwrite", steps=2)[0] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "argument --steps: '0' is not a whole number of at least 1"),
        ({"lr": "inf"}, "argument --lr: 'inf' is not a positive number"),
        ({"share": 2}, "argument --share: '2' is not a number from 0 to 1"),
        ({"lr": "much"}, "argument --lr: 'much' is not a number"),
        ({"data": "nowhere.txt"}, "no text 'nowhere.txt'"),
        ({"batch_size": 5000}, "windows are too few for batches of 5000"),
        ({"output": "sparse"}, "sparse is the model itself"),
        ({"teacher": "nobody/home/there"}, "no model 'nobody/home/there'"),
        ({"length": 300}, "longer than the model's 128 positions"),
        ({"share": 1}, "--share says how to learn from a teacher: name the dense model as --teacher"),
        ({"hidden": 0}, "--hidden says how to learn from a teacher"),
    ],
)
def test_a_mistake_gets_one_line_and_leaves_nothing(recover, changes, message):
    code, out, err = recover(**changes)
    assert (code, out) == (2, "") and err.startswith("minprune: ") and err.count("\n") == 1, err
    assert message in err
    assert os.listdir() == ["sparse"]


@pytest.mark.parametrize("damage", [b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_record_is_told_before_training(recover, tmp_path, damage):
    (tmp_path / "sparse" / "minprune.json").write_bytes(damage)
    code, out, err = recover()
    assert (code, out) == (2, "") and err.count("\n") == 1 and "sparse/minprune.json is damaged: delete it" in err
    assert os.listdir() == ["sparse"]
    os.remove("sparse/minprune.json")
    assert recover(steps=1)[0] == 0


# --- the page


class Page(HTMLParser):
    """The tags of a page, balanced, and its text."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(html)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_draws_every_point_and_escapes_every_text(tmp_path):
    hostile = "<script>alert(1)</script>{{ 7 * 7 }}"
    rows = [{"step": 10 * k, "tokens": 500 * k, "loss": 3.5 - k if k else None,
             "perplexity": {"news": 40.0 / (k + 1), hostile: 9.0}} for k in range(3)]  # fmt: skip
    record = {"model": hostile, "sparsity": 0.6, "rows": rows, "options": {"lr": 0.1, "teacher": hostile},
              "perplexity": {"before": 40.0, "after": 13.3}, "calibration": {"source": hostile},
              "seconds": {"total": 61.7}, "versions": {"torch": "9.9"}}  # fmt: skip
    write_curves(tmp_path / "report.html", record)
    html = (tmp_path / "report.html").read_text()
    page = Page(html)
    said = "".join(page.text)
    assert hostile in said and "<script" not in html and "http" not in html.replace("http-equiv", "")
    assert "60.00%" in said and "13.3" in said and "0.333 times" in said
    curves = [attrs["points"].split() for tag, attrs in page.tags if tag == "polyline"]
    assert [len(points) for points in curves] == [2, 3, 3]  # no loss before the first step
    assert len([tag for tag, _ in page.tags if tag == "circle"]) == 8
    heights = [float(point.split(",")[1]) for point in curves[1]]
    assert heights == sorted(heights) and heights[0] < heights[-1]  # downwards on the page: perplexity falls


def test_texts_may_have_spaces_around_them_and_be_named_twice(recover, text_file):
    code, _, err = recover(test=f"{text_file} , {text_file}")
    assert code == 0, err
    rows = json.loads(Path("out/minprune.json").read_text())["rows"]
    assert [list(row["perplexity"]) for row in rows] == [[str(text_file)]] * len(rows)
