"""What the shell does to a command: locales, closed or narrow terminals, drawing settings, no home."""

import hashlib
import io
import json
import os
import subprocess
import sys

import matplotlib
import pandas as pd
import pytest
from helpers import ROOT

from cli import shell
from cli.terminal.screen import Stages, console, print_facts, print_line, print_rows
from figures.sentences import names_in_pictures
from star.base.settings import config_to_dict
from star.training.config import preset
from viz.base.style import save
from viz.training import training_curves

LATIN = b"caf\xe9".decode(errors="surrogateescape")
# A C locale in which Python does not help itself.
PLAIN_C = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What ``star watch`` and ``star plot`` need of a run, in folders of all kinds of names."""
    folder = tmp_path_factory.mktemp("runs") / "猫" / LATIN
    folder.mkdir(parents=True)
    config = config_to_dict(preset("tiny")) | {"max_steps": 2, "data": f"狗/{LATIN}"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    rows = [{"step": step, "loss": 7.0 - step, "val_nll": 5.5, "lr": 1e-3} for step in (1, 2)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")
    return folder


def command(*arguments, environment, shell_words="", **options):
    """Run a command through sh, ``shell_words`` after it; returns code, stdout and stderr (bytes)."""
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("MPL", "MATPLOTLIB"))
    }
    done = subprocess.run(
        [
            "sh",
            "-c",
            f'"$0" -m cli.main "$@" {shell_words}',
            sys.executable,
            *map(os.fsencode, arguments),
        ],
        capture_output=True,
        env={**kept, "PYTHONPATH": str(ROOT), **environment},
        **options,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("environment", "title"),
    [
        ({"PYTHONUTF8": "1"}, "猫/caf\\xe9".encode()),
        ({"PYTHONIOENCODING": "ascii"}, rb"\u732b/caf\xe9"),
        ({"PYTHONIOENCODING": "latin-1:strict"}, rb"\u732b/caf\xe9"),
        (PLAIN_C, rb"\u732b/caf\xe9"),
        ({**PLAIN_C, "PYTHONIOENCODING": "utf-8", "COLUMNS": "0"}, "猫/caf\\xe9".encode()),
    ],
)
def test_names_are_printed_in_every_encoding(run, environment, title):
    code, out, err = command("watch", run, "--once", environment=environment)
    assert (code, err) == (0, b"")
    lines = out.splitlines()
    assert lines[0].endswith(title) and lines[1] == b"step 2/2 (100 %), finished"
    assert b"loss" in lines[2], "nothing of the table was lost"
    code, out, err = command("watch", run.parent / "鱼\n", environment=environment)
    assert code == 2 and out == b"" and err.startswith(b"Error: there is no run in ")
    fish = "猫/鱼".encode() if title.startswith("猫".encode()) else rb"\u732b/\u9c7c"
    assert err.count(b"\n") == 1 and fish + rb"\n; give the --run folder" in err


@pytest.mark.parametrize("shell_words", [">&-", "2>&-", "<&- >&- 2>&-", "| true"])
def test_closed_streams_are_no_error(run, shell_words):
    code, _, err = command("watch", run, "--once", environment={}, shell_words=shell_words)
    assert (code, err) == (0, b"")


def drawn(run, tmp_path):
    """Hash of the picture that ``star plot`` makes of ``run``, drawn here."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    figure = training_curves({"ST-AR, caf\\xe9": pd.DataFrame(rows)}, title="Training: ST-AR, caf\\xe9")
    (path,) = save(figure, tmp_path / "expected", ("png",))
    return hashlib.sha256(path.read_bytes()).hexdigest()


NOWHERE = dict.fromkeys(("HOME", "MPLCONFIGDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"), "/dev/null/none")


@pytest.mark.parametrize(
    ("backend", "folders"),
    [("module://matplotlib_inline.backend_inline", NOWHERE), ("nonsense", {})],
)
def test_pictures_are_the_same_whatever_matplotlib_is_told(run, tmp_path, backend, folders):
    settings = (
        "backend: nonsense\nrubbish\ntext.usetex: True\nsavefig.dpi: 20\nfont.family: None such\n"
    )
    (tmp_path / "matplotlibrc").write_bytes(settings.encode() + b"# caf\xe9\n")
    environment = {"MPLBACKEND": backend, "MATPLOTLIBRC": str(tmp_path), "DISPLAY": "", **folders}
    code, _, err = command("plot", run, "--out", "p", environment=environment, cwd=tmp_path)
    assert (code, err) == (0, b"")
    made = hashlib.sha256((tmp_path / "p" / "training.png").read_bytes()).hexdigest()
    assert made == drawn(run, tmp_path)


def test_a_program_s_own_settings_change_no_picture_and_stay(run, tmp_path):
    expected = drawn(run, tmp_path)
    odd = {"text.usetex": True, "savefig.dpi": 20, "axes.linewidth": 9, "savefig.bbox": "tight"}
    with matplotlib.rc_context(odd):
        assert drawn(run, tmp_path) == expected
        assert matplotlib.rcParams["text.usetex"] and matplotlib.rcParams["savefig.dpi"] == 20


def test_the_library_leaves_backend_streams_and_variables_alone():
    script = """
import os, sys
before = dict(os.environ), sys.stdout.errors
import viz.samples, viz.measures, viz.base.names, cli.main, cli.commands.look
import matplotlib
assert (dict(os.environ), sys.stdout.errors) == before
print(matplotlib.rcParams["backend"])
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "svg"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment
    )
    assert (done.stdout, done.stderr) == ("svg\n", "")


def test_a_home_that_cannot_be_is_one_line_that_names_the_cache_s_variable(star, monkeypatch, tmp_path):
    from star.base.errors import UserError
    from star.tokenizer.file import cache_folder

    monkeypatch.delenv("STAR_CACHE")
    monkeypatch.setenv("HOME", "/dev/null/none")
    code, _, err = star("train")
    assert code == 2 and err.count("\n") == 1 and "set STAR_CACHE to a folder of yours" in err

    def unknown(*_):
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", unknown)
    with pytest.raises(UserError, match="there is no home folder; set STAR_CACHE"):
        cache_folder()
    monkeypatch.setenv("LOGNAME", "me")
    shell._forget_odd_variables()
    assert os.environ["HOME"] == "/" and os.environ["LOGNAME"] == "me"
    monkeypatch.setenv("HOME", "/")  # so that it is put back


@pytest.mark.parametrize(("given", "left"), [("0", None), ("", None), ("x", None), ("20", "20")])
def test_a_width_that_is_none_is_not_one(monkeypatch, given, left):
    monkeypatch.setenv("COLUMNS", given)
    monkeypatch.setenv("LINES", given)
    shell._forget_odd_variables()
    assert os.environ.get("COLUMNS") == os.environ.get("LINES") == left


def test_another_program_that_calls_main_is_not_started_anew(monkeypatch):
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("started anew"))
    monkeypatch.setattr(sys, "argv", ["star", "inspect", "x"])
    shell._read_names_as_utf8()


@pytest.mark.parametrize(
    ("encoding", "printed"),
    [
        ("ascii", rb"caf\xe9 caf\xe9 \u732b \U0001f408"),
        ("latin-1", b"caf\xe9 caf\\xe9 \\u732b \\U0001f408"),
        ("utf-8", "café caf\\xe9 猫 \U0001f408".encode()),
    ],
)
def test_what_a_stream_cannot_encode_is_escaped(monkeypatch, encoding, printed):
    held = io.BytesIO()
    stream = io.TextIOWrapper(held, encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)
    shell._print_everything()
    print(f"café {LATIN} 猫 \U0001f408", end="", flush=True)
    assert held.getvalue() == printed


def test_the_screen_takes_names_as_they_are(capsys, monkeypatch):
    odd = "[red]x[/] [b :cat: 100 % {0} $x$"
    print_line(odd)
    print_line("two\nlines \x1b[31mred")
    print_rows(odd, ["name", odd], [[odd, "a\nb"]])
    print_facts({odd: odd})
    Stages().say(odd)
    out = capsys.readouterr().out
    assert out.splitlines()[:2] == [odd, r"two\nlines \x1b[31mred"]
    assert out.count(odd) == 7 and r"a\nb" in out and "\x1b" not in out


def test_no_word_of_a_table_is_cut_on_a_narrow_terminal(capsys, monkeypatch):
    columns, row = (
        ["layer", "95 % interval", "accuracy"],
        ["a-name-without-end", "70.1 to 100.0", "84.3"],
    )
    monkeypatch.setattr(console, "_width", 12)
    print_rows("title", columns, [row])
    words = capsys.readouterr().out.split()
    assert {"interval", "accuracy", "a-name-without-end", "70.1", "100.0", "84.3"} <= set(words)


def test_an_ascii_terminal_gets_tables_of_ascii(monkeypatch):
    held = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(held, encoding="ascii"))
    shell._print_everything()
    print_rows("title", ["a", "b"], [["猫", "1"]])
    sys.stdout.flush()
    out = held.getvalue()
    assert out.count(b"\\u") == 1 and rb"\u732b" in out and b"| " in out


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(monkeypatch):
    monkeypatch.setattr(console, "_force_terminal", True)
    for term, whole in (("xterm", True), ("dumb", False), ("unknown", False)):
        monkeypatch.setenv("TERM", term)
        assert console.is_terminal is whole


def test_the_screen_says_which_classes_pictures_call_by_number(capsys):
    assert names_in_pictures(["cat", "dog"]) == []
    for line in names_in_pictures(["cat", "猫", "狗", LATIN], [0, 2, 2]):
        print_line(line)
    said = "in pictures, whose font lacks these names: class 2 is 狗\n"
    assert capsys.readouterr().out == said
