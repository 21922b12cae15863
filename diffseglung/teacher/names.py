"""The 34 descriptors: one table of what each is called, measures and comes from."""

from dataclasses import asdict, dataclass
from typing import Literal

from diffseglung.frozen import frozen
from diffseglung.teacher.kernels import GABOR_DEGREES, GABOR_FREQUENCIES, WIDEST_HU

HARALICK = (
    "Haralick, Shanmugam, Dinstein 1973, symmetric, distance 1, mean over the 13 directions (IBSI ITBB)"
)
OJALA = "Ojala, Pietikainen, Maenpaa 2002, riu2 with 8 neighbours at radius 1"
DAUGMAN = "Daugman 1985, 15 x 15 kernel, sigma 3, made free of a constant part"
PYRADIOMICS = "pyradiomics 3, firstorder"


@dataclass(frozen=True, slots=True)
class Descriptor:
    """One number of a region of lung: its name, family, unit, formula and source."""

    name: str
    family: Literal["hu", "glcm", "lbp", "gabor"]
    unit: str
    formula: str
    source: str


def _hu() -> tuple[Descriptor, ...]:
    rows = (
        ("mean", "HU", "mean(x)", PYRADIOMICS),
        ("sd", "HU", "sqrt(m2), m_k the k-th central moment", PYRADIOMICS),
        ("skewness", "1", "m3 / m2^1.5; 0 where flat", PYRADIOMICS),
        ("kurtosis", "1", "m4 / m2^2, 3 for a normal distribution; 0 where flat", PYRADIOMICS),
        ("entropy", "bit", "-sum p log2 p over 50 equal bins of the clip range", PYRADIOMICS),
    )
    return tuple(Descriptor(f"hu_{name}", "hu", *rest) for name, *rest in rows)


def _glcm() -> tuple[Descriptor, ...]:
    rows = (
        ("contrast", "bin^2", "sum p (i-j)^2"),
        ("dissimilarity", "bin", "sum p |i-j|"),
        ("homogeneity", "1", "sum p / (1 + (i-j)^2)"),
        ("energy", "1", "sqrt(asm)"),
        ("correlation", "1", "1 - contrast / (2 var(i)); 1 where flat"),
        ("asm", "1", "sum p^2"),
    )
    return tuple(Descriptor(f"glcm_{name}", "glcm", unit, formula, HARALICK) for name, unit, formula in rows)


def _lbp() -> tuple[Descriptor, ...]:
    formulas = [f"share of uniform patterns with {ones} of 8 neighbours at or above" for ones in range(9)]
    formulas.append("share of patterns that change more than twice around the circle")
    return tuple(Descriptor(f"lbp_{i}", "lbp", "1", formula, OJALA) for i, formula in enumerate(formulas))


def _gabor() -> tuple[Descriptor, ...]:
    waves = [(f, d) for f in GABOR_FREQUENCIES for d in GABOR_DEGREES]
    rows = tuple(
        Descriptor(
            f"gabor_{f:.2f}_{d}", "gabor", "HU", f"mean |response|, {f} cycles a voxel, {d} deg", DAUGMAN
        )
        for f, d in waves
    )
    return (*rows, Descriptor("gabor_mean", "gabor", "HU", f"mean of the {len(rows)} above", DAUGMAN))


class Teacher(tuple[Descriptor, ...]):
    """The table of descriptors, in the order of the columns of every descriptor array."""

    __slots__ = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The 34 column names."""
        return tuple(row.name for row in self)

    @property
    def table(self) -> list[dict[str, str]]:
        """The rows as plain values: what the schema of patches and every model carry."""
        return [asdict(row) for row in self]

    @property
    def families(self) -> dict[str, slice]:
        """The columns of each family: `descriptors[..., TEACHER.families["glcm"]]`."""
        of = [row.family for row in self]
        return {
            family: slice(of.index(family), of.index(family) + of.count(family))
            for family in dict.fromkeys(of)
        }


TEACHER = Teacher((*_hu(), *_glcm(), *_lbp(), *_gabor()))


@frozen
class TeacherConfig:
    """How the descriptors see the HU: the clip range, the grey levels, and how much lung they need."""

    clip_hu: tuple[int, int] = (-1000, 400)
    entropy_bins: int = 50
    bin_width_hu: int = 25
    bin_origin_hu: int = -1025
    glcm: Literal["3d", "2d"] = "3d"
    """`3d`: 13 directions in the whole region. `2d`: 4 directions in its middle axial slice."""
    min_lung_vox: int = 64
    """A patch with fewer lung voxels has no descriptors."""
    min_lung_fraction: float = 0.1
    """A window with a smaller share of lung has no descriptors."""
    min_evidence_vox: int = 8
    """A window with fewer lung voxels has no HU percentiles."""

    def __post_init__(self) -> None:
        low, high = self.clip_hu
        if not -32768 <= low < high <= 32767:
            raise ValueError(f"clip_hu {self.clip_hu} must be two int16 values, the lower first")
        if high - low > WIDEST_HU:
            raise ValueError(
                f"clip_hu {self.clip_hu} spans {high - low} HU; at most {WIDEST_HU} are compared exactly"
            )
        if self.bin_width_hu < 1 or self.entropy_bins < 1:
            raise ValueError("bin_width_hu and entropy_bins must be at least 1")
        if self.bin_origin_hu > low:
            raise ValueError(
                f"bin_origin_hu {self.bin_origin_hu} lies above the lowest HU, {low}; start the grid below it"
            )
        if self.grey_levels > 255:
            raise ValueError(
                f"bin_width_hu {self.bin_width_hu} makes {self.grey_levels} grey levels; at most 255 fit"
            )
        if self.glcm not in ("3d", "2d"):
            raise ValueError(f"glcm must be '3d' or '2d', not {self.glcm!r}")
        if self.min_lung_vox < 1 or self.min_evidence_vox < 1 or not 0 < self.min_lung_fraction <= 1:
            raise ValueError("min_lung_vox, min_evidence_vox and min_lung_fraction must be above zero")

    @property
    def grey_levels(self) -> int:
        """How many bins the grid has between its origin and the highest HU."""
        return (self.clip_hu[1] - self.bin_origin_hu) // self.bin_width_hu + 1
