from dataclasses import replace

import numpy as np
import pytest

from diffseglung.cells import Cells, core, describe_cells, evident_voxels
from diffseglung.grid import Grid
from diffseglung.patches import PatchConfig, Scan
from diffseglung.teacher import TEACHER, TeacherConfig
from diffseglung.tissue import EVIDENCE

SHAPE = (16, 24, 24)


def scan() -> Scan:
    """Half of it lung of -850 HU, a vessel through one cell."""
    lungs = np.zeros(SHAPE, bool)
    lungs[:, :, :12] = True
    vessels = np.zeros(SHAPE, bool)
    vessels[4:8, 4:8, 4:6] = True
    noise = np.random.default_rng(0).normal(0, 20, SHAPE)
    hu = np.where(lungs, -850 + noise, 40).astype(np.int16)
    return Scan(hu, lungs, np.zeros(SHAPE, bool), vessels, Grid(SHAPE, np.diag([2.0, 2, 2, 1])))


def described(
    scan: Scan, patches: PatchConfig | None = None, cavities: np.ndarray | None = None, **lattice: bool
) -> Cells:
    """The cells of a scan."""
    patches = patches or PatchConfig()
    return describe_cells(
        scan.hu, evident_voxels(scan, patches, cavities), patches, TeacherConfig(), **lattice
    )


@pytest.fixture(scope="module")
def cells():
    return described(scan())


def test_a_cell_is_four_voxels_wide(cells):
    assert cells.evidence.shape == (4, 6, 6, len(EVIDENCE))
    assert cells.descriptors.shape == (4, 6, 6, len(TEACHER.names))


def test_cells_between_are_centred_on_the_corners_of_the_others(cells):
    """As those of the same scan that begins half a cell further on."""
    between = described(scan(), between=True)
    assert between.evidence.shape == (5, 7, 7, len(EVIDENCE))
    whole, cut = scan(), (slice(2, 14), slice(2, 22), slice(2, 22))
    moved = replace(whole, hu=whole.hu[cut], lungs=whole.lungs[cut], vessels=whole.vessels[cut])
    known = described(moved, PatchConfig(thick_mm=0))
    inner = described(whole, PatchConfig(thick_mm=0), between=True)
    # Their windows and all that the filters see of them lie inside both.
    assert np.array_equal(inner.evidence[2, 3, 2, :5], known.evidence[1, 2, 1, :5])
    assert not np.array_equal(inner.evidence[2, 3, 2], cells.evidence[2, 3, 2])


def test_only_cells_with_lung_are_inside(cells):
    assert cells.inside[:, :, :3].all()
    assert not cells.inside[:, :, 3:].any()


def test_the_median_is_that_of_the_lung_beside_dense_tissue(cells):
    rim = cells.evidence[:, :, 2, EVIDENCE.index("p50_hu")]  # its window reaches into the wall
    assert rim == pytest.approx(-850, abs=10)  # noise of 20 HU over hundreds of voxels, bins of 25 HU


def test_a_vessel_says_nothing_of_the_lung_around_it(cells):
    bright = scan()
    bright.hu[bright.vessels] = 40
    known = described(bright)
    assert np.array_equal(known.evidence, cells.evidence, equal_nan=True)
    assert np.array_equal(known.descriptors, cells.descriptors, equal_nan=True)
    missed = described(replace(bright, vessels=np.zeros(SHAPE, bool)))
    sd, around = TEACHER.names.index("hu_sd"), (1, 1, 1)
    assert missed.descriptors[around][sd] > 5 * cells.descriptors[around][sd]


def test_a_cavity_says_nothing_of_its_surroundings():
    """Without its wall the lung around is as it was, and cells of nothing else are not judged."""
    with_wall, cavity = scan(), np.zeros(SHAPE, bool)
    cavity[4:12, 8:16, :6] = True
    with_wall.hu[cavity] = 40
    blind = described(with_wall)
    knowing = described(with_wall, cavities=cavity)
    p90 = EVIDENCE.index("p90_hu")
    beside = (0, 2, 0)
    assert blind.evidence[beside][p90] > -200
    assert knowing.evidence[beside][p90] < -750
    assert blind.inside[1, 2, 0]
    assert not knowing.inside[1, 2, 0]


def test_a_wedge_too_narrow_to_be_judged_is_left_out_and_the_lung_beside_it_stays():
    lungs = np.zeros((24, 40, 40), bool)
    lungs[2:22, 2:22, 2:38] = True
    lungs[2:22, 22:36, 4:8] = True  # 8 mm wide, 28 mm deep
    judged = core(lungs, PatchConfig(thick_mm=12))
    assert not judged[:, 26:].any()
    assert judged[3:21, 4:20, 4:36].mean() > 0.97  # all but edges that a ball cannot reach
    assert core(lungs, PatchConfig(thick_mm=0))[10, 30, 5]
    assert core(lungs, PatchConfig(thick_mm=120)).any()  # lungs of a mouse: nothing is thick, all is judged
