"""How close do patches that a model draws come to real ones, by sampler?

Compared with patches of digital patients that the model was not trained on, and drawn for their lungs. A picture of
them goes to `--picture`.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from chain import DEVICE
from record import record

from diffseglung.fidelity import DISTANCES, Patches, fidelity, reconstruction
from diffseglung.generate import sample
from diffseglung.model import Model
from diffseglung.phantom import case_kinds, case_seed, make_phantom
from diffseglung.prepare import prepare_case
from diffseglung.report.training import draw_samples
from diffseglung.volume import Volume
from diffseglung_ray.tracking import ModelNotFound, fetch_model

QUESTION = "How close do patches that the model draws come to real ones, by sampler?"
CASES, SEED = 4, 2  # the demo's test phantoms
WAYS = (("ddpm", None), ("ddim", 25), ("ddim", 100), ("dpm++2", 25), ("dpm++3", 25))


def unseen(model: Model) -> list[Patches]:
    """Patches of each of the digital patients."""
    found = []
    for index in range(CASES):
        kinds = case_kinds(SEED, index)
        phantom = make_phantom(case_seed(SEED, index), healthy=not kinds, kinds=kinds)
        table = prepare_case(
            f"phantom-{index}", Volume.from_array(phantom.hu, phantom.spacing_mm), model.config
        )
        found.append(Patches(*(table[name].combine_chunks().to_numpy_ndarray() for name in ("hu", "lungs"))))
    return found


def together(parts: list[Patches]) -> Patches:
    """All patches of some patients."""
    return Patches(np.concatenate([p.hu for p in parts]), np.concatenate([p.lungs for p in parts]))


def main() -> None:
    """Draw by every sampler and record the scores."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="models:/diffseglung@candidate", help="as jobs/generate.py (the demo's)"
    )
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    try:
        model = Model.load(fetch_model(args.model).path).to(DEVICE)
    except ModelNotFound as error:
        print(f"{error}; `make demo` trains one")
        return
    patients = unseen(model)
    first, second = together(patients[::2]), together(patients[1::2])
    lungs = first.lungs[np.random.default_rng(0).integers(len(first.lungs), size=args.count)] > 0
    shown = [name for name in DISTANCES if name != "fid"]
    lines = [
        "| sampler | steps | " + " | ".join(shown) + " | SD in the lung, HU | s a patch |",
        "|---" * 7 + "|",
    ]
    pictures, floor = [], {}
    for sampler, steps in WAYS:
        began = time.perf_counter()
        drawn = sample(model.student, lungs, 0, steps, sampler)
        seconds = (time.perf_counter() - began) / args.count
        pictures.append(drawn[:2])
        found = fidelity(Patches(drawn, lungs), first, second, config=model.config.teacher)
        floor = {name: found[f"{name}_floor"] for name in shown}
        values = " | ".join(f"{found[name]:.3g}" for name in shown)
        lines.append(
            f"| {sampler} | {steps or 'all'} | {values} | {drawn[lungs].std():.0f} | {seconds:.2f} |"
        )
        print(lines[-1], flush=True)
    real = " | ".join(f"{floor[name]:.3g}" for name in shown)
    lines.append(f"| real against real | | {real} | {first.hu[first.lungs > 0].std():.0f} | |")
    again = reconstruction(model.student, Patches(first.hu[:24], first.lungs[:24]), 0)
    lines += [
        "",
        f"{args.count} patches by a sampler; recipe {model.config.name}, {model.config.train.steps} steps; drawn on "
        f"{DEVICE.type}. " + "; ".join(f"{name}: {DISTANCES[name]}" for name in shown) + ".",
        "",
        f"Real patches with {100 * again['noise_share']:.0f} % of their variance noise, denoised by dpm++2: SSIM "
        f"{again['ssim']:.2f} (noisy {again['ssim_noisy']:.2f}, another real patch {again['ssim_floor']:.2f}), PSNR "
        f"{again['psnr_db']:.1f} dB (noisy {again['psnr_db_noisy']:.1f}, another {again['psnr_db_floor']:.1f}).",
    ]
    record(QUESTION, "\n".join(lines))
    if args.picture:
        draw_samples(args.picture, first.hu[: 2 * len(WAYS)], np.concatenate(pictures))


if __name__ == "__main__":
    main()
