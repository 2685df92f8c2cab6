"""Every figure of the book has a caption, a name to link to, and an alt text for those who cannot see it."""

import base64
import io
import re
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import yaml
from matplotlib.image import imread
from nbformat.v4 import new_code_cell, new_output

from minprune.plots import LOOKS, use_style

ROOT = Path(__file__).parent.parent
CHAPTERS = [ROOT / f"{part['file']}.ipynb" for part in yaml.safe_load((ROOT / "_toc.yml").read_text())["parts"]
            for part in part["chapters"] if part["file"].startswith("notebooks/")]  # fmt: skip


def told_of(cell) -> tuple[str, str, str]:
    """Caption, name and alt text of a cell's image, from the metadata that MyST-NB reads."""
    told = cell.metadata.get("mystnb", {})
    figure, image = told.get("figure", {}), told.get("image", {})
    return figure.get("caption", "").strip(), figure.get("name", "").strip(), image.get("alt", "").strip()


def problems(cell) -> list[str]:
    """What a reader would miss who follows a link to the cell's image, or who cannot see it."""
    images = [out for out in cell.get("outputs", []) if any(kind.startswith("image/") for kind in out.get("data", {}))]
    if not images:
        return []
    if len(images) > 1:
        return [f"{len(images)} images, of which the metadata can caption one: split the cell"]
    caption, name, alt = told_of(cell)
    found = [f"the image has no {what}" for what, text in (("caption", caption), ("alt text", alt)) if not text]
    if not re.fullmatch(r"fig(-[a-z0-9]+)+", name):
        found.append(f"the image has no name of the form fig-words, but {name!r}")
    if alt and alt == caption:
        found.append("the alt text repeats the caption: say what is seen")
    return found


def cells_of(path):
    return enumerate(nbformat.read(path, as_version=4).cells, 1)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.name)
def test_every_figure_is_told(path):
    found = [f"{path.name}, cell {place}: {problem}" for place, cell in cells_of(path) for problem in problems(cell)]
    assert not found, "\n".join(found)


def test_figures_have_names_of_their_own_and_links_find_them():
    """Links by number go by name, through the whole book."""
    notebooks = [nbformat.read(path, as_version=4) for path in CHAPTERS]
    cells = [cell for notebook in notebooks for cell in notebook.cells]
    pages = "\n".join(path.read_text() for path in ROOT.glob("book/**/*.md"))
    names = re.findall(r"^:name: *(\S+)", pages, re.M) + [name for cell in cells if (name := told_of(cell)[1])]
    assert len(names) > len(CHAPTERS)
    assert sorted(set(names)) == sorted(names)
    text = "\n".join([pages, *(cell.source for cell in cells if cell.cell_type == "markdown")])
    linked = re.findall(r"\{numref\}`[^`]*?(fig-[\w-]+)>?`", text)
    assert linked and set(linked) <= set(names)


SIZED = re.compile(r"suptitle\((?:[^()]|\([^()]*\))*?\b(?:font)?(?:weight|size)=")


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.name)
def test_titles_of_figures_look_as_the_style_says(path):
    """A title over several panels is as large and bold as that of one, everywhere: the style says so, not a cell."""
    own = [place for place, cell in cells_of(path) if SIZED.search(cell.source)]
    assert not own, f"{path.name}, cells {own}: leave size and weight of suptitle to the style"


def test_a_title_with_a_size_of_its_own_is_found():
    assert SIZED.search('fig.suptitle(\n    "A (small) title", x=0.02, fontsize=11,\n)')
    assert not SIZED.search('fig.suptitle("A title", x=0.02)\nax.set_title("below", fontweight="normal")')
    with plt.rc_context():
        use_style()
        assert plt.rcParams["figure.titleweight"] == plt.rcParams["axes.titleweight"] == "bold"
        assert plt.rcParams["figure.titlesize"] == plt.rcParams["axes.titlesize"]


def drawn(caption="A measured three.", name="fig-three", alt="A dot at 3.", images=1):
    """A cell that has drawn something, and what its metadata say of it."""
    picture = new_output("display_data", data={"image/svg+xml": "<svg/>", "text/plain": "<Figure>"})
    told = {"figure": {"caption": caption, "name": name}, "image": {"alt": alt}}
    return new_code_cell("plot(3)", outputs=[picture] * images, metadata={"mystnb": told})


def test_a_told_figure_and_a_cell_without_one_have_no_problem():
    bare = new_code_cell("print(3)", outputs=[new_output("execute_result", data={"text/plain": "3"})])
    assert problems(drawn()) == problems(bare) == []


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (drawn(caption=" "), "the image has no caption"),
        (drawn(alt=""), "the image has no alt text"),
        (drawn(name=""), "the image has no name of the form fig-words, but ''"),
        (drawn(name="Figure 3"), "the image has no name of the form fig-words, but 'Figure 3'"),
        (drawn(alt="A measured three."), "the alt text repeats the caption: say what is seen"),
        (drawn(images=2), "2 images, of which the metadata can caption one: split the cell"),
    ],
)
def test_what_is_missing_is_named(cell, message):
    assert problems(cell) == [message]


def test_a_picture_without_metadata_misses_all_three():
    cell = drawn()
    del cell.metadata["mystnb"]
    assert [problem.split(",")[0] for problem in problems(cell)] == [
        "the image has no caption",
        "the image has no alt text",
        "the image has no name of the form fig-words",
    ]


def on_a_dark_page(color: np.ndarray) -> np.ndarray:
    """What minprune.css makes of a colour (3,), by the definitions of the filters in the CSS standard."""
    css = (ROOT / "book/_static/minprune.css").read_text()
    rule = re.search(r'\[data-theme="dark"\][^{]*figure img \{(.*?)\}', css, re.S)
    turned, angle, bright = map(
        float, re.search(r"invert\(([\d.]+)\) hue-rotate\((\d+)deg\) brightness\(([\d.]+)\)", rule[1]).groups()
    )
    assert angle == 180
    grey = np.array([0.213, 0.715, 0.072])  # luminance, to which half a turn of the hue reflects
    inverted = color * (1 - turned) + (1 - color) * turned
    return np.clip(np.clip(2 * grey @ inverted - inverted, 0, 1) * bright, 0, 1)


def luminance(color: np.ndarray) -> float:
    linear = np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: np.ndarray, other: np.ndarray) -> float:
    dark, bright = sorted((luminance(one), luminance(other)))
    return (bright + 0.05) / (dark + 0.05)


def rgb(text: str) -> np.ndarray:
    return np.array(list(bytes.fromhex(text))) / 255


PAGE = rgb("121212")  # the theme's dark ground


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.name)
def test_no_figure_is_a_bright_slab_on_a_dark_page(path):
    """The ground of every stored picture becomes that of the page, nearly."""
    outputs = [out for _, cell in cells_of(path) for out in cell.get("outputs", [])]
    stored = [out.data for out in outputs if "image/png" in out.get("data", {})]
    for data in stored:
        pixels = imread(io.BytesIO(base64.b64decode(data["image/png"])))  # (height, width, 4)
        for corner in (pixels[0, 0], pixels[0, -1], pixels[-1, 0], pixels[-1, -1]):
            assert corner[3] == 0 or contrast(on_a_dark_page(corner[:3]), PAGE) < 1.05


def test_text_and_methods_stand_out_on_a_dark_page():
    style = (ROOT / "minprune/minprune.mplstyle").read_text()
    for key in ("text.color", "axes.labelcolor", "xtick.color"):
        assert contrast(on_a_dark_page(rgb(re.search(rf"^{key}: (\w+)", style, re.M)[1])), PAGE) > 7, key
    for method, look in LOOKS.items():
        assert contrast(on_a_dark_page(rgb(look.color[1:])), PAGE) > 3, method
