"""The ``star`` command: one sub-command a question, each a thin shell over one library function.

Nothing heavy is imported here, so that ``star --help`` answers at once; a command imports what it needs
when it runs. Whatever the user got wrong, in an option or in what it names, becomes one line on stderr
and exit code 2; Ctrl-C becomes 130.
"""

import os
import platform
import signal
import sys
import time
from typing import Any

import typer

from cli import shell
from cli.commands import (
    bench,
    codes,
    data,
    doctor,
    files,
    look,
    probe,
    reproduce,
    runs,
    studies,
    train,
    train_classifier,
    train_tokenizer,
)
from cli.threads import prepare_threads
from star.base.errors import UserError
from star.base.names import shown
from star.base.versions import PACKAGE, installed_version

# typer carries its own copy of click or needs the installed one, by release; its public name for a
# bad value inherits from all mistakes of usage in both.
UsageError: Any = typer.BadParameter.__base__

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Train and dissect autoregressive image models (ST-AR, arXiv 2509.15185).",
    epilog="Start with: star reproduce digits",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("reproduce")(reproduce.reproduce)
app.command("train")(train.train)
app.command("train-tokenizer")(train_tokenizer.train_tokenizer)
app.command("train-classifier")(train_classifier.train_classifier)
app.command("watch")(runs.watch)
app.command("plot")(runs.plot)
app.command("probe")(probe.probe)
for name in studies.STUDIES:
    app.command(name)(studies.command(name))
app.command("sample")(look.sample)
app.command("tokenize")(data.tokenize)
app.command("inspect")(files.inspect)
app.command("export")(files.export)
app.command("doctor")(doctor.doctor)
app.add_typer(bench.bench, name="bench")
app.add_typer(codes.codes, name="codes")


def _print_version(wanted: bool) -> None:
    if wanted:
        torch = installed_version("torch")
        print(f"{PACKAGE} {installed_version()}, Python {platform.python_version()}, torch {torch}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", is_eager=True, callback=_print_version, help="Print versions and leave."
    ),
) -> None:
    """Options of ``star`` itself; its help text is the app's."""


def main() -> None:
    """Run the command line; the console script's entry."""
    shell.prepare()  # may start the program anew, so nothing is set before
    prepare_threads()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = app(sys.argv[1:] or ["--help"], prog_name="star", standalone_mode=False)
        if code == 130:  # how new releases of typer report Ctrl-C
            raise KeyboardInterrupt
        sys.exit(code)
    except UserError as error:
        _refuse(str(error))
    except UsageError as error:
        _refuse(_usage(error.format_message(), error.__cause__))
    except OSError as error:
        # A full disk, a read-only folder, a file where a folder should be: the user's to mend.
        what = f"{error.filename}: " if error.filename else ""
        _refuse(f"{what}{error.strerror or error}")
    except (KeyboardInterrupt, typer.Abort):  # Abort: how old releases of typer report Ctrl-C
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if _out_of_memory(error):
            _refuse(f"out of memory ({_first_line(error)}); ask for less at once, see --help")
        _let_rank_0_speak()
        raise


def _refuse(message: str) -> None:
    _let_rank_0_speak()
    print(f"Error: {shown(message)}", file=sys.stderr)
    sys.exit(2)


def _usage(message: str, cause: BaseException | None) -> str:
    """One line out of typer's mistake of usage: the command, what is wrong, where to look."""
    command = " ".join(["star", *_command_words()])
    message = " ".join(message.split()).removesuffix(".")
    message = message.replace("Value error, ", "")
    # pydantic's, which typer's message leaves out
    given: list[dict[str, Any]] = getattr(cause, "errors", list)()
    if given and repr(given[0]["input"]) not in message:
        message += f" (given: {given[0]['input']!r})"
    return f"{command}: {message[:1].lower()}{message[1:]}; see {command} --help"


def _command_words() -> list[str]:
    """The command that was typed, with that of its group: ["bench", "step"]; [] if there is none."""
    groups = {group.name: group.typer_instance for group in app.registered_groups}
    level: typer.Typer = app
    words: list[str] = []
    for word in sys.argv[1:3]:
        callbacks = (command.name or command.callback for command in level.registered_commands)
        names = {name if isinstance(name, str) else getattr(name, "__name__", "") for name in callbacks}
        group = None if words else groups.get(word)
        if group is not None:
            level = group
        elif word not in names:
            break
        words.append(word)
        if word in names:
            break
    return words


def _out_of_memory(error: Exception) -> bool:
    # By name and text: nothing heavy is imported here, and torch has no type for the CPU's.
    name, text = type(error).__name__, str(error)
    return isinstance(error, MemoryError) or name == "OutOfMemoryError" or "allocate memory" in text


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _let_rank_0_speak() -> None:
    """Under torchrun, leave it to rank 0 to say what went wrong in all processes, or only there.

    torchrun ends this process, within a second, if rank 0 has failed too.
    """
    if int(os.environ.get("RANK", 0)) > 0:
        sys.stdout.flush()
        time.sleep(5)


def _terminate(number: int, frame: object) -> None:
    # As an exception, so that temporary files are removed on the way out; a second signal ends at once.
    signal.signal(number, signal.SIG_DFL)
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
