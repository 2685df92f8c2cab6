"""The command line helps: without words, with mistyped ones, with what it knows of the methods, and in a shell."""

import pytest

import minprune as mp
from minprune.cli.catalogue import described_methods
from minprune.cli.main import main


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
