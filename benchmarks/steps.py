"""What does a training step cost on this machine: in which precision and layout, as it is and compiled, split or whole?

One process, the recipe's network on made-up patches, the ways in turns; processor time, so that what else the
machine does counts less. Losses are compared with those of the first way, step by step.
"""

import argparse
import time
from dataclasses import replace
from itertools import islice, repeat

import numpy as np
import torch
from record import record

from diffseglung.config import Config, recipe
from diffseglung.distill import Batch, Distillation, distill
from diffseglung.teacher import TEACHER, Standardiser

QUESTION = "What does a training step cost: in which precision and layout, compiled, split?"
CHANNELS_FIRST = "float32, channels first"
WAYS: dict[str, dict] = {
    "float32": {},
    CHANNELS_FIRST: {},
    "bfloat16": {"precision": "bfloat16"},
    "float32, accumulate 2": {"accumulate": 2},
    "float32, compiled": {"compile": True},
    "bfloat16, compiled": {"compile": True, "precision": "bfloat16"},
}


def made_up(config: Config, size: int) -> Batch:
    """Noise in the shape of patches: the arithmetic does not care."""
    rng = np.random.default_rng(0)
    shape = config.patches.size_vox
    positions = tuple(n // config.student.stride_vox for n in shape)
    return {
        "hu": torch.from_numpy(rng.normal(-800, 100, (size, *shape)).astype(np.int16)),
        "lungs": torch.ones(size, *shape, dtype=torch.uint8),
        "teacher": torch.from_numpy(rng.normal(size=(size, len(TEACHER))).astype(np.float32)),
        "teacher_local": torch.from_numpy(
            rng.normal(size=(size, *positions, len(TEACHER))).astype(np.float32)
        ),
    }


def main() -> None:
    """Take steps in turns and record the medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--steps", type=int, default=12, help="of each way; the first two are not counted")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = recipe(args.recipe)
    train = replace(config.train, steps=args.steps, warmup=(0, 0))
    standardiser = Standardiser.fit(np.random.default_rng(1).normal(size=(100, len(TEACHER))))
    seconds: dict[str, list[float]] = {}
    losses: dict[str, list[float]] = {}
    loops = {}
    for way, changes in WAYS.items():
        own = replace(train, **changes)
        size = own.micro_batch(1)
        whole = made_up(config, own.batch)
        parts = [{k: v[i : i + size] for k, v in whole.items()} for i in range(0, own.batch, size)]
        run = Distillation(config.student, own, standardiser)
        if way == CHANNELS_FIRST:
            run.network.to(memory_format=torch.contiguous_format)
        loops[way] = distill(run, (p for ps in repeat(parts) for p in ps))
        seconds[way], losses[way] = [], []
    first = {}
    for step in range(args.steps):
        for way in list(loops):
            began = time.process_time()
            try:
                (_, metrics) = next(islice(loops[way], 1))
            except Exception as error:
                if step:
                    raise
                print(f"{way} does not run here: {type(error).__name__}: {str(error).splitlines()[0]}")
                del loops[way]
                continue
            took = time.process_time() - began
            if step == 0:
                first[way] = took
            elif step > 1:
                seconds[way].append(took)
            losses[way].append(metrics["loss"])
        print(step, {way: round(found[-1], 3) for way, found in seconds.items() if found}, flush=True)
    base, reference = np.median(seconds["float32"]), np.array(losses["float32"])  # channels last, as we train
    lines = [
        "| way | CPU-s a step | times float32 | first step, CPU-s | loss apart, at most |",
        "|---|---|---|---|---|",
    ]
    for way in loops:
        apart = np.abs(np.array(losses[way]) / reference - 1).max()
        median = np.median(seconds[way])
        lines.append(
            f"| {way} | {median:.3f} | {median / base:.2f} | {first[way]:.1f} | {100 * apart:.2f} % |"
        )
    lines += [
        "",
        f"Recipe {args.recipe}, batch {train.batch}, {args.threads} thread, torch {torch.__version__}; median of "
        f"{args.steps - 2} steps. A split batch is contrasted in parts, so its loss is another one.",
    ]
    lines += [f"{way}: does not run here." for way in WAYS if way not in loops]
    record(QUESTION, "\n".join(lines))


if __name__ == "__main__":
    main()
