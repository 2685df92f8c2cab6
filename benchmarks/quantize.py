"""Fewer bits, zeros, and both: which order, and do the losses add up? Chapter 21.

SmolLM2 is a 4-bit checkpoint, so it is measured as loaded, after a change of scales that leaves its function as it is
and moves every matrix off its grid, and after a rotation of its stream; beside it small models of bytes that were never
rounded, and a model of sentences that was not, either (benchmarks/sentences.py: an hour to train, once). Writes one
JSON file; cells that it already holds are not measured again, and the most telling ones come first.

    python benchmarks/quantize.py book/results/quantize.json [--cells 4] [--models 'bytes*']
"""

import argparse
import time
from fnmatch import fnmatch
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from record import fill_in, short
from sentences import evenly, sentences_folder, tokens_of
from small import Language
from torch import Tensor

import minprune as mp
from minprune.compress.gptq import gptq
from minprune.compress.grids import make_grid
from minprune.evaluation.perplexity import _read_nll
from minprune.methods import Method, Result
from minprune.methods.sparsegpt import inverse_factor
from minprune.structured.cut import built
from minprune.structured.slicing import rotated

WIDTH, STEPS = 128, 2400
SPREAD = 0.25
SMALL = tuple(f"bytes, seed {seed}" for seed in range(6))
PATIENTS = ("smollm2 rescaled", "smollm2", "smollm2 rotated")
SENTENCES = "sentences"
PARTS = {  # of a joint sweep in one pass: whose mask, and is the grid that of the dense matrix or of the pruned one
    "mask of SparseGPT": (False, False),
    "grid of the pruned": (True, True),
    "mask of SparseGPT, grid of the pruned": (False, True),
}
PROTOCOL = {
    "smollm2": "SmolLM2-135M-Instruct, a 4-bit checkpoint dequantised to float32",
    "smollm2 rescaled": f"the same function: the channels between matrices times exp(u), u uniform in +-{SPREAD}, what "
    "reads them divided by it; seed 0",
    "smollm2 rotated": "the same function: the residual stream in a random orthonormal basis, seed 0",
    "bytes": f"never rounded: the models of benchmarks/small.py, d = {WIDTH}, {STEPS} steps at {0.32 / WIDTH}; 3 "
    "seeds, and 3 others for the joint sweep taken apart",
    "sentences": "never rounded: the model of benchmarks/sentences.py, 3.5 million parameters",
    "calibration": "wikipedia train, 32 x 256 tokens, seed 0, forward products in bfloat16; bytes: 256 x 64, float32; "
    "sentences: 64 x 256 tokens at random places, float32",
    "test": "of wikipedia test, evenly spaced: smollm2: 8 x 512 tokens, products in bfloat16; bytes: 32 stretches of "
    "16 x 64 bytes; sentences: 64 x 256 tokens; nats: the mean of each window (stretch); one calibration seed",
    "rounding": "group of 64 and the grid with a whole zero point unless another is named; the matrices of the blocks",
    "gptq-activation": "columns with the largest inputs first (static groups)",
    "order": "prune first: then round what is left, a fixed mask; quantise first: then prune; joint: GPTQ's sweep "
    "chooses the zeros as SparseGPT does; the others are the joint sweep, but with SparseGPT's mask, or with the grid "
    "of the matrix that a sweep of SparseGPT leaves under its mask, or with both",
    "seconds": "of processor time, on one thread of a busy machine; a model pruned already is used again",
}


def _cells() -> list[dict[str, Any]]:
    """What is measured, the most telling ones first."""
    sgpt, wanda = "sparsegpt 50%", "wanda 50%"
    core = [_cell(), _cell("rtn", 4), _cell("gptq", 4), _cell(pruning=sgpt)]
    core += [_cell(way, 4, sgpt, "prune first") for way in ("gptq", "rtn")] + [_cell("gptq", 4, sgpt, "joint")]
    confound = [_cell("rtn", 4, grid="minimum 32")]
    visit = [_cell("gptq-activation", 4)]
    three = [_cell("rtn", 3), _cell("gptq", 3), _cell("gptq", 3, sgpt, "prune first"), _cell("gptq", 3, sgpt, "joint")]
    three += [_cell("rtn", 3, sgpt, "prune first")]
    swapped = [_cell("rtn", bits, wanda, order) for bits in (4, 3) for order in ("prune first", "quantise first")]
    by_gptq = [_cell("gptq", bits, wanda, order) for bits in (4, 3) for order in ("prune first", "quantise first")]
    orders = [_cell(pruning=wanda), *swapped, *by_gptq]
    eight = [_cell(pruning="wanda 2:4"), _cell("rtn", 8, "wanda 2:4", "prune first")]
    tables = {
        "smollm2 rescaled": [*core, *confound, *visit, *three, *orders, *eight],
        "smollm2": [core[0], *confound, *core[1:4], *three[:2]],
        "smollm2 rotated": [*core[:2], core[3]],
    }
    apart = [_cell("gptq", bits, sgpt, part) for bits in (4, 3) for part in PARTS]
    small = [*core, *visit, *three, *orders]
    tables |= {name: small for name in SMALL[:3]} | {SENTENCES: [*small, *apart]}
    tables |= {name: [core[0], core[3], core[4], core[6], *three[2:4], *apart] for name in SMALL[3:]}
    order = (SMALL[0], *PATIENTS[:2], *SMALL[1:], SENTENCES, PATIENTS[2])
    return [{"model": name, **cell} for name in order for cell in tables[name]]


def _cell(rounding: str = "", bits: int = 16, pruning: str = "", order: str = "", grid: str = "asymmetric 64") -> dict:
    return {"rounding": rounding, "bits": bits, "grid": grid if rounding else "", "pruning": pruning, "order": order}


def rescale(model, spread: float = SPREAD, seed: int = 0) -> None:
    """Multiply what lies between the matrices of a Llama by random factors and divide behind: the same function."""
    random = torch.Generator().manual_seed(seed)
    for block in model.model.layers:
        attention, mlp = block.self_attn, block.mlp
        v, o, up, down = (layer.weight for layer in (attention.v_proj, attention.o_proj, mlp.up_proj, mlp.down_proj))
        readers = {
            block.input_layernorm: (attention.q_proj, attention.k_proj, attention.v_proj),
            block.post_attention_layernorm: (mlp.gate_proj, mlp.up_proj),
        }
        for norm, layers in readers.items():
            s = _factors(len(norm.weight), spread, random)
            norm.weight.div_(s)
            for layer in layers:
                layer.weight.mul_(s)
        s = _factors(len(up), spread, random)
        up.mul_(s[:, None])
        down.div_(s)
        s = _factors(len(v), spread, random)
        v.mul_(s[:, None])
        heads = s.view(-1, attention.head_dim).repeat_interleave(attention.num_key_value_groups, 0)  # of the queries
        o.div_(heads.flatten())


def _factors(count: int, spread: float, random: torch.Generator) -> Tensor:
    return torch.exp(spread * (2 * torch.rand(count, generator=random) - 1))


@cache
def texts(name: str) -> tuple[Tensor, Tensor]:
    """Calibration windows, and those of the test."""
    if name in PATIENTS:
        _, tokenizer = mp.load_model("smollm2")
        calib = mp.load_tokens(tokenizer, "wikipedia", samples=32, length=256, seed=0)
        return calib, mp.load_tokens(tokenizer, "wikipedia", "test", 8, 512)
    if name == SENTENCES:
        _, tokenizer = mp.load_model(sentences_folder())
        train, test = (tokens_of(tokenizer, split) for split in ("train", "test"))
        starts = torch.randint(len(train) - 256, (64,), generator=torch.Generator().manual_seed(0))
        return train[starts[:, None] + torch.arange(256)], evenly(test, 64, 256)
    job = Language(STEPS, width=WIDTH)
    starts = torch.randint(len(job.text) - 64, (256,), generator=torch.Generator().manual_seed(0))
    stretches = torch.arange(32) * ((len(job.test) - 1024) // 32)
    test = job.test[stretches[:, None] + torch.arange(1024)].view(-1, 64)
    return job.text[starts[:, None] + torch.arange(64)], test


@torch.no_grad()
def dense(name: str):
    """The model before anything was done to it."""
    if name in SMALL:
        return trained(int(name[-1]))
    model, _ = mp.load_model(sentences_folder() if name == SENTENCES else "smollm2")
    if name == "smollm2 rescaled":
        rescale(model)
    if name == "smollm2 rotated":
        random = torch.randn(576, 576, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        model = built(model, rotated(model, torch.linalg.qr(random).Q))
    return model


@cache
def _trained_state(seed: int) -> dict[str, Tensor]:
    with torch.enable_grad():
        job = Language(STEPS, lr=0.32 / WIDTH, width=WIDTH)
        network = job.network(seed)
        job.train(network, {}, 0, STEPS)
    return network.state_dict()


def trained(seed: int):
    """A small model of bytes, whose weights no grid has seen."""
    network = Language(STEPS, width=WIDTH).network(seed)
    network.load_state_dict(_trained_state(seed))
    return network


@lru_cache(maxsize=3)
def changed(name: str, step: str) -> tuple[dict[str, Tensor], float]:
    """The matrices of a model after one step, and the seconds that it took."""
    model, start = dense(name), time.process_time()
    act(model, name, step)
    return {layer.name: layer.weight for layer in mp.find_layers(model)}, time.process_time() - start


def act(model, name: str, step: str, pattern: str = "0%") -> None:
    """One step in place: "gptq 4 asymmetric 64" or "wanda 50%"."""
    calib, _ = texts(name)
    way, what, *rest = step.split()
    with torch.autocast("cpu", torch.bfloat16, enabled=name in PATIENTS):
        if rest:
            kind, group = rest
            way, _, order = way.partition("-")
            options: dict[str, Any] = {"order": order} if order else {}
            mp.quantize(
                model,
                None if way == "rtn" else calib,
                int(what),
                int(group),
                way,
                grid=kind,
                pattern=pattern,
                **options,
            )
        else:
            mp.prune(model, calib, method=way, pattern=what)


def by_parts(W: Tensor, stats: mp.Statistics, pattern: Any, *, bits: int, own_mask: bool, later_grid: bool) -> Any:
    """The joint sweep over W (d_out, d_in), with another mask or another grid.

    One sweep that zeroes and rounds under a given mask equals a sweep that zeroes and then one that rounds on the same
    grid: what a column passes on is linear in what it has got. So SparseGPT and then this is all that is needed.
    """
    keep = gptq(W, stats, pattern, bits=bits).keep if own_mask else mp.METHODS["sparsegpt"](W, stats, pattern).keep
    pruned = mp.METHODS["sparsegpt"](W, stats, pattern, keep=keep).weight
    levels = make_grid(pruned if later_grid else W, bits, 64, "asymmetric")
    U, _ = inverse_factor(stats.gram, 0.01)
    columns = zip(*(part.T for part in levels.columns(W.shape[1])), keep.T, strict=True)
    w = pruned.T.to(U.dtype).contiguous()  # (d_in, d_out)
    for j, (scale, zero, offset, kept) in enumerate(columns):
        q = (offset + scale * (levels.codes_at(w[j], scale, zero, offset) - zero)) * kept
        w[j + 1 :].addr_(U[j, j + 1 :], (w[j] - q) / U[j, j], alpha=-1)
        w[j] = q
    return Result(w.T.to(W.dtype), keep)


@torch.no_grad()
def recompute(model: str, rounding: str, bits: int, grid: str, pruning: str, order: str) -> dict[str, Any]:
    """One cell from nothing but the protocol."""
    torch.set_num_threads(1)
    network, seconds = dense(model), 0.0
    steps = [step for step in (pruning, f"{rounding} {bits} {grid}" if rounding else "") if step]
    if order == "quantise first":
        steps.reverse()
    start = time.process_time()
    if order in PARTS:
        own_mask, later_grid = PARTS[order]
        method = Method(partial(by_parts, bits=bits, own_mask=own_mask, later_grid=later_grid), needs="gram")
        with torch.autocast("cpu", torch.bfloat16, enabled=model in PATIENTS):
            mp.prune(network, texts(model)[0], method=method, pattern=pruning.split()[1])
    elif order == "joint":
        act(network, model, steps[1], pruning.split()[1])
    elif steps:
        first, seconds = changed(model, steps[0])
        for layer in mp.find_layers(network):
            layer.weight.copy_(first[layer.name])
        start = time.process_time()
        for step in steps[1:]:
            act(network, model, step)
    seconds += time.process_time() - start
    _, test = texts(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=model in PATIENTS):
        nats = _read_nll(network, test, 256 if model in SMALL else 8, False)
    windows = nats.double().view(-1, 16 if model in SMALL else 1, nats.shape[1]).mean((1, 2))
    weights = [layer.weight for layer in mp.find_layers(network)]
    zeros = sum(int((W == 0).sum()) for W in weights) / sum(W.numel() for W in weights)
    found = {"perplexity": short(float(windows.mean().exp())), "nats": [short(float(x)) for x in windows]}
    return found | {"zeros": short(zeros), "seconds": round(seconds, 1)}


def main() -> None:
    """Fill in what is missing of the results file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--cells", type=int, help="stop after so many new ones")
    parser.add_argument("--models", default="*", help="only those whose names are like this: 'bytes*'")
    args = parser.parse_args()
    wanted = [cell for cell in _cells() if fnmatch(cell["model"], args.models)]
    command = "python benchmarks/quantize.py book/results/quantize.json"
    fill_in(args.output, command, PROTOCOL, wanted, recompute, args.cells)


if __name__ == "__main__":
    main()
