"""minprune: prune large language models, and learn how it works.

import minprune as mp

model, tokenizer = mp.load_model("smollm2")
calib = mp.load_tokens(tokenizer, "wikipedia", split="train", samples=64, length=512, seed=0)
report = mp.prune(model, calib, method="sparsegpt", pattern="50%")

The public names stand in `__init__.pyi`. Each is imported when it is first used, so that `minprune --help` does not
wait for torch.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
