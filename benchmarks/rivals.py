"""Beside the sparse kernels what a user would take instead: tokens a second, memory and perplexity of the same model.

Each way lives in a process of its own that holds nothing but what it needs. All of them are loaded and take turns, so
that other work on the machine meets them all; perplexities come afterwards, one by one. Linux only.

    pip install openvino nncf llama-cpp-python xllamacpp    # whichever you want beside ours
    python benchmarks/rivals.py [book/results/rivals.json] [--rounds 5] [--work _build/rivals]

llama-cpp-python compiles llama.cpp for this processor, a matter of 10 to 20 minutes; xllamacpp has it compiled, for
every processor with AVX2. A package that is missing is named and its ways are left out. The models are made once and
kept in the folder of --work, 4 GB. The turns are taken anew whenever a way has no speed in the file; a perplexity that
it has is not measured again.
"""

import argparse
import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from engines import LENGTH, LlamaCpp, LlamaServer, OpenVINO, Torch, export_openvino

TOKENS, WINDOWS = 24, 8
BITS, GROUP = 4, 64
THREADS = (1, 2)
PROTOCOL = {
    "task": f"a prompt of 8 tokens, then {TOKENS} tokens, each the likeliest, batch 1; the prompt is the test's first",
    "time": "a run of 1 token is subtracted from one of 25, so that the prompt costs nothing; processor time of the "
    "whole process if there is one thread, else the clock; medians of rounds in which all ways take turns",
    "peak MB": "resident memory of a fresh process that loads and writes, at its highest, with its libraries and "
    "the pages of mapped files; what was compiled before lies on disk",
    "perplexity": f"{WINDOWS} x {LENGTH} tokens of wikipedia test, evenly spaced, no cache between windows",
    "model": "SmolLM2-135M-Instruct, a checkpoint in Q4_1 expanded to float32: Q4_1 is the file that it came as",
    "minprune": "SparseGPT, 32 x 256 tokens of wikipedia train, seed 0; the head dense, in the type named; 4 bits: "
    f"GPTQ, symmetric, groups of {GROUP}, with 50 % of zeros in the same sweep",
    "llama.cpp": "files of minprune's export, head in Q8_0 with Q4_0; its defaults but for the threads; compiled for "
    "this processor by llama-cpp-python; wheel: compiled for AVX2 in xllamacpp, a server that shows no logits, so "
    "without a perplexity: the files are the same",
    "OpenVINO": "traced with its cache as state; weights by nncf without data, int4 symmetric in groups of 64 and the "
    "head in int8; its defaults but for the threads, and float32 where that is the type",
    "torch": "compile: transformers with a static cache; dynamic int8: torch.ao's quantize_dynamic, the head as well",
    "machine": "a virtual one with two cores, nothing else running",
}
PACKAGES = {  # that kinds of ways need
    "openvino": ("openvino", "nncf"),
    "llama.cpp": ("llama-cpp-python",),
    "llama.cpp, wheel": ("xllamacpp",),
}


def transformers(work: Path, threads: int, dtype: str, how: str = "") -> Torch:
    """SmolLM2 dense: as it is, through `torch.compile`, or with int8 products."""
    import torch

    import minprune as mp

    torch.set_num_threads(threads)
    model = mp.load_model("smollm2", dtype)[0]
    if how == "compile":
        model.forward = torch.compile(model.forward)
    if how == "int8":
        from torch.ao.quantization import quantize_dynamic

        model = quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    return Torch(model, static=how == "compile")


def minprune(work: Path, threads: int, what: str, dtype: str) -> Torch:
    """SmolLM2 with its matrices as they are stored."""
    import torch

    import minprune as mp

    torch.set_num_threads(threads)
    return Torch(mp.load_model(work / f"{what} {dtype}", sparse=True)[0])


def llama_cpp(work: Path, threads: int, kind: str, engine: type = LlamaCpp) -> LlamaCpp | LlamaServer:
    """The GGUF file of that type; Q4_1 is the bundled one."""
    return engine(work / kind / "model.gguf", threads)


def openvino(work: Path, threads: int, kind: str, precision: str | None = None) -> OpenVINO:
    """The model with weights of that type."""
    return OpenVINO(work / f"{kind}.xml", threads, precision)


WAYS: dict[str, tuple] = {  # what a way is called -> what its packages stand under, who loads it, and with what
    "transformers, float32": ("torch", transformers, "float32"),
    "transformers, bfloat16": ("torch", transformers, "bfloat16"),
    "torch.compile, float32": ("torch", transformers, "float32", "compile"),
    "torch, dynamic int8": ("torch", transformers, "float32", "int8"),
    **{
        f"minprune, {pattern}, {dtype}": ("torch", minprune, pattern, dtype)
        for dtype in ("float32", "bfloat16")
        for pattern in ("50%", "70%", "2:4")
    },
    "minprune, 4 bits, bfloat16": ("torch", minprune, "4 bits", "bfloat16"),
    "minprune, 4 bits and 50%, bfloat16": ("torch", minprune, "4 bits and 50%", "bfloat16"),
    **{f"llama.cpp, {kind}": ("llama.cpp", llama_cpp, kind) for kind in ("F16", "Q8_0", "Q4_0", "Q4_1")},
    **{f"llama.cpp, {kind}, wheel": ("llama.cpp, wheel", llama_cpp, kind, LlamaServer) for kind in ("Q8_0", "Q4_0")},
    "OpenVINO, float32": ("openvino", openvino, "float32", "f32"),
    "OpenVINO, int8": ("openvino", openvino, "int8"),
    "OpenVINO, int4": ("openvino", openvino, "int4"),
}


def missing(way: str) -> list[str]:
    """The packages that a way needs and that are not installed."""
    return [name for name in PACKAGES.get(WAYS[way][0], ()) if name not in installed()]


@cache
def installed() -> dict[str, str]:
    """The versions of the packages that are there."""
    found = {}
    for name in (name for names in PACKAGES.values() for name in names):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def prepare(work: Path, ways: Iterable[str] = WAYS) -> None:
    """Make the models that these ways need and that are not in the folder yet."""
    import minprune as mp
    from minprune.data.assets import fetch
    from minprune.formats.gguf import write_gguf
    from minprune.output.folder import OutputFolder

    work.mkdir(parents=True, exist_ok=True)
    for _, load, *given in (WAYS[way] for way in ways if not missing(way)):
        if load is minprune and not (work / f"{given[0]} {given[1]}").exists():
            _export_stored(work, given[0])
        elif load is openvino and not (work / "int4.xml").exists():
            export_openvino(mp.load_model("smollm2")[0], work, GROUP)
        elif load is llama_cpp and given[0] == "Q4_1":
            (work / "Q4_1").mkdir(exist_ok=True)
            if not (path := work / "Q4_1" / "model.gguf").exists():
                path.symlink_to(fetch("smollm2"))
        elif load is llama_cpp and not (work / given[0]).exists():
            with OutputFolder(work / given[0]).open() as folder:
                write_gguf(folder, *mp.load_model("smollm2"), given[0].lower())


def _export_stored(work: Path, what: str) -> None:
    import torch

    import minprune as mp
    from minprune.formats import save_model

    model, tokenizer = mp.load_model("smollm2")
    calib = mp.load_tokens(tokenizer, "wikipedia", samples=32, length=256, seed=0)
    if bits := what.startswith("4 bits"):
        mp.quantize(model, calib, BITS, GROUP, grid="symmetric", pattern="50%" if "50%" in what else "0%")
    else:
        mp.prune(model, calib, "sparsegpt", what)
        save_model(model, tokenizer, work / f"{what} float32", overwrite=True)
    model = model.to(torch.bfloat16)
    form = {"form": "integers", "grid": (BITS, GROUP)} if bits else {}
    save_model(model, tokenizer, work / f"{what} bfloat16", overwrite=True, **form)


def serve(way: str, threads: int, work: Path) -> None:
    """Load a way, then answer one request a line on stdin: [tokens to write, prompt], or ["nats", window]."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever libraries print
    _, load, *given = WAYS[way]
    engine = load(work, threads, *given)
    for line in sys.stdin:
        what, tokens = json.loads(line)
        start, worked = time.perf_counter(), time.process_time()
        if what == "nats":
            answer = {"nats": nats(engine.logits(tokens), tokens)}
        else:
            answer = {"tokens": engine.write(tokens, what)}
        answer |= {"clock": time.perf_counter() - start, "processor": time.process_time() - worked, **resident()}
        print(json.dumps(answer), file=answers)


def nats(logits: Any, window: list[int]) -> float:
    """The sum over all tokens of a window but the first."""
    import numpy as np

    rows = logits[:-1].astype(np.float64)
    top = rows.max(1)
    return float((top + np.log(np.exp(rows - top[:, None]).sum(1)) - rows[np.arange(len(rows)), window[1:]]).sum())


def resident() -> dict[str, float]:
    """Resident megabytes of this process, at its highest; unlike ru_maxrss not those of the one that started it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {"peak MB": int(line.split()[1]) * 1024 / 1e6}


class Served:
    """A way in a process of its own."""

    def __init__(self, way: str, threads: int, work: Path):
        self.way = way
        one = {"OMP_NUM_THREADS": str(threads), "TORCHINDUCTOR_COMPILE_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, __file__, "--serve", way, "--threads", str(threads), "--work", str(work)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        self.process = subprocess.Popen(command, env=os.environ | one | {"TQDM_DISABLE": "1"}, **pipes)

    def ask(self, what: int | str, tokens: list[int]) -> dict:
        """What the process answers."""
        print(json.dumps([what, tokens]), file=self.process.stdin)
        if not (answer := self.process.stdout.readline()):
            raise RuntimeError(f"{self.way} ended with code {self.process.wait()}")
        return json.loads(answer)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()


@cache
def windows() -> list[list[int]]:
    """Tokens of the test; the prompt is the beginning of the first."""
    import minprune as mp

    return mp.load_tokens(mp.load_model("smollm2")[1], "wikipedia", "test", WINDOWS, LENGTH).tolist()


def perplexity(way: str, work: Path) -> float | None:
    """Of the windows; None for an engine that shows no logits."""
    if way.endswith("wheel"):
        return None
    with Served(way, max(THREADS), work) as served:
        total = sum(served.ask("nats", window)["nats"] for window in windows())
    return math.exp(total / (WINDOWS * (LENGTH - 1)))


def in_turns(ways: list[str], threads: int, rounds: int, work: Path) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of a token of each way in each round; the peak of memory of each once it has written."""
    prompt, clock = windows()[0][:8], "processor" if threads == 1 else "clock"
    with contextlib.ExitStack() as stack:
        served = {way: stack.enter_context(Served(way, threads, work)) for way in ways}
        peaks = {way: one.ask(TOKENS, prompt)["peak MB"] for way, one in served.items()}
        spent: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, one in served.items():
                few, many = (one.ask(tokens, prompt)[clock] for tokens in (1, TOKENS + 1))
                spent[way].append((many - few) / TOKENS)
    return spent, peaks


class Results:
    """The cells of a file, one a way, to which each part of the measurement adds what they do not have yet."""

    def __init__(self, output: Path | None, rounds: int, work: Path):
        from record import load_cells

        self.output, self.rounds, self.work = output, rounds, work
        self.ways = [way for way in WAYS if not missing(way)]
        self.cells = {cell["way"]: cell for cell in (load_cells(output) if output else [])}
        self.cells |= {way: {"way": way} for way in self.ways if way not in self.cells}

    def add(self, way: str, **found: float | None) -> None:
        """Numbers of a way, in six digits."""
        from record import short

        self.cells[way] |= {name: value and short(value) for name, value in found.items()}
        print(self.cells[way], flush=True)

    def save(self) -> None:
        """Write the file, if there is one."""
        from record import save

        if self.output:
            command = f"python benchmarks/rivals.py {self.output.as_posix()} --rounds {self.rounds}"
            rivals = {"rivals": ", ".join(f"{name} {number}" for name, number in installed().items())}
            save(self.output, command, PROTOCOL | rivals, [*self.cells.values()])

    def perplexities(self) -> None:
        """One way after the other."""
        for way in self.ways:
            if "perplexity" not in self.cells[way]:
                prepare(self.work, [way])
                self.add(way, perplexity=perplexity(way, self.work))
                self.save()

    def speeds(self, threads: int) -> None:
        """All ways together, if one has no speed yet."""
        name = f"tokens a second, {threads} thread{'s' if threads > 1 else ''}"
        if any(name not in self.cells[way] for way in self.ways):
            prepare(self.work, self.ways)
            spent, peaks = in_turns(self.ways, threads, self.rounds, self.work)
            for way, seconds in spent.items():
                found = {name: 1 / statistics.median(seconds), f"{name}, slowest": 1 / max(seconds)}
                self.add(way, **found, **({"peak MB": peaks[way]} if threads == 1 else {}))
            self.save()


def main() -> None:
    """Measure the ways that can be had, print the cells, and write the file if one is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("_build/rivals"))
    parser.add_argument("--serve", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve, args.threads, args.work)
    results = Results(args.output, args.rounds, args.work)
    for way in WAYS:
        if way not in results.ways:
            print(f"{way}: left out, {' and '.join(missing(way))} not installed")
    for threads in THREADS:
        results.speeds(threads)
    results.perplexities()
    return None


if __name__ == "__main__":
    main()
