"""The roofline counts bytes as the formats do, its bounds are the chapter's formulas, and its marks are the file's."""

import itertools
import json
import re

import nbformat
import pytest
import torch
from javascript import FOLDER, building, call, script

from minprune.formats import Bitmask, Dense, Integers, NMPacked, sizes

ROOT = FOLDER.parents[1]
SPEED = json.loads((FOLDER.parent / "results" / "speed.json").read_text(encoding="utf-8"))
ONE_CORE = [cell for cell in SPEED["cells"] if cell["threads"] == 1 and cell["dtype"] != "int4"]
PAGE = " ".join((FOLDER / "roofline.md").read_text(encoding="utf-8").split())
BITS = {"float32": 32, "bfloat16": 16, "int8": 8, "int4": 4}
SPARSITIES = (0.0, 0.03, 0.1, 0.25, 0.5, 0.63, 0.9, 0.95)
BATCHES = [2**k for k in range(10)]
SLOW, FAST = {"bandwidth": 1.8e10, "rate": 1.3e11}, {"bandwidth": 2e12, "rate": 3e14}
MACHINES = [
    {**machine, "skips": skips, "expanding": expanding}
    for machine in (SLOW, FAST)
    for skips, expanding in ((False, 0), (True, 0), (False, 9e-11), (False, 1e-13))
]


@pytest.fixture(scope="module")
def engine():
    return script("roofline.js")


@pytest.fixture(scope="module")
def data():
    return building().DATA["roofline"]()


@pytest.fixture(scope="module")
def draw(engine, data):
    """picture, table and sentence of the first setting with some changes, and the setting."""

    def made(**changes):
        state = call(engine, "roofline.prepare", {**call(engine, "(() => roofline.start)"), **changes}, data)
        return call(engine, "roofline.draw", state, data), state

    return made


def _cell(form, dtype="float32", pattern=None, tokens=1):
    (found,) = [c for c in ONE_CORE if (c["form"], c["dtype"], c.get("pattern"), c.get("tokens", 1))
                == (form, dtype, pattern, tokens)]  # fmt: skip
    return found


def _seconds(format_, s, b, tokens, machine):
    """Of a weight, by each limit: as chapter 20 has them, with the package's bits."""
    bits = {"dense": sizes.dense_bits(b), "bitmask": sizes.bitmask_bits(s, b), "nm24": sizes.nm_bits(2, 4, b)}[format_]
    done = {"dense": 1, "bitmask": 1 - s, "nm24": 0.5}[format_] if machine["skips"] else 1
    found = {"reading": bits / 8 / machine["bandwidth"], "arithmetic": 2 * tokens * done / machine["rate"]}
    return found | ({"expanding": machine["expanding"]} if machine["expanding"] and format_ == "bitmask" else {})


def test_every_bound_is_operations_over_the_seconds_of_the_chapter(engine):
    for s, b, tokens, machine in itertools.product(SPARSITIES, BITS.values(), (1, 16, 512), MACHINES):
        product = {"b": b, "tokens": tokens}
        dense = max(_seconds("dense", s, b, tokens, machine).values())
        for format_ in ("dense", "bitmask", "nm24"):
            seconds = _seconds(format_, s, b, tokens, machine)
            found = call(engine, "limitsOf", format_, s, product, machine)
            assert found["allowed"] == pytest.approx({limit: 2 * tokens / t for limit, t in seconds.items()})
            assert found["most"] == pytest.approx(2 * tokens / max(seconds.values()))
            assert seconds[found["bound"]] == pytest.approx(max(seconds.values()))
            assert found["perByte"] == pytest.approx(found["allowed"]["reading"] / machine["bandwidth"])
            gain = call(engine, "speedUp", format_, s, product, machine)
            assert gain == pytest.approx(dense / max(seconds.values()))


def test_bits_are_those_of_stored_matrices(engine):
    side, draw = 256, torch.Generator().manual_seed(0)
    ints = torch.randint(1, 100, (side, side), generator=draw)
    for zeros in (0.25, 0.5, 0.9):
        keep = torch.rand(side, side, generator=draw) >= zeros
        share = float((~keep).double().mean())
        for dtype in (torch.float32, torch.bfloat16, torch.int8):
            W = (ints * keep).to(dtype)
            bits = 8 * W.element_size()
            assert call(engine, "bitsOf", "bitmask", share, bits) * side**2 / 8 == Bitmask.from_dense(W).nbytes
            assert call(engine, "bitsOf", "dense", share, bits) * side**2 / 8 == Dense.from_dense(W).nbytes
    fours = torch.tensor([1.0, 0, 0, 1]).repeat(side, side // 4) * ints
    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        stored = NMPacked.from_dense(fours.to(dtype))
        assert call(engine, "bitsOf", "nm24", 0.1, 8 * stored.values.element_size()) * side**2 / 8 == stored.nbytes


def test_bits_of_int4_are_those_of_the_integers_without_their_scales(engine):
    side, draw = 256, torch.Generator().manual_seed(1)
    whole = torch.randint(1, 8, (side, side), generator=draw).float()
    for layout, share in (("dense", 0.0), ("bitmask", 0.7)):
        keep = torch.rand(side, side, generator=draw) >= share
        stored = Integers.from_dense(whole * keep / 8, keep, bits=4, group=64)
        assert stored.layout == layout
        found = call(engine, "bitsOf", layout, float((~keep).double().mean()), 4) * side**2 / 8
        assert found == pytest.approx(stored.codes.nbytes + stored.places.nbytes, abs=1)
    fours = NMPacked.from_dense(whole * torch.tensor([True, True, False, False]).repeat(side, side // 4))
    assert call(engine, "bitsOf", "nm24", 0.1, 4) * side**2 / 8 == fours.values.numel() * 4 / 8 + fours.codes.nbytes


def test_a_bitmask_pays_from_where_it_becomes_faster(engine):
    """Against a search; and 1 / b, the package's, wherever reading decides and nothing else is in the way."""
    fine = [k / 400 for k in range(400)]
    seen = set()
    for b, tokens, machine in itertools.product(BITS.values(), BATCHES, MACHINES):
        found = call(engine, "paysFrom", {"b": b, "tokens": tokens}, machine)
        dense = max(_seconds("dense", 0, b, tokens, machine).values())
        faster = [s for s in fine if max(_seconds("bitmask", s, b, tokens, machine).values()) < dense * (1 - 1e-12)]
        if found is None:
            assert not faster
        else:
            assert faster and faster == [s for s in fine if s > found + 1e-12]
        if found and dense == _seconds("dense", 0, b, tokens, machine)["reading"]:
            assert found == pytest.approx(sizes.bitmask_break_even(b))
        seen.add("never" if found is None else "at once" if found == 0 else "from" if found > 0.01 else "early")
    assert seen >= {"never", "at once", "from"}


def test_the_marks_are_all_products_of_one_core_in_the_three_formats(engine, data):
    cells = [c for c in ONE_CORE if c["form"] in ("own", "sparse")]
    assert len(cells) == len(data["points"])
    weights = data["matrix"][0] * data["matrix"][1]
    for cell, point in zip(cells, data["points"], strict=True):
        zeros = cell.get("pattern", "0%")
        assert (point["bits"], point["tokens"]) == (BITS[cell["dtype"]], cell["tokens"])
        assert [point[key] for key in ("megabytes", "ms", "gain")] == [cell[key] for key in ("MB", "ms", "x own")]
        expected = {"0%": ("dense", 0), "2:4": ("nm24", 0.5)}.get(zeros, ("bitmask", float(zeros.rstrip("%: 4")) / 100))
        assert (point["format"], point["zeros"]) == expected
        counted = call(engine, "bitsOf", point["format"], point["zeros"], point["bits"]) * weights / 8e6
        starts = 8 * (data["matrix"][0] + 1) / 1e6  # the kernel's: where a row begins
        assert counted + starts == pytest.approx(point["megabytes"], rel=5e-4)  # random zeros: not exactly so many


def test_no_mark_is_above_the_roof_of_its_product(engine, data):
    weights = data["matrix"][0] * data["matrix"][1]
    for point in data["points"]:
        state = {"bits": point["bits"], "bandwidth": 0, "rate": 0, "zeros": "multiply"}
        machine = call(engine, "machineOf", state, data)
        product = {"b": point["bits"], "tokens": point["tokens"]}
        roof = call(engine, "limitsOf", point["format"], point["zeros"], product, machine)["most"]
        assert 2 * weights * point["tokens"] / (point["ms"] / 1e3) < roof, point


def test_the_machine_is_the_measured_one_until_the_reader_moves_it(engine, data):
    assert data["bandwidth"] == 1e9 * max(cell["GB/s"] for cell in ONE_CORE if cell["dtype"] == "float32")
    assert data["bandwidth"] >= 1e9 * _cell("read")["GB/s"]
    assert not any("flop" in json.dumps(cell) for cell in SPEED["cells"])  # no peak in the file: hence the chapter's
    chapter = nbformat.read(ROOT / "notebooks" / "20-speed.ipynb", as_version=4)
    (text,) = [output.text for cell in chapter.cells if cell.cell_type == "code" and "pi = 2 * 1024**3" in cell.source
               for output in cell.outputs]  # fmt: skip
    assert data["rate"] == 1e9 * float(re.search(r"calculates (\d+) Gflop/s", text)[1])
    base = {"bits": 8, "bandwidth": 0, "rate": 0, "zeros": "multiply"}
    expected = {"bandwidth": data["bandwidth"], "rate": data["rate"], "skips": False, "expanding": 0}
    assert call(engine, "machineOf", base, data) == expected
    moved = call(engine, "machineOf", {**base, "bandwidth": 20, "rate": -10, "zeros": "skip"}, data)
    assert moved == pytest.approx(
        expected | {"bandwidth": 1e2 * data["bandwidth"], "rate": data["rate"] / 10, "skips": True}
    )
    for dtype in ("float32", "bfloat16", "int8"):
        seconds = call(engine, "machineOf", {**base, "bits": BITS[dtype], "zeros": "expand"}, data)["expanding"]
        weights = data["matrix"][0] * data["matrix"][1]
        assert 1e3 * seconds * weights == pytest.approx(_cell("sparse", dtype, "90%")["ms"])
    assert call(engine, "machineOf", {**base, "bits": 4, "zeros": "expand"}, data)["expanding"] == 0


def test_marks_are_drawn_where_something_was_measured_and_nowhere_else(draw, data):
    for bits, format_ in itertools.product(BITS.values(), ("dense", "bitmask", "nm24")):
        made, _ = draw(bits=bits, format=format_)
        points = [p for p in data["points"] if p["bits"] == bits and p["format"] in ("dense", format_)]
        assert made["picture"].count('data-say="Measured') == len(points)
        assert (">measured<" in made["picture"]) == bool(points) == (bits > 4)
    for changes in ({"bandwidth": 1}, {"bandwidth": -3}):
        made, _ = draw(**changes)
        assert "Measured" not in made["picture"] and "measured:" not in made["sentence"]
    assert "Measured" in draw(rate=7)[0]["picture"]  # the file has no peak of its own to be left


@pytest.mark.parametrize("point", [("sparse", "float32", "70%", 1), ("sparse", "bfloat16", "50%", 16),
                                   ("sparse", "int8", "2:4", 1), ("own", "float32", None, 16)])  # fmt: skip
def test_the_sentence_the_table_and_the_dots_say_what_was_measured_and_what_is_predicted(engine, draw, data, point):
    form, dtype, pattern, tokens = point
    format_ = "dense" if form == "own" else "nm24" if pattern == "2:4" else "bitmask"
    share = int(pattern[:-1]) if format_ == "bitmask" else 70
    made, _ = draw(bits=BITS[dtype], format=format_, sparsity=share, batch=tokens.bit_length() - 1)
    gain = f"{_cell(form, dtype, pattern, tokens)['x own']:.2f}"
    assert (f"(measured: {gain})" in made["sentence"]) == (format_ != "dense")
    row = re.search(r'<tr aria-current="true">.*?</tr>', made["table"])[0]
    head = re.findall(r'<th scope="col">(.*?)</th>', made["table"])
    cells = re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row)
    assert cells[head.index("measured")] == gain
    dots = re.findall(r'data-at="0,\d+" data-say="[^"]*? limited by \w+: ([\d.]+) times dense', made["picture"])
    assert dots == [f"{_gain(engine, data, dtype, share / 100, t, format_=format_):.2f}" for t in BATCHES]
    assert made["picture"].count('class="whisker') == (1 if format_ == "dense" else 2)
    assert draw(bits=BITS[dtype], format="bitmask", sparsity=71)[0]["sentence"].count("measured") == 0


def test_a_full_mark_stands_where_reading_and_arithmetic_meet_it(engine, draw, data):
    """Positions in the picture: the dense mark moves by the logarithm of its operations a byte."""

    def place(**changes):
        picture = draw(format="dense", **changes)[0]["picture"]
        x, y = re.search(r'data-at="0,0".*?translate\(([\d.]+) ([\d.]+)\)', picture).groups()
        return float(x), float(y)

    x = {k: place(batch=k)[0] for k in range(10)}
    steps = [x[k + 1] - x[k] for k in range(9)]
    assert steps == pytest.approx([steps[0]] * 9, abs=0.03) and steps[0] > 10
    flat = [place(batch=k)[1] for k in range(5, 10)]
    assert flat == pytest.approx([flat[0]] * 5, abs=0.01)
    assert place(batch=0)[1] - place(batch=1)[1] == pytest.approx(place(batch=1)[1] - place(batch=2)[1], abs=0.03)


@pytest.mark.parametrize("tilt", [(0, 0), (25, -10), (-10, 40), (25, 40), (-10, -10)])
def test_the_roof_is_drawn_through_every_dense_mark(draw, tilt):
    for bits, batch in itertools.product(BITS.values(), (0, 3, 5, 9)):
        made, _ = draw(format="dense", bits=bits, batch=batch, bandwidth=tilt[0], rate=tilt[1])
        drawn = re.search(r'<path d="M([^"]*)" class="curve dense">', made["picture"])[1]
        (x0, y0), (x1, y1), (x2, y2) = (map(float, corner.split()) for corner in drawn.split("L"))
        assert x0 == 58 <= x1 <= x2 == 438 and y0 >= y1 >= y2  # from edge to edge of the frame, and never down
        x, y = map(float, re.search(r'data-at="0,0".*?translate\(([\d.]+) ([\d.]+)\)', made["picture"]).groups())
        near = (x0, y0, x1, y1) if x <= x1 else (x1, y1, x2, y2)
        assert y == pytest.approx(near[1] + (near[3] - near[1]) * (x - near[0]) / (near[2] - near[0]), abs=0.1)


def _machine(engine, data, dtype, zeros="multiply"):
    return call(engine, "machineOf", {"bits": BITS[dtype], "bandwidth": 0, "rate": 0, "zeros": zeros}, data)


def _gain(engine, data, dtype, s, tokens=1, zeros="multiply", format_="bitmask"):
    machine = _machine(engine, data, dtype, zeros)
    return call(engine, "speedUp", format_, s, {"b": BITS[dtype], "tokens": tokens}, machine)


def test_what_the_page_says_to_try(engine, data):
    wide, narrow = _gain(engine, data, "float32", 0.5), _gain(engine, data, "int4", 0.5)
    assert f"In float32: {wide:.2f} against {narrow:.2f} times dense." in PAGE
    assert f"bytes alone would allow {sizes.dense_bits(4) / sizes.bitmask_bits(0.5, 4):.2f}." in PAGE
    one, machine = {"tokens": 1}, _machine(engine, data, "float32")
    high, low = (call(engine, "limitsOf", "dense", 0, one | {"b": b}, machine)["most"] for b in (4, 32))
    assert high == pytest.approx(8 * low) and "dense int4 already lies eight times as high" in PAGE
    for dtype, b in BITS.items():
        machine = _machine(engine, data, dtype)
        edge = machine["rate"] * b / (16 * machine["bandwidth"])
        pays = [call(engine, "paysFrom", {"b": b, "tokens": tokens}, machine) is not None for tokens in BATCHES]
        assert pays == [tokens < edge for tokens in BATCHES] and 8 < edge * 32 / b < 32
    assert "at $\\pi b / (16 \\beta)$ tokens: on the measured machine between 8 and 32 in float32" in PAGE
    most, floor = _gain(engine, data, "float32", 0.9), _gain(engine, data, "float32", 0.9, zeros="expand")
    measured = _cell("sparse", pattern="90%")["x own"]
    assert f"Bytes promise {most:.1f} times dense, and {measured:.1f} were measured." in PAGE
    assert f"the new ceiling is at {floor:.1f}." in PAGE
    assert all(_gain(engine, data, "int8", s, zeros="expand") < 1 for s in (0.0, 0.5, 0.95))
    dense, half = _cell("own", tokens=16), _cell("sparse", pattern="50%", tokens=16)
    assert f"{_gain(engine, data, 'float32', 0.5, 16):.2f} is predicted and {half['x own']:.2f} measured" in PAGE
    rate = 2 * 16 * data["matrix"][0] * data["matrix"][1] / (dense["ms"] / 1e3)
    assert 0.45 < rate / data["rate"] < 0.55 and "reaches about half of its roof" in PAGE
    left_out = 1e3 * 1e6 * (dense["MB"] - half["MB"]) / data["bandwidth"]
    assert (
        f"saves {dense['ms'] - half['ms']:.2f} ms of it, and the bytes that it leaves out take {left_out:.2f} ms"
        in PAGE
    )
    assert f"save nothing: {_cell('sparse', 'bfloat16', '50%', 16)['x own']:.2f}." in PAGE


def test_skipped_zeros_lift_the_flat_roof_and_nothing_else(engine, data):
    assert _gain(engine, data, "float32", 0.75, 512, "skip") == pytest.approx(4)
    assert _gain(engine, data, "float32", 0.75, 512) == 1
    assert _gain(engine, data, "float32", 0.75, 1, "skip") == _gain(engine, data, "float32", 0.75)


def test_torch_has_a_faster_product_of_bfloat16_as_the_page_says():
    assert _cell("own", "bfloat16", tokens=16)["x torch"] < 1 < _cell("own", tokens=16)["x torch"]
    assert "bfloat16 product has instructions of its own, whose roof was not measured" in PAGE


def test_the_chapter_and_the_page_of_bytes_lead_here():
    assert "{doc}`../book/explorer/roofline`" in (ROOT / "notebooks" / "20-speed.ipynb").read_text(encoding="utf-8")
    assert "(roofline.md)" in (FOLDER / "bytes.md").read_text(encoding="utf-8")
    assert "{doc}`bytes`" in PAGE
