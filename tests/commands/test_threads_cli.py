"""``--threads``, what commands set before torch starts, their first line; the bench of shared cores."""

import json
import os
import subprocess
import sys
from multiprocessing import Pipe, active_children

import numpy as np
import pytest
from helpers import ROOT, refused

from cli import threads as cli_threads
from probes.speed import contention, contention_work
from probes.speed.timing import Timings, alternate
from star.base.errors import UserError

LINES = {
    "train": "Training a model",
    "train-tokenizer digits": "Training a tokenizer",
    "train-classifier digits": "Training a classifier",
    "probe --layer 6 --steps 8": "Probing what layers know of the class",
    "attn-maps ckpt.pt": "Drawing where layers look",
    "attention-stats": "Measuring where models look",
    "attribute": "Explaining the score of a step",
    "ablate": "Cutting attention to see what is lost",
    "token-invariance image.jpg": "Looking which tokens change when the image hardly does",
    "codebook": "Counting a tokenizer's codes",
    "nll": "Measuring how probable held-out images are",
    "evaluate": "Judging samples",
    "exposure": "Measuring how fast models leave the data",
    "sample": "Drawing samples",
    "tokenize digits out": "Turning images into codes",
    "reproduce": "Tokenising, training, probing and drawing",
    "bench step --json": "Timing training steps",
    "bench probe --json": "Timing epochs of a probe",
    "bench loader --json": "Timing batches",
    "bench tokenize --json": "Timing star tokenize",
    "bench attention --json": "Timing attention rows",
}
WITHOUT_TORCH = """
import contextlib, io, json, sys

class NoTorch:
    def find_spec(self, name, *rest):
        if name == "torch":
            sys.exit("torch is being imported")

sys.meta_path.insert(0, NoTorch())
from cli.main import main

found = {}
for command in json.loads(sys.argv[1]):
    sys.argv = ["star", *command.split()]
    out, err, end = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as error:
            end = error.code
    found[command] = [out.getvalue(), err.getvalue(), end]
print(json.dumps(found))
"""
THREADS = """
import os, sys
from cli.main import main
sys.argv = ["star", "sample", "no-such-file", *sys.argv[1:]]
try:
    main()
except SystemExit:
    import torch
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
    print(torch.get_num_threads(), *(os.environ.get(name, "-") for name in names))
"""


def python(script, *arguments, **environment):
    """Standard output of ``script``, in an environment that says nothing of threads."""
    kept = contention.without_settings(os.environ)
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**kept, "PYTHONPATH": str(ROOT), **environment},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_command_says_what_it_does_before_torch_is_loaded():
    found = json.loads(python(WITHOUT_TORCH, json.dumps(list(LINES))))
    for command, line in LINES.items():
        said = f"{line}; torch is loaded first\n"
        silent = "--json" in command  # standard output is for programs
        expected = ["", said] if silent else [said, ""]
        assert found[command] == [*expected, "torch is being imported"], command


def test_under_torchrun_the_processes_leave_the_first_line_to_the_one_that_starts_them():
    found = json.loads(python(WITHOUT_TORCH, json.dumps(["sample"]), RANK="0"))
    assert found["sample"] == ["", "", "torch is being imported"]


@pytest.mark.slow
def test_threads_are_those_asked_for_and_wait_quietly():
    *_, note, last = python(THREADS, "--threads", 1024).splitlines()
    assert note.startswith("note: 1024 threads, but ") and note.endswith("they take turns")
    assert last.split()[0] == "1024" and last.split()[1] == "passive" and last.split()[3] == "1024"
    user = {"OMP_WAIT_POLICY": "active", "OMP_NUM_THREADS": "1"}
    said = python(THREADS, **user).splitlines()
    assert said[-1] == "1 active - 1" and "note" not in " ".join(said)


@pytest.mark.parametrize("number", [0, -1, 1025])
@pytest.mark.parametrize("command", ["train", "sample", "probe", "tokenize"])
def test_a_number_of_threads_that_makes_no_sense_is_refused(star, tmp_path, command, number):
    given = ("digits",) if command == "tokenize" else ()
    result = star(command, *given, "--threads", number)
    assert refused(result, f"threads is {number}; expected 1 to 1024")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("environment", "ours", "expected"),
    [
        ({}, set(), "3"),
        ({"OMP_NUM_THREADS": "6"}, {"OMP_NUM_THREADS"}, "3"),  # the quota's, set by prepare_threads
        ({"OMP_NUM_THREADS": "6"}, set(), "6"),
        ({"MKL_NUM_THREADS": "6"}, set(), None),
    ],
)
def test_processes_share_the_cores_unless_the_user_has_said_how(
    monkeypatch, environment, ours, expected
):
    monkeypatch.setattr(cli_threads.os, "environ", environment)
    monkeypatch.setattr(cli_threads, "_ours", ours)
    monkeypatch.setattr(cli_threads, "compute_threads", lambda: 7)
    cli_threads.share_cores(2)
    assert environment.get("OMP_NUM_THREADS") == expected


def test_more_processes_than_cores_have_a_thread_each(monkeypatch):
    monkeypatch.setattr(cli_threads.os, "environ", found := {})
    monkeypatch.setattr(cli_threads, "compute_threads", lambda: 2)
    cli_threads.share_cores(5)
    assert found == {"OMP_NUM_THREADS": "1"}


def test_the_bench_measures_every_arm_and_leaves_no_process():
    found = contention.bench_contention("busy", jobs=1, alike=2, rounds=2, units=3, seconds=0.5)
    beside = ("alone", "beside 1 busy", "beside 2 alike")
    assert list(found.timings.seconds) == [f"{s}, {b}" for s in ("before", "after") for b in beside]
    for name, seconds in found.timings.seconds.items():
        assert len(seconds) == 2 and (seconds >= 0.001).all(), name  # a unit is a millisecond of work
    cores = contention.usable_cores()
    assert found.threads == {"before": 1, "after": 1}
    assert found.fair == {"beside 1 busy": max(1, 2 / cores), "beside 2 alike": max(1, 3 / cores)}
    assert found.environment["OMP_WAIT_POLICY"] == "passive"
    assert active_children() == []


class Link:
    """A link whose other end has sent ``orders`` and closed; competing goes on for ``polls`` units."""

    def __init__(self, *orders, polls=0):
        self.orders, self.polls, self.sent = list(orders), polls, []
        self.send = self.sent.append

    def recv(self):
        if not self.orders:
            raise EOFError
        return self.orders.pop(0)

    def poll(self):
        self.polls -= 1
        return self.polls < 0


def test_a_process_has_its_environment_before_the_work_begins(monkeypatch):
    monkeypatch.setattr(os, "environ", {"OMP_NUM_THREADS": "1", "HOME": "/h"})
    monkeypatch.setattr(contention_work.signal, "signal", lambda *_: None)
    calls = []

    def work():
        calls.append(dict(os.environ))
        return lambda: calls.append("unit")

    monkeypatch.setitem(contention_work.WORKS, "busy", work)
    link = Link((2, 10.0), (5, 0.0), contention_work.GO, contention_work.STOP, polls=3)
    contention_work.serve(link, {"GOMP_SPINCOUNT": "9"}, "busy")
    assert calls[0] == {"GOMP_SPINCOUNT": "9"}
    # One at first use, two asked for, one because no more begin within no time, three of competing.
    assert calls[1:] == ["unit"] * 7
    threads, *seconds = link.sent
    assert threads == 1 and len(seconds) == 2 and min(seconds) >= 0


def test_a_process_that_is_gone_is_one_clear_error():
    here, there = Pipe()
    there.close()
    with pytest.raises(UserError, match="a process of the bench ended by itself"):
        contention._Member(here).threads()


def test_contention_through_the_command_line(star, monkeypatch):
    asked = {}

    def bench(work, **options):
        options.pop("on_round")
        asked.update(options, work=work)
        seconds = {"before, alone": 1.0, "before, beside 2 busy": 20.0, "after, alone": 1.1}
        seconds |= {"after, beside 2 busy": 2.2}
        return contention.ContentionBench(
            Timings({name: np.full(6, value) for name, value in seconds.items()}),
            {"OMP_WAIT_POLICY": "passive"},
            {"before": 2, "after": 2},
            {"beside 2 busy": 2.0},
            0.25,
        )

    monkeypatch.setattr(contention, "bench_contention", bench)
    code, out, err = star("bench", "contention", "--jobs", 2, "--alike", 0, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert asked == {"work": "step", "jobs": 2, "alike": 0, "rounds": 6}
    ratios = {name: round(ratio["median"], 6) for name, ratio in found["ratios"].items()}
    assert ratios == {
        "before, beside 2 busy / before, alone": 20.0,
        "after, beside 2 busy / after, alone": 2.0,
        "after, beside 2 busy / before, beside 2 busy": 0.11,
        "after, alone / before, alone": 1.1,
    }
    assert found["loaded / alone if shares were fair"] == {"beside 2 busy": 2.0}
    assert refused(star("bench", "contention", "--jobs", -1), "jobs is -1; expected 0 to 256 processes")
    assert refused(star("bench", "contention", "--alike", 257), "alike is 257; expected 0 to 256")
    assert refused(star("bench", "contention", "--rounds", 1), "rounds is 1; expected at least 2")


def test_rounds_end_early_where_time_is_short_and_arms_may_say_their_own_number():
    arms = {"a": lambda index: 10.0 + index, "b": lambda index: 20.0}
    found = alternate(arms, rounds=9, warmup=1, most_seconds=0.0, measured=lambda _, result: result)
    assert found.seconds["a"].tolist() == [11.0, 12.0]  # two at least, for an interval
    assert found.seconds["b"].tolist() == [20.0, 20.0]
