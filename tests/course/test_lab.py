"""`make lab`: the student edition is there, kept as it is, and opens in a JupyterLab that is set up to show it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

ROOT = Path(__file__).parent.parent.parent
SCHEMAS = Path(sys.prefix) / "share" / "jupyter" / "lab" / "schemas"
OVERRIDES = json.loads((ROOT / "book" / "lab" / "overrides.json").read_text())


@pytest.fixture(scope="module")
def commands():
    """What make would run for `lab`."""
    done = subprocess.run(["make", "-n", "lab"], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_the_notebooks_are_made_before_jupyterlab_opens_their_folder(commands):
    made = next(i for i, line in enumerate(commands) if "minprune.course.classroom.student student notebooks/" in line)
    opened = next(i for i, line in enumerate(commands) if "jupyter lab" in line)
    assert made < opened
    options = dict(re.findall(r"--(\w+\.\w+)=(\S+)", commands[opened]))
    assert options["LabApp.default_url"] == "/lab/tree/student"
    assert options["ServerApp.root_dir"] == "."  # links to the book's pages, and results that notebooks read, lie there
    assert (ROOT / options["LabApp.app_settings_dir"] / "overrides.json").exists()


def test_no_command_removes_or_overwrites_what_is_in_student(commands):
    assert not [line for line in commands if re.search(r"\b(?:rm|cp|mv|git)\b.*student", line)]
    clean = subprocess.run(["make", "-n", "clean"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "student" not in clean


@pytest.mark.parametrize("plugin", OVERRIDES)
def test_every_setting_is_one_that_this_jupyterlab_has(plugin):
    extension, name = plugin.split(":")
    schema = json.loads((SCHEMAS / extension / f"{name}.json").read_text(encoding="utf-8"))
    assert OVERRIDES[plugin].keys() <= schema["properties"].keys()
    jsonschema.validate(OVERRIDES[plugin], schema)
