"""Which code made a results file, and whether it has changed since.

A results file carries the commit that it was measured at, and for its script and each module of minprune that this
reaches a digest of the code without comments and docstrings. When such a module changes, a test fails until the file
is measured again by its own command, or somebody has measured cells of it again, found them as they were, and says so:

    python benchmarks/provenance.py                                       # what has changed behind which file
    python benchmarks/provenance.py book/results/layers.json --confirm "twelve cells measured again, equal to 1 %"
"""

import argparse
import ast
import datetime
import hashlib
import json
import re
import subprocess
from pathlib import Path

import minprune

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "book" / "results"
# Words, files and pages: what they do with a number does not change it.
_NO_NUMBERS = re.compile(
    r"minprune/(errors|files|plots|output/\w+|pipeline/journal|data/assets|models/weight_files|sweep/results)\.py"
)


def code_behind(script: Path) -> dict[str, str]:
    """The digests of a script and of each module of minprune that it imports, directly or through others, by path."""
    found = {script.relative_to(ROOT).as_posix(): _digest(script)}
    waiting = [script]
    while waiting:
        tree = ast.parse(waiting.pop().read_text(encoding="utf-8"))
        for path in _imported(tree):
            name = path.relative_to(ROOT).as_posix()
            if not _NO_NUMBERS.fullmatch(name) and name not in found:
                found[name] = _digest(path)
                waiting.append(path)
    return dict(sorted(found.items()))


def stamp(script: Path) -> dict:
    """Commit and code, for a results file that was just measured. A plus: with changes that are not committed."""
    changes = _git("status", "--porcelain", "--", "minprune", script.relative_to(ROOT).as_posix())
    return {"commit": _git("rev-parse", "--short=10", "HEAD") + ("+" if changes else ""), "code": code_behind(script)}


def changed(path: Path) -> list[str]:
    """The modules whose code is not the one that made this results file, or that it was confirmed with."""
    results = json.loads(path.read_text(encoding="utf-8"))
    before, now = results.get("code", {}), code_behind(script_of(results["command"]))
    return sorted(name for name in {*before, *now} if before.get(name) != now.get(name))


def confirm(path: Path, why: str) -> None:
    """Note that the file still stands with the code as it is now, and how that was found out."""
    results = json.loads(path.read_text(encoding="utf-8"))
    fresh = stamp(script_of(results["command"]))
    cells = {key: results.pop(key) for key in ("cells", "rows") if key in results}
    results.setdefault("commit", _git("log", "-1", "--format=%h", "--", path.relative_to(ROOT).as_posix()))
    results["code"] = fresh["code"]
    results.setdefault("confirmed", []).append(
        {"date": datetime.date.today().isoformat(), "commit": fresh["commit"], "why": why}
    )
    path.write_text(json.dumps({**results, **cells}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def script_of(command: str) -> Path:
    """The script that a results file's command runs."""
    return ROOT / re.search(r"python (\S+\.py)", command)[1]


def _imported(tree: ast.Module) -> set[Path]:
    """The files of minprune that a module names in its imports, and for `import minprune as mp` by its attributes."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.startswith("minprune.")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "minprune":
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif (
            isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("mp", "minprune")
        ):
            names.add(getattr(getattr(minprune, node.attr, None), "__module__", f"minprune.{node.attr}"))
    names |= {"minprune.methods"} if "METHODS" in ast.dump(tree) else set()
    return {path for name in names if (path := _file_of(name))}


def _file_of(name: str) -> Path | None:
    path = ROOT.joinpath(*name.split("."))
    if path == ROOT / "minprune":  # the table of public names
        return None
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists()), None)


def _digest(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            body[0].value.value = None
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:12]


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    """List what has changed, or confirm a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    measured = sorted(path for path in RESULTS.glob("*.json") if path.name != "claims.json")  # which is judgement
    parser.add_argument("files", nargs="*", type=Path, default=measured)
    parser.add_argument("--confirm", metavar="WHY", help="what was measured again, and what came out")
    args = parser.parse_args()
    for path in map(Path.resolve, args.files):
        if args.confirm:
            confirm(path, args.confirm)
        print(f"{path.name}: {', '.join(changed(path)) or 'the code is the same'}")


if __name__ == "__main__":
    main()
