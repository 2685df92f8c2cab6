"""What the core install lacks is asked for in one line; all else works without it."""

import subprocess
import sys

import pytest

EXTRAS = {"texts": ("datasets", "pyarrow"), "course": ("matplotlib", "nbformat", "cloudpickle")}
CODE = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None  # as if it were not installed
from minprune.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def without_extras(*words, cwd):
    blocked = [name for names in EXTRAS.values() for name in names]
    command = [sys.executable, "-c", CODE.format(blocked=blocked), *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def test_the_core_install_prunes(tmp_path, tiny_folder, text_file):
    texts = ("--calibration", text_file, "--samples", 2, "--length", 16, "--test", text_file)
    done = without_extras("prune", tiny_folder, "--method", "wanda", *texts, "--output", "out", cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "package", "extra"),
    [
        (("eval", "{model}", "--text", "a.parquet", "--length", "16"), "pyarrow", "texts"),
        (("grade", "a.ipynb"), "nbformat", "course"),
        (("demo",), "matplotlib", "course"),
    ],
)
def test_what_is_missing_is_named_with_the_line_to_type(tmp_path, tiny_folder, words, package, extra):
    for name in ("a.parquet", "a.ipynb"):
        (tmp_path / name).write_text("{}")
    done = without_extras(*(word.format(model=tiny_folder) for word in words), cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert f"needs {package}, which is not installed: pip install 'minprune[{extra}]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
