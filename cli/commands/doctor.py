"""``star doctor``: is this machine right for star? What a bug report should hold."""

from collections.abc import Iterable, Iterator

import typer

from cli.options import Device


def doctor(
    device: Device = "auto",
    every: bool = typer.Option(False, "--all", help="Self-test on the CPU and on every CUDA device."),
    json_: bool = typer.Option(False, "--json", help="Everything as JSON, for programs."),
) -> None:
    """Examine this machine, from versions to a self-test, in about ten seconds; for bug reports.

    Each line says ok (right), note (to note) or FAIL (wrong), and what to do about the last two. The
    self-test computes known numbers on the device, trains two steps, saves a checkpoint and tokenises
    an image; sums between several processes are not tested. Nothing is left behind. Of the environment
    only variables that matter here are shown, and the home folder is called ~.

    Exit code: 0 if all is right or to note, 1 if a line says FAIL, 2 for a mistake in the options.
    """
    import contextlib
    import json
    import os
    import sys

    from probes.doctor.examination import as_data, examine
    from probes.doctor.lines import FAIL
    from star.base.errors import UserError

    if every and device != "auto":
        raise UserError(f"--all examines every device, --device {device} one: leave one of them out")
    if "RANK" in os.environ:
        raise UserError("star doctor examines one process; start it without torchrun")
    found = examine(device, every=every)
    if json_:
        with contextlib.redirect_stdout(sys.stderr):  # packages may greet on import
            data = as_data(list(found))
        print(json.dumps(data, indent=2))
    else:
        print("star doctor: a bug report should hold all of this", flush=True)
        data = as_data(list(_printed(found)))
        print(f"\n{_summary(data['lines'])}")
    if data["status"] == FAIL:
        raise typer.Exit(1)


def _printed(lines: Iterable) -> Iterator:
    """The same lines, printed as they come, under the names of their sections.

    Without Rich, which may be what is broken.
    """
    section = ""
    for line in lines:
        if line.section != section:
            section = line.section
            print(f"\n{section}")
        print(f"  {line.status:4}  {line.name}: {line.value}", flush=True)
        if line.advice:
            print(f"        {line.advice}", flush=True)
        yield line


def _summary(lines: list[dict]) -> str:
    from probes.doctor.lines import FAIL, NOTE

    statuses = [line["status"] for line in lines]
    wrong, to_note = statuses.count(FAIL), statuses.count(NOTE)
    if not wrong and not to_note:
        return "All is right."
    names = ", ".join(line["name"] for line in lines if line["status"] == FAIL)
    return f"{wrong} wrong{f' ({names})' if wrong else ''}, {to_note} to note, the rest is right."
