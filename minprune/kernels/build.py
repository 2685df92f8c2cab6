"""Compile expand.c with the machine's own compiler when it is first needed, and load it.

The library is kept in the cache folder under a hash of source, flags and compiler, so it is made once. It holds a
version of the product for each set of instructions and asks the processor at run time, so a cache that several
machines share is no danger. Without a compiler, or if it fails, there is no library: whoever asks gets the reason, and
multiplies with torch instead.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from minprune.data.assets import cache_folder
from minprune.errors import PruneError

SOURCE = Path(__file__).with_name("expand.c")
LEVELS = ("portable", "avx2", "avx512")
LEVEL = "MINPRUNE_KERNEL"  # the environment variable that forces one of them, or "torch" for none
_COMPILE = ("-O3", "-fPIC", "-fopenmp", "-c")
_LINK = ("-shared",)  # without OpenMP's library: torch has loaded one, and two would fight for the cores


@dataclass(frozen=True)
class Kernel:
    """The loaded library and the instructions that it is to use, an index into LEVELS."""

    library: ctypes.CDLL
    level: int


@cache
def kernel() -> tuple[Kernel | None, str]:
    """(the kernel, "") or (None, why there is none).

    Raises `PruneError` if the environment forces instructions that this processor does not have.
    """
    wanted = os.environ.get(LEVEL, "")
    if wanted == "torch":
        return None, f"{LEVEL}=torch"
    if wanted and wanted not in LEVELS:
        raise PruneError(f"{LEVEL}={wanted} is unknown: choose torch, {', '.join(LEVELS)}")
    try:
        library = ctypes.CDLL(str(build()))
    except (OSError, subprocess.SubprocessError, PruneError) as error:
        return None, f"{error}"
    library.minprune_init()
    pointer, whole = ctypes.c_void_p, ctypes.c_int64
    library.minprune_product.argtypes = (pointer, ctypes.c_int, pointer, whole, whole, pointer, pointer, ctypes.c_int)
    library.minprune_product.restype = None
    library.minprune_dense.argtypes = (pointer, pointer, ctypes.c_int)
    library.minprune_dense.restype = None
    library.minprune_read.argtypes = (pointer, whole, ctypes.c_int)
    library.minprune_read.restype = ctypes.c_uint64
    best = library.minprune_best_level()
    if wanted and LEVELS.index(wanted) > best:
        raise PruneError(f"{LEVEL}={wanted}: this processor has no more than {LEVELS[best]}")
    return Kernel(library, LEVELS.index(wanted) if wanted else best), ""


def build(folder: Path | None = None) -> Path:
    """The path of the compiled library, made if it is not in the cache.

    Raises `PruneError` if there is no compiler or it fails.
    """
    import torch  # noqa: F401  whose OpenMP the library uses: it has to be loaded before

    compiler = compiler_path()
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=60).stdout
    facts = [SOURCE.read_bytes(), " ".join(_COMPILE + _LINK).encode(), platform.machine().encode(), version]
    name = f"expand-{hashlib.sha256(b'|'.join(facts)).hexdigest()[:16]}.so"
    target = (folder or cache_folder() / "kernels") / name
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="unfinished.") as work:
        made, part = Path(work, "expand.o"), Path(work, name)
        _run([compiler, *_COMPILE, str(SOURCE), "-o", str(made)])
        _run([compiler, *_LINK, str(made), "-o", str(part)])
        os.replace(part, target)
    return target


def compiler_path() -> str:
    """The C compiler: $CC, or the first of cc, gcc and clang. Raises `PruneError` if there is none."""
    named = os.environ.get("CC")
    for name in (named,) if named else ("cc", "gcc", "clang"):
        if name and (found := shutil.which(name)):
            return found
    raise PruneError(f"there is no C compiler ({named or 'cc, gcc or clang'}): install one for sparse products")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode:
        why = next((line for line in done.stderr.splitlines() if "error" in line), "no reason given")
        raise PruneError(f"the C compiler failed ({why.strip()[:200]})")
