"""Functions of the tests in processes of their own, which start at once.

They are forked from one process that has loaded what takes seconds to load and done nothing else.
"""

import multiprocessing
from collections.abc import Callable

import torch

# None of ours is loaded there: it might be an installed copy, not the files that are tested.
LOADED = ["torch._dynamo", "torch.distributed.fsdp", "pandas", "sklearn.linear_model", "pytest"]


def in_two(work: Callable[..., None], *arguments: object) -> None:
    """``work(rank, *arguments)`` in two processes side by side; what they raise is raised here."""
    multiprocessing.set_forkserver_preload(LOADED)
    torch.multiprocessing.start_processes(work, arguments, nprocs=2, start_method="forkserver")


def exit_code(work: Callable[..., None], *arguments: object) -> int:
    """How a process that did ``work(*arguments)`` ended; minus the number of a signal that ended it."""
    multiprocessing.set_forkserver_preload(LOADED)
    process = multiprocessing.get_context("forkserver").Process(target=work, args=arguments)
    process.start()
    process.join()
    return process.exitcode
