"""What to remove, as a text: "neurons:25%", "heads:1/3", "blocks:4"; and which ways to choose there are."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from minprune.arguments import check_fields, checked
from minprune.errors import PruneError
from minprune.structured.depth import DEPTH_SCORES
from minprune.structured.slicing import WAYS
from minprune.structured.width import CRITERIA

# the ways to choose, the first being the default, in the order in which several kinds are removed
METHODS = {"blocks": DEPTH_SCORES, "groups": CRITERIA, "heads": CRITERIA, "neurons": CRITERIA, "hidden": WAYS}
REPAIRS = ("none", "refit", "bias", "reconstruct")


@dataclass(frozen=True)
class Removal:
    """What to remove from a model, and how much of it.

    Parameters
    ----------
    what : {"blocks", "groups", "heads", "neurons", "hidden"}
        Decoder blocks, key and value heads with their queries, query heads, of the MLPs, or channels of the stream.
    share : float, optional
        A share of them, 0 to 1.
    count : int, optional
        A number of them, if no share is given.

    Raises
    ------
    PruneError
        For an unknown kind, both a share and a number or neither, or one out of range.

    Examples
    --------
    >>> from minprune.structured.removals import removal
    >>> removal("heads:1/3").of(9)
    3
    """

    what: str
    share: float | None = None
    count: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.what not in list(METHODS) or (self.share is None) == (self.count is None):
            raise PruneError(
                f"cannot remove {self.what!r} by the share {self.share!r} and the count {self.count!r}: give one of "
                f"both, of {', '.join(METHODS)}"
            )

        if not 0 <= (self.share or 0) <= 1 or (self.count or 0) < 0:
            raise PruneError(f"{self} is less than nothing or more than all: ask for a share in 0..1, or for a number")

    def __str__(self) -> str:
        return f"{self.what}:{self.count}" if self.share is None else f"{self.what}:{100 * self.share:.4g}%"

    @checked()
    def of(self, total: int) -> int:
        """How many of `total` go. Raises `PruneError` if that is none of them or all."""
        gone = round(self.share * total) if self.share is not None else int(self.count or 0)
        if not 0 < gone < total:
            raise PruneError(f"{gone} of {total} {self.what} cannot be removed: ask for 1 to {total - 1}")
        return gone


def removal(text: "str | Removal") -> Removal:
    """Read what to remove.

    Parameters
    ----------
    text : str or Removal
        "neurons:25%", "heads:1/3", "groups:1", "blocks:4" or "hidden:25%".

    Returns
    -------
    Removal

    Raises
    ------
    PruneError
        For anything else, and for what removes nothing, or everything.

    Examples
    --------
    >>> from minprune.structured.removals import removal
    >>> removal("neurons:25%").share
    0.25
    """
    if isinstance(text, Removal):
        return text
    match = re.fullmatch(rf"({'|'.join(METHODS)}):(?:(\d+(?:\.\d+)?)%|(\d+)/(\d+)|(\d+))", str(text), re.ASCII)
    if not match:
        raise PruneError(f"cannot remove {text!r}: write neurons:25%, heads:1/3, blocks:4 or hidden:25%")
    what, percent, upper, lower, count = match.groups()
    share = float(percent) / 100 if percent else int(upper) / int(lower) if upper and int(lower) else None
    if (upper and share is None) or (share is not None and not 0 < share < 1) or (count and not int(count)):
        raise PruneError(f"{text!r} removes nothing or everything: ask for what lies between the two")
    return Removal(what, share, int(count) if count else None)


def removals(texts: "str | Removal | Sequence[str | Removal]", method: str | None) -> list[tuple[Removal, str]]:
    """Each removal with its way to choose, in the order in which they are made: blocks, heads, neurons, hidden.

    method: of the removals that know it, of which there has to be one; the others take their default.
    """
    given = [texts] if isinstance(texts, str | Removal) else list(texts)
    found = sorted((removal(text) for text in given), key=lambda one: list(METHODS).index(one.what))
    kinds = [one.what for one in found]
    if not found or len(set(kinds)) < len(kinds):
        raise PruneError("a run removes each kind once, and at least one: neurons, heads, blocks or hidden")
    known = sorted({name for kind in kinds for name in METHODS[kind]})
    if method is not None and method not in known:
        raise PruneError(f"unknown way to choose {' and '.join(kinds)}, {method!r}: choose one of {', '.join(known)}")
    return [(one, method if method in METHODS[one.what] else METHODS[one.what][0]) for one in found]
