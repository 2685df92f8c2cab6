"""book/results/claims.json: a verdict for every claim, and a place for every number, where the number really stands."""

import ast
import html
import json
import operator
import re
from pathlib import Path
from statistics import mean, stdev

import pytest

ROOT = Path(__file__).parent.parent
BOOK = json.loads((ROOT / "book" / "results" / "claims.json").read_text(encoding="utf-8"))
CLAIMS = {claim["number"]: claim for claim in BOOK["claims"]}
NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
EVIDENCE = {"measurement", "derivation", "published table", "not enough evidence"}
REDUCE = {
    "mean": mean,
    "min": min,
    "max": max,
    "half range": lambda values: (max(values) - min(values)) / 2,
}
OPERATIONS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Pow: operator.pow,
}  # fmt: skip


def found(place: dict) -> float:
    """The number that stands at a place: in a results file, in the stored output of a notebook, or by arithmetic."""
    if "ratio" in place:
        above, below = (found(part) for part in place["ratio"])
        value = above / below
    elif "difference" in place:
        first, second = (found(part) for part in place["difference"])
        value = first - second
    elif "paired error" in place:
        first, second = (_in_results(part) for part in place["paired error"])  # a value for each window
        value = stdev(a - b for a, b in zip(first, second, strict=True)) / len(first) ** 0.5
    elif "file" in place:
        value = _in_results(place)
    elif "notebook" in place:
        line = _line(ROOT / place["notebook"], place["line"])
        value = _read(NUMBER.findall(line)[place["number"]])
    else:
        value = _arithmetic(ast.parse(place["arithmetic"], mode="eval").body)
    return (value - place.get("minus", 0)) * place.get("times", 1)


def _in_results(place: dict) -> float:
    text = (ROOT / "book" / "results" / place["file"]).read_text(encoding="utf-8")
    if place["file"].endswith(".jsonl"):
        cells = [json.loads(line) for line in text.splitlines()]
    else:
        cells = json.loads(text)["cells"]
    chosen = [cell for cell in cells if all(cell.get(key) == value for key, value in place["select"].items())]
    keys = place["key"].split(".") if isinstance(place["key"], str) else place["key"]
    values = [_follow(cell, keys) for cell in chosen]
    if "reduce" in place:
        assert len(values) > 1, f"one cell only: {place}"
        return REDUCE[place["reduce"]](values)
    assert len(values) == 1, f"{len(values)} cells instead of one: {place}"
    return values[0]


def _follow(cell, keys) -> float:
    for key in keys:
        cell = cell[key]
    return cell


def _line(path: Path, beginning: str) -> str:
    """The one line of a notebook's stored outputs that begins so, runs of blanks taken as one."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    lines = {" ".join(line.split()) for cell in cells for line in _printed(cell)}
    fitting = [line for line in lines if line.startswith(beginning)]
    assert len(fitting) == 1, f"{len(fitting)} lines of {path.name} begin with {beginning!r}"
    return fitting[0]


def _printed(cell) -> list[str]:
    lines = []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        lines += "".join(output.get("text", data.get("text/plain", ""))).splitlines()
        for row in re.findall(r"<tr.*?</tr>", "".join(data.get("text/html", "")), re.S):
            lines.append(" ".join(re.sub(r"<[^>]+>", " ", part) for part in row.split("</td>")))
    return lines


def _read(text: str) -> float:
    return float(text.replace(",", ""))


def _arithmetic(node) -> float:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.UnaryOp):
        return -_arithmetic(node.operand)
    return OPERATIONS[type(node.op)](_arithmetic(node.left), _arithmetic(node.right))


def agrees(value: str, number: float) -> bool:
    """Whether a number, rounded as the quoted one is, is the quoted one."""
    decimals = len(value.partition(".")[2])
    return abs(_read(value) - number) <= 0.5 * 10**-decimals * (1 + 1e-6)


def quotes(claim: dict) -> list[tuple[str, dict]]:
    """All (number as it is printed, place) of a claim, the errors after the numbers that they belong to."""
    pairs = []
    for entry in claim["numbers"]:
        pairs.append((entry["value"], entry["where"]))
        if "error" in entry:
            pairs.append((entry["error"]["value"], entry["error"]["where"]))
    return pairs


def test_every_claim_has_a_verdict():
    assert sorted(CLAIMS) == list(range(1, 48)) and len(BOOK["claims"]) == 47
    for claim in CLAIMS.values():
        assert claim["verdict"] in BOOK["verdicts"], claim["number"]
        assert claim["evidence"] and set(claim["evidence"]) <= EVIDENCE, claim["number"]
        assert claim["claim"].endswith((".", "?", ")")) and claim["because"].endswith((".", ")")), claim["number"]


def test_where_evidence_does_not_suffice_no_verdict_is_given_and_what_is_missing_is_said():
    for claim in CLAIMS.values():
        open_ = claim["verdict"] == "not enough evidence"
        assert open_ == ("not enough evidence" in claim["evidence"]), claim["number"]
        assert not open_ or claim.get("needed"), claim["number"]


def test_whatever_was_measured_says_how_often():
    for claim in CLAIMS.values():
        assert claim.get("n") or not claim["numbers"], claim["number"]


@pytest.mark.parametrize("number", sorted(CLAIMS))
def test_the_chapters_of_a_claim_are_there(number):
    claim = CLAIMS[number]
    assert claim["chapter"] == "ch-" + Path(claim["notebook"]).stem.partition("-")[2]
    names = [claim["notebook"], *(f"notebooks/*-{label.removeprefix('ch-')}.ipynb" for label in claim.get("also", []))]
    for name in names:
        assert list(ROOT.glob(name)), name


@pytest.mark.parametrize("number", sorted(CLAIMS))
def test_every_number_stands_where_the_claim_says(number):
    for value, place in quotes(CLAIMS[number]):
        if set(place) == {"link", "table"}:
            continue  # a published number as it was printed: a link is all there can be
        assert agrees(value, found(place)), (value, found(place), place)


def stray(claim: dict) -> list[str]:
    """The numbers in the words of a verdict that have no place, were not in the claim, and say not what was compared.

    Names such as LLaMA-2-7B, 2:4 or H^-1 are no numbers; 0, 1 and 2 are words.
    """
    known = " ".join([claim["claim"], claim.get("n", ""), *(entry["what"] for entry in claim["numbers"])])
    given = {_read(text) for text in NUMBER.findall(known)}
    given |= {abs(_read(value)) for value, _ in quotes(claim)}
    words = re.sub(r"[\w.]*[A-Za-z][\w.]*(?:-[\w.]+)*|\d+:\d+", " ", claim["because"])
    return [text for text in NUMBER.findall(words) if _read(text) not in given and text not in ("0", "1", "2")]


@pytest.mark.parametrize("number", sorted(CLAIMS))
def test_no_number_without_a_place(number):
    assert not stray(CLAIMS[number])


def test_a_number_without_a_place_is_noticed():
    claim = {"claim": "Half is 50 %.", "because": "It was 51.5 %, not 50 %, on LLaMA-2-7B at 2:4.", "numbers": []}
    assert stray(claim) == ["51.5"]
    placed = {"what": "the share", "value": "51.5", "where": {"arithmetic": "103 / 2"}}
    assert stray({**claim, "numbers": [placed]}) == []


def test_chapter_23_shows_the_file_as_it_is():
    """All claims and verdicts stand in the stored tables; after a change in the file the chapter is executed again."""
    cells = json.loads((ROOT / "notebooks" / "23-claims.ipynb").read_text(encoding="utf-8"))["cells"]
    shown = "".join("".join(o.get("data", {}).get("text/html", "")) for cell in cells for o in cell.get("outputs", []))
    rows = re.findall(r"<tr><td>.*?</tr>", shown, re.S)
    for number, claim in CLAIMS.items():
        (row,) = [row for row in rows if f">{number}</a><br>" in row]
        for text in (claim["claim"], claim["because"], claim.get("needed", ""), claim.get("n", "")):
            assert html.escape(text) in row, number
        assert f"{Path(claim['notebook']).stem}.html" in row and f"{claim['verdict']}</strong>" in row


def test_published_numbers_have_a_link_and_say_where_in_it():
    for claim in CLAIMS.values():
        published = [place for _, place in quotes(claim) if "link" in place]
        assert bool(published) == ("published table" in claim["evidence"]), claim["number"]
        for place in published:
            assert re.match(r"https://(arxiv\.org/abs/\d{4}\.\d{5}|github\.com/[\w-]+/[\w-]+)", place["link"]), place
            assert place["table"]


def test_a_wrong_number_and_a_lost_place_are_noticed():
    """The check can fail: a last digit that is off, a line that is not there, a choice that fits several cells."""
    assert agrees("1.04", 1.0449) and agrees("7,058", 7058.4) and agrees("-20.8", -20.83)
    assert not agrees("1.04", 1.046) and not agrees("1.0", 1.06) and not agrees("20.8", -20.8)
    assert found({"arithmetic": "16 / (0.5 * 4 + 1)"}) == 16 / 3
    zeros = {"file": "zeros.json", "key": "ratio", "select": {"storage": "dense", "sparsity": 0.5, "tokens": 1}}
    assert found(zeros) == 1.04
    with pytest.raises(AssertionError, match="cells instead of one"):
        found({**zeros, "select": {"storage": "dense"}})
    with pytest.raises(AssertionError, match="0 lines"):
        found({"notebook": "notebooks/05-wanda.ipynb", "line": "no such line", "number": 0})
