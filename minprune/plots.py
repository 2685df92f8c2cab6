"""One look for all figures: `use_style()`, and a colour, a marker and a hatch for each method."""

from typing import NamedTuple


class Look(NamedTuple):
    """How a method is drawn everywhere. Colour alone would be lost in black and white."""

    color: str
    marker: str
    hatch: str


LOOKS = {
    "dense": Look("#4d565e", "s", ""),
    "magnitude": Look("#d55e00", "v", "///"),
    "wanda": Look("#0072b2", "o", "..."),
    "sparsegpt": Look("#009e73", "D", "xxx"),
}


def use_style() -> None:
    """Use minprune's style sheet for all matplotlib figures from here on."""
    import matplotlib.pyplot as plt

    plt.style.use("minprune.minprune")
