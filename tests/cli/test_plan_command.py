"""`minprune plan`: what it says, that it reads no weights, and the one line that each mistake gets."""

import json
import re
from types import SimpleNamespace

import psutil
import pytest
import torch
from tiny import UNSUPPORTED_EXPERTS

SIZE = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_key_value_heads": 2, "num_hidden_layers": 2}
LARGE = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
LARGE |= {"num_key_value_heads": 8, "vocab_size": 128256, "dtype": "bfloat16"}


@pytest.fixture
def config(in_an_empty_folder):
    """config(...): the path of a config.json of a Llama with these entries."""

    def write(**changes):
        with open("config.json", "w") as file:
            json.dump(LLAMA | SIZE | changes, file)
        return "config.json"

    return write


@pytest.fixture
def plan(run, monkeypatch):
    """plan(...): the command, on a machine whose speeds are known, so that nothing is measured."""
    from minprune.pipeline import rates

    def forward_rate(dtype, length):
        return 1e10 if dtype == torch.float32 else 1e11

    def calibrate(method, pattern, dtype, length):
        return rates.Rates(forward_rate(dtype, length), 5e10, 5e10, (0.0, 0.0, 0.0, 1e-11, 0.0), 1e9, 5e8)

    occupied = SimpleNamespace(rss=400_000_000)  # by this process: the tests before would decide what fits
    monkeypatch.setattr(psutil.Process, "memory_info", lambda process: occupied)
    monkeypatch.setattr(rates, "calibrate", calibrate)
    monkeypatch.setattr(rates, "forward_rate", forward_rate)
    return lambda *words: run("plan", *words)


def row(out: str, name: str) -> float:
    return float(re.search(rf"^ *{name} +([\d,.e-]+) *$", out, re.M)[1].replace(",", ""))


def test_a_model_of_70_billion_parameters_is_planned_from_its_config_alone(plan, config):
    code, out, err = plan("--config", config(**LARGE), "--memory", "48GB")
    assert code == 0, err
    assert "70.55 B parameters in 80 blocks" in out
    block, outside = 4 * 8192 * 8192 - 2 * 8192 * 7168 + 3 * 8192 * 28672 + 2 * 8192, 2 * 128256 * 8192 + 8192
    assert row(out, "weights") == pytest.approx(2 * (block + outside) / 1e9, abs=0.01)
    assert row(out, "peak memory") < 48
    assert row(out, "disk") >= 141


def test_the_largest_batch_that_fits_is_recommended_and_a_larger_one_is_refused_in_words(plan, config):
    path = config(**LARGE)
    sizes = []
    for memory in ("22GB", "24GB", "120GB"):
        out = plan("--config", path, "--memory", memory)[1]
        assert row(out, "peak memory") <= float(memory[:-2]) and "does not fit" not in out
        sizes.append(int(re.search(r"--batch-size (\d+)", out)[1]))
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1] == 64
    code, out, _ = plan("--config", path, "--memory", "22GB", "--batch-size", 64)
    assert code == 0 and "it does not fit" in out
    assert "it does not fit" in plan("--config", path, "--memory", "5GB")[1]


def test_the_parts_add_up_and_ranks_share_them(plan, config):
    path = config(**LARGE)
    alone, four = (plan("--config", path, "--memory", "64GB", "--ranks", n)[1] for n in (1, 4))
    parts = ("forward", "statistics", "solve", "error", "files")
    assert sum(row(alone, part) for part in parts) == pytest.approx(row(alone, "total"), abs=1)
    assert row(four, "statistics") == pytest.approx(row(alone, "statistics") / 4, abs=0.1)
    assert row(alone, "forward") / 4 < row(four, "forward") < row(alone, "forward") / 2
    assert row(four, "network") > 0 and "network" not in alone
    slow = plan("--config", path, "--memory", "64GB", "--ranks", 4, "--bandwidth", "1MB/s")[1]
    assert row(slow, "network") == pytest.approx(100 * row(four, "network"), rel=0.01)
    assert "1 rank" in slow


def test_the_faster_precision_is_recommended(plan, config):
    assert "--dtype bfloat16" in plan("--config", config(dtype="float32"))[1]
    assert "--dtype bfloat16" in plan("--config", config(dtype="bfloat16"))[1]


def test_a_folder_and_a_config_in_it_give_one_plan(plan, tiny_folder):
    of_folder, of_config = plan(tiny_folder)[1], plan("--config", tiny_folder / "config.json")[1]
    pick = "weights|hidden|work|disk|forward|statistics|solve|error"
    assert [row(of_folder, name) for name in pick.split("|")] == [row(of_config, name) for name in pick.split("|")]


def test_a_method_without_calibration_needs_no_passes(plan, config):
    out = plan("--config", config(), "--method", "magnitude", "--test", 0)[1]
    assert row(out, "forward") == 0 and row(out, "statistics") == 0 and "--batch-size" not in out


def test_a_mixture_whose_tensors_are_renamed_is_planned_whole(plan, config):
    mixture = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 4}
    code, out, err = plan("--config", config(**mixture, num_experts_per_tok=2))
    assert code == 0, err
    assert "whole in memory" in out


def test_experts_in_a_layout_that_is_not_pruned_are_planned_dense(plan, tmp_path):
    make, arguments = UNSUPPORTED_EXPERTS["gpt_oss"]
    make(**arguments, architectures=["GptOssForCausalLM"]).save_pretrained(tmp_path / "experts")
    code, out, err = plan("--config", tmp_path / "experts" / "config.json", "--memory", "64GB")
    assert code == 0 and "peak memory" in out, err


@pytest.mark.parametrize(
    "words, named",
    [
        ([], "plan takes a MODEL or --config"),
        (["smollm2", "--config", "config.json"], "one of them"),
        (["--config", "nowhere.json"], "nowhere.json"),
        (["--config", "damaged.json"], "damaged.json"),
        (["--config", "list.json"], "list.json"),
        (["--config", "unknown.json"], "unknown.json"),
        (["--config", "quantised.json"], "quantised"),
        (["--config", "deep.json"], "1000000 blocks are more than 10000"),
        (["--config", "config.json", "--memory", "24"], "write it as 24GB"),
        (["--config", "config.json", "--bandwidth", "1GB/h"], "write it as 100MB/s"),
        (["--config", "config.json", "--ranks", "0"], "--ranks"),
        (["--config", "config.json", "--method", "sparsgpt"], "unknown method"),
        (["--config", "config.json", "--pattern", "half"], "unknown pattern"),
        (["--config", "config.json", "--pattern", "3:7"], "needs a number of inputs"),
        (["--config", "config.json", "--dtype", "int3"], "unknown dtype"),
        (["no/such/folder"], "no model"),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(plan, config, words, named):
    config()
    for name, text in {
        "damaged.json": "{",
        "list.json": "[]",
        "deep.json": json.dumps(LLAMA | SIZE | {"num_hidden_layers": 10**6}),
        "unknown.json": '{"model_type": "nothing"}',
        "quantised.json": json.dumps(LLAMA | SIZE | {"quantization_config": {"quant_method": "gptq"}}),
    }.items():
        with open(name, "w") as file:
            file.write(text)
    code, out, err = plan(*words)
    lines = err.strip().splitlines()
    assert (code, out) == (2, "") and named in lines[-1] and "Traceback" not in err


def test_a_real_calibration_prints_a_plan(run, tiny_folder):
    code, out, err = run("plan", tiny_folder, "--samples", 4, "--length", 32)
    assert code == 0, err
    assert row(out, "total") > 0
