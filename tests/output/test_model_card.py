"""The model card: what it says, what it takes over, and that no name in it becomes markup."""

import os
import shlex
import subprocess
import sys

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from minprune.output.model_card import escaped, inherited, model_card
from minprune.output.report import LayerRow

RECORD = {
    "model": "smollm2",
    "method": "wanda",
    "pattern": "2:4",
    "sparsity": 0.5,
    "layers": [LayerRow("model.layers.0.mlp.up_proj", (8, 16), 0.5, 0.1, 0.2)],
    "versions": {"minprune": "0.1.0"},
    "options": {"damp": 0.01},
    "calibration": {"windows": 4, "length": 16, "source": "wikipedia", "split": "train", "seed": 7},
    "perplexity": {"before": 20.0, "after": 30.5, "protocol": {"windows": 2, "window": 16, "text": "news"}},
    "command": ["minprune", "prune", "smollm2", "--pattern", "2:4", "--exclude", "*.layers.0.*"],
}
HOSTILE = (
    "<script>alert(1)</script> [a](http://evil.org) ![x](y) `code` | cell | **b** _i_ ~~s~~ www.evil.org a@b.org $x$"
)
MARKDOWN = MarkdownIt("gfm-like")
MARKDOWN.linkify.set({"fuzzy_link": False})  # as on GitHub, where evil.org alone is no link


def parts(card):
    """(header, tokens of the text) of a card."""
    _, header, text = card.split("---\n", 2)
    return yaml.safe_load(header), MARKDOWN.parse(text)


def shape(tokens):
    """The tags that a text becomes, without what it says."""
    return [(token.type, [child.type for child in token.children or ()]) for token in tokens]


def said(tokens):
    return " ".join(child.content for token in tokens for child in token.children or ())


def test_the_card_says_what_was_made_and_how_to_make_it_again():
    header, tokens = parts(model_card(RECORD))
    assert header == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["pruned", "sparse", "minprune"],
        "license": "apache-2.0",
        "language": ["en"],
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
    }
    for part in ("smollm2, wanda 2:4", "50.00% of the weights", "seed 7", "option damp 0.01", "20.00 before, 30.50"):
        assert part in " ".join(said(tokens).split()), part
    commands = [token.content for token in tokens if token.type == "fence"]
    assert shlex.split(commands[0]) == RECORD["command"] and "from_pretrained" in commands[1]


@pytest.mark.parametrize("where", ["model", "method", "pattern", "recipe", "option", "source", "text", "rule"])
@pytest.mark.parametrize(
    "text", [HOSTILE, "a\n\n# b\n\n- c\n", "a\r\n</td>\u2028<b>", "``` \n~~~\n<!--", "\\", "&lt;b&gt;"]
)
def test_hostile_text_stays_text(where, text):
    def made(value):
        changes = {
            "option": {"options": {value: value}},
            "source": {"calibration": {"windows": 4, "length": 16, "source": value}},
            "text": {"perplexity": RECORD["perplexity"] | {"protocol": {"windows": 2, "window": 16, "text": value}}},
            "rule": {"allocation": {"rule": value, "table": {"a": 0.5}}},
        }
        return model_card(RECORD | changes.get(where, {where: value}))

    (header, tokens), (_, usual) = parts(made(text)), parts(made("plain"))
    shown = text.rsplit("/", 1)[-1] if where == "model" else text  # of a path its last part
    assert shape(tokens) == shape(usual)
    assert " ".join(shown.split()) in " ".join(said(tokens).split())
    assert header["tags"] == ["pruned", "sparse", "minprune"]


@given(st.text())
def test_every_text_shows_as_it_is(text):
    shown = MARKDOWN.parse(f"x {escaped(text)} x")
    kinds = {child.type for token in shown for child in token.children or ()}
    assert [token.type for token in shown] == ["paragraph_open", "inline", "paragraph_close"] and kinds == {"text"}
    content = "".join(child.content for token in shown for child in token.children or ())
    printable = "".join(" " if ord(c) < 32 or 127 <= ord(c) < 160 else c for c in text)
    assert content.split() == ["x", *printable.split(), "x"]


@given(st.lists(st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])), min_size=1))
def test_the_command_is_the_same_for_the_shell_whatever_is_in_it(arguments):
    _, tokens = parts(model_card(RECORD | {"command": ["minprune", *arguments]}))
    (command, _) = (token.content for token in tokens if token.type == "fence")
    if not any(set("".join(arguments)) & set("\r\t\x0b\x0c")):  # Markdown has one kind of line break
        assert shlex.split(command) == ["minprune", *arguments]


def test_a_real_shell_reads_the_command_as_it_was():
    arguments = ["it's", 'a "b"', "$HOME `id`", "*", "", "\\n", "```", "two\nlines"]
    _, tokens = parts(
        model_card(RECORD | {"command": [sys.executable, "-c", "import sys; print(sys.argv[1:])", *arguments]})
    )
    command = next(token.content for token in tokens if token.type == "fence")
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout == f"{arguments}\n"


@pytest.mark.parametrize(
    "front, found",
    [
        ("license: mit\nlanguage: [en, de]", {"license": "mit", "language": ["en", "de"]}),
        ("language:\n- no\n- on", {"language": ["no", "on"]}),  # Norwegian is no boolean
        ("license: other\nlicense_name: x", {"license": "other", "license_name": "x"}),
        ("base_model: org/Big\npipeline_tag: x\ntags: [a]", {"base_model": "org/Big", "pipeline_tag": "x"}),
        ("license: 'a: b'", {"license": "a: b"}),
        ("license: {a: b}\nlanguage: [[en]]", {}),
        ("license: !!python/object/apply:os.system [id]", {}),
        ("a: &a [x]\nlicense: *b", {}),
        ("license: [" * 20_000, {}),
        ("- a", {}),
        ("? [a]\n: b", {}),
        ("license: 2020-99-99", {"license": "2020-99-99"}),
    ],
)  # fmt: skip
def test_what_a_source_says_of_itself_is_taken_over_as_text(tmp_path, front, found):
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n# Model\n", encoding="utf-8")
    assert inherited(str(tmp_path)) == found
    header, _ = parts(model_card(RECORD | {"model": str(tmp_path)}))
    assert found.items() <= header.items()


def test_a_card_that_is_a_pipe_or_no_text_is_passed_over(tmp_path):
    os.mkfifo(tmp_path / "README.md")
    assert inherited(str(tmp_path)) == {}
    (tmp_path / "README.md").unlink()
    (tmp_path / "README.md").write_bytes(b"\xff\xfe---\n")
    assert inherited(str(tmp_path)) == {} == inherited(str(tmp_path / "missing"))
    assert inherited("org/Model") == {"base_model": "org/Model"}


@pytest.mark.parametrize(
    ("pattern", "options", "tags"),
    [
        ("50%", {}, ["pruned", "sparse", "minprune"]),
        ("0%", {"bits": 4}, ["quantized", "minprune"]),
        ("2:4", {"bits": 4}, ["quantized", "pruned", "sparse", "minprune"]),
    ],
)
def test_the_tags_say_what_the_run_did(pattern, options, tags):
    card = model_card({"method": "gptq", "pattern": pattern, "options": options, "sparsity": 0.5})
    assert yaml.safe_load(card.split("---")[1])["tags"] == tags
    assert ("rounded to 4 bits" in card) == bool(options)
