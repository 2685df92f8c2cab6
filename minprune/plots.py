"""One look for all figures: `use_style()`, and a colour, a marker and a hatch for each method."""

from typing import NamedTuple

from minprune.errors import from_extra


class Look(NamedTuple):
    """How a method is drawn everywhere. Colour alone would be lost in black and white."""

    color: str
    marker: str
    hatch: str


# of these colours no two look alike to a reader who cannot tell red from green; the markers tell them apart in print
LOOKS = {
    "dense": Look("#4d565e", "s", ""),
    "magnitude": Look("#d55e00", "v", "///"),
    "wanda": Look("#0072b2", "o", "..."),
    "sparsegpt": Look("#009e73", "D", "xxx"),
    "obd": Look("#cc79a7", "^", "\\\\\\"),
    "obs": Look("#332288", "P", "+++"),
    "ria": Look("#56b4e9", "p", "ooo"),
    "exact": Look("#5c3d1e", "*", "***"),
    "admm": Look("#e69f00", "X", "---"),
    "alps": Look("#a65628", ">", "|||"),
    "swaps": Look("#5aae61", "<", "//.."),
    "best": Look("#6a40f0", "h", "o.."),
}


def use_style() -> None:
    """Use minprune's style sheet for all matplotlib figures from here on."""
    with from_extra("course", "a figure"):
        import matplotlib.pyplot as plt

    plt.style.use("minprune.minprune")
