"""``star probe``: one of two questions, what a probe reads of the class or measures without labels."""

import os
from collections.abc import Callable
from dataclasses import fields
from importlib import import_module

import typer

from cli.commands.studies import answer
from cli.options import with_options
from cli.processes import launch
from cli.threads import computing
from figures.requests import measures, probing
from star.base.errors import UserError
from star.model.config import SIZES

DRY = "Dry run"
OF_MEASURES = """
    --measure takes label-free numbers of the same features instead:
    step_consistency, view_consistency, alignment, uniformity, effective_rank,
    knn, lds, cka, mutual_knn, cknna.
"""


def _described(command: Callable) -> Callable:
    command.__doc__ = f"{(probing.Request.__doc__ or '').rstrip()}\n{OF_MEASURES}"
    return command


@computing("Probing what layers know of the class")
@with_options(probing.Request(), measures.Request())
@_described
def probe(
    given: dict[type, dict],
    nproc: int = typer.Option(1, help="Processes (torchrun); each takes a share of the images."),
    dry_run: bool = typer.Option(
        False, "--dry-run", help="Print sizes, FLOPs and time; do nothing.", rich_help_panel=DRY
    ),
    size: str = typer.Option(
        None, "--preset", help=f"Without a checkpoint: {', '.join(SIZES)}.", rich_help_panel=DRY
    ),
    train_images: int = typer.Option(
        1_281_167, help="Training images, with --preset.", rich_help_panel=DRY
    ),
    tflops: float = typer.Option(None, help="TFLOP/s that one device sustains.", rich_help_panel=DRY),
) -> None:
    measure = given[measures.Request].get("measure") is not None
    _refuse_idle(given, measure, dry_run, size is not None or tflops is not None)
    study = "measures" if measure else "probing"
    request = measures.Request if measure else probing.Request
    asked = request(**given[request])
    if size is not None and asked.ckpts:
        raise UserError("--preset stands in for a checkpoint in a dry run; give one of them")
    from figures.opening import check_out

    check_out(asked.out)
    import_module(f"figures.studies.{study}").check(asked)
    if dry_run and isinstance(asked, probing.Request):
        from cli.terminal.probe_cost import print_probe_costs

        of_probes = probing.Request(**given[probing.Request])
        print_probe_costs(of_probes, size, train_images, processes=nproc, tflops=tflops)
        return
    if nproc != 1:
        launch(nproc, asked.device)
    from cli.terminal.screen import console
    from star.parallel.processes import leave

    console.quiet = int(os.environ.get("RANK", 0)) > 0
    answer(study, asked)
    leave()


def _refuse_idle(given: dict[type, dict], measure: bool, dry_run: bool, for_dry_run: bool) -> None:
    """Refuse options that would have no effect: of the dry run, and of the question not asked."""
    if for_dry_run and not dry_run:
        raise UserError("--preset and --tflops have an effect only with --dry-run")
    if dry_run and measure:
        raise UserError("--dry-run says what probes take; leave out --measure")
    changed = {
        name
        for request, values in given.items()
        for name, value in values.items()
        if value != getattr(request, name)
    }
    of_probing, of_measures = (
        {field.name for field in fields(question)} for question in (probing.Request, measures.Request)
    )
    if not measure and changed - of_probing:
        raise UserError("--encoder, --encoder-weights and --split have an effect only with --measure")
    if measure and changed - of_measures:
        idle = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(changed - of_measures))
        raise UserError(f"--measure uses none of: {idle}; leave them out or probe without --measure")
