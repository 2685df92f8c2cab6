"""Commands one after the other, each on the model that the one before wrote."""

import json

import pytest

import minprune as mp
from minprune.cli.main import main
from minprune.output.record import read_record


@pytest.fixture(scope="module")
def chain(tiny_folder, text_file, tmp_path_factory):
    """Folders by name, each made of the one before it: shrunk, rounded; then pruned in two ways."""
    folder = tmp_path_factory.mktemp("chain")
    text = ["--calibration", str(text_file), "--samples", "4", "--length", "32", "--no-test"]
    steps = [
        ("narrow", "shrink", tiny_folder, ["--remove", "neurons:25%", *text]),
        ("rounded", "quantize", folder / "narrow", ["--bits", "4", "--group", "32", "--method", "rtn", *text]),
        ("zeros", "prune", folder / "rounded", ["--method", "magnitude", "--pattern", "50%", "--no-test"]),
        ("solved", "prune", folder / "rounded", ["--method", "sparsegpt", "--pattern", "50%", *text]),
    ]
    for name, verb, source, options in steps:
        assert main([verb, str(source), *options, "--output", str(folder / name)]) == 0
    return folder


@pytest.mark.parametrize("last, how", [("zeros", "magnitude 50%"), ("solved", "sparsegpt 50%")])
def test_a_record_a_card_and_a_page_say_all_that_was_done(chain, last, how):
    record = read_record(chain / last)
    done = [record.made_by, *(run.made_by for run in record.runs_before)]
    assert done == [how, "rtn 4 bits in groups of 32", "obs neurons:25%"]
    words = "obs neurons:25%, rtn 4 bits in groups of 32"
    assert f"| before that | {words} |" in (chain / last / "README.md").read_text()
    page = (chain / last / "report.html").read_text()
    assert words in page and "made_from" not in page and "'earlier'" not in page


def test_zeros_leave_rounded_weights_on_their_grid_and_an_export_stores_whole_numbers(chain):
    for last in ("zeros", "solved"):
        out = chain / f"{last}-exported"
        assert main(["export", str(chain / last), "--output", str(out)]) == 0
        again, model = mp.load_model(out)[0], mp.load_model(chain / last)[0]
        for (name, one), other in zip(again.named_parameters(), model.parameters(), strict=True):
            assert one.equal(other), name
    zeros, solved = (read_record(chain / f"{last}-exported") for last in ("zeros", "solved"))
    assert zeros.bytes < 0.15 * zeros.dense_bytes and solved.bytes > 0.5 * solved.dense_bytes


def test_a_damaged_record_of_an_earlier_run_is_one_line_with_its_field(chain, tmp_path):
    found = json.loads((chain / "zeros" / "minprune.json").read_text())
    found["earlier"]["earlier"]["pattern"] = 3
    (tmp_path / "minprune.json").write_text(json.dumps(found))
    with pytest.raises(mp.PruneError, match=r"field earlier\.earlier\.pattern"):
        read_record(tmp_path)
