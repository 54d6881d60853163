"""One of two gloo processes, for the tests that compare two with one."""

import contextlib
import os
from pathlib import Path

import torch

from star.parallel import processes as distributed


@contextlib.contextmanager
def one_of_two(rank: int, rendezvous: str, *, sharded: bool = False):
    """This process, started by ``in_two``, as one of two; nothing of the group is left afterwards.

    (Unless sharded: torch caches the mesh, and with it the group.)
    """
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
    distributed.join("cpu", f"file://{rendezvous}")
    assert "gloo_tcp_loop" in threads()
    yield
    distributed.leave()
    assert sharded or not any("gloo" in name for name in threads()), threads()


def threads() -> list[str]:
    """Names of this process's threads."""
    return [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
