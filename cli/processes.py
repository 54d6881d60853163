"""Start this very command in several processes, through torchrun, and end with their exit code."""

import logging
import os
import sys

from cli.threads import share_cores
from star.base.errors import UserError

__all__ = ["launch"]


def launch(processes: int, device: str) -> None:
    """Run the present command line without ``--nproc`` in ``processes`` processes; does not return.

    torchrun ends the others within seconds when one dies. Raises ``UserError`` before any is started
    if this machine has no ``device`` for each.
    """
    if processes < 1:
        raise UserError(f"nproc is {processes}; expected at least 1")
    if "RANK" in os.environ:
        raise UserError("--nproc starts torchrun itself; under torchrun leave it out")
    from star.base.device import require_devices

    require_devices(device, processes)
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    share_cores(processes)
    # The process that failed has said why; torchrun's own account of it would be a second one.
    logging.getLogger("torch.distributed.elastic.multiprocessing").setLevel(logging.CRITICAL)
    options = ["--standalone", "--nproc-per-node", str(processes), "-m", "--", "cli.main"]
    try:
        torchrun([*options, *_without_nproc(sys.argv[1:])])
    except ChildFailedError as error:
        _, first = error.get_first_failure()  # the others were ended because of it
        if first.exitcode > 0:
            sys.exit(first.exitcode)
        print(
            f"Error: process {first.local_rank} was ended by signal {-first.exitcode}", file=sys.stderr
        )
        sys.exit(128 - first.exitcode)
    except SignalException as stopped:
        sys.exit(128 + stopped.sigval)
    sys.exit(0)


def _without_nproc(arguments: list[str]) -> list[str]:
    kept, skip = [], False
    for argument in arguments:
        if skip or argument.startswith("--nproc="):
            skip = False
        elif argument == "--nproc":
            skip = True
        else:
            kept.append(argument)
    return kept
