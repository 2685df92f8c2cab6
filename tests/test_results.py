"""The measured data that pages quote can be measured again."""

import importlib
import json
import re
import statistics
from collections import defaultdict
from math import log
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from drawn import drawn

import minprune as mp
from minprune.data.assets import cache_folder

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "book" / "results" / "one-shot.json"
SWEEP = ROOT / "book" / "results" / "sweep.jsonl"
MEASURED = sorted(path for path in RESULTS.parent.glob("*.json") if path.name != "claims.json")  # that is judgement
WHOLE_MODEL = [RESULTS, ROOT / "book" / "results" / "optimum.json"]


@pytest.mark.slow
@pytest.mark.parametrize("results", WHOLE_MODEL, ids=lambda path: path.name)
def test_a_cell_drawn_anew_each_time_is_measured_again(results, monkeypatch):
    """One cell of the file, from nothing but its protocol.

    SparseGPT's choices amplify rounding: the same recipe on one thread and on two gave 62.8 and 60.9 at 2:4. So 6 %
    are allowed; neighbouring cells differ by far more.
    """
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import quality

    cell = drawn(json.loads(results.read_text())["cells"])
    found = quality.recompute(cell["method"], cell["pattern"])
    assert found["perplexity"] == pytest.approx(cell["perplexity"], rel=0.06), cell
    assert found["zeros"] == pytest.approx(cell["zeros"], abs=2e-5), cell


@pytest.mark.slow
def test_a_layer_drawn_anew_each_time_is_measured_again(monkeypatch):
    """One cell of layers.json: sums in another order move a few choices of mask, hence 3 %."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import layers

    cell = drawn(json.loads((ROOT / "book" / "results" / "layers.json").read_text())["cells"])
    patient = layers.layers((cell["layer"],))[cell["layer"]]
    found = layers.measure(*patient, cell["method"], cell["pattern"])
    for name in ("error", "held_out", "exact", "exact_held_out"):
        assert found[name] == pytest.approx(cell[name], rel=0.03), (name, cell)


def test_the_layers_stand_in_the_order_that_the_chapter_claims():
    """Chapter 07: no update beats the exact weights on its mask, swaps only improve, and the searches rank alike."""
    cells = json.loads((ROOT / "book" / "results" / "layers.json").read_text())["cells"]
    errors = {(cell["layer"], cell["pattern"], cell["method"]): cell["error"] for cell in cells}
    assert all(cell["exact"] <= cell["error"] for cell in cells) and len(errors) == len(cells)
    for better, worse in (("wanda+swaps", "wanda"), ("alps", "admm"), ("admm", "sparsegpt")):
        pairs = {(layer, pattern) for layer, pattern, method in errors if method == worse}
        assert len(pairs) == 60  # twelve layers, five patterns, and it holds on all of them
        for pair in pairs:
            assert errors[*pair, better] <= errors[*pair, worse], (pair, better, worse)


def test_the_readme_has_one_table_of_results_and_it_is_the_sweeps():
    """Mean and standard deviation of the seeds, each rounded from the file; a method without seeds has no deviation."""
    text = readme().split("## What it does to a model")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 7 and rows[0] == ["method", "50 %", "60 %", "70 %", "2:4"]
    runs = [json.loads(line) for line in SWEEP.read_text().splitlines()]
    for label, *cells in rows[2:]:
        for pattern, cell in zip(rows[0][1:], cells, strict=True):
            wanted = (re.sub(r'`recipe="(.*)"`', r"\1", label), pattern.replace(" ", ""))
            values = [run["relative"]["wikipedia"] for run in runs if (run["method"], run["pattern"]) == wanted]
            shown, *bar = (float(part.replace(",", "")) for part in cell.split(" ± "))
            assert shown == pytest.approx(sum(values) / len(values), rel=0.006), (label, pattern)
            assert len(values) == (3 if bar else 1)
            if bar:
                digits = len(cell.split(" ± ")[1].partition(".")[2])
                assert bar[0] == round(statistics.stdev(values), digits) > 0, (label, pattern)
    dense = {run["dense"]["wikipedia"] for run in runs if "dense" in run}
    assert [f"dense perplexity {value:.1f}" in text for value in dense] == [True]


def test_the_readme_quotes_the_results_file():
    cells = {(cell["method"], cell["pattern"]): cell["perplexity"] for cell in json.loads(RESULTS.read_text())["cells"]}
    number = r"([\d.]+)"
    said = f"at 50 % are {number} for magnitude, {number} for Wanda, {number} for SparseGPT and {number} dense"
    quoted = re.search(said, readme())
    wanted = [("magnitude", "50%"), ("wanda", "50%"), ("sparsegpt", "50%"), ("dense", "")]
    assert list(quoted.groups()) == [f"{cells[key]:.1f}" for key in wanted]


def test_the_readme_quotes_the_best_recipe():
    results = json.loads((ROOT / "book" / "results" / "recipe.json").read_text())["cells"]
    cells = {(cell["part"], cell["pattern"]): cell for cell in results}
    number = r"([\d.]+)"
    said = f"it has {number} at 50 %, {number} at 60 %, {number} at 70 % and {number} at 2:4, in up to {number} t"
    quoted = re.search(said, readme())
    pairs = [(cells["best", p], cells["sparsegpt, two-pass", p]) for p in ("50%", "60%", "70%", "2:4")]
    ratios = [f"{best['wikipedia'] / other['wikipedia']:.2f}" for best, other in pairs]
    slowest = max(best["seconds"] / other["seconds"] for best, other in pairs)
    assert list(quoted.groups()) == [*ratios, f"{slowest:.1f}"]


def readme() -> str:
    """The README without its line breaks inside paragraphs."""
    return re.sub(r"(?<=[^\n|])\n(?=[^\n|#*`-])", " ", (ROOT / "README.md").read_text())


@pytest.mark.slow
def test_an_allocation_drawn_anew_each_time_is_measured_again(monkeypatch):
    """One cell of allocation.json whose model still speaks (as below), by `prune` itself where the file used a shorter
    way; 6 %, as above. At 17 times the dense perplexity two machines gave 302 and 283.
    """
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import allocation

    cells = json.loads((ROOT / "book" / "results" / "allocation.json").read_text())["cells"]
    others = json.loads((ROOT / "book" / "results" / "calibration.json").read_text())["cells"]
    dense = next(cell["perplexity"]["wikipedia"] for cell in others if cell["method"] == "dense")
    cell = drawn([cell for cell in cells if cell["perplexity"] < 10 * dense])
    assert allocation.recompute(cell) == pytest.approx(cell["perplexity"], rel=0.06), cell


@pytest.mark.slow
def test_a_run_of_the_sweep_drawn_anew_each_time_is_made_again(monkeypatch, tmp_path):
    """One run of sweep.jsonl whose model still speaks (less than 20 times the dense perplexity); 6 %, as above."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import curves

    from minprune.sweep.results import read_runs

    runs = [run for run in read_runs(SWEEP) if 1 < run["relative"]["wikipedia"] < 20]
    run = drawn(runs)
    stage = ((run["method"],), (run["pattern"],), (run["seed"] or 0,))
    dense, found = curves.run(tmp_path / "runs.jsonl", [stage])
    for text, value in run["perplexity"].items():
        assert dense["perplexity"][text] == pytest.approx(run["dense"][text], rel=0.01), text
        assert found["perplexity"][text] == pytest.approx(value, rel=0.06), (text, run)
    assert found["zeros"] == pytest.approx(run["zeros"], abs=2e-5)
    assert found["calibration_sha256"] == run["calibration_sha256"]


def test_a_smaller_sweep_leaves_the_methods_in_their_order(monkeypatch):
    """What sweep.json says is what the files give, and the order at full size is the order in the sweep."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import curves

    cells = json.loads(SWEEP.with_suffix(".json").read_text())["cells"]
    assert cells == curves.compare(SWEEP) and len(cells) >= 5
    for cell in cells:
        assert cell["order"] == cell["order_at_full_size"], cell


@pytest.mark.slow
def test_an_order_of_the_pipeline_drawn_anew_each_time_is_measured_again(monkeypatch):
    """One cell of pipeline.json; 6 %, as above."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import depth

    cell = drawn(json.loads((ROOT / "book" / "results" / "pipeline.json").read_text())["cells"])
    found = depth.recompute(cell)
    assert found["perplexity"] == pytest.approx(cell["perplexity"], rel=0.06), cell
    assert found["drift"] == pytest.approx(cell["drift"], rel=0.1), cell


@pytest.mark.slow
def test_a_calibration_drawn_anew_each_time_is_measured_again(monkeypatch):
    """One cell of calibration.json whose model still speaks (less than ten times the dense perplexity); 6 %, as above.

    With random tokens, at 15 times, two machines gave 252 and 275. Not Python's manual, which differs by version, nor
    sampled text.
    """
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import calibration

    cells = json.loads((ROOT / "book" / "results" / "calibration.json").read_text())["cells"]
    dense = next(cell["perplexity"]["wikipedia"] for cell in cells if cell["method"] == "dense")
    speaks = [cell for cell in cells if cell["perplexity"]["wikipedia"] < 10 * dense]
    cell = drawn([cell for cell in speaks if cell["source"] in ("wikipedia", "news", "test")])
    found = calibration.recompute(cell)
    assert found.get("sha256") == cell.get("sha256")
    assert found["perplexity"]["wikipedia"] == pytest.approx(cell["perplexity"]["wikipedia"], rel=0.06), cell


@pytest.mark.slow
def test_a_part_of_the_recipe_drawn_anew_each_time_is_measured_again(monkeypatch):
    """One cell of recipe.json; 6 %, as above."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import recipe

    cell = drawn(json.loads((ROOT / "book" / "results" / "recipe.json").read_text())["cells"])
    found = recipe.recompute(cell["part"], cell["pattern"])
    for text in recipe.TEXTS:
        assert found[text] == pytest.approx(cell[text], rel=0.06), (text, cell)
    assert found.get("zeros", 0) == pytest.approx(cell.get("zeros", 0), abs=2e-5)


@pytest.mark.slow
def test_a_product_with_zeros_is_timed_again(monkeypatch, one_thread):
    """The cells of zeros.json at one number of tokens. Another processor has other ratios, CSR's to the dense product
    5.2 on one and 1.9 on another: within a factor of 4. What the chapters say of them holds on each."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import zeros

    cells = json.loads((ROOT / "book" / "results" / "zeros.json").read_text())["cells"]
    tokens = drawn(zeros.TOKENS)
    found = zeros.measure(tokens)
    these = [cell for cell in cells if cell["tokens"] == tokens]
    assert {(cell["storage"], cell["sparsity"]) for cell in these} == set(found)
    for cell in these:
        ratio = found[cell["storage"], cell["sparsity"]]
        assert 0.25 < ratio / cell["ratio"] < 4, (ratio, cell)
        assert cell["storage"] != "dense" or 0.8 < ratio < 1.25, (ratio, cell)  # a zero saves nothing by itself
    by_sparsity = [found["csr", sparsity] for sparsity in (0.5, 0.9, 0.99)]
    assert by_sparsity[0] > 1.25 and by_sparsity == sorted(by_sparsity, reverse=True)  # half of zeros does not pay


@pytest.mark.slow
def test_a_size_drawn_anew_each_time_is_trained_again(monkeypatch):
    """One model of sizes.json. Training amplifies rounding: 0.05 bits dense, a tenth of what pruning adds more."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import sizes

    cell = drawn(json.loads((ROOT / "book" / "results" / "sizes.json").read_text())["cells"])
    found = sizes.recompute(cell["width"], cell["steps"], cell["seed"])
    assert found["weights"] == cell["weights"]
    assert found["dense"] == pytest.approx(cell["dense"], abs=0.05)
    for way, bits in cell["bits"].items():
        assert found["bits"][way] == pytest.approx(bits, abs=0.05 + 0.1 * (bits - cell["dense"])), (way, cell)


@pytest.mark.slow
def test_a_precision_drawn_anew_each_time_is_measured_again(monkeypatch):
    """One cell of precision.json; 6 %, as above."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import precision

    cell = drawn(json.loads((ROOT / "book" / "results" / "precision.json").read_text())["cells"])
    found = precision.recompute(cell["way"], cell["precision"], cell["seed"])
    assert found["perplexity"] == pytest.approx(cell["perplexity"], rel=0.06), cell


@pytest.mark.slow
def test_a_smaller_model_drawn_anew_each_time_is_measured_again(monkeypatch, one_thread):
    """One cell of structured.json; 6 %, as above."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import structured

    cells = json.loads((ROOT / "book" / "results" / "structured.json").read_text())["cells"]
    cell = drawn([cell for cell in cells if "perplexity" in cell])  # the others are times
    found = structured.recompute(*(cell[name] for name in ("remove", "method", "repair", "damp")))
    assert found["perplexity"] == pytest.approx(cell["perplexity"], rel=0.06), cell
    assert found["parameters"] == cell["parameters"]


@pytest.mark.slow
def test_a_way_of_the_frontier_drawn_anew_each_time_is_measured_again(monkeypatch, one_thread):
    """One cell of frontier.json with one model of a size; 6 %, as above. The zeros of the dense weights count, too."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import frontier

    cells = json.loads((ROOT / "book" / "results" / "frontier.json").read_text())["cells"]
    cell = drawn([cell for cell in cells if "nats" in cell])  # the others are times, and models trained for minutes
    found = frontier.recompute(cell["way"], cell["seed"])
    assert found["parameters"] == pytest.approx(cell["parameters"], rel=1e-4), cell
    for text, nats in cell["nats"].items():
        assert fmean(found["nats"][text]) == pytest.approx(fmean(nats), abs=log(1.06)), (text, cell)


@pytest.mark.slow
def test_a_model_of_fewer_bits_drawn_anew_each_time_is_measured_again(monkeypatch, one_thread):
    """One cell of quantize.json; 6 %, as above. The byte model is trained anew, and another processor trains other
    weights: of 376,832 the share that rounds to zero has a standard error of 0.0005, and four of them are allowed."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import quantize

    cells = json.loads((ROOT / "book" / "results" / "quantize.json").read_text())["cells"]
    if not (cache_folder() / "sentences-float32").exists():  # an hour of training
        cells = [cell for cell in cells if cell["model"] != quantize.SENTENCES]
    cell = drawn(cells)
    found = quantize.recompute(*(cell[name] for name in ("model", "rounding", "bits", "grid", "pruning", "order")))
    assert found["perplexity"] == pytest.approx(cell["perplexity"], rel=0.06), cell
    trained = cell["model"].startswith("bytes") and cell["rounding"]
    assert found["zeros"] == pytest.approx(cell["zeros"], abs=4 * 0.0005 if trained else 1e-4), cell


@pytest.mark.slow
def test_a_way_beside_the_kernels_drawn_anew_each_time_is_measured_again(monkeypatch, tmp_path):
    """One cell of rivals.json among the ways whose packages are here; perplexity 6 %, as above. Memory has the
    libraries in it, and the room that an allocator takes at once: within a fifth."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import rivals

    cells = json.loads((ROOT / "book" / "results" / "rivals.json").read_text())["cells"]
    cell = drawn([cell for cell in cells if not rivals.missing(cell["way"])])
    rivals.prepare(tmp_path, [cell["way"]])
    _, peaks = rivals.in_turns([cell["way"]], 1, 1, tmp_path)
    assert peaks[cell["way"]] == pytest.approx(cell["peak MB"], rel=0.2), cell
    if known := cell.get("perplexity"):
        assert rivals.perplexity(cell["way"], tmp_path) == pytest.approx(known, rel=0.06), cell


def test_no_way_beside_the_kernels_is_without_its_numbers(monkeypatch):
    """Memory and the speed of one thread for all. What is not measured yet is so for all: no way is left out of a
    comparison. The same weights in other hands have the same perplexity."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import rivals

    cells = {c["way"]: c for c in json.loads((ROOT / "book" / "results" / "rivals.json").read_text())["cells"]}
    assert cells.keys() == rivals.WAYS.keys()
    for way, cell in cells.items():
        assert cell.keys() == cells["OpenVINO, int8"].keys() and cell["peak MB"] > 0, way
        for name in (name for name in cell if name.endswith("slowest")):
            assert 0 < cell[name] <= cell[name.removesuffix(", slowest")], way
    assert "tokens a second, 1 thread, slowest" in cells["OpenVINO, int8"]
    dense = cells["transformers, float32"].get("perplexity")
    for way in ("OpenVINO, float32", "torch.compile, float32", "llama.cpp, F16"):
        assert cells[way].get("perplexity") == (dense and pytest.approx(dense, rel=0.002)), way


def test_a_rival_is_asked_for_nats_as_evaluation_counts_them(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import rivals

    logits = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    window = [3, 0, 6, 2, 2]
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    wanted = -sum(log(shares[i, token]) for i, token in enumerate(window[1:]))
    assert rivals.nats(logits, window) == pytest.approx(wanted, rel=1e-6)


def test_an_engine_that_goes_token_by_token_reads_each_token_once_at_its_place(monkeypatch):
    """Its answer is the place plus the token, so that each token written tells what was read."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import engines

    seen = [([9], 0)]  # of an earlier text

    class Counting(engines.Stepwise):
        def forget(self):
            seen.clear()

        def read(self, tokens, place, every=False):
            seen.append((tokens, place))
            return np.eye(50)[[place + len(tokens) + token for token in tokens]]

    assert Counting().write([1, 2], 3) == [4, 7, 11]
    assert seen == [([1, 2], 0), ([4], 2), ([7], 3)]


@pytest.mark.slow
def test_a_way_of_the_atlas_drawn_anew_each_time_is_measured_again(monkeypatch, one_thread):
    """One line of atlas.jsonl whose model still speaks (less than 20 times the dense perplexity); 6 %, as above."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import atlas

    compared = json.loads((ROOT / "book" / "results" / "atlas.json").read_text())["cells"]
    cell = drawn([cell for cell in compared if cell["loss"] < log(20)])
    found = atlas.recompute(cell["steps"], cell["dtype"])
    assert fmean(found["nats"]) == pytest.approx(log(cell["perplexity"]), abs=log(1.06)), cell
    assert found["bytes"] == pytest.approx(cell["bytes"], rel=0.005), cell


def test_the_comparison_of_the_atlas_is_what_its_lines_give_and_the_package_has_it():
    """Means, paired differences and their errors, by NumPy from the lines; to the digits that the file has."""
    lines = [json.loads(line) for line in (ROOT / "book" / "results" / "atlas.jsonl").read_text().splitlines()]
    cells = json.loads((ROOT / "book" / "results" / "atlas.json").read_text())["cells"]
    measured = {(*line["steps"], line["dtype"]): line for line in lines}
    assert len(measured) == len(lines) == len(cells)
    dense = np.array(measured["bfloat16",]["nats"])
    for cell in cells:
        line = measured[*cell["steps"], cell["dtype"]]
        nats, kl = np.array(line["nats"]), np.array(line["kl"])
        assert len(nats) == len(kl) == 8
        assert cell["perplexity"] == pytest.approx(np.exp(nats.mean()), rel=1e-5)
        for name, each in (("loss", nats - dense), ("kl", kl)):
            error = each.std(ddof=1) / 8**0.5
            found = cell[name], cell["error" if name == "loss" else "kl_error"]
            assert found == pytest.approx((each.mean(), error), rel=1e-5, abs=1e-12), cell
        assert all(cell[name] == line[name] for name in cell.keys() & line.keys() - {"kl"})
    assert json.loads((ROOT / "minprune" / "compress" / "atlas.json").read_text()) == cells


@pytest.mark.slow
@pytest.mark.parametrize("way", ["quantize rtn 4", "prune magnitude 50%"])
def test_the_bytes_of_the_atlas_are_those_of_a_folder_that_was_exported(way, monkeypatch, tmp_path):
    """Of the file with all arrays, its header included. Where the zeros are does not change the bytes."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import quantize

    from minprune.formats import save_model

    model, (_, tokenizer) = quantize.dense("smollm2 rescaled"), mp.load_model("smollm2")
    if way.startswith("quantize"):
        mp.quantize(model, None, 4, method="rtn")
    else:
        mp.prune(model, None, "magnitude", "50%")
    save_model(model.half(), tokenizer, tmp_path / "small", grid=(4, 64) if way.startswith("quantize") else None)
    cells = json.loads((ROOT / "book" / "results" / "atlas.json").read_text())["cells"]
    said = next(c["bytes"] for c in cells if c["steps"] == [way.replace("magnitude", "sparsegpt")])
    assert (tmp_path / "small" / "stored.safetensors").stat().st_size == pytest.approx(said, rel=0.002)


def test_tokens_a_second_of_the_atlas_are_those_that_were_measured():
    """Of the dense model and of one pruning with a pattern of decode.json, whatever the method; null for all others."""
    decode = json.loads((ROOT / "book" / "results" / "decode.json").read_text())["cells"]
    rates = {c["pattern"]: c for c in decode if (c["model"], c["threads"]) == ("SmolLM2, bfloat16", 1)}
    for cell in json.loads((ROOT / "book" / "results" / "atlas.json").read_text())["cells"]:
        pattern = cell["steps"][0].split()[-1] if len(cell["steps"]) == 1 else ""
        if cell["steps"] and cell["steps"][0].startswith("prune") and len(cell["steps"]) == 1 and pattern in rates:
            assert cell["tokens_per_second"] == rates[pattern]["sparse tokens a second"]
            assert cell["faster"] == rates[pattern]["x dense"]
        elif cell["steps"] or cell["dtype"] == "float32":
            assert cell["tokens_per_second"] is cell["faster"] is None
        else:
            assert cell["faster"] == 1
            assert min(r["dense tokens a second"] for r in rates.values()) <= cell["tokens_per_second"]
            assert cell["tokens_per_second"] <= max(r["dense tokens a second"] for r in rates.values())


def test_every_file_of_results_is_listed_and_made_by_make_results():
    """README.md beside the files has a row for each, and `make results` the command that the file names."""
    folder = ROOT / "book" / "results"
    rows = [line for line in (folder / "README.md").read_text().splitlines() if line.startswith("| `")]
    listed = [re.match(r"\| `([^`]+)` \| ", row)[1] for row in rows]
    assert sorted(listed) == sorted(path.name for path in folder.glob("*.json*"))
    recipe = (ROOT / "Makefile").read_text().split("\nresults:")[1].split("\n\n")[0]
    for path in MEASURED:
        script = re.search(r"python (\S+\.py)", json.loads(path.read_text())["command"])[1]
        assert (ROOT / script).exists() and script in recipe, (path.name, script)


@pytest.mark.parametrize("name", ["atlas.jsonl", "frontier.json", "quantize.json", "structured.json"])
def test_how_far_a_file_was_filled_is_what_its_row_says(name, monkeypatch):
    """Which of the cells of its script it holds; a row of a file that holds them all says nothing of it."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    wanted = importlib.import_module(name.split(".")[0])._cells()
    folder = ROOT / "book" / "results"
    if name.endswith("l"):
        cells = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    else:
        cells = json.loads((folder / name).read_text())["cells"]
    there = sum(any(asked.items() <= cell.items() for cell in cells) for asked in wanted)
    row = next(line for line in (folder / "README.md").read_text().splitlines() if line.startswith(f"| `{name}` | "))
    said = re.search(r"stopped after (\d+) of its (\d+)", row)
    assert there == len(cells)
    assert (there, len(wanted)) == (tuple(map(int, said.groups())) if said else (len(wanted),) * 2)


def test_make_results_makes_every_method_and_pattern_of_the_layers(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import layers

    made = set()
    for _, options in re.findall(r"(layers\.json)(.*)", (ROOT / "Makefile").read_text()):
        given = {part.split()[0]: part.split()[1:] for part in options.split("--")[1:]}
        methods, patterns = given.get("methods", layers.METHODS), given.get("patterns", layers.PATTERNS)
        made |= {(method, pattern) for method in methods for pattern in patterns}
    cells = json.loads((ROOT / "book" / "results" / "layers.json").read_text())["cells"]
    assert {(cell["method"], cell["pattern"]) for cell in cells} == made


@pytest.mark.slow
def test_a_seed_of_the_lottery_drawn_anew_each_time_is_trained_again(monkeypatch):
    """All ways of one seed of lottery.json. Training amplifies rounding, so that another machine is a new draw.

    A score is within four standard deviations of the seeds of the file, and the mean over all ways within one.
    """
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import lottery

    cells = json.loads((ROOT / "book" / "results" / "lottery.json").read_text())["cells"]
    run = drawn(cells)
    of_task = [cell for cell in cells if cell["task"] == run["task"]]
    scores = defaultdict(list)
    for cell in of_task:
        for place, row in enumerate(cell["rows"]):
            scores[cell["way"], place].append(row[1])
    spread = {key: statistics.stdev(of_seeds) for key, of_seeds in scores.items()}
    usual = statistics.median(spread.values())
    found = {cell["way"]: cell["rows"] for cell in lottery.recompute(run["task"], run["seed"])}
    apart = []
    for cell in of_task:
        if cell["seed"] == run["seed"]:
            for place, (row, again) in enumerate(zip(cell["rows"], found[cell["way"]], strict=True)):
                assert [again[0], again[2]] == [pytest.approx(row[0], abs=1e-5), row[2]], cell
                apart.append(again[1] - row[1])
                assert abs(apart[-1]) < 4 * max(usual, spread[cell["way"], place]), cell
    assert abs(statistics.mean(apart)) < usual


@pytest.mark.slow
def test_a_schedule_drawn_anew_each_time_is_trained_again(monkeypatch):
    """One cell of gradual.json. Training amplifies rounding: 4 points of accuracy, 0.08 bits."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gradual

    cells = json.loads((ROOT / "book" / "results" / "gradual.json").read_text())["cells"]
    cell = drawn(cells)
    found = gradual.recompute(gradual.run_of(cell), cell["seed"])
    ruined = cell["kind"] == "one-shot" and cell["begin"] >= 0.9  # nothing, or next to nothing, was trained afterwards
    allowed = 0.04 if cell["task"] == "mnist1d" else 0.5 if ruined else 0.08
    assert found["score"] == pytest.approx(cell["score"], abs=allowed), cell
    assert [found["zeros"], found["live"]] == pytest.approx([cell["zeros"], cell["live"]], abs=1e-4), cell
    assert (found["returned"] > 0) == (cell["returned"] > 0), cell


@pytest.mark.slow
def test_a_share_of_activations_drawn_anew_each_time_is_pruned_again(monkeypatch):
    """One cell of activations.json whose model still speaks (less than 20 times the dense perplexity)."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import activations

    cells = json.loads((ROOT / "book" / "results" / "activations.json").read_text())["cells"]
    cell = drawn([cell for cell in cells if cell["relative"] < 20])
    found = activations.recompute(cell["reads"], cell["rule"], cell["sparsity"])
    assert found["relative"] == pytest.approx(cell["relative"], rel=0.01), cell
    assert found["zeroed"] == pytest.approx(cell["zeroed"], abs=0.002), cell


def test_no_cell_of_the_schedules_is_missing(monkeypatch):
    """The file has every run that the benchmark names, with every seed, and nothing else."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gradual

    cells = json.loads((ROOT / "book" / "results" / "gradual.json").read_text())["cells"]
    wanted = [(run, seed) for run in gradual.wanted() for seed in range(gradual.SEEDS[run.task])]
    found = [(gradual.run_of(cell), cell["seed"]) for cell in cells]
    assert set(found) == set(wanted) and len(found) == len(wanted)


@pytest.mark.slow
def test_a_recovery_drawn_anew_each_time_is_trained_again(monkeypatch):
    """One cell of recovery.json, pruned and trained again; 6 %, as above."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import recovery

    cell = drawn(json.loads((ROOT / "book" / "results" / "recovery.json").read_text())["cells"])
    found = recovery.recompute(cell)
    if cell["kind"] == "dense":
        assert found["perplexity"] == pytest.approx(cell["perplexity"], rel=0.01)
    elif cell["kind"] == "rate":
        assert [found["before"], found["validation"]] == pytest.approx([cell["before"], cell["validation"]], rel=0.06)
    else:
        assert found["zeros"] == pytest.approx(cell["zeros"], abs=2e-5)
        for row, expected in zip(found["rows"], cell["rows"], strict=True):
            assert row[0] == expected[0]
            assert row[2:] == pytest.approx(expected[2:], rel=0.06), cell


@pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.name)
def test_the_code_behind_a_results_file_is_the_one_that_made_it_or_was_confirmed(path, monkeypatch):
    """If this fails, measure the file again; or measure cells of it again and confirm: benchmarks/provenance.py."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import provenance

    results = json.loads(path.read_text())
    assert re.fullmatch(r"[0-9a-f]{7,10}\+?", results["commit"])
    assert all(note["why"] for note in results.get("confirmed", []))
    assert not provenance.changed(path), f"{path.name}: made by other code than today's; `{results['command']}`"


@pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.name)
def test_a_file_of_several_machines_says_where_each_cell_was_measured(path):
    results = json.loads(path.read_text())
    runs = results.get("measured")
    assert runs is None or (len(runs) > 1 and sum(run["cells"] for run in runs) == len(results["cells"]))
    assert all(run.keys() == {"cells", "machine", "commit"} for run in runs or [])


def test_cells_that_are_filled_in_later_or_elsewhere_keep_where_they_were_measured(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import record

    path, here = tmp_path / "file.json", {"machine": "A", "commit": "a"}
    monkeypatch.setattr(record, "processor", lambda: here["machine"])
    monkeypatch.setattr(record, "stamp", lambda script: {"commit": here["commit"], "code": {}})

    def fill(machine, commit, upto, most=None):
        here.update(machine=machine, commit=commit)
        wanted = [{"x": x} for x in range(upto)]
        record.fill_in(path, "python benchmarks/quality.py f", {}, wanted, lambda x: {"y": (x, float(x))}, most)
        results = json.loads(path.read_text())
        assert [cell["x"] for cell in results["cells"]] == list(range(len(results["cells"])))
        assert (results["machine"].split(",")[0], results["commit"]) == (machine, commit)
        told = [(run["cells"], run["machine"].split(",")[0], run["commit"]) for run in results.get("measured", [])]
        return len(results["cells"]), told

    assert fill("A", "a", 5, most=3) == (3, [])  # the head says it of all
    assert fill("A", "a", 4) == (4, [])
    assert fill("B", "b", 5) == (5, [(4, "A", "a"), (1, "B", "b")])
    assert fill("B", "b", 7) == (7, [(4, "A", "a"), (3, "B", "b")])
    assert fill("B", "c", 8) == (8, [(4, "A", "a"), (3, "B", "b"), (1, "B", "c")])
    assert fill("A", "a", 9)[1][-2:] == [(1, "B", "c"), (1, "A", "a")]
    results = json.loads(path.read_text())
    record.save(path, results["command"], {}, [{"x": 0, "y": [0, 9.0]}, *results["cells"][1:]])  # one measured again
    runs = [(run["cells"], run["commit"]) for run in json.loads(path.read_text())["measured"]]
    assert runs == [(4, "a"), (3, "b"), (1, "c"), (1, "a")]  # at the same place and commit as the others of its run
    here.update(commit="d")
    record.save(path, results["command"], {}, [{"x": number} for number in range(3)])  # all anew
    assert "measured" not in json.loads(path.read_text())


def test_the_code_behind_a_script_is_what_its_numbers_come_from(monkeypatch, tmp_path):
    """Changed arithmetic is another code, a changed comment or docstring is not; what prints pages does not count."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import provenance

    code = provenance.code_behind(ROOT / "benchmarks" / "quality.py")
    behind = ("pipeline/prune", "statistics", "methods/sparsegpt", "patterns")
    assert {f"minprune/{name}.py" for name in behind} <= set(code)
    assert not {f"minprune/{name}.py" for name in ("output/page", "output/model_card", "cli/main")} & set(code)
    digests = []
    for text in ('"""A."""\nx = 1', '"""B."""\n# why\nx = 1', "x = 1", '"""A."""\nx = 2'):
        (tmp_path / "module.py").write_text(text)
        digests.append(provenance._digest(tmp_path / "module.py"))
    assert digests[0] == digests[1] != digests[3]
