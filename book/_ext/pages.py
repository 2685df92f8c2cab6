"""What every page has: a description for search engines, no script that is not used, and HTML that is valid and quiet.

What Sphinx and its extensions write is mended here, once for all pages: an image says its size, so that nothing moves
when it comes, and comes when it is needed; a table without a title over its first column has titles in it, one a row;
the summary of a folded cell is called what it says; references are items of their list, and preprints among them
links; no `id` stands twice in a page; the list of sources is nested as lists are; what leads from the source of a
name back to its docstring finds it under the name it has there; no line ends between a number and its per cent sign,
unit or error; a long word of code is marked, so that a narrow page may break it; a link does not begin with a space;
what cells have printed is not cut at the edge of a wide page; and blocks of code show neither the mark by which the
tests know a cell nor the empty line by which a doctest ends.
"""

import html
import re
from pathlib import Path
from typing import Any

import imagesize
from docutils import nodes

LONGEST = 160  # characters of a description that a search engine shows
WIDEST = 105  # characters of output that fit a line of a wide page
_LINES = re.compile(  # where one must not end, outside tags, code and formulas
    r"(<(pre|code|script|style|svg)\b.*?</\2>|<[^>]*>|\\\(.*?\\\)|\\\[.*?\\\])"
    r"|(?<=\d)\s(?=%|±|[kMG]B\b|m?s\b|x\b)|(?<=±)\s(?=\d)",
    re.DOTALL,
)
MARK = "# NBVAL_CHECK_OUTPUT\n"  # first line of a cell whose output is compared when the notebooks are tested
_OTHER = {  # pages without a text of their own
    "search": "Search the course on pruning large language models and the reference of the minprune package.",
    "genindex": "Every function, class and method of the minprune package, in alphabetical order.",
    "_modules/index": "The modules of the minprune package whose source can be read here.",
}


def description(doctree: nodes.document) -> str:
    """The first paragraph of a page that says something, cut between words."""
    for paragraph in doctree.findall(nodes.paragraph):
        if isinstance(paragraph.parent, nodes.section):
            text = re.sub(r"\s+", " ", paragraph.astext()).strip()
            if len(text) > 40:
                return text if len(text) <= LONGEST else text[: LONGEST - 1].rsplit(" ", 1)[0].rstrip(",;:") + "…"
    return ""


def described(pagename: str, doctree: nodes.document | None) -> str:
    """The description of a page; `doctree` is None if Sphinx makes it: an index, the search, a module's source."""
    if doctree:
        return description(doctree)
    if pagename.startswith("_modules/") and pagename not in _OTHER:
        name = pagename.removeprefix("_modules/").replace("/", ".")
        return f"The source of {name}, a module of minprune, the package that the course on pruning builds."
    return _OTHER.get(pagename, "")


def write_page(app: Any, pagename: str, templatename: str, context: dict, doctree: nodes.document | None) -> None:
    """Add the page's description, mend its body; leave out Thebe, which Jupyter Book adds twice (then it fails)."""
    context["description"] = described(pagename, doctree)
    for kind in ("script_files", "css_files"):
        context[kind] = [file for file in context[kind] if "thebe" not in _named(file)]
    if "body" in context:
        built = {name: Path(app.srcdir) / path for path, name in app.builder.images.items()}
        body = context["body"] if pagename != "_modules/index" else nested(context["body"])
        body = mended(body, built)
        source = pagename.startswith("_modules/")
        context["body"] = led_back(body, set(app.env.domaindata["py"]["objects"])) if source else body


def _named(file: Any) -> str:
    return f"{file} {getattr(file, 'filename', '')} {getattr(file, 'attributes', '')}".lower()


def mended(body: str, images: dict[str, Path]) -> str:
    """The HTML of a page's body, mended. images: the file behind each name in _images/."""
    body = body.replace('<summary aria-label="Toggle hidden content">', "<summary>")
    body = body.replace('role="doc-biblioentry"', 'role="listitem"')  # ARIA has given up the first
    preprint = r'<em><a class="reference external" href="https://arxiv.org/abs/\2">\1</a></em>'
    body = re.sub(r"<em>(arXiv:(\d{4}\.\d{4,5}))</em>", preprint, body)
    body = re.sub(r"(Solution to)(<a [^>]*>) ", r"\1 \2", body)
    body = re.sub(r'<span class="pre">(?=[^<]{25})', '<span class="pre long">', body)
    body = re.sub(r"<th[^>]*>(?:<p></p>)?</th>", "<td></td>", body)
    body = _LINES.sub(lambda found: found[1] or "\N{NO-BREAK SPACE}", body)
    return re.sub(r"<img [^>]*>", lambda found: _sized(found[0], images), body)


def nested(body: str) -> str:
    """Viewcode's list of modules, in which a list stands between two items: it is a part of the one before it."""
    opened, inner, last = body.replace("</li>\n<ul>", "\n<ul>").rpartition("</ul>")
    return opened.replace("</ul>", "</ul></li>") + inner + last


def led_back(body: str, names: set[str]) -> str:
    """A source with links back to docstrings that are there: Viewcode gives all names the prefix of the first."""

    def known(found: re.Match) -> str:
        name = found[2].rpartition(".")[2]
        called = [other for other in names if other.rpartition(".")[2] == name]
        return found[1] + (called[0] if found[2] not in names and len(called) == 1 else found[2])

    return re.sub(r'(<a class="viewcode-back" href="[^"#]*#)([\w.]+)', known, body)


def _sized(image: str, images: dict[str, Path]) -> str:
    """An <img> with its size in pixels, loaded late; one that has a width, or is not ours, stays."""
    source = re.search(r' src="[^"]*_images/([^"]+)"', image)
    path = images.get(html.unescape(source[1])) if source else None
    if path is None or re.search(r" (?:width|style)=", image):
        return image
    width, height = imagesize.get(path)
    size = f'width="{round(width)}" height="{round(height)}"'
    return f'<img loading="lazy" {size}{image.removeprefix("<img")}' if width > 0 else image


def kind_of(output: str) -> str | None:
    """How what a cell has printed is shown: columns too wide for a page in small letters, all else in broken lines."""
    if not re.search(r"\S {2,}\S", output):
        return "told"
    return "dense" if max(map(len, output.splitlines())) > WIDEST else None


def tidy(app: Any, doctree: nodes.document) -> None:
    """Take out the mark of tested cells and the empty line by which a doctest ends, and name the rows of tables.

    What cells have printed gets a class for the style sheet.
    """
    for block in doctree.findall(nodes.literal_block):
        text = block.astext().removeprefix(MARK).rstrip("\n")
        if text != block.astext():
            block.children = []
            block.rawsource = text
            block += nodes.Text(text)
        if "stream" in block["classes"] and (kind := kind_of(text)):
            block["classes"].append(kind)
    for group in doctree.findall(nodes.tgroup):
        heads = [row[0].astext().strip() for head in group.findall(nodes.thead) for row in head]
        if heads and not any(heads):
            next(group.findall(nodes.colspec))["stub"] = 1


def tell_apart(app: Any, doctree: nodes.document, pagename: str) -> None:
    """Number the ids that all exercises of a page, and all solutions, would share."""
    for number, section in enumerate(doctree.findall(nodes.section)):
        if section["ids"] in (["exercise-content"], ["solution-content"]):
            section["ids"] = [f"{section['ids'][0]}-{number}"]


def small_mathjax(app: Any, config: Any) -> None:
    """MathJax piece by piece (`loader` in _config.yml) in place of its bundle, half of which is menus and speech."""
    config.mathjax_path = "mathjax/startup.js"


def setup(app: Any) -> dict:
    """Sphinx calls this."""
    app.connect("doctree-read", tidy)
    app.connect("doctree-resolved", tell_apart)  # when Sphinx has counted the sections
    app.connect("html-page-context", write_page, priority=900)
    app.connect("config-inited", small_mathjax)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
