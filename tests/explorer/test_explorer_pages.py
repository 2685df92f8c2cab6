"""The pages of the explorer: what is drawn without a script, what every control does, and what the text says to try."""

import json
import re
from xml.etree import ElementTree

import pytest
import yaml
from javascript import FOLDER, building, call, script

from minprune.plots import LOOKS

NAMES = ("mask-lab", "sparsegpt-steps", "quality", "bytes", "roofline", "budget")
ROOT = FOLDER.parent.parent
CSS = (FOLDER.parent / "_static" / "explorer.css").read_text(encoding="utf-8")


def _app(name):
    """The engine, the constant's name, and the data of a page part."""
    made = building()
    data = made.DATA[name]() if name in made.DATA else None
    return script(f"{name}.js"), made.app_name(name), data


def test_every_page_is_in_the_table_of_contents_and_in_the_index():
    pages = {path.stem for path in FOLDER.glob("*.md")}
    assert pages == {"index", *NAMES}
    listed = [c["file"] for part in yaml.safe_load((ROOT / "_toc.yml").read_text())["parts"] for c in part["chapters"]]
    assert {f"book/explorer/{page}" for page in pages} <= set(listed)
    index = (FOLDER / "index.md").read_text()
    for name in NAMES:
        assert f"({name}.md)" in index
        assert (FOLDER / f"{name}.md").read_text().count(f"```{{explorer}} {name}\n```") == 1


def test_the_modules_are_short_and_need_no_network():
    for path in FOLDER.glob("*.js"):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) < 300, path.name
        assert not re.search(r"https?:|fetch\(|import\(|XMLHttpRequest|eval\(", text), path.name
        assert text.startswith("// "), f"{path.name} does not say what it is for"


@pytest.mark.parametrize("name", NAMES)
def test_picture_and_table_are_there_without_a_script(name):
    part = building().page_part(name)
    still = re.sub(r"<script.*?</script>", "", part, flags=re.S)
    picture = ElementTree.fromstring(re.search(r"<svg.*</svg>", still, re.S)[0])
    assert picture.get("role") == "img" and len(picture.get("aria-label")) > 60
    for table in re.findall(r"<table.*?</table>", still, re.S):
        rows = ElementTree.fromstring(table).findall(".//tr")
        assert len({len(row) for row in rows}) == 1 and len(rows) > 2, "a row has more or fewer cells than the head"
    assert "<noscript>" in still and "undefined" not in still and "NaN" not in still
    loose = re.sub(r"<[^>]*>", "", re.search(r"<div class=\"explorer-table\">(.*)</div>", still, re.S)[1])
    assert ",," not in loose


@pytest.mark.parametrize("name", NAMES)
def test_no_setting_of_one_control_breaks_the_picture(name):
    """Every slider at both ends (of twelve alike: three), every choice, every button: a picture, without NaN."""
    engine, app, data = _app(name)
    script_text = """((app, data) => {
      const seen = [];
      const flat = (controls) => controls.flatMap((c) => (c.controls ? flat(c.controls.slice(0, 3)) : [c]));
      const first = app.prepare(app.start, data);
      for (const c of flat(app.controls)) {
        const write = c.write ?? ((state, value) => ({ ...state, [c.id]: value }));
        if (c.kind === "slider") {
          for (const v of [c.min, c.max]) seen.push([c.label + v, write(first, v), c.show(v, first)]);
        }
        if (c.kind === "button") seen.push([c.label, c.press(first), ""]);
        if (c.kind === "choice") {
          for (const [v] of c.options) seen.push([c.label + v, { ...first, [c.id]: c.several ? [v] : v }, ""]);
          if (c.several) seen.push([c.label, { ...first, [c.id]: [] }, ""]);
        }
      }
      return seen.map(([label, state, shown]) => [label, shown, app.draw(state, data)]);
    })"""
    drawn = json.loads(engine.eval(f"JSON.stringify({script_text}({app}, {json.dumps(data)}))"))
    assert len(drawn) > 5
    for label, shown, made in drawn:
        everything = made["picture"] + made["table"] + made["sentence"] + shown
        assert not re.search(r"NaN|undefined|Infinity", everything), label
        ElementTree.fromstring(made["picture"])
        assert made["sentence"].endswith(".")


def test_the_engine_runs_each_bundle_with_the_page_too():
    """One script a page: no two modules give one name to two things, which would stop the browser."""
    for name in NAMES:
        script("page.js", f"{name}.js")


def test_methods_have_the_colours_of_the_books_figures():
    light = dict(re.findall(r"--mp-(\w+): (#\w+);", CSS.split("}")[0]))
    for method in ("dense", "magnitude", "wanda", "sparsegpt", "admm", "best"):
        assert light[method] == LOOKS[method].color


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_stand_out_from_the_page(theme):
    """A contrast of 2.1 at least for marks with a shape of their own (the book's amber on white), 3 for the others."""
    ground = {"light": "#ffffff", "dark": "#121212"}[theme]
    block = CSS.split("}")[0 if theme == "light" else 1]

    def luminance(color):
        parts = [int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    found = re.findall(r"--mp-(\w+): (#\w+);", block)
    assert len(found) == 8
    for name, color in found:
        bright, dark = sorted((luminance(color), luminance(ground)), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= (2.1 if name == "admm" else 3), name


def _lab(engine, **changes):
    start = call(engine, "(() => maskLab.start)")
    state = call(engine, "maskLab.prepare", {**start, **changes})
    return {r["name"]: r for r in call(engine, "compareMethods", state)["results"]}


def test_what_the_mask_lab_says_to_try():
    engine = script("mask-lab.js")
    for seed in range(1, 4):
        white = _lab(engine, seed=seed, spread=1, correlation=0, group="row")
        assert white["magnitude"]["keep"] == white["wanda"]["keep"] == white["obs"]["keep"]
        loud = _lab(engine, seed=seed, spread=100, correlation=0, group="row")
        for result in loud.values():
            assert result["repaired"] == pytest.approx(result["alone"])
        assert all(loud["wanda"]["alone"] <= r["alone"] + 1e-12 for r in loud.values())
        fours, rows, layer = (
            _lab(engine, seed=seed, correlation=0, group=group, kept=2)["wanda"]["alone"]
            for group in ("nm", "row", "layer")
        )
        assert fours >= rows >= layer
        close = _lab(engine, seed=seed, correlation=0.95, group="row")
        assert close["magnitude"]["repaired"] < close["obs"]["alone"]


def test_what_the_sparsegpt_page_says_to_try():
    engine = script("sparsegpt-steps.js")
    start = call(engine, "(() => sparsegptSteps.start)")
    for group in ("block", "nm", "row"):
        white = call(engine, "film", {**start, "correlation": 0, "group": group})
        for state in white["states"]:
            for row, before, kept in zip(state["weights"], white["W"], state["keep"], strict=True):
                assert all(w == pytest.approx(b) or not k for w, b, k in zip(row, before, kept, strict=True))
    states = call(engine, "film", {**start, "group": "nm"})["states"]
    assert [sum(not k for row in state["keep"] for k in row[4:8]) for state in states[:6]] == [0, 0, 0, 0, 0, 12]
