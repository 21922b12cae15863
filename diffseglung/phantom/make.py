"""One digital patient: a chest, its diseases, and the scanner that looked at it."""

from dataclasses import asdict, dataclass

import numpy as np

from ..frozen import frozen
from ..labels import DISEASES, Tissue
from .chest import make_chest
from .effusion import Effusion
from .fields import Frame, Shape, Spacing
from .lesions import Canvas, paint_diseases
from .scanner import draw_scanner, scan

SMALLEST_FOV_MM = 100.0


@frozen
class PhantomConfig:
    """The grid of the digital scans; spacing varies by `spacing_jitter` from scan to scan."""

    size_vox: Shape = (96, 160, 160)
    spacing_mm: Spacing = (2.5, 2.0, 2.0)
    spacing_jitter: float = 0.05

    def __post_init__(self) -> None:
        extent_mm = [n * mm for n, mm in zip(self.size_vox, self.spacing_mm, strict=True)]
        if min(self.spacing_mm) <= 0 or min(extent_mm) < SMALLEST_FOV_MM:
            raise ValueError(
                f"phantom of {self.size_vox} voxels at {self.spacing_mm} mm covers {extent_mm} mm: "
                f"a chest needs {SMALLEST_FOV_MM:.0f} mm or more along each axis"
            )
        if not 0 <= self.spacing_jitter <= 0.3:
            raise ValueError(f"spacing_jitter {self.spacing_jitter} is outside 0 to 0.3")


@dataclass(frozen=True, slots=True)
class Phantom:
    """A digital scan and what is in it; arrays (z, y, x), canonical. Affine: index (z, y, x, 1) to LPS mm.

    `effusion` (bool): fluid beside the lungs, no lung, so not in the truth either.
    """

    hu: np.ndarray
    truth: np.ndarray
    lungs: np.ndarray
    airways: np.ndarray
    vessels: np.ndarray
    effusion: np.ndarray
    spacing_mm: Spacing
    affine: np.ndarray
    story: dict[str, object]


def make_phantom(
    seed: int,
    config: PhantomConfig | None = None,
    *,
    healthy: bool = False,
    kinds: tuple[Tissue, ...] | None = None,
    effusion: Effusion | None = None,
) -> Phantom:
    """A chest CT drawn from a seed: the same seed gives the same bytes, and the same patient when `healthy`.

    kinds: the diseases to paint; drawn (two to four) where not given. hu int16, truth uint8 (`Tissue`:
    vessels and bronchi within lung or lesion carry its label; a cavity is its air and its wall). An effusion
    is poured into the same patient before the diseases come; none is drawn.
    """
    config = config or PhantomConfig()
    patient, disease, table = (np.random.default_rng([seed, stage]) for stage in range(3))
    frame = Frame(config.size_vox, _draw_spacing(table, config))
    if kinds is None:
        kinds = tuple(sorted(disease.choice(DISEASES, disease.integers(2, 5), replace=False)))
    kinds = () if healthy else tuple(Tissue(kind) for kind in kinds)
    chest = make_chest(patient, frame, effusion)
    canvas = Canvas.over(chest.hu, chest.lungs, frame.spacing_mm, airways=chest.airways)
    paint_diseases(canvas, seed, kinds)
    scanner = draw_scanner(table)
    return Phantom(
        hu=scan(table, canvas.hu, frame, scanner),
        truth=canvas.truth,
        lungs=chest.lungs,
        airways=chest.airways,
        vessels=chest.vessels,
        effusion=chest.effusion,
        spacing_mm=frame.spacing_mm,
        affine=_draw_affine(table, frame),
        story={
            "seed": seed,
            "diseases": [tissue.key for tissue in DISEASES if (canvas.truth == tissue).any()],
            "patient": chest.story,
            "scanner": asdict(scanner),
        }
        | ({"effusion": asdict(effusion)} if effusion else {}),
    )


def _draw_spacing(rng: np.random.Generator, config: PhantomConfig) -> Spacing:
    across, through = (1 + config.spacing_jitter * float(way) for way in rng.uniform(-1, 1, 2))
    z_mm, y_mm, x_mm = config.spacing_mm
    return round(z_mm * through, 3), round(y_mm * across, 3), round(x_mm * across, 3)


def _draw_affine(rng: np.random.Generator, frame: Frame) -> np.ndarray:
    """An ordinary table position: the chest near the middle of the gantry, somewhere along the couch."""
    offset_mm = np.array([rng.uniform(-10, 10), rng.uniform(-190, -150) + 160, rng.uniform(-900, 100)])
    z_mm, y_mm, x_mm = frame.spacing_mm
    affine = np.eye(4)
    affine[:3, :3] = [[0, 0, x_mm], [0, y_mm, 0], [z_mm, 0, 0]]
    affine[:3, 3] = offset_mm - frame.extent_mm[::-1] / 2
    return np.round(affine, 3)
