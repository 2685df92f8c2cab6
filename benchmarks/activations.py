"""Small activations of SmolLM2 set to zero while it runs, for chapter 17: perplexity by kind of layer and sparsity.

Writes one JSON file with the command, versions and machine; a cell that it already holds is not repeated.

    python benchmarks/activations.py book/results/activations.json
"""

import argparse
import sys
import time
from functools import cache
from pathlib import Path

import torch
from record import load_cells, save, short

import minprune as mp
from minprune.evaluation.perplexity import token_nll
from minprune.training.activations import pruned_activations, thresholds

GROUPS = {  # layers that read the same tensor, named by what they read
    "attention in": ["*.q_proj", "*.k_proj", "*.v_proj"],
    "attention out": ["*.o_proj"],
    "mlp in": ["*.gate_proj", "*.up_proj"],
    "mlp inside": ["*.down_proj"],
    "all": ["*_proj"],
}
WINDOWS = {"train": 8, "test": 16}
PROTOCOL = {
    "model": "smollm2, all linear layers of the blocks unless `reads` names some of them",
    "rule": "layer: each layer has its own threshold, the size that the given share of its inputs on 8 x 256 tokens of "
    "wikipedia train does not exceed; model: one threshold for all layers, found in the same way on all their inputs",
    "perplexity": "16 x 256 tokens of wikipedia test; error: the standard error, over the windows, of the mean "
    "difference in nats a token from the unchanged model",
    "zeroed": "share of the inputs that were set to zero on the test text; skipped: share of the products with weights "
    "that have such an input; blocks: zeroed for the layers of each block",
}


@cache
def patient():
    """The model and its windows for thresholds and test."""
    model, tokenizer = mp.load_model("smollm2")
    windows = {
        split: mp.load_tokens(tokenizer, "wikipedia", split, samples=n, length=256) for split, n in WINDOWS.items()
    }
    return model, windows


@cache
def dense_nats() -> torch.Tensor:
    """(windows, length - 1), of the unchanged model on the test text."""
    model, windows = patient()
    return token_nll(model, windows["test"])


def recompute(reads: str, rule: str, sparsity: float) -> dict:
    """One cell, from nothing but the protocol."""
    torch.set_num_threads(1)
    start = time.process_time()
    model, windows = patient()
    dense = dense_nats()  # first: with it comes the look into the future, whose tokens are not to be counted
    layers = mp.find_layers(model, include=GROUPS[reads])
    if rule == "model":
        limit = one_threshold(sparsity)
        limits = dict.fromkeys(layers, limit)
    else:
        limits = thresholds(model, layers, windows["train"], sparsity)
    with pruned_activations(layers, limits) as activity:
        nats = token_nll(model, windows["test"])
    lost = (nats - dense).double().mean(1)  # (windows,)
    parts = activity.by_layer
    outputs = {layer.name: layer.weight.shape[0] for layer in layers}
    blocks: dict[int, list] = {}
    for layer in layers:
        blocks.setdefault(int(layer.name.split(".")[2]), []).append(parts[layer.name])
    return {
        "reads": reads,
        "rule": rule,
        "sparsity": sparsity,
        "perplexity": short(float(nats.double().mean().exp())),
        "relative": short(float(lost.mean().exp())),
        "error": short(float(lost.std() / len(lost) ** 0.5)),
        "zeroed": short(activity.sparsity),
        "skipped": short(
            sum(outputs[n] * p.zeroed for n, p in parts.items()) / sum(outputs[n] * p.seen for n, p in parts.items())
        ),
        "blocks": [round(sum(p.zeroed for p in b) / sum(p.seen for p in b), 4) for b in blocks.values()],
        "seconds": short(time.process_time() - start),
    }


@torch.no_grad()
def one_threshold(sparsity: float) -> float:
    """The size that this share of all inputs of all layers does not exceed, from every seventh input of each."""
    model, windows = patient()
    sizes: list[torch.Tensor] = []
    layers = mp.find_layers(model, include=GROUPS["all"])
    handles = [
        layer.module.register_forward_pre_hook(lambda module, args: sizes.append(args[0].abs().flatten()[::7]))
        for layer in layers
    ]
    model(input_ids=windows["train"])
    for handle in handles:
        handle.remove()
    everything = torch.cat(sizes)
    return float(everything.kthvalue(round(sparsity * len(everything))).values)


def main() -> None:
    """Fill in what is missing of the results file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    cells = load_cells(args.output)
    done = {(cell["reads"], cell["rule"], cell["sparsity"]) for cell in cells}
    wanted = [("all", "layer", 0.0)]
    wanted += [(reads, "layer", sparsity) for sparsity in (0.5, 0.25, 0.7, 0.4, 0.9) for reads in reversed(GROUPS)]
    wanted += [("all", "model", sparsity) for sparsity in (0.5, 0.25, 0.7, 0.4)]
    for reads, rule, sparsity in wanted:
        if (reads, rule, sparsity) not in done:
            cells.append(recompute(reads, rule, sparsity))
            print(cells[-1], file=sys.stderr)
            save(args.output, f"python benchmarks/activations.py {args.output.as_posix()}", PROTOCOL, cells)


if __name__ == "__main__":
    main()
