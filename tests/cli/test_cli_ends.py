"""How the command line ends when it is interrupted, when nobody reads it, and when a mistake is long or odd."""

import os
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")

SLOW = """
import sys, time
from minprune.cli import main as cli
from minprune.cli import info
from minprune.output.lock import absolute, lock

def run(arguments):
    with lock(absolute("out")):
        try:
            print("ready", flush=True)
            for _ in range(600):  # a signal right before one long sleep would be heard after it
                time.sleep(0.1)
        finally:  # as long as a large folder takes to be removed
            time.sleep(0.3)

info.run.__code__ = run.__code__
info.absolute, info.lock, info.time = absolute, lock, time
sys.argv[1:] = ["info", "x"]
sys.exit(cli.main())
"""


@pytest.mark.parametrize("pause", [0, 0.005, 0.1])
def test_an_impatient_ctrl_c_prints_no_traceback_and_disturbs_nothing(pause):
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout.readline() == "ready\n"
    for _ in range(5):
        process.send_signal(signal.SIGINT)
        time.sleep(pause)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "minprune: interrupted: nothing half-written is left\n")
    assert os.listdir() == []


AT_ONCE = """
import signal, sys, threading, time
from minprune import errors

HEARS = {errors.__file__, threading.__file__}
lines = int(sys.argv[1])

def trace(frame, event, argument):
    global lines
    if event == "line" and frame.f_code.co_filename in HEARS:
        lines -= 1
        if lines == 0:
            signal.raise_signal(signal.SIGINT)
    return trace

signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    with errors.ended_by_ctrl_c():
        sys.settrace(trace)
        signal.raise_signal(signal.SIGINT)
        time.sleep(30)
except KeyboardInterrupt:
    print("ended")
"""


@pytest.mark.parametrize("lines", range(1, 11))
def test_a_ctrl_c_in_the_midst_of_hearing_another_does_not_wait_for_it(lines):
    """Wherever the second one comes."""
    done = subprocess.run([sys.executable, "-c", AT_ONCE, str(lines)], capture_output=True, text=True, timeout=20)
    assert done.stdout == "ended\n"


SWALLOWED = """
import sys, time
from minprune.cli import main as cli
from minprune.cli import info
from minprune.output.folder import OutputFolder

def run(arguments):
    with OutputFolder("out", "info").open(lambda: "1 of 2 is kept"):
        try:
            print("ready", flush=True)
            for _ in range(600):
                time.sleep(0.1)
        except BaseException:  # as C code that clears the error, with or without another in its place
            WHAT
        print("ready", flush=True)
        for _ in range(600):
            time.sleep(0.1)

info.run.__code__ = run.__code__
info.OutputFolder, info.time = OutputFolder, time
sys.argv[1:] = ["info", "x"]
sys.exit(cli.main())
"""


@pytest.mark.parametrize("what, times", [("raise ValueError('no shape') from None", 1), ("pass", 2)])
def test_ctrl_c_ends_a_run_whatever_c_code_makes_of_it(what, times):
    process = subprocess.Popen(
        [sys.executable, "-c", SWALLOWED.replace("WHAT", what)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    for _ in range(times):
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "minprune: interrupted; 1 of 2 is kept\n")


@pytest.mark.parametrize("command", ["info {} --all", "--help"])
def test_a_reader_that_goes_away_ends_it_as_a_signal_would(tiny_folder, command):
    line = f"{sys.executable} -m minprune {command.format(tiny_folder)} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("141\n", "")


@pytest.mark.parametrize("name", ["pattern", "method", "device", "samples", "model"])
def test_a_long_mistake_is_cut_and_keeps_its_beginning_and_its_remedy(run, tiny_folder, name):
    arguments = {"model": tiny_folder, "pattern": "50%", "method": "magnitude", "device": "cpu", "samples": "1"}
    arguments[name] = "x" * 100_000
    model = arguments.pop("model")
    code, out, err = run("prune", model, *(part for key in arguments for part in (f"--{key}", arguments[key])))
    assert (code, out) == (2, "") and len(err) < 1100 and err.count("\n") == 1 and err.startswith("minprune: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ("prune", "{}", "--samples", "４"),
        ("prune", "{}", "--seed", "٣"),
        ("prune", "{}", "--pattern", "５0%"),
        ("prune", "{}", "--pattern", "２:4"),
        ("prune", "{}", "--option", "damp=０.1"),
        ("prune", "{}", "--option", "block_size=1２"),
        ("recover", "{}", "--lr", "０.1"),
        ("recover", "{}", "--lr", "1_0"),
        ("generate", "{}", "--prompt", "a", "--temperature", "１"),
        ("eval", "{}", "--samples", "１"),
        ("sweep", "{}", "--output", "a", "--seeds", "0,１"),
        ("grade", "x.ipynb", "--seconds", "６"),
    ],
)
def test_digits_of_other_scripts_are_no_numbers(run, tiny_folder, arguments):
    code, out, err = run(*(part.format(tiny_folder) for part in arguments))
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert arguments[-1].split(",")[-1].split("=")[-1] in err
    assert os.listdir() == []


@pytest.mark.parametrize("output", ["~nosuchuser/x", "circle/out", "circle"])
@pytest.mark.parametrize("command", ["prune", "recover", "export", "sweep", "sensitivity"])
def test_an_output_that_leads_nowhere_is_one_line(run, tiny_folder, command, output):
    os.symlink("circle", "circle")
    code, out, err = run(command, tiny_folder, "--output", output)
    assert (code, out) == (2, "") and err.count("\n") == 1 and output in err
    assert os.listdir() == ["circle"]


@pytest.mark.parametrize("device", ["hpu", "xpu", "meta", "cuda:99", "privateuseone", "", "cpu:x"])
def test_a_device_that_is_not_there_is_one_line(run, tiny_folder, device):
    code, out, err = run("eval", tiny_folder, "--device", device)
    assert (code, out) == (2, "") and err.count("\n") == 1 and "device" in err


@pytest.mark.parametrize(
    "around, said",
    [
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"RANK": "0", "WORLD_SIZE": ""}, "WORLD_SIZE is ''"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "cannot join"),
    ],
)
def test_what_another_launcher_left_in_the_environment_is_one_line(run, tiny_folder, monkeypatch, around, said):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in around.items():
        monkeypatch.setenv(name, value)
    code, out, err = run("prune", tiny_folder, "--method", "magnitude", "--no-test")
    assert code == 2 and out == "" and len(err.splitlines()) == 1
    assert said in err and "torchrun" in err
