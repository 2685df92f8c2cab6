"""Quality against sparsity: SmolLM2 pruned by every method at 10 to 80 %, 2:4 and 4:8, on two texts, several seeds.

Fills in what is missing of a `minprune sweep` file, the most telling runs first, so that it can be stopped at any time.

    python benchmarks/curves.py book/results/sweep.jsonl
"""

import argparse
import sys
from pathlib import Path

import minprune as mp
from minprune.sweep import sweep

QUICK = ("magnitude", "wanda", "sparsegpt")
TELLING = ("50%", "60%", "70%", "2:4")  # where the methods differ and the model still speaks
STAGES = (  # methods, patterns, seeds
    ((*QUICK, "admm"), TELLING, (0,)),
    (QUICK, ("30%", "80%", "40%", "4:8", "20%", "10%"), (0,)),
    (("wanda", "sparsegpt"), TELLING, (1, 2)),
    (("admm",), ("80%", "30%", "4:8", "40%"), (0,)),
    (("alps", "ria"), TELLING, (0,)),
    (("admm",), TELLING, (1, 2)),
    (("admm",), ("20%", "10%"), (0,)),
    (("wanda+swaps+exact",), TELLING, (0,)),
)
# 32 calibration windows, 16 test windows a text and bfloat16: sweep.json shows that this does not change the order
PROTOCOL = {"calibration": "wikipedia", "samples": 32, "length": 512, "texts": ("wikipedia", "news")}
TEST_SAMPLES = 16
DTYPE = "bfloat16"


def run(path: Path, stages=STAGES, dtype: str = DTYPE) -> list[dict]:
    """The runs of the stages, those that the file at path lacks being made."""
    model, tokenizer = mp.load_model("smollm2", dtype)
    runs = []
    for methods, patterns, seeds in stages:
        runs += sweep(
            model,
            tokenizer,
            path,
            methods,
            patterns,
            seeds,
            name="smollm2",
            test_samples=TEST_SAMPLES,
            say=lambda line: print(line, file=sys.stderr, flush=True),
            **PROTOCOL,
        )
    return runs


def main() -> None:
    """Fill in what is missing of the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    run(parser.parse_args().output)


if __name__ == "__main__":
    main()
