"""What the chapters' exercises need: self-checks, and the classroom."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, ["checks", "classroom"])
