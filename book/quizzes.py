"""Put the quizzes as they are into the outputs stored in the notebooks: `python book/quizzes.py [FOLDER]`.

For a word that was changed in `minprune/course/quizzes/`. A cell that is only `checks.quiz("NN")` needs no model, so
nothing else of the chapter has to be run again. A new chapter gets this output when it is executed.
"""

import re
import sys
from pathlib import Path

import nbformat

from minprune import checks

CALL = re.compile(r'checks\.quiz\("(\d\d)"\)')


def rendered(source: str) -> dict[str, str] | None:
    """What a cell with this source shows, by MIME type; None if the cell is no quiz."""
    call = CALL.fullmatch(source.strip())
    if not call:
        return None
    quiz = checks.quiz(call[1])
    return {"text/html": quiz._repr_html_(), "text/plain": repr(quiz)}


def main(folder: Path) -> None:
    """Write each notebook of the folder whose quiz has changed, and say which."""
    for path in sorted(folder.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        stale = []
        for cell in notebook.cells:
            shown = rendered(cell.source) if cell.cell_type == "code" else None
            if shown and [output.get("data") for output in cell.outputs] != [shown]:
                count = cell.execution_count
                cell.outputs = [nbformat.v4.new_output("execute_result", data=shown, execution_count=count)]
                stale.append(cell)
        if stale:
            nbformat.write(notebook, path)
            sys.stdout.write(f"{path.name}: the quiz is up to date now\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "notebooks")
