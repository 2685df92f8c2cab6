"""Mutants of a function: its module with one operator, constant, axis, order, rounding, sign, type or guard changed.

A module is parsed, one node of it is exchanged, and the whole is executed again under its own name, so that methods,
closures and lambdas need nothing of their own. Only nodes count that the function reaches on the given arguments:
other branches cannot change what it returns. A mutant is known by what stood there and what stands there now.
"""

import ast
import copy
import inspect
import signal
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from minprune.course.checks import Exercise

SECONDS = 5.0  # of a mutant; the slowest exercise takes a tenth of it, unless the machine is busy

FLIPS = {ast.Lt: (ast.LtE, ast.GtE, ast.Gt), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE, ast.Lt)}
FLIPS |= {ast.GtE: (ast.Gt, ast.Lt), ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot, ast.Eq)}
FLIPS |= {ast.In: (ast.NotIn,), ast.NotIn: (ast.In,), ast.IsNot: (ast.Is,)}
OTHER = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div}
OTHER |= {
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
}
OTHER |= {ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.MatMult: ast.Mult}
ORDERED = (ast.Sub, ast.Div, ast.Pow, ast.MatMult, ast.FloorDiv, ast.Mod, ast.LShift)

INSTEAD = {  # of a function or method: what is like it and does something else
    "sum": ("mean", "prod"), "mean": ("sum", "median"), "max": ("min",), "min": ("max",), "amax": ("amin",),
    "amin": ("amax",), "argmax": ("argmin",), "argmin": ("argmax",), "any": ("all",), "all": ("any",),
    "maximum": ("minimum",), "minimum": ("maximum",), "repeat": ("repeat_interleave",),
    "repeat_interleave": ("repeat",),
    "log": ("log2", "log1p"), "exp": ("exp2",), "log_softmax": ("softmax",), "softmax": ("log_softmax",),
    "ones": ("zeros",), "zeros": ("ones",), "ones_like": ("zeros_like",), "zeros_like": ("ones_like",),
    "argsort": ("sort",), "sqrt": ("square",), "square": ("sqrt", "abs"), "abs": ("square",), "cumsum": ("cumprod",),
    "norm": ("sum",), "diag": ("diagonal",), "ceil": ("floor",), "floor": ("ceil",), "vstack": ("hstack",),
}  # fmt: skip
DROPPED = {
    "abs", "square", "sqrt", "exp", "log", "clone", "copy", "flip", "roll", "sort", "relu", "clamp", "masked_fill",
    "view", "reshape", "flatten", "ravel", "cumsum", "reciprocal", "repeat_interleave", "nan_to_num", "argsort",
    "transpose", "swapaxes", "diff", "inv", "inverse", "cholesky",
}  # fmt: skip
BUILTINS = {"sorted", "abs", "len", "set", "reversed", "int", "round"}
ROUNDINGS = {
    "round": ("int({})", "__import__('math').ceil({})", "__import__('math').floor({} + 0.5)", "{}"),
    "int": ("round({})", "{}"),
}
TYPES = {"int64": ("uint8", "float32"), "long": ("uint8",), "bool": ("float32",), "uint8": ("float32", "int8"),
         "float64": ("float16",), "float32": ("float16",)}  # fmt: skip


class Stopped(BaseException):
    """A mutant ran for too long. No `Exception`: a check would catch it and go on with the next case."""


@dataclass(frozen=True)
class Mutant:
    """One node exchanged. place: of the node in the module's tree; number: of its changes."""

    place: int
    number: int
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.before} -> {self.after}"


def mutants_of(module: types.ModuleType, get: Callable, calls: list[tuple]) -> list[Mutant]:
    """All mutants of `get(namespace of the module)` that its calls with these arguments reach, in the source's order.

    get: finds the function in the namespace that results when the module is executed.
    """
    tree = ast.parse(inspect.getsource(module))
    reached = _reached(module, tree, get, calls)
    found = []
    for place, (node, put) in enumerate(_nodes(tree)):
        if place in reached and not _is_flagged(node):
            around = _around(tree, place) if isinstance(node, ast.Constant) else node
            seen = {before := _short(around)}
            for number, change in enumerate(_changes(node)):
                put(change)
                after = _short(around if around is not node else change)
                put(node)
                if after not in seen:
                    seen.add(after)
                    found.append(Mutant(place, number, before, after))
    return found


def build(module: types.ModuleType, get: Callable, mutant: Mutant) -> Callable:
    """The function of the mutated module."""
    tree = ast.parse(inspect.getsource(module))
    node, put = list(_nodes(tree))[mutant.place]
    put(list(_changes(node))[mutant.number])
    return get(_execute(module, tree))


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise `Stopped` in what runs for longer than this."""

    def stop(*_: object) -> None:
        raise Stopped

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.5)  # again and again: a finalizer may swallow the first
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def survivors(
    exercise: Exercise, module: types.ModuleType, get: Callable, mutants: list[Mutant], seconds: float = SECONDS
) -> list[Mutant]:
    """Those that the check takes for a right answer, without the places whose value no case makes use of."""
    passing = [m for m in mutants if _passes(exercise, lambda m=m: build(module, get, m), seconds)]
    tree = ast.parse(inspect.getsource(module))
    around = {m.place: [m.place, *_expressions_around(tree, m.place)] for m in passing}
    unused: dict[int, bool] = {}
    for place in {p for places in around.values() for p in places}:
        unused[place] = _passes(exercise, lambda place=place: _poisoned(module, get, place), seconds)
    return [m for m in passing if not any(unused[p] for p in around[m.place])]


def _passes(exercise: Exercise, make: Callable[[], Callable], seconds: float) -> bool:
    """Whether an answer passes. One that cannot be made, or does not stop, does not."""
    try:
        with deadline(seconds):
            answer = make()
            one_by_one = (replace(exercise, wrong=(), cases=lambda case=case: [case]) for case in exercise.cases())
            return all(check(answer).passed for check in one_by_one)
    except (Stopped, Exception):
        return False


def _poisoned(module: types.ModuleType, get: Callable, place: int) -> Callable:
    """The function with an object in place of a value, with which nothing can be done."""
    tree = ast.parse(inspect.getsource(module))
    node, put = list(_nodes(tree))[place]
    if not isinstance(node, ast.expr):
        raise TypeError("no expression")
    put(ast.Call(ast.Name("object", ast.Load()), [], []))
    return get(_execute(module, tree))


# The tree ---------------------------------------------------------------------------------------------------------


def _nodes(tree: ast.AST) -> Iterator[tuple[ast.AST, Callable[[ast.AST], None]]]:
    """Every node of a tree, in a fixed order, with a function that puts another one in its place."""
    for field, value in ast.iter_fields(tree):
        if field in ("annotation", "returns", "decorator_list") or isinstance(tree, (ast.JoinedStr, ast.Raise)):
            continue
        if isinstance(value, ast.AST):
            yield value, lambda new, field=field: setattr(tree, field, new)
            yield from _nodes(value)
        elif isinstance(value, list):
            for i, child in enumerate(value):
                if isinstance(child, ast.AST) and not isinstance(child, ast.arg):
                    yield child, lambda new, value=value, i=i: value.__setitem__(i, new)
                    yield from _nodes(child)


def _expressions_around(tree: ast.AST, place: int) -> list[int]:
    """The places of the expressions that hold this one, from the inside out."""
    nodes = [node for node, _ in _nodes(tree)]
    holding = []
    for outer in range(place - 1, -1, -1):
        size = sum(1 for _ in _nodes(nodes[outer]))
        if outer + size >= place:
            if isinstance(nodes[outer], ast.stmt):
                break
            holding.append(outer)
    return holding


def _around(tree: ast.AST, place: int) -> ast.AST:
    """The node that holds this one, without which a constant is not known again."""
    nodes = [node for node, _ in _nodes(tree)]
    for outer in range(place - 1, -1, -1):
        if outer + sum(1 for _ in _nodes(nodes[outer])) >= place and not isinstance(
            nodes[outer], (ast.Slice, ast.Tuple)
        ):
            return nodes[outer]
    return nodes[place]


def _execute(module: types.ModuleType, tree: ast.AST, **more: object) -> dict:
    space = {"__name__": module.__name__, "__file__": module.__file__, **more}
    exec(compile(ast.fix_missing_locations(tree), f"<mutant of {module.__name__}>", "exec"), space)
    return space


def _reached(module: types.ModuleType, tree: ast.AST, get: Callable, calls: list[tuple]) -> set[int]:
    """The places of the nodes that are executed when the function is called."""
    hits: set[int] = set()
    marked = copy.deepcopy(tree)
    for place, (node, put) in reversed(list(enumerate(_nodes(marked)))):  # inner nodes before the ones around them
        if isinstance(node, ast.expr) and isinstance(getattr(node, "ctx", ast.Load()), ast.Load):
            if not isinstance(node, (ast.Starred, ast.Slice)):
                hit = ast.Call(ast.Name("HIT", ast.Load()), [ast.Constant(place)], [])
                put(ast.Subscript(ast.Tuple([hit, node], ast.Load()), ast.Constant(1), ast.Load()))
        elif isinstance(node, ast.stmt):
            hit = ast.Expr(ast.Call(ast.Name("HIT", ast.Load()), [ast.Constant(place)], []))
            if not isinstance(node, (ast.ImportFrom, ast.Import, ast.FunctionDef, ast.ClassDef)):
                put(ast.If(ast.Constant(True), [hit, node], []))
    space = _execute(module, marked, HIT=hits.add)
    function, at_import = get(space), set(hits)
    hits.clear()
    for args in calls:
        try:
            function(*copy.deepcopy(args))
        except Exception:
            continue  # arguments that are to be refused
    return hits | (at_import & set(_beside(tree, hits, type(function).__name__)))


def _beside(tree: ast.Module, hits: set[int], kind: str) -> Iterator[int]:
    """Places outside of all calls that a call depends on: defaults of what was reached, constants, a class's fields."""
    places = {id(node): place for place, (node, _) in enumerate(_nodes(tree))}
    inside = lambda node: [places[id(n)] for n in ast.walk(node) if id(n) in places]  # noqa: E731
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and places.get(id(n)) in hits}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and hits.intersection(p for n in node.body for p in inside(n)):
            for default in [*node.args.defaults, *filter(None, node.args.kw_defaults)]:
                yield from inside(default)
        elif isinstance(node, ast.ClassDef) and node.name == kind:
            yield from inside(node)
        elif isinstance(node, ast.Assign) and node in tree.body:
            stored = {n.id for t in node.targets for n in ast.walk(t) if isinstance(n, ast.Name)}
            yield from inside(node.value) if stored & names else ()


def _short(node: ast.AST) -> str:
    return " ".join(ast.unparse(ast.fix_missing_locations(node)).split())


# The operators ----------------------------------------------------------------------------------------------------


def _changes(node: ast.AST) -> Iterator[ast.AST]:
    """All that may stand in place of a node, in a fixed order."""
    for kind, operator in OPERATORS.items():
        if isinstance(node, kind):
            yield from operator(node)


def _with(node: ast.AST, **fields: object) -> ast.AST:
    new = copy.deepcopy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def _compare(node: ast.Compare) -> Iterator[ast.AST]:
    for other in FLIPS.get(type(node.ops[0]), ()):
        yield _with(node, ops=[other(), *node.ops[1:]])


def _binary(node: ast.BinOp) -> Iterator[ast.AST]:
    if isinstance(node.op, ast.Mod) and isinstance(node.left, ast.Constant):
        return  # a format
    if type(node.op) in OTHER:
        yield _with(node, op=OTHER[type(node.op)]())
    yield from (node.left, node.right)
    if isinstance(node.op, ORDERED):
        yield _with(node, left=node.right, right=node.left)
    if isinstance(node.op, ast.MatMult):
        yield _with(node, left=ast.Attribute(node.left, "T", ast.Load()))
        yield _with(node, right=ast.Attribute(node.right, "T", ast.Load()))


def _unary(node: ast.UnaryOp) -> Iterator[ast.AST]:
    yield node.operand


def _bool_op(node: ast.BoolOp) -> Iterator[ast.AST]:
    yield _with(node, op=ast.And() if isinstance(node.op, ast.Or) else ast.Or())
    yield from node.values


def _constant(node: ast.Constant) -> Iterator[ast.AST]:
    if isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node.value, (int, float)):
        yield from (ast.Constant(node.value + 1), ast.Constant(node.value - 1))
        if isinstance(node.value, float):
            yield from (ast.Constant(node.value * 10), ast.Constant(node.value / 10))


def _call(node: ast.Call) -> Iterator[ast.AST]:
    f, name = node.func, getattr(node.func, "attr", getattr(node.func, "id", ""))
    for other in INSTEAD.get(name, ()):
        new = copy.deepcopy(node)
        setattr(new.func, "attr" if isinstance(f, ast.Attribute) else "id", other)
        yield new
    if isinstance(f, ast.Attribute) and name in DROPPED:
        library = isinstance(f.value, ast.Name) and f.value.id in ("torch", "np", "math")
        yield node.args[0] if library and node.args else f.value
    if isinstance(f, ast.Name) and len(node.args) == 1 and not isinstance(node.args[0], ast.Starred):
        if name in BUILTINS:
            yield node.args[0]
        for pattern in ROUNDINGS.get(name, ()):
            yield ast.parse(pattern.format(f"({ast.unparse(node.args[0])})"), mode="eval").body
    if name in ("sort", "argsort", "topk") and isinstance(f, ast.Attribute) and not node.args:
        yield _with(node, keywords=[*node.keywords, ast.keyword("descending", ast.Constant(True))])
    if name == "argsort" and node.args:  # of NumPy
        yield _with(node, args=[ast.UnaryOp(ast.USub(), node.args[0]), *node.args[1:]])
    if name == "sorted":
        yield _with(node, keywords=[*node.keywords, ast.keyword("reverse", ast.Constant(True))])
    if name == "range":
        last = ast.BinOp(node.args[min(1, len(node.args) - 1)], ast.Sub(), ast.Constant(1))
        first = ast.BinOp(node.args[0], ast.Add(), ast.Constant(1)) if len(node.args) > 1 else ast.Constant(1)
        end, step = node.args[min(1, len(node.args) - 1)], node.args[2:]
        yield _with(node, args=[*(node.args[:1] if len(node.args) > 1 else [ast.Constant(0)]), last, *step])
        yield _with(node, args=[first, end, *step])
        yield ast.Subscript(node, ast.parse("x[::-1]", mode="eval").body.slice, ast.Load())
    if len(node.args) > 1 and not any(isinstance(a, ast.Starred) for a in node.args[:2]):
        yield _with(node, args=[node.args[1], node.args[0], *node.args[2:]])
    for i in (i for i, keyword in enumerate(node.keywords) if keyword.arg != "strict"):
        yield _with(node, keywords=node.keywords[:i] + node.keywords[i + 1 :])


def _attribute(node: ast.Attribute) -> Iterator[ast.AST]:
    if node.attr in ("T", "mT"):
        yield node.value
    for other in TYPES.get(node.attr, ()):
        yield _with(node, attr=other)


def _subscript(node: ast.Subscript) -> Iterator[ast.AST]:
    if not isinstance(node.ctx, ast.Load):
        return
    places = list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]

    def put(i: int, new: ast.AST) -> ast.AST:
        changed = [*places[:i], new, *places[i + 1 :]]
        return _with(node, slice=ast.Tuple(changed, ast.Load()) if len(changed) > 1 else changed[0])

    for i, place in enumerate(places):
        if isinstance(place, ast.Slice):
            if place.lower or place.upper or place.step:
                yield put(i, ast.Slice())
            for side in ("lower", "upper"):
                if bound := getattr(place, side):
                    yield put(i, _with(place, **{side: None}))
                    for op in (ast.Add(), ast.Sub()):
                        yield put(i, _with(place, **{side: ast.BinOp(bound, op, ast.Constant(1))}))
        elif isinstance(place, ast.Constant) and place.value == 0:
            yield put(i, ast.Constant(-1))
        elif isinstance(place, ast.UnaryOp) and isinstance(place.operand, ast.Constant):
            yield put(i, ast.Constant(0))
    if len(places) == 2:
        yield _with(node, slice=ast.Tuple(places[::-1], ast.Load()))


def _if_exp(node: ast.IfExp) -> Iterator[ast.AST]:
    yield from (node.body, node.orelse)


def _if(node: ast.If) -> Iterator[ast.AST]:
    yield _with(node, test=ast.Constant(True))
    yield _with(node, test=ast.Constant(False))


def _is_flagged(node: ast.AST) -> bool:
    """Whether a part of the node looks only at what tells a reference from its wrong variants, always the same."""
    parts = {ast.BinOp: ("left", "right"), ast.If: ("test",), ast.IfExp: ("test",), ast.Compare: ("left",)}
    names = ("values",) if isinstance(node, ast.BoolOp) else parts.get(type(node), ())
    found = [value for name in names for value in _as_list(getattr(node, name))]
    return any({n.id for n in ast.walk(part) if isinstance(n, ast.Name)} == {"self"} for part in found)


def _as_list(value: object) -> list:
    return value if isinstance(value, list) else [value]


def _while(node: ast.While) -> Iterator[ast.AST]:
    yield ast.If(node.test, node.body, [])


def _for(node: ast.For) -> Iterator[ast.AST]:
    yield _with(node, body=[*node.body, ast.Break()])


def _augmented(node: ast.AugAssign) -> Iterator[ast.AST]:
    yield ast.Pass()
    yield ast.Assign([node.target], node.value)
    if type(node.op) in OTHER:
        yield _with(node, op=OTHER[type(node.op)]())


def _assign(node: ast.Assign) -> Iterator[ast.AST]:
    """Without an assignment to a part, or of a new value to a name that has one."""
    target = node.targets[0]
    old = {n.id for n in ast.walk(node.value) if isinstance(n, ast.Name)}
    if isinstance(target, ast.Subscript) or (isinstance(target, ast.Name) and target.id in old):
        yield ast.Pass()


def _expression(node: ast.Expr) -> Iterator[ast.AST]:
    if isinstance(node.value, ast.Call):
        yield ast.Pass()


def _comprehension(node: ast.comprehension) -> Iterator[ast.AST]:
    if node.ifs:
        yield _with(node, ifs=[])


def _break(node: ast.Break) -> Iterator[ast.AST]:
    yield ast.Pass()


OPERATORS: dict[type, Callable] = {
    ast.Compare: _compare, ast.BinOp: _binary, ast.UnaryOp: _unary, ast.BoolOp: _bool_op, ast.Constant: _constant,
    ast.Call: _call, ast.Attribute: _attribute, ast.Subscript: _subscript, ast.IfExp: _if_exp, ast.If: _if,
    ast.While: _while, ast.For: _for, ast.AugAssign: _augmented, ast.Assign: _assign, ast.Expr: _expression,
    ast.comprehension: _comprehension, ast.Break: _break,
}  # fmt: skip
