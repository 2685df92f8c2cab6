"""The folder of a model in training: a .partial that a stopped run leaves and the same command goes on in."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minprune.output import claim, move

STATE = "training.state"


@contextmanager
def training_folder(path: str | Path, resume: bool = False, overwrite: bool = False) -> Iterator[Path]:
    """Yield `PATH.partial`, whose file `STATE` is for `recover`; it is renamed to `path` if the block ends well.

    If the block fails or is interrupted, the folder stays if there is a state in it, and the exception says so. resume:
    go on in what such a run left, from its state or, if it was killed before there was one, anew. overwrite: begin anew
    in its place, or in that of a finished output of minprune.
    Raises `PruneError` before the block if `path` cannot become the output.
    """
    path, partial = claim(path, overwrite, _is_ours, resume=resume)
    state = partial / STATE
    try:
        yield partial
    except BaseException as error:  # Ctrl-C included
        if not state.exists():
            shutil.rmtree(partial, ignore_errors=True)
            raise
        kept = f"its last state is kept in {partial}: continue with --resume"
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"interrupted; {kept}") from None
        error.add_note(kept)
        raise
    for path_of_state in partial.glob(f"{STATE}*"):
        path_of_state.unlink()
    move(partial, path)


def _is_ours(partial: Path) -> bool:
    """Whether a .partial folder was left by a training run: it has a state, or nothing but the beginning of one."""
    return (partial / STATE).exists() or all(path.name.startswith(STATE) for path in partial.glob("*"))
