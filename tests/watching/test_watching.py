"""Watching a run: text curves, the view in 80 columns, ``star watch``, ``star plot`` and trackers."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import TINY, refused
from rich.console import Console

from cli import tracking
from cli.terminal import training as training_view
from cli.terminal.curves import braille_curve
from cli.terminal.training import (
    TrainingView,
    clock,
    collapse_warning,
    overview,
    row_line,
    seconds_left,
)
from star.base.errors import UserError
from star.base.settings import config_to_dict
from star.runs.metrics import read_metrics
from star.tokenizer.config import TokenizerConfig
from star.training.config import preset

ROOT = Path(__file__).parents[2]


def a_row(step, **more):
    return {
        "step": step, "ar": 5.0 - step / 100, "mim": 0.05, "step_contrast": 2.3, "view_contrast": 2.4,
        "loss": 6.5 - step / 100, "lr": 1e-3, "grad_norm": 1.5, "sequences_per_second": 128.0,
        "peak_memory_bytes": 10**9, **more,
    }  # fmt: skip


def diagnosed(step, collapsed=False):
    numbers = {"knn_acc": 0.25 + step / 400, "effective_rank": 1.06, "image_cosine": 0.99998}
    steps = {f"knn_acc_step_{8 * k}": 0.5 for k in range(1, 9)}
    return a_row(step, val_nll=5.0, **numbers, **steps, collapsed=collapsed, grad_cos_ar_mim=-0.5)


def run_folder(path, rows, max_steps=100):
    config = config_to_dict(preset("tiny")) | {"max_steps": max_steps}
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def dots(lines):
    """The (row, column) of every dot, from the Unicode definition of braille patterns."""
    order = [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (3, 0), (3, 1)]
    found = set()
    for y, line in enumerate(lines):
        for x, character in enumerate(line):
            bits = 0 if character == " " else ord(character) - 0x2800
            found |= {(4 * y + r, 2 * x + c) for bit, (r, c) in enumerate(order) if bits >> bit & 1}
    return found


def test_a_straight_line_in_braille():
    falling = braille_curve([(0, 8.0), (7, 1.0)], 4, 2)
    assert [len(line) for line in falling] == [4, 4]
    assert dots(falling) == {(i, i) for i in range(8)}
    rising = braille_curve([(0, 0.0), (1, 1.0)], 4, 2)
    assert dots(rising) == {(7 - i, i) for i in range(8)}
    assert dots(braille_curve([(3, 2.0), (9, 2.0)], 2, 1)) == {(2, column) for column in range(4)}


def test_a_steep_line_has_no_gaps_and_crowded_points_are_averaged():
    spike = braille_curve([(0, 0.0), (1, 8.0), (2, 0.0), (3, 0.0)], 2, 2)
    assert {column for _, column in dots(spike)} == {0, 1, 2, 3}
    assert {row for row, _ in dots(spike)} == set(range(8))
    crowded = [(x, (-1) ** x * 1.0) for x in range(1000)] + [(1000, 500.0)]
    assert {row for row, column in dots(braille_curve(crowded, 10, 2)) if column < 18} == {7}
    assert dots(braille_curve([(5, 3.0)], 3, 1)) == {(2, 0)}
    assert dots(braille_curve([], 3, 1)) == set()


def printed(view, width=80, encoding="utf-8"):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    console = Console(file=file, width=width, force_terminal=True, color_system=None)
    training_view.console, before = console, training_view.console
    try:
        console.print(view())
    finally:
        training_view.console = before
    file.seek(0)
    return file.read().splitlines()


def test_the_view_fits_80_columns_and_leaves_nothing_out():
    rows = [a_row(step) for step in range(249_990, 250_000)] + [diagnosed(250_000)]
    lines = printed(lambda: overview("runs/" + "x" * 100, rows, 250_200, "2:01:05 left"))
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for part in ("step 250000/250200 (99 %), 2:01:05 left", "L_view", "val NLL", "kNN", "seq/s"):
        assert part in text, part
    table = [line.split() for line in lines if line.strip().startswith("2")]
    assert len(table) == 10 and table[-1][0] == "250000" and table[0][0] == "249991"
    assert len(lines) <= 24, "a terminal of 24 lines"


def test_columns_that_a_run_does_not_have_are_left_out():
    plain = {"step": 1, "loss": 5.0, "ar": 5.0, "sequences_per_second": 10.0}
    text = "\n".join(printed(lambda: overview("r", [plain], 10, "0:09 left")))
    assert "L_AR" in text and "L_MIM" not in text and "val NLL" not in text
    assert "no row yet" in "\n".join(printed(lambda: overview("r", [], 10, "no row yet")))


def sampled(step, n=100, **worth):
    numbers = {"cond_acc": 0.2843, "cond_acc_student": 0.31, "cond_n": n, **worth}
    return diagnosed(step) | numbers


WORTH = {"cond_acc_real": 0.8291, "cond_acc_redrawn": 0.7629}


def test_classes_seen_in_samples_are_a_column_and_a_line(capsys):
    odd = {"ar": 6.9312, "mim": 0.03834, "step_contrast": 1.364, "view_contrast": 1.849}
    odd |= {"loss": 7.7512, "val_nll": 5.1234, "knn_acc": 0.2714, "sequences_per_second": 69.93}
    rows = [a_row(249_999) | odd, sampled(250_000, 2000, **WORTH) | odd]
    lines = printed(lambda: overview("r", rows, 250_200, "2:01:05 left"))
    assert max(map(len, lines)) <= 80 and len(lines) <= 24
    table = [line.split() for line in lines if line.startswith("2")]
    heading = next(line.split() for line in lines if "L_AR" in line)
    assert "…" not in "".join(map("".join, [heading, *table]))
    assert heading[-3:] == ["kNN", "class", "seq/s"]
    assert table[-1][-3:] == ["0.2714", "0.2843", "69.93"]
    seen = "class seen: teacher 0.284, student 0.310 of 2000 (real 0.829, redrawn 0.763)"
    assert seen in lines
    later = printed(lambda: overview("r", [*rows, a_row(250_001)], 250_200, ""))
    assert seen in later, "the newest there are"
    unknown = printed(lambda: overview("r", [sampled(3)], 10, ""))
    assert "class seen: teacher 0.284, student 0.310 of 100" in unknown
    plain = "\n".join(printed(lambda: overview("r", [diagnosed(3)], 10, "")))
    assert "class" not in plain
    line = row_line(sampled(3, **WORTH), 10, "0:01")
    assert "cond_acc 0.2843  cond_acc_student 0.31  cond_n 100  cond_acc_real 0.8291" in line


def test_a_terminal_without_braille_gets_no_curves():
    rows = [diagnosed(1), diagnosed(2)]
    assert any("→" in line for line in printed(lambda: overview("r", rows, 10, "")))
    plain = printed(lambda: overview("r", rows, 10, ""), encoding="ascii")
    assert not any("→" in line for line in plain) and any("val NLL" in line for line in plain)


def test_the_warning_is_shown_until_a_diagnosis_takes_it_back():
    collapsed = [diagnosed(10, collapsed=True), a_row(11)]
    assert "rank 1.06, cosine between images 1.0000" in collapse_warning(collapsed[0])
    text = " ".join(printed(lambda: overview("r", collapsed, 100, "")))
    assert "warning: features collapsed at step 10" in text
    text = " ".join(printed(lambda: overview("r", [*collapsed, diagnosed(20)], 100, "")))
    assert "warning" not in text
    assert collapse_warning(a_row(3)) is None


def test_a_row_as_a_line():
    line = row_line(diagnosed(20), 100, "0:10")
    assert line.startswith("step 20/100  ar 4.8  mim 0.05  step_contrast 2.3")
    assert "knn_acc 0.3" in line and line.endswith("left 0:10")
    for hidden in ("knn_acc_step", "grad_cos", "collapsed", "peak_memory", "step 20  "):
        assert hidden not in line


def test_time_left():
    rows = [a_row(step) for step in range(1, 11)]
    config = replace(preset("tiny"), max_steps=100)
    assert seconds_left(rows, config) == 90 * config.batch_size * 2 / 128
    assert seconds_left([], config) is None
    rows = [{"step": step, "steps_per_second": 4.0} for step in range(1, 11)]
    assert seconds_left(rows, TokenizerConfig(max_steps=100)) == 90 / 4
    assert (clock(65), clock(7265)) == ("1:05", "2:01:05")


def test_the_training_view_prints_lines_into_a_pipe(capsys):
    view = TrainingView("r", 100, [a_row(9)])
    with view.shown():
        view(a_row(10))
        view(diagnosed(20, collapsed=True))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:2]] == [["step", "10/100"], ["step", "20/100"]]
    assert lines[2].startswith("warning: features collapsed at step 20") and len(lines) == 3


def test_watch_once_shows_the_newest_run(star, tmp_path):
    run_folder(tmp_path / "runs" / "old", [a_row(1)])
    os.utime(tmp_path / "runs" / "old" / "metrics.jsonl", (1, 1))
    run_folder(tmp_path / "runs" / "new", [a_row(1), diagnosed(40, collapsed=True)])
    code, out, err = star("watch", "--once")
    assert code == 0, err
    assert "runs/new" in out and "step 40/100 (40 %), about 0:30 left" in out  # 60 x 64 / 128
    assert "warning: features collapsed at step 40" in out


def test_watch_follows_a_run_to_its_end(star, tmp_path):
    run = run_folder(tmp_path / "r", [a_row(step) for step in range(1, 31)], max_steps=32)

    def train():
        time.sleep(0.3)
        with open(run / "metrics.jsonl", "a") as file:
            file.write(json.dumps(a_row(31)) + "\n" + '{"step": 3')
            file.flush()
            time.sleep(0.3)
            file.write('2, "loss": 6.0, "sequences_per_second": 1.0}\n')

    writer = threading.Thread(target=train)
    writer.start()
    code, out, err = star("watch", run, "--every", "0.05")
    writer.join()
    assert code == 0, err
    steps = [line.split()[1] for line in out.splitlines()]
    assert steps == [f"{step}/32" for step in range(21, 33)], "the newest ten, then each new one"


def test_watch_refusals(star, tmp_path):
    assert refused(star("watch"), "there is no run below runs/")
    assert refused(star("watch", "nothing"), "there is no run in nothing")
    assert refused(star("watch", "--every", "0"), "every is 0.0")


def test_ctrl_c_ends_watching(tmp_path):
    run = run_folder(tmp_path / "r", [a_row(1)])
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "watch", str(run)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline().startswith("step 1/100")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130 and "Traceback" not in err


def test_plot_draws_runs_and_counts_lines_it_cannot_read(star, tmp_path):
    rows = [diagnosed(step) for step in range(10, 60, 10)]
    first = run_folder(tmp_path / "runs" / "a", rows)
    with open(first / "metrics.jsonl", "a") as file:
        file.write('{"step": 60, "lo\n\nnot json\n')
    code, out, err = star("plot", first)
    assert code == 0, err
    assert "2 lines cannot be read" in out and "runs/a/plot: training.png" in out.replace("\n", "")
    for name in ("training.png", "training.pdf"):
        assert (first / "plot" / name).stat().st_size > 5000
    run_folder(tmp_path / "other" / "a", rows)
    code, out, err = star("plot", first, "other/a")
    assert code == 0 and "written to plot: training.png, training.pdf" in out, (out, err)


def test_plot_names_runs_by_objective_and_folder(tmp_path):
    from cli.commands.runs import _names

    folders = [run_folder(tmp_path / name, []) for name in ("x/a", "y/a", "b")]
    config = json.loads((folders[2] / "config.json").read_text())
    config["objective"] |= {"mim_weight": 0.0, "contrast_weight": 0.0}
    (folders[2] / "config.json").write_text(json.dumps(config))
    (tmp_path / "foreign").mkdir()
    assert _names([*folders, tmp_path / "foreign"]) == [
        f"ST-AR, {folders[0]}", f"ST-AR, {folders[1]}", "AR, b", "foreign",
    ]  # fmt: skip


def test_plot_refusals(star, tmp_path):
    assert refused(star("plot", "nothing"), "no such run folder")
    (tmp_path / "empty").mkdir()
    assert refused(star("plot", "empty"), "it holds no metrics.jsonl")
    run_folder(tmp_path / "r", [])
    assert refused(star("plot", "r"), "r/metrics.jsonl has no rows yet")
    (tmp_path / "r" / "metrics.jsonl").write_text('{"step": 1, "other": 2}\n')
    assert refused(star("plot", "r"), "none of the columns")
    assert not (tmp_path / "r" / "plot").exists()


def test_reading_metrics_skips_what_is_no_row(tmp_path):
    run = run_folder(tmp_path / "r", [a_row(1)])
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(b'[1]\n{"loss": 2}\n\xff\xfe\n' + json.dumps(a_row(2)).encode())
    rows, garbled = read_metrics(run)
    assert [row["step"] for row in rows] == [1, 2] and garbled == 3


class FakeWriter:
    """The three calls of torch's SummaryWriter that we make."""

    def __init__(self, folder, purge_step):
        self.folder, self.purge_step, self.scalars = folder, purge_step, {}

    def add_scalar(self, name, value, step):
        self.scalars[name, step] = value

    def flush(self):
        self.flushed = True

    def close(self):
        self.closed = True


def test_tensorboard_gets_every_number_of_a_row(tmp_path, monkeypatch):
    fake = SimpleNamespace(SummaryWriter=FakeWriter)
    monkeypatch.setattr(tracking.importlib, "import_module", lambda name: fake)
    tracker = tracking.TensorBoard()
    tracker.start(tmp_path, preset("tiny"), 7)
    tracker(diagnosed(10, collapsed=True))
    tracker.close()
    writer = tracker._writer
    assert writer.folder == tmp_path / "tensorboard" and writer.purge_step == 8
    assert writer.flushed and writer.closed
    assert writer.scalars["knn_acc", 10] == 0.275 and writer.scalars["collapsed", 10] == 1.0
    assert len(writer.scalars) == len(diagnosed(10)) - 1


def test_tensorboard_itself_reads_what_was_written(star, tmp_path, digit_folder, tokenizer_file):
    pytest.importorskip("tensorboard", reason="the optional tracker is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    data = ("--data", digit_folder, "--tokenizer", tokenizer_file)
    options = ("--run", "r", *TINY, "--track", "tensorboard", "--stop-after", "2", "--save-every", "3")
    code, _, err = star("train", *data, *options)
    assert code == 0, err
    code, _, err = star("train", "--resume", "r", "--track", "tensorboard")
    assert code == 0, err
    events = EventAccumulator(str(tmp_path / "r" / "tensorboard")).Reload()
    rows, _ = read_metrics(tmp_path / "r")
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    # TensorBoard stores float32.
    assert found == [(row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in rows]
    assert [step for step, _ in found] == [1, 2, 3, 4]


class FakeWandB:
    """The calls of the wandb package that we make: init, and log and finish of the run it returns."""

    Error = type("Error", (Exception,), {})

    def __init__(self, problem=None):
        self.problem, self.rows, self.finished = problem, [], 0

    def init(self, **options):
        if self.problem:
            raise self.Error(self.problem)
        self.options = options
        return self

    def log(self, row, step):
        self.rows.append((step, row))

    def finish(self):
        self.finished += 1


def test_wandb_goes_on_with_the_same_run(tmp_path, monkeypatch):
    ids = []
    for step in (1, 2):
        fake = FakeWandB()
        monkeypatch.setitem(sys.modules, "wandb", fake)
        tracker = tracking.WandB()
        tracker.start(tmp_path, preset("tiny"), step)
        tracker(a_row(step))
        tracker.close()
        assert fake.rows == [(step, {k: v for k, v in a_row(step).items() if k != "step"})]
        assert fake.finished == 1 and fake.options["resume"] == "allow"
        assert fake.options["config"]["objective"]["mask_ratio"] == 0.25
        assert fake.options["dir"] == str(tmp_path) and "mode" not in fake.options
        ids.append(fake.options["id"])
    assert ids[0] == ids[1] and len(ids[0]) == 8


def test_wandb_that_cannot_start_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", FakeWandB("No API key configured.\nsecond line"))
    with pytest.raises(UserError, match=r"\(No API key configured\.\); run wandb login") as caught:
        tracking.WandB().start(tmp_path, preset("tiny"), 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_tracker_is_refused_before_anything_happens(star, tmp_path, monkeypatch, name):
    for module in (name, "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)  # importing it raises ImportError
    assert refused(star("train", "--track", name, "--run", "r"), f"pip install {name}")
    assert list(tmp_path.iterdir()) == []


def test_train_diagnoses_and_says_so(star, tmp_path, digit_folder, tokenizer_file):
    data = ("--data", digit_folder, "--tokenizer", tokenizer_file)
    code, out, err = star("train", *data, "--run", "r", *TINY, "--diagnose-every", "2")
    assert code == 0, err
    rows, _ = read_metrics(tmp_path / "r")
    assert [row["step"] for row in rows if "knn_acc" in row] == [2, 4]
    assert out.count("effective_rank") == 2 and "knn_acc_step_64" in rows[-1]
    star("train", *data, "--run", "off", *TINY, "--diagnose-every", "0")
    assert not any("knn_acc" in row for row in read_metrics(tmp_path / "off")[0])
