"""Several processes prune one model: the model of one process, whatever their number, and none waits for the dead."""

import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ranks_worker import work
from safetensors.torch import load_file
from tiny import loud_tokens, tiny_model
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import minprune as mp
from minprune.cli.main import main
from minprune.pipeline.ranks import Ranks
from minprune.pipeline.recipes import Reconstruction
from minprune.pipeline.shared_pruner import pack
from minprune.structured.removals import removals
from minprune.structured.shrink import run_removals

ROOT = Path(mp.__file__).parents[1]
BLOCKS = 3
HEAVY = ["torch", "scipy.special", "minprune.pipeline.checkpoint", "transformers.models.llama.modeling_llama"]
JOBS = {  # name -> (family, options)
    "llama sparsegpt": ("llama", {"method": "sparsegpt", "pattern": "50%", "batch_size": 2}),
    "llama wanda 2:4": ("llama", {"method": "wanda", "pattern": "2:4"}),
    "llama two-pass": ("llama", {"method": "ria", "pattern": "50%", "sequential": False}),
    "gpt2 admm": ("gpt2", {"method": "admm", "pattern": "50%"}),
    "mixtral sparsegpt": ("mixtral", {"method": "sparsegpt", "pattern": "2:4"}),
    "llama best": ("llama", {"recipe": "best", "pattern": "60%", "precision": "float32"}),
    "gpt2 best 2:4": ("gpt2", {"recipe": "best", "pattern": "2:4", "batch_size": 1, "precision": "float32"}),
    "llama magnitude": ("llama", {"method": "magnitude", "pattern": "50%"}),
}


TRAINING = {"lr": 0.01, "bfloat16": False}  # gradients in 16 bits depend on how many windows are in a product
SHRINKS = {  # name -> (family, removals, method, repair)
    "neurons by obs": ("llama", ["neurons:25%"], "obs", "refit"),
    "neurons by taylor, trained": ("llama", ["neurons:25%"], "taylor", "reconstruct"),
    "neurons by flap": ("llama", ["neurons:25%"], "flap", "bias"),
    "neurons by magnitude": ("gpt2", ["neurons:25%"], "magnitude", "none"),
    "blocks by influence": ("gpt2", ["blocks:1"], "influence", "refit"),
    "blocks by angle": ("llama", ["blocks:1"], "angle", "none"),
    "blocks by taylor": ("llama", ["blocks:1"], "taylor", "none"),
    "blocks by loss, two at once": ("llama", ["blocks:2"], "greedy", "reconstruct"),
    "channels": ("llama", ["hidden:25%"], "slicegpt", "none"),
    "loud channels and neurons": ("llama", ["neurons:25%", "hidden:25%"], "channels", "refit"),
}


def write_model(folder, family):
    words = Tokenizer(models.WordLevel({f"w{index}": index for index in range(96)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    deeper = {"n_layer": BLOCKS} if family == "gpt2" else {"num_hidden_layers": BLOCKS}
    tiny_model(family, torch.float32, **deeper).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model of each family, and the tokens that all are calibrated on."""
    place = tmp_path_factory.mktemp("ranks")
    for family in {family for family, _ in JOBS.values()}:
        write_model(place / family, family)
    torch.save(loud_tokens(), place / "calib.pt")
    return place


def job(place, name, output, **more):
    family, options = JOBS[name]
    return {"src": str(place / family), "dst": str(output), "calib": str(place / "calib.pt"), **options, **more}


def start(jobs_of_ranks, rendezvous):
    """What each process says of each of its jobs, by (rank, job); and how each has ended.

    A fork of this process would have its pools of threads half; one of a clean process need not import again.
    """
    clean = multiprocessing.get_context("forkserver")
    clean.set_forkserver_preload(HEAVY)
    size = len(jobs_of_ranks)
    files = [rendezvous.with_name(f"{rendezvous.name} {rank}.jsonl") for rank in range(size)]
    running = [
        clean.Process(target=work, args=(rank, size, rendezvous, jobs, files[rank]))
        for rank, jobs in enumerate(jobs_of_ranks)
    ]
    try:
        for process in running:
            process.start()
        for process in running:
            process.join(timeout=300)
    finally:
        for process in running:
            process.kill()
    said = [json.loads(line) for file in files if file.exists() for line in file.read_text().splitlines()]
    return {(one["rank"], one["job"]): one for one in said}, [process.exitcode for process in running]


def tensors(folder):
    return {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}


@torch.no_grad()
def logits(folder):
    return AutoModelForCausalLM.from_pretrained(folder)(input_ids=loud_tokens()).logits


def assert_same_model(folder, other, most=0.001):
    """The same matrices and logits, and the same zeros but for a few where two scores are nearly equal: their number.

    Training moves the biases of keys, which change nothing, by the rounding of a gradient of zero.
    """
    mine, theirs = tensors(folder), tensors(other)
    assert mine.keys() == theirs.keys() and len(mine) > 10
    flipped = sum(int(((value == 0) != (theirs[name] == 0)).sum()) for name, value in mine.items())
    assert flipped <= most * sum(value.numel() for value in mine.values())
    pairs = [(value, theirs[name]) for name, value in mine.items() if value.ndim > 1]
    pairs.append((logits(folder), logits(other)))
    close = [torch.isclose(*pair, rtol=1e-3, atol=1e-4).float().mean() for pair in pairs]
    assert float(torch.stack(close).mean()) > 0.995
    return flipped


def shrink_job(place, name, output):
    family, remove, method, repair = SHRINKS[name]
    more = {"remove": remove, "method": method, "repair": repair, "training": TRAINING}
    return {"src": str(place / family), "dst": str(output), "calib": str(place / "calib.pt"), **more}


@pytest.fixture(scope="module")
def alone(place):
    """Every job by one process: name -> (folder, errors)."""
    found = {}
    for name in JOBS:
        given = job(place, name, place / f"alone {name}")
        calib = torch.load(given.pop("calib"))
        report = mp.prune_checkpoint(given.pop("src"), given.pop("dst"), calib, **given)
        found[name] = (place / f"alone {name}", [row.error for row in report.layers])
    return found


@pytest.fixture(scope="module", params=[2, 4])
def together(request, place):
    """Every job by so many processes: (their number, what they said)."""
    size = request.param
    jobs = [job(place, name, place / f"{size} {name}") for name in JOBS]
    jobs += [shrink_job(place, name, place / f"{size} {name}") for name in SHRINKS]
    said, codes = start([jobs] * size, place / f"rendezvous {size}")
    assert codes == [0] * size
    return size, said


@pytest.mark.parametrize("name", JOBS)
def test_several_processes_make_the_model_of_one(place, alone, together, name):
    size, said = together
    number = list(JOBS).index(name)
    folder, errors = alone[name]
    assert_same_model(place / f"{size} {name}", folder)
    for rank in range(size):
        assert said[rank, number]["errors"] == said[0, number]["errors"]
    ours = said[0, number]["errors"]
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(errors), rtol=1e-3, atol=1e-5)
    assert f"by {size} processes" in said[0, number]["notes"]


@pytest.mark.parametrize("name", SHRINKS)
def test_several_processes_shrink_to_the_model_of_one(place, together, name):
    size, said = together
    number = len(JOBS) + list(SHRINKS).index(name)
    given = shrink_job(place, name, "")
    model, _ = mp.load_model(given["src"])
    how = {"repair": given["repair"], "reconstruction": Reconstruction(**TRAINING)}
    report = mp.shrink(model, loud_tokens(), given["remove"], given["method"], **how)
    model.save_pretrained(place / f"alone {name}")
    assert_same_model(place / f"{size} {name}", place / f"alone {name}")
    assert len({said[rank, number]["notes"][-1] for rank in range(size)}) == 1  # a hash of all weights
    assert said[0, number]["notes"][:-1] == [*report.notes, f"by {size} processes"]


def test_the_layer_errors_of_equal_masks_are_equal(alone, together):
    _, said = together
    number = list(JOBS).index("llama magnitude")  # which masks do not depend on any sum
    ours = torch.tensor(said[0, number]["errors"])
    torch.testing.assert_close(ours, torch.tensor(alone["llama magnitude"][1]), rtol=1e-5, atol=0)


def test_what_is_sent_is_half_of_each_gram_matrix_and_the_weights(place, together):
    size, said = together
    number = list(JOBS).index("llama sparsegpt")
    config = json.loads((place / "llama" / "config.json").read_text())
    d, inner, groups = config["hidden_size"], config["intermediate_size"], config["num_key_value_heads"]
    narrow = d * groups // config["num_attention_heads"]
    inputs = [d, d, d, inner]  # of q/k/v, o, gate/up, down
    panels = sum(sum(min(144, n - at) * (n - at) for at in range(0, n, 144)) + 2 * n for n in inputs)
    weights = 2 * d * d + 2 * narrow * d + 3 * d * inner
    for rank in range(size):
        assert said[rank, number]["sent"] == BLOCKS * 4 * (panels + weights)


def test_a_process_without_a_window_takes_part(place, tmp_path):
    torch.save(loud_tokens()[:3], tmp_path / "three.pt")
    few = {**job(place, "llama sparsegpt", tmp_path / "shared"), "calib": str(tmp_path / "three.pt")}
    said, codes = start([[few]] * 4, tmp_path / "rendezvous")
    assert codes == [0] * 4 and {one["notes"][-1] for one in said.values()} == {"by 4 processes"}
    mp.prune_checkpoint(place / "llama", tmp_path / "alone", loud_tokens()[:3], **JOBS["llama sparsegpt"][1])
    assert_same_model(tmp_path / "shared", tmp_path / "alone")


@pytest.mark.parametrize(
    ("who", "how", "name"),
    [
        (0, "die", "llama sparsegpt"),
        (1, "die", "llama sparsegpt"),
        (1, "raise", "llama best"),
        (0, "stop", "llama sparsegpt"),
    ],
)
def test_who_fails_ends_the_run_of_all_and_another_number_goes_on(place, alone, tmp_path, who, how, name):
    output = tmp_path / "out"
    begun = time.monotonic()
    failing = job(place, name, output, fail=(who, how, 2))
    said, codes = start([[failing]] * 3, tmp_path / "rendezvous")
    assert time.monotonic() - begun < 60  # most of it is the start of Python
    for rank in {0, 1, 2} - {who}:
        assert said[rank, 0]["failed"] == "PeerError" and "another process" in said[rank, 0]["message"]
    assert codes[who] == 3 if how == "die" else said[who, 0]["failed"] in ("PruneError", "KeyboardInterrupt")
    assert not output.exists()
    again = job(place, name, output, resume=True)
    said, codes = start([[again]] * 2, tmp_path / "again")
    assert codes == [0, 0] and any("resumed with 2 of 2" in note for note in said[0, 0]["notes"])
    assert_same_model(output, alone[name][0])


def test_different_arguments_are_refused_by_all(place, tmp_path):
    jobs = [[job(place, "llama wanda 2:4", tmp_path / "out", exclude=exclude)] for exclude in ([], ["*.0.*"])]
    said, codes = start(jobs, tmp_path / "rendezvous")
    assert codes == [0, 0]
    assert all("process 1 was given another model" in one["message"] for one in said.values())
    assert not (tmp_path / "out").exists()


def torchrun(*words, size=2, folder):
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size),
         "-m", "minprune", *map(str, words)],
        cwd=folder, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_the_command_line_under_torchrun(tiny_folder, tmp_path, text_file):
    options = ("--method", "wanda", "--calibration", text_file, "--samples", 4, "--length", 16, "--test", text_file)
    done = torchrun("prune", tiny_folder, *options, "--output", "out", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written to out") == 1 and done.stdout.count("perplexity") == 1
    assert "by 2 processes" in done.stdout
    again = torchrun("prune", tiny_folder, *options, "--output", "out", folder=tmp_path)
    assert again.returncode and sum(line.startswith("minprune: ") for line in again.stderr.splitlines()) == 1
    assert "--overwrite" in again.stderr
    other = torchrun("info", tiny_folder, folder=tmp_path)
    assert other.returncode and "minprune info works in one process" in other.stderr


def test_shrink_and_sweep_under_torchrun_do_what_one_process_does(tiny_folder, tmp_path, text_file):
    options = ("--calibration", text_file, "--samples", 4, "--length", 16)
    shrink = ("shrink", tiny_folder, "--remove", "neurons:25%", "--remove", "blocks:1", *options, "--test", text_file)
    done = torchrun(*shrink, "--output", "smaller", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written to smaller") == 1 and done.stdout.count("perplexity") == 1
    assert main([*map(str, shrink), "--output", str(tmp_path / "alone")]) == 0
    mine, theirs = tensors(tmp_path / "smaller"), tensors(tmp_path / "alone")
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
    sweep = ("sweep", tiny_folder, *options, "--texts", text_file, "--test-samples", 2, "--methods", "magnitude,wanda")
    done = torchrun(*sweep, "--seeds", "0,1", "--output", "runs.jsonl", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert main([*map(str, sweep), "--seeds", "0,1", "--output", str(tmp_path / "alone.jsonl")]) == 0
    runs = [[json.loads(line) for line in (tmp_path / name).open()] for name in ("runs.jsonl", "alone.jsonl")]
    facts = [[(run["method"], run["pattern"], run["seed"], run["perplexity"]) for run in file] for file in runs]
    assert facts[0] == facts[1] and len(facts[0]) == 1 + 2 * 3


def test_a_process_without_a_window_cannot_shrink():
    few = "2 windows are too few for 3 processes"
    with pytest.raises(mp.PruneError, match=few):
        run_removals(tiny_model("llama"), loud_tokens()[:2], removals("neurons:25%", None), "refit", ranks=Ranks(1, 3))


@given(st.lists(st.integers(1, 20), min_size=1, max_size=7), st.integers(1, 3))
def test_the_packing_is_within_a_third_of_the_best(costs, ranks):
    def longest(owners):
        return max(sum(c for c, owner in zip(costs, owners, strict=True) if owner == r) for r in range(ranks))

    best = min(longest(owners) for owners in itertools.product(range(ranks), repeat=len(costs)))
    assert longest(pack(costs, ranks)) <= (4 / 3) * best


@given(st.integers(1, 300), st.integers(0, 5), st.booleans())
def test_packed_sums_add_up_to_those_of_all_inputs(d, tokens, gram):
    X = torch.randn(2 * tokens + 1, d, generator=torch.Generator().manual_seed(d), dtype=torch.float64)
    parts = [mp.Statistics(d, gram, torch.float64).update(part) for part in (X[:tokens], X[tokens:])]
    found = parts[0].unpacked(parts[0].packed() + parts[1].packed(), len(X))
    assert found.tokens == len(X)
    torch.testing.assert_close(found.sq_norm, X.square().sum(0))
    torch.testing.assert_close(found.mean, X.mean(0))
    if gram:
        torch.testing.assert_close(found.gram, X.T @ X)
