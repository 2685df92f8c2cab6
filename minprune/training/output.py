"""The folder of a model in training: a .partial that a stopped run leaves and the same command goes on in."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minprune.output.folder import OutputFolder
from minprune.output.target import WORK

STATE = f"{WORK}/training.state"


@contextmanager
def training_folder(path: str | Path, resume: bool = False, overwrite: bool = False) -> Iterator[Path]:
    """Yield `PATH.partial`, whose file `STATE` is for `recover`; it is renamed to `path` if the block ends well.

    If the block fails or is interrupted, the folder stays if there is a state in it, and the exception says so. resume:
    go on in what such a run left, from its state or, if it was killed before there was one, anew. overwrite: begin anew
    in its place, or in that of a finished output of minprune; see `OutputFolder`.
    Raises `PruneError` before the block if `path` cannot become the output.
    """
    output = OutputFolder(Path(path), "recover", overwrite, resume)
    partial = output.partial

    def kept() -> str:
        return f"its last state is kept in {partial}: continue with --resume" if (partial / STATE).exists() else ""

    with output.open(kept):
        yield partial
