"""The ``star`` command: one sub-command a question, each a thin shell over one library function.

Nothing heavy is imported here, so that ``star --help`` answers at once; a command imports what it needs
when it runs. A ``UserError`` becomes one line and exit code 2.
"""

import signal
import sys

import typer

from cli import bench, data, files, look, probe, reproduce, runs, train
from star.errors import UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Train and dissect autoregressive image models (ST-AR, arXiv 2509.15185).",
    epilog="Start with: star reproduce digits",
)
app.command("reproduce")(reproduce.reproduce)
app.command("train")(train.train)
app.command("watch")(runs.watch)
app.command("plot")(runs.plot)
app.command("probe")(probe.probe)
app.command("attn-maps")(look.attn_maps)
app.command("token-invariance")(look.token_invariance)
app.command("sample")(look.sample)
app.command("tokenize")(data.tokenize)
app.command("inspect")(files.inspect)
app.command("export")(files.export)
app.add_typer(bench.bench, name="bench")


def main() -> None:
    """Run the command line; the console script's entry."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        # A full disk, a read-only folder, a file where a folder should be: the user's to mend.
        what = f"{error.filename}: " if error.filename else ""
        print(f"Error: {what}{error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)


def _terminate(number: int, frame: object) -> None:
    # As an exception, so that temporary files are removed on the way out.
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
