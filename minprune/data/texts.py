"""The bundled texts as lists of plain articles, dealt out to train, validation and test."""

import bz2
import contextlib
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from minprune.data.assets import derived, fetch
from minprune.errors import PruneError

SPLITS = ("train", "validation", "test")


def articles(name: str, split: str) -> list[str]:
    """The plain texts of a bundled collection ("wikipedia", "news" or "python") that belong to a split.

    Whole articles are dealt out, three to train, one to validation, one to test, so no article is in two splits.
    """
    if split not in SPLITS:
        raise PruneError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    if name == "python":
        texts = _python()
    else:
        path = fetch(name)
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
    """The articles of a MediaWiki dump without markup, in the order of the dump; kept in the cache as one file."""
    separator = "\n\x00\n"

    def write(folder: Path) -> None:
        text = separator.join(page for page in _pages(path) if page)
        (folder / "articles.txt").write_text(text, encoding="utf-8")

    return (derived("wikipedia-articles", write) / "articles.txt").read_text(encoding="utf-8").split(separator)


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
