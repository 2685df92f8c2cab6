"""The command line helps: without words, with mistyped ones, with what it knows of the methods, and in a shell."""

import argparse
import json
import re
import shlex
from pathlib import Path

import pytest

import minprune as mp
from minprune.cli.catalogue import described_methods
from minprune.cli.main import COMMANDS, _parser, main
from minprune.structured.removals import removal


def test_the_help_describes_every_method_in_the_order_of_the_table():
    described = dict(described_methods())
    assert list(described) == list(mp.METHODS)
    for name, about in described.items():
        module = __import__(mp.METHODS[name].function.__module__, fromlist=["__doc__"])
        assert len(about) > 20 and f": {about}" in module.__doc__


def test_without_words_there_is_help(capsys):
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 0 and "minprune COMMAND --help" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["prun", "x"], "prune"),
        (["sensitvity", "x"], "sensitivity"),
        (["prune", "x", "--sampels", "3"], "--samples"),
        (["eval", "x", "--lenght", "3"], "--length"),
    ],
)
def test_a_mistyped_word_is_put_right(capsys, words, meant):
    assert main(words) == 2
    assert f"did you mean {meant}?" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[""], [" "], ["", "x"]])
def test_an_empty_word_is_no_command(capsys, words):
    """As of a shell's variable that is not set."""
    assert main(words) == 2
    line = capsys.readouterr().err
    assert f"invalid choice: {words[0]!r}" in line and "did you mean" not in line and line.count("\n") == 1


def test_an_option_of_another_command_is_not_what_was_meant(capsys):
    assert main(["recover", "x", "--text", "y"]) == 2
    assert "--text y: did you mean --test? (see minprune recover --help)" in capsys.readouterr().err


def test_a_word_that_is_like_none_gets_no_suggestion(capsys):
    assert main(["xyzzy"]) == 2
    assert "did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_is_told_every_command(capsys, shell):
    with pytest.raises(SystemExit) as end:
        main(["--print-completion", shell])
    script = capsys.readouterr().out
    assert end.value.code == 0 and all(word in script for word in ("prune", "sensitivity", "--calibration"))


def test_an_unknown_shell_is_a_mistake_in_one_line(capsys):
    assert main(["--print-completion", "ksh"]) == 2
    assert "choose bash" in capsys.readouterr().err


@pytest.mark.parametrize("module", COMMANDS, ids=lambda module: module.__name__.rpartition(".")[2])
def test_the_example_of_a_help_is_a_command_line_that_is_read(capsys, monkeypatch, in_an_empty_folder, module):
    with pytest.raises(SystemExit):
        main([module.__name__.rpartition(".")[2], "--help"])
    said = capsys.readouterr().out
    assert "%%" not in said  # what argparse wants for a percent sign in some of the texts and not in others
    read = []
    monkeypatch.setattr(module, "run", read.append)
    assert main(shlex.split(said.split("example:\n")[1])[1:]) == 0
    for text in getattr(read[0], "remove", []):
        removal(text)
    mp.pattern(getattr(read[0], "pattern", "50%"))


def _commands_of_pages():
    """Every whole command line on a page, in a block or between backticks; `minprune export --format gguf` is none."""
    root = Path(__file__).parent.parent.parent
    found: dict[str, str] = {}
    for page in [*root.glob("*.md"), *root.glob("book/**/*.md"), *root.glob("notebooks/*.ipynb")]:
        text = page.read_text(encoding="utf-8")
        if page.suffix == ".ipynb":
            text = "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
        text = text.replace("\\\n", " ")  # a line that goes on
        names = "|".join(module.__name__.rpartition(".")[2] for module in COMMANDS)
        blocks = "".join(re.findall(r"^```.*?^```", text, flags=re.S | re.M))
        lines = re.findall(rf"^(minprune (?:{names}) [^#\n]*)", blocks, re.M)
        lines += re.findall(rf"`(minprune (?:{names}) [^-`.][^`]*)`", re.sub(r"```.*?```", "", text, flags=re.S))
        found |= {" ".join(line.split()): page.name for line in lines if "..." not in line}
    assert len(found) > 20
    return found.items()


@pytest.mark.parametrize(("line", "page"), _commands_of_pages())
def test_a_command_line_of_a_page_is_read(monkeypatch, in_an_empty_folder, line, page):
    _, command, *words = shlex.split(line)
    (module,) = (module for module in COMMANDS if module.__name__.endswith(f".{command}"))
    read = []
    monkeypatch.setattr(module, "run", read.append)
    assert main([command, *words]) == 0 and read, page


def test_a_number_that_a_help_gives_as_the_default_is_the_default():
    (commands,) = (action.choices for action in _parser()._actions if isinstance(action, argparse._SubParsersAction))
    told = 0
    for command, parser in commands.items():
        for action in parser._actions:
            said = re.search(r"\((\d[\d.]*)\)", action.help or "")
            if said and isinstance(action.default, (int, float)):
                assert float(said[1]) == action.default, (command, action.dest)
                told += 1
    assert told > 30
