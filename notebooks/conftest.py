"""How nbval runs the notebooks: the environment of their kernels, what is not compared, and the seconds of each.

Every cell must run without an error; the outputs of cells marked `# NBVAL_CHECK_OUTPUT` must be the stored ones.
"""

import os
from collections import defaultdict
from pathlib import Path

import pytest
from nbval.plugin import IPyNbFile

HERE = Path(__file__).parent
# one thread a kernel: several run side by side, and more threads than cores would wait for each other
os.environ |= {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def pytest_collectstart(collector):
    """Do not compare stderr: warnings differ between machines, and a test refuses stored ones anyway."""
    if isinstance(collector, IPyNbFile):
        collector.skip_compare += ("stderr",)


def pytest_sessionfinish(session, exitstatus):
    """A book without chapters has nothing to check, which is not a failure."""
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and not list(HERE.glob("*.ipynb")):
        session.exitstatus = pytest.ExitCode.OK


def pytest_terminal_summary(terminalreporter):
    """Print the seconds of each notebook."""
    seconds, cells = defaultdict(float), defaultdict(set)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                notebook = report.nodeid.split("::")[0]
                seconds[notebook] += report.duration
                cells[notebook].add(report.nodeid)
    for notebook, total in sorted(seconds.items()):
        terminalreporter.write_line(f"{notebook}: {total:.1f} s in {len(cells[notebook])} cells")
