"""The training loop with nothing of Ray around it: what Ray Train is compared with in `training.py`.

    torchrun --standalone --nproc-per-node 1 benchmarks/train_plain.py --workspace work --recipe demo

Prints a line of JSON: patches per second after the first steps, share of time waiting for data, peak MiB.
"""

import argparse
import json
import os
import resource
from itertools import count

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from diffseglung.distill import Distillation, distill
from diffseglung_ray.config import load_config
from diffseglung_ray.training_process import COLUMNS, fit_to, in_memory
from diffseglung_ray.workspace import fit_standardiser, open_workspace

FIRST = 10  # steps that are not counted


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workspace", required=True, help="what jobs/prepare.py left")
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each process")
    args = parser.parse_args()
    rank, world = (
        int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"))
    )
    torch.set_num_threads(args.threads)
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_gpu else torch.device("cpu")
    if world > 1:
        dist.init_process_group("nccl" if on_gpu else "gloo")
    config = load_config(args.recipe, None, args.set)
    workspace = open_workspace(args.workspace, config.method)
    train = fit_to(config.train, world)
    run = Distillation(config.student, train, fit_standardiser(workspace, config.method), device)
    forward = DistributedDataParallel(run.network) if world > 1 else run.network
    epoch_of = in_memory(workspace.share(COLUMNS, rank, world), train.micro_batch(world))
    batches = (batch for epoch in count() for batch in epoch_of(train.seed + epoch))
    seen = [metrics for _, metrics in distill(run, batches, forward=forward, rank=rank, world=world)][FIRST:]
    if rank == 0:
        print(json.dumps(summary(seen, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)))
    if world > 1:
        dist.destroy_process_group()


def summary(seen: list[dict[str, float]], peak_mib: float) -> dict[str, float]:
    """Patches a second over all steps (the harmonic mean), share of waiting for data, memory."""
    seconds = np.array([1 / metrics["patches_per_s"] for metrics in seen])
    waits = np.array([metrics["data_wait_share"] for metrics in seen])
    return {
        "patches_per_s": float(1 / seconds.mean()),
        "data_wait_share": float((waits * seconds).sum() / seconds.sum()),
        "peak_mib": peak_mib,
    }


if __name__ == "__main__":
    main()
