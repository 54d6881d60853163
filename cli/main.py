"""The ``star`` command: one sub-command a question, each a thin shell over one library function.

Nothing heavy is imported here, so that ``star --help`` answers at once; a command imports what it needs
when it runs. A ``UserError`` becomes one line and exit code 2.
"""

import sys

import typer

from cli import data, look, probe, reproduce, train
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
app.command("probe")(probe.probe)
app.command("attn-maps")(look.attn_maps)
app.command("token-invariance")(look.token_invariance)
app.command("sample")(look.sample)
app.command("tokenize")(data.tokenize)


def main() -> None:
    """Run the command line; the console script's entry."""
    try:
        app()
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
