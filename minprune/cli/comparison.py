"""`minprune demo`: one small model, pruned in five ways, compared by numbers, by a picture and by what they write."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from minprune.data.tokens import load_tokens
from minprune.errors import PruneError
from minprune.evaluation.perplexity import generate, perplexity
from minprune.files import check_regular
from minprune.load import load_model, model_folder
from minprune.methods import METHODS
from minprune.models.layers import find_layers
from minprune.output.folder import OutputFolder, default_name
from minprune.output.lock import absolute
from minprune.output.model_files import check_space, write_model
from minprune.output.record import RunRecord
from minprune.pipeline.precision import multiplies_bfloat16
from minprune.pipeline.prune import prune

if TYPE_CHECKING:
    from rich.console import Console

_log = logging.getLogger(__name__)

RUNS = [("magnitude", "50%"), ("wanda", "50%"), ("sparsegpt", "50%"), ("wanda", "2:4"), ("sparsegpt", "2:4")]
WRITTEN = ("sparsegpt", "50%")
MAKER = "minprune demo"  # as the picture's own header names it
PROMPT = "The Moon is the only natural satellite of"


@dataclass
class Row:
    """One model of the comparison. zeros: their share in the pruned layers; text: how it continues the prompt."""

    method: str
    pattern: str
    zeros: float
    perplexity: float
    seconds: float
    text: str


def demo(
    output: str | Path,
    console: "Console",
    model_name: str = "smollm2",
    text: str = "wikipedia",
    windows: tuple[int, int] = (16, 4),
    length: int = 512,
) -> list[Row]:
    """Prune a model in five ways, print a table and continuations, and write a figure and one model to `output`.

    windows: how many for calibration and for the test. While pruning, products are in bfloat16 where that is faster.
    What an earlier demo left in `output` is replaced.
    Raises `PruneError` if `output` cannot be written.
    """
    folder = Path(output)
    absolute(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PruneError(f"cannot write to {folder} ({error.strerror}): choose another output") from None
    method, pattern = WRITTEN
    target, figure = folder / default_name(model_name, method, pattern), folder / "perplexity.png"
    if figure.exists() and not (target.exists() or _drawn(figure)):
        raise PruneError(f"{figure} is not of a demonstration and would be lost: choose another output")
    with OutputFolder(target, overwrite=True).open() as partial:
        _log.info(f"loading {model_name} and the texts")
        model, tokenizer = load_model(model_name)
        check_space(partial, model)
        calib = load_tokens(tokenizer, text, "train", windows[0], length, seed=0)
        test = load_tokens(tokenizer, text, "test", windows[1], length)
        dense = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        zeros = [1 - int(layer.weight.count_nonzero()) / layer.weight.numel() for layer in find_layers(model)]

        def measure(method: str, pattern: str, zeros: float, seconds: float) -> Row:
            value = perplexity(model, test, progress=True)
            return Row(method, pattern, zeros, value, seconds, generate(model, tokenizer, PROMPT, tokens=24))

        precision = "bfloat16" if multiplies_bfloat16(model.device.type) else "auto"
        _log.info("1/6 dense")
        rows = [measure("dense", "-", sum(zeros) / len(zeros), 0.0)]
        for number, run in enumerate(RUNS, 2):
            _log.info(f"{number}/{len(RUNS) + 1} {run[0]} {run[1]}")
            model.load_state_dict(dense)
            used = calib if METHODS[run[0]].needs != "nothing" else None
            report = prune(model, used, *run, precision=precision, progress=True)
            rows.append(measure(*run, report.sparsity, report.seconds["total"]))
            if run == WRITTEN:
                record = RunRecord.of(report, model=model_name)
                write_model(partial, model, tokenizer, record, source=model_folder(model_name))
    draw(rows, figure)
    _show(rows, console, f"{text} (test), {test.numel()} tokens")
    console.print(f"figure: {figure}\nmodel:  {target}", soft_wrap=True)
    return rows


def _drawn(figure: Path) -> bool:
    """Whether an earlier demonstration has drawn this file: such a picture says so in its header."""
    check_regular(figure)
    with figure.open("rb") as file:
        return MAKER.encode() in file.read(1 << 10)


def draw(rows: list[Row], path: Path) -> None:
    """Write a picture of the rows' perplexities on a log axis, the dense model (the first row) as a line."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    from minprune.plots import LOOKS, use_style

    use_style()
    dense, pruned = rows[0], rows[1:]
    best, worst = (choose(pruned, key=lambda row: row.perplexity) for choose in (min, max))
    figure, axes = plt.subplots(figsize=(7.6, 3.4))
    axes.axvline(dense.perplexity, color=LOOKS["dense"].color, linestyle="--", linewidth=1.2)
    axes.annotate("dense", (dense.perplexity, -0.6), (5, 0), textcoords="offset points")
    for place, row in enumerate(reversed(pruned)):
        look = LOOKS[row.method]
        axes.plot([dense.perplexity, row.perplexity], [place, place], color=look.color, linewidth=1.2)
        axes.plot(row.perplexity, place, look.marker, color=look.color, markersize=8)
        axes.annotate(
            f"{row.perplexity / dense.perplexity:.2f} x",
            (row.perplexity, place),
            (9, 0),
            textcoords="offset points",
            verticalalignment="center",
        )
    axes.set_yticks(range(len(pruned)), [f"{row.method} {row.pattern}" for row in reversed(pruned)])
    axes.set_ylim(-0.8, len(pruned) - 0.5)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_formatter("")
    axes.set_xlim(dense.perplexity / 1.15, worst.perplexity * 1.6)
    axes.set_xlabel("perplexity on held-out text (log scale)")
    axes.grid(axis="y", visible=False)
    axes.set_title(
        f"Half the weights are zero: {best.perplexity / dense.perplexity:.1f} times the perplexity\n"
        f"with {best.method}, {worst.perplexity / dense.perplexity:.1f} times with {worst.method}"
    )
    figure.savefig(path, metadata={"Software": MAKER})
    plt.close(figure)


def _show(rows: list[Row], console: "Console", text: str) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False, header_style="")
    for name in ("method", "pattern"):
        table.add_column(name)
    for name in ("zeros", "perplexity", "x dense", "seconds"):
        table.add_column(name, justify="right")
    for row in rows:
        ratio = row.perplexity / rows[0].perplexity
        seconds = f"{row.seconds:.1f}" if row.seconds else "-"
        table.add_row(row.method, row.pattern, f"{row.zeros:.2%}", f"{row.perplexity:,.2f}", f"{ratio:.2f}", seconds)
    console.print(table)
    console.print(f"Perplexity on {text}; zeros in the linear layers of the blocks; seconds spent pruning.\n")
    for row in rows:
        name = f"{row.method} {row.pattern}".removesuffix(" -")
        console.print(f"{name}: {PROMPT} ... {' '.join(row.text.split())}\n")
