"""What a command does when torchrun has started it several times: the first process speaks, all of them work."""

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from minprune.errors import PeerError, PruneError
from minprune.output.lock import lock
from minprune.output.target import check_free

SHARED = ("prune", "shrink", "quantize", "sweep")  # the commands that several processes can do together


@contextmanager
def joined(command: str, device: str) -> Iterator[None]:
    """Join the other processes of a torchrun, if this is one. Of all but the first, only errors are seen.

    Raises `PruneError` for a command that is done by one process.
    """
    if "RANK" not in os.environ or _number("WORLD_SIZE", 1) < 2:
        yield
        return
    if command not in SHARED:
        raise PruneError(
            f"minprune {command} works in one process: start it without torchrun, which is for {', '.join(SHARED)}"
        )
    import torch
    import torch.distributed as dist

    try:
        kind = torch.device(device).type
        if kind == "cuda":
            torch.cuda.set_device(_number("LOCAL_RANK", _number("RANK", 0)))
        how = "nccl" if kind == "cuda" else "gloo"
        dist.init_process_group(how, timeout=timedelta(days=1))  # a solve may take long
    except (ValueError, RuntimeError) as error:  # of what the environment lacks, too
        said = " ".join(str(error).split())[:200]
        raise PruneError(
            f"the processes of this run cannot join ({said}): start them with torchrun, or unset WORLD_SIZE and RANK "
            "for one alone"
        ) from error
    rank, store = dist.get_rank(), dist.distributed_c10d._get_default_store()
    try:
        with ExitStack() as stack:
            if rank:
                nowhere = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
                stack.enter_context(redirect_stdout(nowhere))
                stack.enter_context(redirect_stderr(nowhere))
                logging.disable(logging.CRITICAL)
            yield
    except PeerError:
        raise
    except PruneError as error:  # a mistake of the user's is found by all of them
        with suppress(RuntimeError):  # the store went with the process that held it
            store.set(f"said by {rank}", str(error))
        if rank and _first_says(store, str(error)):
            raise PeerError(str(error)) from None
        raise
    finally:
        logging.disable(logging.NOTSET)
        if dist.is_initialized():
            dist.destroy_process_group()


def _number(name: str, usual: int) -> int:
    """What a variable of the environment says; `PruneError` if it is no number."""
    said = os.environ.get(name, str(usual))
    if not (said.isascii() and said.isdecimal()):
        raise PruneError(f"{name} is {said!r} and no number, as torchrun sets it: unset it for one process alone")
    return int(said)


def _first_says(store: Any, message: str) -> bool:
    """Whether the first process has failed for the same reason, or does so in a moment."""
    try:
        store.wait(["said by 0"], timedelta(seconds=3))
        return store.get("said by 0").decode() == message
    except RuntimeError:  # it has not, or it has gone
        return False


def is_first() -> bool:
    """Whether this is the process that speaks and writes: the first of a torchrun's, or the only one."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def reserved(place: Path, overwrite: bool) -> Iterator[None]:
    """Be the only run that writes an output, which has to be free."""
    if not is_first():  # the first process of this run has seen to it
        yield
        return
    with lock(place):
        check_free(place, overwrite)
        yield
