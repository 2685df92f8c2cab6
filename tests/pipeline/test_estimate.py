"""The estimate of a run: its operations, bytes and groups against those counted in real runs of tiny models."""

import logging
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import FAMILIES
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import minprune as mp
from minprune.models.hooks import capture_inputs
from minprune.models.layers import block_layers
from minprune.models.skeleton import describe
from minprune.pipeline import estimate
from minprune.pipeline.checkpoint import prune_checkpoint
from minprune.pipeline.estimate import (
    Run,
    busiest,
    disk_bytes,
    error_operations,
    fitting_batch,
    forward_operations,
    gram_operations,
    memory_bytes,
    sent_bytes,
    sizes_of,
    solve_bytes,
    statistics_operations,
)
from minprune.pipeline.rates import Rates, calibrate, features, seconds

SMALL = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "num_hidden_layers": 3, "max_position_embeddings": 256}


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SMALL, attn_implementation="eager")).eval()


@pytest.fixture(scope="module")
def sizes(llama):
    return sizes_of(llama, mp.find_layers(llama))


def counted(work) -> float:
    """The operations of all products, attention's among them, as torch counts them."""
    in_place = {torch.ops.aten.addmm_: lambda _, left, right, **more: 2 * left[0] * left[1] * right[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        work()
    return counter.get_total_flops()


def calibration_only(method, windows, length, batch_size):
    """A run without the checks around it."""

    class Bare(Run):
        more_tokens = 0

    return Bare(method, windows, length, batch_size)


def test_sizes_are_those_of_the_model_whether_or_not_it_has_weights(llama, sizes):
    empty = describe(LlamaConfig(**SMALL), torch.float32)
    assert sizes_of(empty, mp.find_layers(empty)) == sizes
    assert sizes.total == sum(p.numel() for p in llama.parameters())
    assert sum(group.weights for groups in sizes.blocks for group in groups) == sum(
        layer.weight.numel() for layer in block_layers(llama)
    )


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_layers_are_grouped_as_a_forward_pass_shows_that_they_read(family):
    kind, arguments = FAMILIES[family]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(kind(**arguments)).eval()
    layers = [layer for layer in mp.find_layers(model) if layer.expert_index is None]
    read: list[tuple[str, torch.Tensor]] = []
    with torch.no_grad(), capture_inputs(layers, lambda layer, X: read.append((layer.name, X))):
        model(input_ids=torch.zeros(1, 8, dtype=torch.long), use_cache=False)
    tensors: list[torch.Tensor] = []
    for _, X in read:
        if not any(X is other for other in tensors):
            tensors.append(X)
    found = sizes_of(model, layers)
    groups = sum(map(len, found.blocks))
    if family in ("falcon", "phi", "gptj", "cohere", "gpt_neox"):  # attention and MLP read one tensor, or may
        assert len(tensors) <= groups <= len(tensors) + len(found.blocks)
    else:
        assert groups == len(tensors)


@pytest.mark.parametrize("length", [16, 64])
def test_the_operations_of_a_forward_pass_are_those_that_torch_counts(llama, sizes, length):
    tokens = torch.zeros(4, length, dtype=torch.long)
    run = calibration_only("wanda", 4, length, 4)
    assert forward_operations(sizes, run) == counted(lambda: llama.model(input_ids=tokens, use_cache=False))


def test_a_width_that_nobody_has_is_counted_at_once():
    assert gram_operations(1, 144 * 10**15) == pytest.approx((144 * 10**15) ** 2)


@pytest.mark.parametrize("d_in", [40, 144, 200, 500])
def test_the_operations_of_statistics_and_layer_errors_are_those_that_torch_counts(d_in):
    X, W = torch.randn(300, d_in), torch.randn(24, d_in)
    stats = mp.Statistics(d_in)
    assert counted(lambda: stats.update(X)) == gram_operations(300, d_in)
    gram = stats.gram
    assert counted(lambda: mp.layer_error(W, 0.5 * W, gram)) == error_operations(24, d_in)


@pytest.mark.parametrize("batch_size", [6, 2, 1])
def test_all_products_of_a_real_run_are_counted_whatever_its_batches(llama, sizes, batch_size):
    """Wanda: a forward pass, statistics and errors, and no products of its own."""
    tokens = torch.randint(96, (6, 32), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SMALL, attn_implementation="eager")).eval()
    found = counted(lambda: mp.prune(model, tokens, "wanda", batch_size=batch_size))
    run = Run("wanda", 6, 32, batch_size)
    errors = sum(error_operations(o, i) for groups in sizes.blocks for g in groups for o, i in g.shapes)
    expected = forward_operations(sizes, run) + statistics_operations(sizes, run) + errors
    assert found == pytest.approx(expected, rel=0.1)  # a few windows more tell what travels between blocks


def allocated_peak(work) -> float:
    """The most bytes that torch's allocator has given out at once, beyond what it had at the beginning."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    told, waiting = [], [*profiler.profiler.kineto_results.experimental_event_tree()]
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.name == "[memory]":  # totals are the allocator's own: the clocks of two cores may differ, and with
            told.append((event.extra_fields.total_allocated, event.extra_fields.alloc_size))  # them the order of events
    return max(total for total, _ in told) - min(total - max(size, 0) for total, size in told)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "admm", "alps"])
@pytest.mark.parametrize("shape", [(256, 1024), (1024, 256), (512, 512)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
def test_a_solve_allocates_what_is_said(method, shape, dtype, tied):
    d_out, d_in = shape
    W = (torch.randint(-4, 5, shape) if tied else torch.randn(shape)).to(dtype)
    stats = mp.Statistics(d_in).update(torch.randn(2 * d_in, d_in))
    gram = stats.gram

    def work():
        result = mp.METHODS[method](W, stats, "50%")
        mp.layer_error(W, result.weight, gram)

    said = solve_bytes(method, d_out, d_in, dtype.itemsize)
    assert allocated_peak(work) == pytest.approx(said, rel=0.2)


@pytest.mark.parametrize("batch_size", [16, 2])
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_a_run_allocates_about_what_is_said(tmp_path, method, batch_size):
    big = SMALL | {"hidden_size": 256, "intermediate_size": 704, "vocab_size": 2000}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**big)).eval()
    sizes = sizes_of(model, mp.find_layers(model))
    tokens = torch.randint(2000, (16, 128), generator=torch.Generator().manual_seed(0))
    run = Run(method, 16, 128, batch_size)
    peak = allocated_peak(lambda: mp.prune(model, tokens, method, batch_size=batch_size))
    said = memory_bytes(sizes, run)
    assert peak == pytest.approx(said["work"] + (said["hidden"] if batch_size == 2 else 0), rel=0.35)


def test_the_output_is_as_large_as_said(tiny_folder, tmp_path):
    model, _ = mp.load_model(tiny_folder)
    prune_checkpoint(tiny_folder, tmp_path / "out", torch.zeros(4, 16, dtype=torch.long), "wanda")
    said = disk_bytes(sizes_of(model, mp.find_layers(model)), Run("wanda", 4, 16, 4))["model"]
    assert sum(path.stat().st_size for path in Path(tmp_path / "out").glob("*.safetensors")) == pytest.approx(
        said, rel=0.1
    )


def test_more_windows_at_a_time_never_fit_in_less_memory(sizes):
    run = Run("sparsegpt", 40, 256, 40)
    least = sum(memory_bytes(sizes, Run("sparsegpt", 40, 256, 1)).values())
    found = [fitting_batch(sizes, run, memory) for memory in (0.5 * least, least, 2 * least, 1e12)]
    assert found[0] == 0 and found[1] >= 1 and found == sorted(found) and found[-1] == 40


@pytest.mark.parametrize("windows", [1, 2, 7, 40])
def test_the_largest_batch_that_fits_is_the_largest_of_all(sizes, windows):
    needed = [sum(memory_bytes(sizes, Run("sparsegpt", windows, 256, n)).values()) for n in range(1, windows + 1)]
    for memory in {bound + change for bound in needed for change in (-1, 0, 1)}:
        fits = [n for n, each in enumerate(needed, 1) if each <= memory]
        assert fitting_batch(sizes, Run("sparsegpt", windows, 256, windows), memory) == max(fits, default=0)


def test_the_largest_batch_of_ten_million_windows_is_found_without_trying_each(sizes, monkeypatch):
    tried = []

    def counted(*given, real=memory_bytes):
        tried.append(given)
        return real(*given)

    monkeypatch.setattr(estimate, "memory_bytes", counted)
    assert fitting_batch(sizes, Run("sparsegpt", 10**7, 256, 10**7), 1e30) == 10**7
    assert len(tried) < 40


@pytest.mark.parametrize("costs", [[3, 3, 2, 2, 2], [5, 1, 1, 1], [1], []])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_busiest_rank_has_at_most_four_thirds_of_the_best_packing(costs, ranks):
    """Graham 1969, against all ways to share out."""
    best = 0 if not costs else math.inf
    for code in range(ranks ** len(costs) if costs else 0):
        loads = [0] * ranks
        for at, cost in enumerate(costs):
            loads[code // ranks**at % ranks] += cost
        best = min(best, max(loads))
    assert best <= busiest(costs, ranks) <= best * (4 / 3 - 1 / (3 * ranks)) + 1e-9


def test_ranks_halve_what_is_shared_out_and_add_the_network(sizes):
    rates = Rates(1e9, 1e9, 1e9, (0.0, 0.0, 0.0, 1e-9, 0.0), 1e9, 1e9)
    for batch_size in (64, 16):
        run = Run("sparsegpt", 64, 128, batch_size)
        alone, two = seconds(sizes, run, rates), seconds(sizes, run, rates, 2, 1e6)
        assert alone["forward"] / 2 < two["forward"] < 0.7 * alone["forward"]  # the check of causality is not shared
        assert two["statistics"] == pytest.approx(alone["statistics"] / 2) and "network" not in alone
        assert (two["solve"] < alone["solve"]) == (batch_size == 16)  # in one pass the ranks wait for each other
        assert two["network"] == pytest.approx(sent_bytes(sizes) / 1e6)


def test_what_ranks_send_is_as_long_as_the_sums_and_the_weights(llama, sizes):
    weights = sum(layer.weight.nbytes for layer in mp.find_layers(llama))
    inputs = [64, 64, 64, 160] * 3  # q, k and v; o; gate and up; down
    assert sent_bytes(sizes) == sum(mp.Statistics(d_in).packed().nbytes for d_in in inputs) + weights


def test_a_calibration_predicts_a_matrix_that_it_did_not_measure():
    rates = calibrate("wanda", mp.pattern("50%"), length=64)
    assert all(coefficient >= 0 for coefficient in rates.solve) and len(rates.solve) == len(features(1, 1))
    assert rates.forward > 1e8 and rates.gram > 1e8 and rates.error > 1e8 and min(rates.read, rates.write) > 1e6


@pytest.mark.parametrize("free", [0, 0.5e9, 1e15])
def test_a_run_says_what_it_will_take_and_warns_if_that_is_not_free(tiny_folder, tmp_path, caplog, monkeypatch, free):
    monkeypatch.setattr("minprune.pipeline.foresee.free_memory", lambda device: free)
    monkeypatch.setattr("psutil.Process.memory_info", lambda process: SimpleNamespace(rss=5e9))
    calib = torch.zeros(3, 16, dtype=torch.long)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with caplog.at_level(logging.INFO, "minprune.pipeline.foresee"):
        prune_checkpoint(tiny_folder, tmp_path / "sparse", calib, "wanda", "50%", progress=True)
    (record,) = [record for record in caplog.records if record.name == "minprune.pipeline.foresee"]
    assert record.levelno == (logging.INFO if free > 0.6e9 else logging.WARNING)
    assert record.getMessage().startswith("about 5.08 GB of memory, ")
    assert ("but only 5.00 GB are free" in record.getMessage()) == (not free)
    assert ("; 5.50 GB are free, a bare fit" in record.getMessage()) == (free == 0.5e9)
    disk = sum(path.stat().st_size for path in (tmp_path / "sparse").glob("*.safetensors"))
    said = re.search(r"([0-9.]+) (MB|kB) of disk", record.getMessage())
    assert float(said[1]) * {"MB": 1e6, "kB": 1e3}[said[2]] == pytest.approx(disk, abs=6e5)


@pytest.mark.parametrize("counts", [4, [4, 2, 4]])
def test_attention_counts_the_widest_block_where_heads_differ(llama, monkeypatch, counts):
    config = SimpleNamespace(num_attention_heads=counts, head_dim=None, hidden_size=64, vocab_size=96)
    monkeypatch.setattr("minprune.pipeline.estimate.text_config", lambda model: config)
    assert sizes_of(llama, mp.find_layers(llama)).attention == 64
