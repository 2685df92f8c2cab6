"""report.html: well-formed, self-contained, complete, and safe whatever the names in it are."""

import re
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from tiny import tiny_model, tiny_tokens

import minprune as mp
from minprune.output.page import render, write_page
from minprune.training.page import write_curves

VOID = {"meta", "line", "circle", "rect", "br"}
HOSTILE = "</title><script>alert('1')</script><img src=http://evil.example/x onerror=\"a\"> & {{ 7 * 7 }}"


class Page(HTMLParser):
    """Checks that tags are balanced and keeps the elements, the text, and each element's own title."""

    def __init__(self, html):
        super().__init__()
        self.open, self.elements, self.text, self.titles = [], [], [], []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID or (tag in ("circle", "rect") and not self.get_starttag_text().endswith("/>")):
            self.open.append((tag, dict(attrs)))

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1][0] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        self.text.append(data)
        if self.open and self.open[-1][0] == "title" and len(self.open) > 1:
            self.titles.append((*self.open[-2], data))

    def said(self):
        return " ".join("".join(self.text).split())

    def marks(self, shape):
        """Layer name -> (attributes, title) of the marks of one shape."""
        return {title.split(":")[0]: (attrs, title) for tag, attrs, title in self.titles if tag == shape}


def record(**changes):
    layers = [
        {
            "name": f"model.layers.{block}.{kind}",
            "shape": (8, 16),
            "sparsity": 0.3 + 0.05 * block,
            "error": 0.002 * (block + 1) * factor,
            "seconds": 0.25,
            "note": "",
        }
        for block in range(6)
        for kind, factor in (("self_attn.q_proj", 1.0), ("mlp.down_proj", 11.0))
    ]
    usual = {
        "model": "tiny",
        "dtype": "float32",
        "allocation": {"rule": None, "table": {"*.mlp.*": 0.6}},
        "exclude": [],
        "sequential": True,
        "versions": {"torch": "9.9"},
        "sparsity": 0.425,
        "method": "wanda",
        "pattern": "50%",
        "options": {"damp": 0.01},
        "calibration": {"windows": 4, "source": "wikipedia", "sha256": "ab" * 32},
        "layers": layers,
        "seconds": {"total": 12.3456, "solve": 3.0},
    }
    return usual | changes


def test_every_layer_is_drawn_once_for_its_error_and_once_for_its_zeros_and_listed():
    made = record()
    page = Page(render(made))
    dots, bars = page.marks("circle"), page.marks("rect")
    assert len(dots) == len(bars) == len(made["layers"]) == 12
    count = Counter(tag for tag, _ in page.elements)
    assert count["circle"] == count["rect"] == 12 and count["figure"] == 4
    for row in made["layers"]:
        for _, title in (dots[row["name"]], bars[row["name"]]):
            assert f"{row['error']:.3g}" in title and f"{row['sparsity']:.2%}" in title
        assert re.search(rf"{row['name']} ?8 × 16 ?{row['sparsity']:.2%} ?{row['error']:.3g}", page.said())


def test_marks_stand_where_the_numbers_are():
    made = record()
    page = Page(render(made))
    dots, bars = page.marks("circle"), page.marks("rect")
    rows = made["layers"]
    by_error = sorted(rows, key=lambda row: row["error"])
    heights = [-float(dots[row["name"]][0]["cy"]) for row in by_error]
    assert heights == sorted(heights) and heights[0] < heights[-1]
    for kind in ("q_proj", "down_proj"):
        across = [float(dots[row["name"]][0]["cx"]) for row in rows if row["name"].endswith(kind)]
        steps = [b - a for a, b in pairwise(across)]
        assert min(steps) > 0 and max(steps) - min(steps) < 0.05
    per_zero = [float(bars[row["name"]][0]["height"]) / row["sparsity"] for row in rows]
    assert max(per_zero) - min(per_zero) < 0.1
    drawn = [float(attrs["cx"]) for attrs, _ in dots.values()] + [float(a["x"]) for a, _ in bars.values()]
    assert min(drawn) > 34 and max(drawn) < 160  # the plot's area


def test_the_page_tells_the_whole_recipe():
    said = Page(render(record())).said()
    for part in ("tiny, wanda 50%", "allocation *.mlp.* 0.6", "options damp 0.01", "source wikipedia", "ab" * 32):
        assert part in said.replace("allocation*", "allocation *").replace("optionsdamp", "options damp"), part
    assert "torch9.9" in said.replace(" ", "") and "42.50%" in said and "12.35" in said
    assert "exclude" not in said  # nothing was excluded


def test_perplexities_and_samples_stand_there_if_they_were_made_and_only_then():
    bare = Page(render(record())).said()
    assert "perplexity" not in bare and "How it writes" not in bare
    measured = {"before": 17.892, "after": 35.784, "protocol": {"text": "wikipedia", "window": 512}}
    samples = {"prompt": "The Moon", "before": " is round", "after": " <b>moon</b>\nmoon"}
    said = Page(render(record(perplexity=measured), samples)).said()
    for part in ("17.89", "35.78", "2 times dense", "window", "512", "The Moon", "is round", "<b>moon</b> moon"):
        assert part in said, part


@pytest.mark.parametrize(
    "after, words",
    [(10.2, "hardly changed"), (12, "a little worse"), (19, "clearly worse"), (40, "much worse"), (1e9, "ruined")],
)
def test_the_verdict_is_in_words_and_falls_with_the_perplexity(after, words):
    assert f"it is {words}: " in Page(render(record(perplexity={"before": 10.0, "after": after}))).said()


def test_without_perplexities_the_verdict_says_how_to_get_them():
    assert "minprune eval" in Page(render(record(perplexity={}))).said()


def test_the_worst_layers_are_named_largest_error_first():
    named = re.findall(r"<dt>(.*?)</dt><dd>error (.*?)</dd>", render(record()))
    errors = {row["name"]: row["error"] for row in record()["layers"]}
    assert [float(error) for _, error in named] == pytest.approx(sorted(errors.values(), reverse=True)[:5], rel=1e-2)
    assert all(float(error) == pytest.approx(errors[name], rel=1e-2) for name, error in named)


def test_a_few_tiny_errors_do_not_squeeze_the_axis():
    found = record()
    layers = [row | {"name": f"model.layers.{k}.mlp.up", "error": 0.05} for k, row in enumerate(found["layers"] * 9)][
        :50
    ]
    layers[7]["error"] = 1e-12
    marks = Page(render(found | {"layers": layers})).marks("circle")
    heights = {name: float(attrs["cy"]) for name, (attrs, _) in marks.items()}
    assert heights.pop("model.layers.7.mlp.up") - max(heights.values()) > 20  # of 82 units, where decades would leave 5


def test_hashes_are_cut_short_but_for_a_folded_list():
    digest = "0123456789abcdef" * 4
    html = render(record(calibration={"windows": 2, "length": 64, "sha256": digest, "source": "wikipedia"}))
    folded = "".join(re.findall(r"<details>.*?</details>", html, re.S))
    assert html.count(digest) == folded.count(digest) == 1 and digest[:12] + "," in html


def test_a_reconstruction_is_told_by_its_settings_and_the_median_blocks_error():
    how = {
        "epochs": 2,
        "rate": 0.03,
        "errors": {"model.layers.0": [0.4, 0.2], "model.layers.1": [0.1, 0.05], "model.layers.2": [0.9, 0.3]},
    }
    said = Page(render(record(reconstruction=how))).said()
    assert "0.4 in the first epoch, 0.2 in the last" in said and "0.9" not in said and "epochs" in said
    assert "Reconstruction" not in Page(render(record(reconstruction={}))).said()


def test_recipe_and_rule_are_named_and_a_long_table_is_folded_away():
    table = {f"model.layers.{block}.mlp.up_proj": 0.5 + block / 1000 for block in range(210)}
    made = record(recipe="best", method="admm", pattern="60%", allocation={"rule": "owl", "table": table})
    page = Page(render(made))
    assert "tiny, best (admm) 60%, sparsities by owl" in page.said()
    assert "210 layers, 50.00% to 70.90%" in page.said() and "model.layers.209.mlp.up_proj 70.90%" in page.said()
    depth, shown = 0, []
    for token in re.findall(
        r"<details>|</details>|<summary>.*?</summary>|model\.layers\.\d+\.mlp\.up_proj", render(made)
    ):
        depth += {"<details>": 1, "</details>": -1}.get(token, 0)
        shown += [token] if not depth and token.startswith("model") else []
    assert not shown, "the table stands open on the page"


def test_the_layer_error_of_a_reconstructed_run_is_said_to_be_from_before():
    how = {"epochs": 2, "errors": {"model.layers.0": [0.4, 0.2]}}
    after = ", before the blocks were reconstructed"
    assert Page(render(record(reconstruction=how))).said().count(after) == 2  # the number and the charts
    assert after not in Page(render(record())).said()


@pytest.mark.parametrize("where", ["model", "method", "note", "name", "sample", "option", "pattern"])
def test_hostile_text_stays_text(where):
    made, samples = record(), None
    if where in ("note", "name"):
        made["layers"][3][where] = HOSTILE
    elif where == "sample":
        samples = {"prompt": HOSTILE, "before": HOSTILE, "after": HOSTILE}
    elif where == "option":
        made["options"] = {HOSTILE: HOSTILE}
    else:
        made[where] = HOSTILE
    page, usual = Page(render(made, samples)), Page(render(record(), samples and dict.fromkeys(samples, "x")))
    assert HOSTILE in "".join(page.text)
    kinds = {tag for tag, _ in page.elements}
    assert kinds <= {tag for tag, _ in usual.elements} | {"ul", "li"}
    assert all(not name.startswith("on") for _, attrs in page.elements for name in attrs)


def test_nothing_is_loaded_from_anywhere():
    html = render(record(perplexity={"before": 1.0, "after": 2.0}), {"prompt": "a", "before": "b", "after": "c"})
    page = Page(html)
    assert not re.search(r"https?:|//|url\(|@import", html)
    assert not {tag for tag, _ in page.elements} & {"script", "link", "img", "iframe", "object", "embed", "a"}
    assert not {name for _, attrs in page.elements for name in attrs} & {"src", "href", "xlink:href", "srcset"}
    policy = next(attrs for tag, attrs in page.elements if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none'")


def test_errors_that_are_missing_zero_or_infinite_are_hollow_marks():
    made = record()
    for row, error in zip(made["layers"], (None, 0.0, float("inf")), strict=False):
        row["error"] = error
    page = Page(render(made))
    hollow = {name for name, (attrs, _) in page.marks("circle").items() if attrs["class"] == "none"}
    assert hollow == {row["name"] for row in made["layers"][:3]}
    for row in made["layers"]:
        row["error"] = None
    page = Page(render(made))
    assert not page.marks("circle") and len(page.marks("rect")) == 12
    assert "no calibration tokens" in page.said()


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_the_page_of_a_real_run_has_all_its_layers(family, tmp_path):
    report = mp.prune(tiny_model(family), tiny_tokens(), "wanda", "50%")
    write_page(tmp_path / "report.html", report.as_dict())
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert set(page.marks("rect")) == {row.name for row in report.layers} == set(page.marks("circle"))
    assert all(f"{row.sparsity:.2%}" in page.marks("rect")[row.name][1] for row in report.layers)


@pytest.fixture
def pages(tmp_path):
    """The pages of a pruning and of a recovery."""
    rows = [{"step": k, "tokens": 9 * k, "loss": 3.0, "perplexity": {"news": 9.0 - k}} for k in range(3)]
    trained = {"model": "tiny", "sparsity": 0.5, "rows": rows, "options": {"lr": 0.1}, "seconds": {"total": 2.0}}
    write_curves(tmp_path / "report.html", trained | {"calibration": {"source": "news"}})
    return [render(record()), (tmp_path / "report.html").read_text(encoding="utf-8")]


def test_the_pages_can_be_read_by_ear_and_with_the_keyboard_alone(pages):
    for html in pages:
        elements = Page(html).elements
        inside = html[html.index("<main>") : html.index("</main>")]
        assert re.sub(r"<[^>]*>", "", html.partition("<body>")[2].replace(inside, "")).strip() == ""
        heads = [int(tag[1]) for tag, _ in elements if re.fullmatch(r"h\d", tag)]
        assert heads.count(1) == 1 and all(after <= before + 1 for before, after in pairwise([0, *heads]))
        assert all(attrs.get("scope") == "col" for tag, attrs in elements if tag == "th")
        assert all(attrs.get("aria-label") for tag, attrs in elements if tag == "svg")
        wide = [attrs for _, attrs in elements if attrs.get("class") == "wide"]
        assert wide and all(attrs["tabindex"] == "0" and attrs["role"] == "region" for attrs in wide)
        assert all(attrs["aria-label"] in Page(html).said() for attrs in wide)
        said = {attrs["name"]: attrs["content"] for tag, attrs in elements if attrs.get("name")}
        assert len(said["description"]) > 40 and "tiny" in said["description"]


def test_text_stands_out_from_its_ground_in_the_light_and_in_the_dark(pages):
    def luminance(color):
        parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for html in pages:
        themes = [
            dict(re.findall(r"--(\w+): (#\w{6});", block)) for block in re.findall(r":root \{(.*?)\}", html, re.S)
        ]
        assert len(themes) == 2
        for theme in themes:
            for ground in ("ground", "card"):
                for name, least in {"ink": 4.5, "soft": 4.5, "mark": 3, "bar": 3}.items():
                    dark, bright = sorted(luminance(theme[key]) for key in (name, ground))
                    assert (bright + 0.05) / (dark + 0.05) >= least, f"{name} {theme[name]} on {theme[ground]}"
