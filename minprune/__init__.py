"""minprune: prune large language models, and learn how it works.

import minprune as mp

model, tokenizer = mp.load_model("smollm2")
calib = mp.load_tokens(tokenizer, "wikipedia", split="train", samples=64, length=512, seed=0)
report = mp.prune(model, calib, method="sparsegpt", pattern="50%")
"""

from minprune.data import load_text, load_tokens
from minprune.driver import prune
from minprune.errors import PruneError
from minprune.evaluate import generate, perplexity
from minprune.methods import METHODS, Method, Result
from minprune.model import find_layers, load_model
from minprune.patterns import NM, Block, Unstructured, pattern
from minprune.report import LayerRow, Report
from minprune.statistics import Statistics, layer_error

__version__ = "0.1.0"

__all__ = [
    "METHODS", "NM", "Block", "LayerRow", "Method", "PruneError", "Report", "Result", "Statistics", "Unstructured",
    "find_layers", "generate", "layer_error", "load_model", "load_text", "load_tokens", "pattern",
    "perplexity", "prune",
]  # fmt: skip
