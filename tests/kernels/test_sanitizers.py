"""The kernel reads and writes nothing outside of its arrays, and does nothing that C leaves undefined."""

import random
import subprocess
from pathlib import Path

import pytest

from minprune.kernels import build


@pytest.mark.slow
def test_random_masks_and_sizes_under_the_address_and_undefined_sanitizers(tmp_path):
    """In arrays of exactly the size that they need, by every version, each time with other numbers."""
    program, seed = tmp_path / "fuzz", random.randrange(2**32)
    command = [build.compiler_path(), "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command += [f"-I{build.SOURCE.parent}", str(Path(__file__).with_name("fuzz.c")), "-lm", "-o", str(program)]
    subprocess.run(command, check=True, timeout=600)
    done = subprocess.run([program, str(seed), "60"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"seed {seed}: {done.stdout}{done.stderr[:3000]}"
