"""The seconds that each notebook took when it was executed: `python book/timing.py [FOLDER]`.

nbconvert and JupyterLab record when each cell began and ended; the sums are printed, one line a notebook. They are the
wall clock's, and what else the machine was doing then is not recorded.
"""

import json
import sys
from datetime import datetime
from pathlib import Path


def seconds(notebook: dict) -> float | None:
    """The run time recorded in a notebook's code cells; None if one of them has no record."""
    total = 0.0
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code" or not cell["source"] or "install" in cell["metadata"].get("tags", []):
            continue  # the cell that book/launch.py adds does nothing here
        times = cell["metadata"].get("execution", {})
        begin = times.get("iopub.execute_input") or times.get("iopub.status.busy")
        end = times.get("shell.execute_reply") or times.get("iopub.status.idle")
        if not (begin and end):
            return None
        total += (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds()
    return total


def main(folder: Path) -> None:
    """Print one line for each notebook in the folder."""
    lines = ["wall-clock seconds of the committed run, also where other jobs were running beside it:"]
    for path in sorted(folder.glob("*.ipynb")):
        recorded = seconds(json.loads(path.read_text(encoding="utf-8")))
        told = "no times recorded" if recorded is None else f"{recorded:5.1f} s"
        lines.append(f"{path.name:32} {told}")
    sys.stdout.write("\n".join(lines) + "\n")  # at once: the reader may be `head`


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "notebooks")
