"""The radiomic teacher: its numbers are the libraries', its windows are its patches, and it is quick to start."""

import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from diffseglung.patches import PatchConfig, cut, sample_corners
from diffseglung.teacher import (
    EVIDENCE,
    TEACHER,
    Standardiser,
    TeacherConfig,
    describe_patches,
    describe_windows,
    flip_batch,
    flipped_columns,
    hollow,
    kernels,
    window_evidence,
)
from diffseglung.volume import read_labels, read_volume

# International Biomarker Standardisation Initiative, reference manual v11, digital phantom: (z, y, x), 0 outside.
IBSI_PHANTOM = np.array(
    [
        [[1, 4, 4, 1, 1], [1, 4, 6, 1, 1], [4, 1, 6, 4, 1], [4, 4, 6, 4, 1]],
        [[1, 4, 4, 1, 1], [1, 1, 6, 1, 1], [0, 1, 3, 1, 1], [4, 4, 6, 1, 1]],
        [[1, 4, 4, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 1, 1], [1, 1, 6, 1, 1]],
        [[1, 4, 4, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 6, 1, 1]],
    ],
    dtype=np.int16,
)
# Its reference values to three digits, texture as "3D averaged"; IBSI counts kurtosis from 3 of a normal distribution.
IBSI_VALUES = {
    "hu_mean": 2.15,
    "hu_sd": np.sqrt(3.05),
    "hu_skewness": 1.08,
    "hu_kurtosis": -0.355 + 3,
    "hu_entropy": 1.27,
    "glcm_contrast": 5.32,
    "glcm_dissimilarity": 1.43,
    "glcm_homogeneity": 0.618,
    "glcm_correlation": 0.157,
    "glcm_asm": 0.303,
}


def noise_patches(count: int, shape: tuple[int, int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Patches of coloured noise around -820 HU, cut below -1000, with ragged lungs."""
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.normal(size=(count, *shape)), (0, 1, 1, 1))
    hu = -820 + field / field.std() * rng.uniform(40, 200, (count, 1, 1, 1))
    lungs = gaussian_filter(rng.normal(size=(count, *shape)), (0, 4, 4, 4)) > -0.02
    return hu.round().astype(np.int16), lungs


def column(name: str) -> int:
    return TEACHER.names.index(name)


def test_the_table_names_34_descriptors_in_four_families():
    assert len(TEACHER) == len(set(TEACHER.names)) == 34
    sizes = {family: columns.stop - columns.start for family, columns in TEACHER.families.items()}
    assert sizes == {"hu": 5, "glcm": 6, "lbp": 10, "gabor": 13}
    assert all(row.unit and row.formula and row.source for row in TEACHER)


def test_the_compiled_columns_are_those_of_the_table():
    starts = [columns.start for columns in TEACHER.families.values()]
    assert starts == [kernels.HU, kernels.GLCM, kernels.LBP, kernels.GABOR]
    assert len(TEACHER) == kernels.COLUMNS


@pytest.mark.parametrize("glcm", ["3d", "2d"])
def test_both_backends_agree_feature_by_feature(glcm, record_property):
    config = TeacherConfig(glcm=glcm)
    hu, lungs = noise_patches(6, (20, 24, 28))
    hu[0, :, :12] = -1024  # A flat bulla: many exact ties.
    ours, theirs = (describe_patches(hu, lungs, config, backend=b) for b in ("batched", "pyradiomics"))
    # 1e-9 beside the relative part: a pattern that never occurs is 0 in both.
    error = (np.abs(ours - theirs) / (np.abs(theirs) + 1e-9)).max(axis=0)
    said = f"noise, {glcm}: worst of {ours.size} numbers: {TEACHER.names[error.argmax()]}, {error.max():.1e}"
    record_property("measured", said)
    assert np.isfinite(ours).all()
    assert error.max() < 1e-5


def test_the_ibsi_phantom_has_its_reference_values(record_property):
    config = TeacherConfig(clip_hu=(1, 6), bin_width_hu=1, bin_origin_hu=1, min_lung_vox=1)
    for backend in ("batched", "pyradiomics"):
        row = describe_patches(IBSI_PHANTOM[None], IBSI_PHANTOM[None] > 0, config, backend=backend)[0]
        error = {name: abs(row[column(name)] / value - 1) for name, value in IBSI_VALUES.items()}
        worst = max(error, key=error.__getitem__)
        said = f"{backend}: {len(error)} IBSI values, worst {worst}, off by {error[worst]:.1e}"
        record_property("measured", said)
        # The manual gives three digits.
        assert error[worst] < 5e-3
        assert row[column("glcm_energy")] == pytest.approx(np.sqrt(row[column("glcm_asm")]))


def agreement(hu: np.ndarray, lungs: np.ndarray) -> str:
    """Both backends say the same of patches, each feature to 1e-5: which is the worst."""
    ours, theirs = (describe_patches(hu, lungs, backend=b) for b in ("batched", "pyradiomics"))
    # 1e-9 beside the relative part: a pattern that never occurs is 0 in both.
    error = (np.abs(ours - theirs) / (np.abs(theirs) + 1e-9)).max(axis=0)
    assert np.isfinite(ours).all()
    assert error.max() < 1e-5
    return f"worst of {ours.size} numbers: {TEACHER.names[error.argmax()]}, {error.max():.1e}"


def test_both_backends_agree_on_the_phantom(observation, record_property):
    scan = observation.scan
    corners = sample_corners(scan.lungs, PatchConfig(per_case=3), 8, seed=0)
    said = agreement(*(np.stack([cut(a, c, (16, 32, 32)) for c in corners]) for a in (scan.hu, scan.lungs)))
    record_property("measured", f"phantom: {said}")


CT = os.environ.get("DIFFSEGLUNG_CT", "")


@pytest.mark.skipif(not CT, reason="DIFFSEGLUNG_CT names no folder of real scans")
@pytest.mark.parametrize("name", ["covid-a", "emphysema-4mm", "pneumonia-a"])
def test_both_backends_agree_on_real_scans(name, record_property):
    volume = read_volume(f"{CT}/{name}.nii.gz")
    lungs = read_labels(f"{CT}/{name}_lungs.nii.gz", volume) > 0
    corners = sample_corners(lungs, PatchConfig(per_case=2), 8, seed=0)
    said = agreement(*(np.stack([cut(a, c, (16, 32, 32)) for c in corners]) for a in (volume.hu, lungs)))
    record_property("measured", f"{name}: {said}")


FLIPS = [axes for count in range(4) for axes in combinations(range(3), count)]


@pytest.mark.parametrize("axes", FLIPS)
def test_a_flip_changes_the_diagonal_waves_and_nothing_else(axes):
    hu, lungs = noise_patches(2, (10, 17, 24))
    itself = describe_patches(hu, lungs)
    turned = [axis + 1 for axis in axes]
    flipped = describe_patches(np.flip(hu, turned), np.flip(lungs, turned))
    np.testing.assert_allclose(flipped, itself[:, flipped_columns(axes)], rtol=1e-5)  # sums in another order
    changed = {TEACHER.names[i] for i in range(34) if not np.allclose(flipped[:, i], itself[:, i], rtol=1e-4)}
    diagonal = {n for n in TEACHER.names if n.startswith("gabor") and n.endswith(("_45", "_135"))}
    assert changed == (diagonal if (1 in axes) != (2 in axes) else set())


def test_a_flipped_batch_has_the_targets_of_the_flipped_scan():
    hu, lungs = (array[0] for array in noise_patches(1, (16, 32, 32)))
    cells = {"size_vox": (8, 8, 8), "step_vox": (8, 8, 8)}

    def batch(hu, lungs):
        return {
            "hu": hu[None],
            "lungs": lungs[None].astype(np.uint8),
            "teacher": describe_patches(hu[None], lungs[None]),
            "teacher_local": describe_windows(hu, lungs, **cells)[None],
            "evidence": window_evidence(hu, lungs, **cells, mesh_vox=(5, 5, 5))[None],
        }

    for axes in FLIPS:
        found, expected = flip_batch(batch(hu, lungs), axes), batch(np.flip(hu, axes), np.flip(lungs, axes))
        tensors = flip_batch({k: torch.from_numpy(v.copy()) for k, v in batch(hu, lungs).items()}, axes)
        for name in ("hu", "lungs", "teacher", "teacher_local", "evidence"):
            np.testing.assert_allclose(found[name], expected[name], rtol=2e-5, err_msg=name)
            np.testing.assert_array_equal(tensors[name].numpy(), found[name], err_msg=name)


def test_a_flat_patch_is_smooth_and_finite():
    hu = np.full((1, 8, 16, 16), -850, np.int16)
    row = describe_patches(hu, np.ones_like(hu))[0]
    assert row[column("hu_mean")] == -850
    assert row[column("hu_sd")] == row[column("glcm_contrast")] == 0
    assert row[column("glcm_homogeneity")] == row[column("glcm_asm")] == row[column("glcm_correlation")] == 1
    assert row[column("lbp_8")] == 1  # every neighbour ties
    assert np.abs(row[TEACHER.families["gabor"]]).max() < 1e-3


def test_a_wave_is_heard_by_the_filter_of_its_frequency_and_angle():
    y, x = np.mgrid[:64, :64]
    along = {0: x, 45: (x + y) / np.sqrt(2), 90: y, 135: (y - x) / np.sqrt(2)}
    for frequency in (0.10, 0.25, 0.40):
        for degrees, distance in along.items():
            wave = np.round(-800 + 100 * np.cos(2 * np.pi * frequency * distance)).astype(np.int16)
            hu = np.repeat(wave[None, None], 3, axis=1)
            row = describe_patches(hu, np.ones_like(hu))[0, TEACHER.families["gabor"]][:12]
            loudest = TEACHER.names[TEACHER.families["gabor"].start + row.argmax()]
            assert loudest == f"gabor_{frequency:.2f}_{degrees}"


@pytest.mark.parametrize("backend", ["batched", "pyradiomics"])
def test_what_is_not_lung_is_not_seen(backend):
    hu, lungs = noise_patches(2, (12, 24, 24))
    elsewhere = np.where(lungs, hu, 60).astype(np.int16)
    first, second = (describe_patches(volume, lungs, backend=backend) for volume in (hu, elsewhere))
    np.testing.assert_array_equal(first, second)


def test_too_little_lung_is_a_row_of_nan():
    hu, lungs = noise_patches(2, (8, 16, 16))
    lungs[0] = False
    lungs[0, 0, 0, :10] = True
    for backend in ("batched", "pyradiomics"):
        rows = describe_patches(hu, lungs, TeacherConfig(min_lung_vox=11), backend=backend)
        assert np.isnan(rows[0]).all()
        assert np.isfinite(rows[1]).all()


def test_a_window_has_the_density_and_texture_of_the_patch_cut_there():
    hu, lungs = (array[0] for array in noise_patches(1, (21, 26, 30)))
    size, step = (12, 12, 12), (4, 6, 8)
    windows = describe_windows(hu, lungs, size_vox=size, step_vox=step)
    assert windows.shape == (6, 5, 4, 34)
    families = [*range(*TEACHER.families["hu"].indices(34)), *range(*TEACHER.families["glcm"].indices(34))]
    compared = 0
    for cell in np.ndindex(*windows.shape[:3]):
        cut = tuple(
            slice(max(0, i * s - (n - s) // 2), i * s - (n - s) // 2 + n)
            for i, s, n in zip(cell, step, size, strict=True)
        )
        if lungs[cut].sum() < 0.1 * np.prod(size):
            assert np.isnan(windows[cell]).all()
            continue
        patch = describe_patches(hu[cut][None], lungs[cut][None])[0]
        np.testing.assert_array_equal(windows[cell][families], patch[families])
        compared += 1
    assert compared > 50


def test_one_window_around_everything_filters_as_the_patch_does():
    hu, lungs = (array[0] for array in noise_patches(1, (10, 20, 24)))
    window = describe_windows(hu, lungs, size_vox=hu.shape, step_vox=hu.shape)[0, 0, 0]
    patch = describe_patches(hu[None], lungs[None])[0]
    gabor = TEACHER.families["gabor"]
    # Sums of float32 responses in another order.
    np.testing.assert_allclose(window[gabor], patch[gabor], rtol=1e-5)


def test_a_window_counts_the_patterns_of_every_plane_across_it():
    hu, lungs = (array[0] for array in noise_patches(1, (9, 10, 11)))
    window = describe_windows(hu, lungs, size_vox=hu.shape, step_vox=hu.shape)[0, 0, 0]
    counts = np.zeros(10)
    for axis in range(3):
        for plane in range(hu.shape[axis]):
            found = np.full(hu.shape, kernels.NO_PATTERN, np.uint8)
            kernels.plane_patterns(hu, lungs, axis, plane, plane + 1, found)
            kernels.count_patterns(found, counts)
    np.testing.assert_allclose(window[TEACHER.families["lbp"]], counts / counts.sum(), rtol=1e-6)


def test_windows_do_not_depend_on_the_number_of_threads():
    hu, lungs = (array[0] for array in noise_patches(1, (24, 32, 32)))
    kept = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            described = describe_windows(hu, lungs, size_vox=(16, 16, 16), step_vox=(8, 8, 8))
            evidence = window_evidence(
                hu, lungs, size_vox=(16, 16, 16), step_vox=(8, 8, 8), mesh_vox=(5, 5, 5)
            )
            found.append((described.tobytes(), evidence.tobytes()))
    finally:
        torch.set_num_threads(kept)
    assert found[0] == found[1]


def test_evidence_is_numpys_percentiles_and_the_cells_lung():
    hu, lungs = (array[0] for array in noise_patches(1, (16, 20, 24)))
    lungs[:, :9] = False
    size, step = (12, 12, 12), (4, 4, 4)
    evidence = window_evidence(hu, lungs, size_vox=size, step_vox=step, mesh_vox=(5, 5, 5))
    assert evidence.shape == (4, 5, 6, len(EVIDENCE))
    for cell in np.ndindex(*evidence.shape[:3]):
        here = tuple(slice(4 * i, 4 * i + 4) for i in cell)
        cut = tuple(slice(max(0, 4 * i - 4), 4 * i + 8) for i in cell)
        assert evidence[cell][6] == np.float32(lungs[here].mean())
        inside = hu[cut][lungs[cut]].clip(-1000, 400)
        if len(inside) < TeacherConfig().min_evidence_vox:
            assert np.isnan(evidence[cell][:6]).all()
        else:
            expected = np.percentile(inside, (10, 25, 50, 75, 90))
            np.testing.assert_allclose(evidence[cell][:5], expected, atol=1e-4)
    assert np.isnan(evidence[:, 0, :, :6]).all()


def test_mesh_is_the_log_of_how_hollow_the_lung_is():
    hu = np.full((24, 24, 24), -850, np.int16)
    cells = {"size_vox": (6, 6, 6), "step_vox": (6, 6, 6), "mesh_vox": (5, 5, 5)}
    assert (window_evidence(hu, np.ones_like(hu), **cells)[..., 5] == 0).all(), "an even lung"
    hu[::3] = hu[:, ::3] = hu[:, :, ::3] = -500  # walls around cysts of 2x2x2 voxels: 8 of 27
    evidence = window_evidence(hu, np.ones_like(hu), **cells)
    assert evidence[1, 1, 1, 5] == pytest.approx(np.log(350 * 8 / 27), rel=1e-5)


@pytest.mark.parametrize("shape", ["edge", "ball", "spot", "line"])
def test_what_is_dense_without_a_hole_is_not_hollow(shape):
    z, y, x = np.indices((20, 20, 20)) - 10
    dense = {
        "edge": x > 0,
        "ball": z**2 + y**2 + x**2 < 36,
        "spot": (z == 0) & (y == 0) & (x == 0),
        "line": (z == 0) & (y == 0),
    }[shape]
    hu = np.where(dense, 20, -850).astype(np.int16)
    assert not hollow(hu, np.ones(hu.shape, bool), (5, 5, 5))[2:-2, 2:-2, 2:-2].any()


def test_a_hole_is_as_hollow_as_its_walls_are_high_and_the_chest_wall_is_no_wall():
    hu = np.full((15, 15, 15), -600, np.int16)
    hu[6:9, 6:9, 6:9] = -900
    lungs = np.ones(hu.shape, bool)
    assert (hollow(hu, lungs, (5, 5, 5)) == np.where(hu == -900, 300, 0)).all()
    assert not hollow(hu, lungs, (3, 3, 3)).any(), "wider than the box"
    lungs[:] = hu == -900
    assert not hollow(hu, lungs, (5, 5, 5)).any()


def test_a_standardiser_gives_each_family_the_same_say():
    rows = np.random.default_rng(0).normal(3, 2, (4000, 34)).astype(np.float32)
    rows[0] = np.nan
    standardiser = Standardiser.fit(rows)
    scaled = standardiser.apply(rows)
    assert np.isnan(scaled[0]).all()
    for columns in TEACHER.families.values():
        # One variance a family, known to about 1 in 40 from 4000 rows.
        assert scaled[1:, columns].var(axis=0).sum() == pytest.approx(1, rel=0.06)
    rows[1, 0] = 1e6
    assert standardiser.apply(rows)[1, 0] == pytest.approx(standardiser.limit / np.sqrt(5))
    np.testing.assert_allclose(
        standardiser.apply(torch.from_numpy(rows)).numpy(), standardiser.apply(rows), atol=1e-6
    )


def test_a_standardiser_survives_json_and_a_constant_column():
    rows = np.random.default_rng(0).normal(size=(50, 34)).astype(np.float32)
    rows[:, 7] = 4
    standardiser = Standardiser.fit(rows)
    again = Standardiser.from_dict(standardiser.to_dict())
    np.testing.assert_array_equal(again.apply(rows), standardiser.apply(rows))
    assert (again.apply(rows)[:, 7] == 0).all()
    with pytest.raises(ValueError, match="another set"):
        Standardiser.from_dict({**standardiser.to_dict(), "names": ["x"]})


def test_wrong_input_is_refused_in_words():
    hu, lungs = noise_patches(1, (8, 8, 8))
    with pytest.raises(ValueError, match="one grid"):
        describe_patches(hu, lungs[:, 1:])
    with pytest.raises(ValueError, match="whole numbers"):
        describe_patches(hu.astype(np.float32), lungs)
    with pytest.raises(ValueError, match="gaps"):
        describe_windows(hu[0], lungs[0], size_vox=(4, 4, 4), step_vox=(8, 8, 8))
    with pytest.raises(ValueError, match="grey levels"):
        TeacherConfig(bin_width_hu=2)


def test_a_new_process_finds_the_compiled_code_and_its_last_bit(tmp_path):
    hu, lungs = noise_patches(8, (8, 32, 32))
    described = describe_patches(hu, lungs)
    describe_windows(hu[0], lungs[0], size_vox=(8, 8, 8), step_vox=(4, 4, 4))
    np.savez(tmp_path / "patches.npz", hu=hu, lungs=lungs)
    script = (
        "import sys; import numpy as np\n"
        "from diffseglung.teacher import describe_patches, describe_windows, kernels\n"
        "given = np.load(sys.argv[1]); hu, lungs = given['hu'], given['lungs']\n"
        "np.save(sys.argv[2], describe_patches(hu, lungs))\n"
        "describe_windows(hu[0], lungs[0], size_vox=(8, 8, 8), step_vox=(4, 4, 4))\n"
        "for f in (kernels.hu_and_glcm, kernels.describe_window_planes, kernels.gabor_window_sums):\n"
        "    assert not f.stats.cache_misses, f.stats\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "patches.npz"), str(tmp_path / "rows.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # This process may have compiled what that one loaded.
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), described)


def test_the_page_on_the_teacher_has_its_table():
    page = (Path(__file__).parents[2] / "docs" / "teacher.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert rows == [
        f"| {i} | `{row.name}` | {row.unit} | {row.formula} | {row.source} |" for i, row in enumerate(TEACHER)
    ]
