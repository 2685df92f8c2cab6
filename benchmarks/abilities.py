"""What SmolLM2 can still do after pruning: perplexity, KL and top-1 agreement, last words, grammar. Chapter 09.

Writes one JSON file with the command, versions, machine and date; runs that it already holds are not repeated.

    python benchmarks/abilities.py book/results/abilities.json
"""

import argparse
from pathlib import Path

import torch
from record import fill_in

import minprune as mp
from minprune.evaluation.last_word import Score
from minprune.evaluation.minimal_pairs import minimal_pairs
from minprune.evaluation.perplexity import token_nll

CELLS = (
    ("dense", ""),
    ("magnitude", "50%"),
    ("wanda", "50%"),
    ("sparsegpt", "50%"),
    ("magnitude", "10%"),
    ("magnitude", "30%"),
    ("magnitude", "20%"),
    ("wanda", "30%"),
)
PROTOCOL = {
    "model": "smollm2 (SmolLM2-135M-Instruct, a 4-bit checkpoint dequantised, then bfloat16)",
    "calibration": "wikipedia train, 32 x 512 tokens, seed 0",
    "perplexity, kl, agreement": "wikipedia test, 8 x 512 tokens, evenly spaced; nats_difference: mean over tokens of "
    "the pruned model's -log p minus the dense one's, with the standard error of independent tokens",
    "last_word": "wikipedia test, 100 passages, half of them with a last word that was used before",
    "pairs": "25 pairs for each of the generator's phenomena, seed 0",
}


def recompute(method: str, pattern: str) -> dict:
    """One cell from nothing but the protocol."""
    dense, tokenizer = mp.load_model("smollm2", dtype="bfloat16")
    test = mp.load_tokens(tokenizer, "wikipedia", split="test", samples=8, length=512)
    model = dense
    if method != "dense":
        model, _ = mp.load_model("smollm2", dtype="bfloat16")
        calib = (
            None if method == "magnitude" else mp.load_tokens(tokenizer, "wikipedia", samples=32, length=512, seed=0)
        )
        mp.prune(model, calib, method=method, pattern=pattern)
    nats = token_nll(model, test).double()
    found = {"perplexity": float(nats.mean().exp())}
    if method != "dense":
        beside = mp.divergence(model, dense, test)
        difference = nats - token_nll(dense, test).double()
        found |= {
            "kl": beside.kl,
            "agreement": beside.agreement,
            "nats_difference": float(difference.mean()),
            "nats_difference_error": float(difference.std() / difference.numel() ** 0.5),
        }
    found["last_word"] = _score(mp.last_word(model, tokenizer, "wikipedia", "test", count=100))
    found["pairs"] = _score(mp.grammar(model, tokenizer, minimal_pairs(25)))
    return found


def _score(score: Score) -> dict:
    parts = {name: _score(part) for name, part in score.parts.items()}
    return {"value": score.value, "error": score.error, "count": score.count, **({"parts": parts} if parts else {})}


def main() -> None:
    """Fill in what is missing of the results file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    wanted = [{"method": method, "pattern": pattern} for method, pattern in CELLS]
    fill_in(args.output, f"python benchmarks/abilities.py {args.output.as_posix()}", PROTOCOL, wanted, recompute)


if __name__ == "__main__":
    main()
