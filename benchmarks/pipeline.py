"""A whole SmolLM2 run, SparseGPT at 50 %, against a bare forward pass and the published two-pass loop.

All three see the same tokens in the same process, one after the other; ratios are printed.

    python benchmarks/pipeline.py [--samples 64] [--length 512] [--threads 2]
"""

import argparse
import copy
import time

import plain
import torch

import minprune as mp


def main() -> None:
    """Time the three, split the one pass into its parts, and compare perplexities."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dense, tokenizer = mp.load_model("smollm2")
    calib = mp.load_tokens(tokenizer, "wikipedia", samples=args.samples, length=args.length, seed=0)
    test = mp.load_tokens(tokenizer, "wikipedia", split="test", samples=16, length=args.length)

    start = time.perf_counter()
    with torch.no_grad():
        dense.base_model(input_ids=calib, use_cache=False)
    bare = time.perf_counter() - start

    one = copy.deepcopy(dense)
    report = mp.prune(one, calib, method="sparsegpt", pattern="50%")
    took = report.seconds
    forward = took["total"] - took["statistics"] - took["solve"]

    two = copy.deepcopy(dense)
    start = time.perf_counter()
    plain.prune_two_pass(two, calib)
    two_pass = time.perf_counter() - start

    print(f"SmolLM2, SparseGPT 50 %, {args.samples} x {args.length} tokens, {args.threads} threads, seconds")
    print(f"bare forward pass {bare:7.1f}")
    print(f"one pass          {took['total']:7.1f}  = {took['total'] / bare:.2f} x bare forward")
    print(f"  forward         {forward:7.1f}  (with reading errors and writing weights)")
    print(f"  statistics      {took['statistics']:7.1f}")
    print(f"  solve           {took['solve']:7.1f}")
    print(f"two-pass loop     {two_pass:7.1f}  one pass takes {took['total'] / two_pass:.2f} of it")
    for name, model in (("dense", dense), ("one pass", one), ("two-pass loop", two)):
        print(f"perplexity {name:14} {mp.perplexity(model, test):8.3f}  (16 x {args.length} held-out tokens)")


if __name__ == "__main__":
    main()
