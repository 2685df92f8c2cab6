"""What a pruning run reports."""

import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from minprune.arguments import checked
from minprune.files import to_json, write_text

BEFORE_RECONSTRUCTION = "the layer errors are from before the blocks were reconstructed"

FEW_AT_ONCE = "the windows went through the model {} at a time, as many as half of the free memory took"


@dataclass
class LayerRow:
    """One pruned layer.

    Parameters
    ----------
    name : str
        As in the model.
    shape : tuple of int
        (d_out, d_in).
    sparsity : float
        The fraction of its weights that are zero now.
    error : float or None
        The relative layer error on all of its calibration inputs (see `minprune.layer_error`), whatever the method.
        None without calibration.
    seconds : float
        Spent in the method.
    note : str, default ""
        Anything unusual, such as a raised damping or a layer left dense.

    Examples
    --------
    >>> import minprune as mp
    >>> mp.LayerRow("model.layers.0.mlp.up_proj", (32, 16), 0.5, 0.03, 0.001).sparsity
    0.5
    """

    name: str
    shape: tuple[int, int]
    sparsity: float
    error: float | None
    seconds: float
    note: str = ""


@dataclass
class Report:
    """What a run did: its settings, one row per layer, and where the time went.

    Parameters
    ----------
    method, pattern : str
        Their names.
    options : dict
        Of the method.
    calibration : dict
        How many windows of what length, and their sha256; empty without calibration.
    layers : list of LayerRow, optional
        In the order of the model.
    seconds : dict of str to float, optional
        "total", "statistics" and "solve".
    perplexity : dict, optional
        "before", "after" and "protocol"; empty unless the run was given test tokens.
    reconstruction : dict, optional
        Its settings, its seconds, for each block the relative error of its output in each epoch, and why it was skipped
        if it was; empty if the run has none. The errors of the rows are from before it.
    notes : list of str, optional
        What the numbers do not say by themselves, or what was found when the run was resumed.
    recipe : str, default ""
        Its name, if it has one.
    allocation : dict, optional
        "rule", the name of what chose the sparsities (None for a user's table), and "table"; empty if they are alike.
    batch_size : int or None, default None
        Windows that went through the model at once; None without calibration.
    precision : str or None, default None
        The type of matrix products in the forward passes of the calibration windows; None without calibration.

    Examples
    --------
    >>> import minprune as mp
    >>> rows = [mp.LayerRow("a", (4, 4), 0.5, 0.02, 0.1), mp.LayerRow("b", (4, 12), 0.25, 0.04, 0.1)]
    >>> report = mp.Report("magnitude", "50%", {}, {}, rows)
    >>> report.sparsity, round(report.error, 3)
    (0.3125, 0.03)
    """

    method: str
    pattern: str
    options: dict
    calibration: dict
    layers: list[LayerRow] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    perplexity: dict = field(default_factory=dict)
    reconstruction: dict = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    recipe: str = ""
    allocation: dict = field(default_factory=dict)
    batch_size: int | None = None
    precision: str | None = None

    @property
    def sparsity(self) -> float:
        """The fraction of zeros over all rows, weighted by parameters."""
        sizes = [row.shape[0] * row.shape[1] for row in self.layers]
        return sum(row.sparsity * size for row, size in zip(self.layers, sizes, strict=True)) / max(sum(sizes), 1)

    @property
    def error(self) -> float | None:
        """The mean relative layer error over the rows that have one."""
        errors = [row.error for row in self.layers if row.error is not None]
        return sum(errors) / len(errors) if errors else None

    def as_dict(self) -> dict:
        """Everything, with the versions that made it, ready for JSON."""
        return {"versions": versions(), "sparsity": self.sparsity, **asdict(self)}

    @checked()
    def to_json(self, path: str | Path) -> None:
        """Write everything to a JSON file."""
        write_text(Path(path), to_json(self.as_dict(), 2))


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in ("minprune", "torch", "transformers", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
