"""Two processes with half of each batch are one process with all of it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_distill import DESCRIPTORS, STUDENT, TRAIN, batches

from diffseglung.distill import Distillation, distill, gather
from diffseglung.teacher import Standardiser

WORLD = 2


def started(**changes: Any) -> Distillation:
    rows = np.random.default_rng(0).normal(size=(200, DESCRIPTORS)).astype(np.float32)
    return Distillation(STUDENT, replace(TRAIN, **changes), Standardiser.fit(rows))


def share_of(rank: int) -> Iterator[dict[str, torch.Tensor]]:
    half = TRAIN.batch // WORLD
    for batch in batches(TRAIN.batch):
        yield {name: column[rank * half : (rank + 1) * half] for name, column in batch.items()}


def train_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    run = started()
    wrapped = torch.nn.parallel.DistributedDataParallel(run.network)
    losses = [
        m["distill_loss"] for _, m in distill(run, share_of(rank), forward=wrapped, rank=rank, world=WORLD)
    ]
    torch.save({"losses": losses, **run.network.state_dict()}, f"{folder}/rank{rank}.pt")
    run = started(accumulate=2, variant="none")
    wrapped = torch.nn.parallel.DistributedDataParallel(run.network)
    halves = ({name: c[i : i + 1] for name, c in batch.items()} for batch in share_of(rank) for i in range(2))
    list(distill(run, halves, forward=wrapped, rank=rank, world=WORLD))
    torch.save(run.network.state_dict(), f"{folder}/split{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_end_where_one_process_ends(tmp_path: Path) -> None:
    mp.spawn(train_rank, (str(tmp_path),), nprocs=WORLD)
    alone = started()
    losses = [m["distill_loss"] for _, m in distill(alone, batches(TRAIN.batch))]
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(WORLD)]
    for name, weight in alone.network.state_dict().items():
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        # Sums in another order; Adam's first steps divide by gradients that may be as small as their rounding.
        torch.testing.assert_close(ranks[0][name], weight, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(ranks[0]["losses"], losses, rtol=1e-4)
    assert max(losses) > 0
    # Split once more within each rank: gradients are exchanged once a step, and are the same.
    alone = started(variant="none")
    list(distill(alone, batches(TRAIN.batch)))
    split = [torch.load(tmp_path / f"split{rank}.pt") for rank in range(WORLD)]
    for name, weight in alone.network.state_dict().items():
        assert torch.equal(split[0][name], split[1][name]), name
        torch.testing.assert_close(split[0][name], weight, rtol=1e-3, atol=1e-3)


def meet(process: int, folder: str) -> None:
    """The first process meets the second, which ends, and then the third."""
    torch.set_num_threads(1)
    for other in (1, 2):
        if process in (0, other):
            rank = min(process, 1)
            dist.init_process_group(
                "gloo", init_method=f"file://{folder}/meet{other}", rank=rank, world_size=2
            )
            own = torch.full((1, 2), float(process), requires_grad=True)
            torch.save(gather(own).detach(), f"{folder}/{other}-{rank}.pt")
            dist.destroy_process_group()


def test_a_process_that_meets_another_contrasts_with_that(tmp_path: Path) -> None:
    """A sweep's next trial begins in the process of the one before, with other processes beside it."""
    mp.spawn(meet, (str(tmp_path),), nprocs=3)
    for other in (1, 2):
        for rank in range(2):
            gathered = torch.load(tmp_path / f"{other}-{rank}.pt")
            torch.testing.assert_close(gathered, torch.tensor([[0.0, 0.0], [other, other]]))
