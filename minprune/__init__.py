"""minprune: prune large language models, and learn how it works.

import minprune as mp

model, tokenizer = mp.load_model("smollm2")
calib = mp.load_tokens(tokenizer, "wikipedia", split="train", samples=64, length=512, seed=0)
report = mp.prune(model, calib, method="sparsegpt", pattern="50%")
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minprune.checkpoint import prune_checkpoint
    from minprune.cloze import grammar, last_word
    from minprune.data import load_text, load_tokens
    from minprune.driver import prune
    from minprune.errors import PruneError
    from minprune.evaluate import Divergence, divergence, generate, perplexity
    from minprune.load import load_model
    from minprune.methods import METHODS, Method, Result
    from minprune.model import find_layers
    from minprune.patterns import NM, Block, Unstructured, pattern
    from minprune.protocol import Measurement, measure
    from minprune.report import LayerRow, Report
    from minprune.statistics import Statistics, layer_error
    from minprune.structured.shrink import shrink

__version__ = "0.1.0"

__all__ = [
    "METHODS", "NM", "Block", "Divergence", "LayerRow", "Measurement", "Method", "PruneError", "Report", "Result",
    "Statistics", "Unstructured", "divergence", "find_layers", "generate", "grammar", "last_word", "layer_error",
    "load_model", "load_text", "load_tokens", "measure", "pattern", "perplexity", "prune", "prune_checkpoint", "shrink",
]  # fmt: skip

_HOME = {
    "checkpoint": ["prune_checkpoint"],
    "cloze": ["grammar", "last_word"],
    "data": ["load_text", "load_tokens"],
    "driver": ["prune"],
    "errors": ["PruneError"],
    "evaluate": ["Divergence", "divergence", "generate", "perplexity"],
    "methods": ["METHODS", "Method", "Result"],
    "load": ["load_model"],
    "model": ["find_layers"],
    "patterns": ["NM", "Block", "Unstructured", "pattern"],
    "protocol": ["Measurement", "measure"],
    "report": ["LayerRow", "Report"],
    "statistics": ["Statistics", "layer_error"],
    "structured.shrink": ["shrink"],
}


def __getattr__(name: str):
    """Import a public name or a module when it is first used, so that `minprune --help` does not wait for torch."""
    for module, names in _HOME.items():
        if name == module or name in names:
            found = import_module(f"minprune.{module}")
            return found if name == module else getattr(found, name)
    raise AttributeError(f"module 'minprune' has no attribute {name!r}")
