"""The benchmark of a taught U-Net teaches what the chain is sure of, and scores what was learned in its place."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_model import SMALL

from diffseglung.config import recipe
from diffseglung.labels import Tissue
from diffseglung.patches import Scan
from diffseglung.student import Student
from diffseglung.volume import Grid

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import segmenter  # noqa: E402
from looked import Bench, read_json  # noqa: E402

RUN = segmenter.Run("student", "scratch", 0.8, 0)
TINY = segmenter.Teaching(patch_vox=16, patches=2, rarity=0.5, diseased=0.75)
HU = {Tissue.HEALTHY: -850, Tissue.GROUND_GLASS: -550, Tissue.CONSOLIDATION: 20}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(segmenter.NETWORKS, "student", TINY)
    monkeypatch.setitem(segmenter.NETWORKS, "full", TINY)


def drawn(seed: int, shape: tuple[int, int, int] = (16, 24, 32)) -> dict[str, np.ndarray]:
    """Slabs of three tissues, each as dense as it is; the chain is unsure of the first plane and wrong there."""
    cuts = np.sort(np.random.default_rng(seed).choice(np.arange(8, shape[2] - 4), 2, replace=False))
    truth = np.zeros(shape, np.uint8)
    for tissue, part in zip(HU, np.split(np.arange(shape[2]), cuts), strict=True):
        truth[:, :, part] = tissue
    called, belief = truth.copy(), np.ones(shape, np.float32)
    called[0], belief[0] = Tissue.FIBROSIS, 0.7
    hu = np.vectorize(HU.get)(truth).astype(np.int16)
    return {"hu": hu, "lungs": truth > 0, "called": called, "belief": belief, "truth": truth}


@pytest.fixture
def scans() -> segmenter.Scans:
    return segmenter.Scans.of([drawn(0), drawn(1, (12, 24, 40))], TINY.patch_vox)


def test_scans_of_any_size_share_one_box_in_which_nothing_is_taught(scans) -> None:
    assert scans.hu.shape == (2, 16, 24, 40)
    assert (scans.hu[1, 12:] == -1024).all()
    for padded in (scans.lungs, scans.called, scans.truth):
        assert not padded[1, 12:].any()
        assert not padded[0, :, :, 32:].any()


def test_the_chain_teaches_what_it_is_sure_of_and_the_truth_everything(scans) -> None:
    assert not scans.taught(0.8)[:, 0].any()
    assert (scans.taught(0.6)[0, 0, :, :32] == Tissue.FIBROSIS).all()
    assert torch.equal(scans.taught(0.8)[:, 1:], scans.truth[:, 1:])
    assert torch.equal(scans.taught(None), scans.truth)


def test_patches_are_cut_around_diseases_and_carry_their_own_tissues(scans) -> None:
    tissue = scans.taught(0.8)
    seen, taught = next(segmenter.batches(scans, tissue, replace(TINY, patches=12, diseased=1.0), seed=0))
    assert seen.shape == (12, 2, 16, 16, 16)
    assert taught.shape == (12, 16, 16, 16)
    assert (taught > 0).flatten(1).any(dim=1).all()
    for index, hu in ((0, -850), (2, -550), (4, 20)):  # however a patch was shifted, turned and made noisy
        mean = seen[:, 0][taught == index].mean()
        assert mean == pytest.approx(float(segmenter.to_unit(torch.tensor(hu))), abs=0.08)
    again = next(segmenter.batches(scans, tissue, replace(TINY, patches=12, diseased=1.0), seed=0))
    assert torch.equal(again[0], seen)


def test_a_network_learns_what_it_is_taught(scans) -> None:
    torch.manual_seed(0)
    network = segmenter.Segmenter(Student(recipe("smoke").student))
    steps, slow = segmenter.learn(network, scans, RUN, np.linspace(0, 1, 240))
    assert steps == 240
    new = drawn(2)
    nothing = np.zeros_like(new["lungs"])
    scan = Scan(new["hu"], new["lungs"], nothing, nothing, Grid(shape=nothing.shape, affine=np.eye(4)))
    posteriors = segmenter.posteriors_of(slow, scan, TINY.patch_vox)
    assert posteriors.sum(axis=0) == pytest.approx(1, abs=1e-4)
    assert not posteriors[Tissue.CAVITY - 1].any()
    assert (
        posteriors.argmax(axis=0) + 1 == new["truth"]
    ).mean() > 0.8  # .89 here; the commonest tissue alone .41


def test_both_networks_answer_six_tissues_a_voxel() -> None:
    seen = torch.zeros(1, 2, 16, 16, 16)
    for network in (segmenter.full(), segmenter.Segmenter(Student(recipe("demo").student))):
        assert network(seen).shape == (1, 6, 16, 16, 16)


def test_posteriors_are_joined_where_both_know_something() -> None:
    both = segmenter.joined(np.array([[0.9, 0.0], [0.1, 0.0]]), np.array([[0.5, 0.5], [0.5, 0.5]]))
    np.testing.assert_allclose(both, [[0.75, 0.0], [0.25, 0.0]])


def test_each_run_differs_from_the_plain_one_in_one_thing() -> None:
    runs = segmenter.runs_of(["student", "full"], ["scratch", "distilled"], [0.8, 0.6], seeds=2)
    assert [run.title for run in runs[: len(runs) // 2]] == [
        *("student, scratch, chain 0.8", "student, distilled, chain 0.8"),
        *("student, scratch, chain 0.6", "student, scratch, truth"),
        *("full, scratch, chain 0.8", "full, scratch, chain 0.6", "full, scratch, truth"),
    ]
    assert [run.seed for run in runs] == [0] * 7 + [1] * 7


def test_a_run_is_scored_beside_the_chain_and_kept(tmp_path) -> None:
    bench = Bench(tmp_path, recipe("smoke"), {"train": 2, "validation": 1}, SMALL)
    runs, folder = [RUN, replace(RUN, seed=1)], tmp_path / "segmenter"
    segmenter.measure(bench, runs, folder, seconds=0.5)
    files = {run: segmenter.file_of(folder, run, 0.5) for run in runs}
    found = read_json(files[RUN])
    assert {row["method"] for row in found["rows"]} == {segmenter.ALONE, segmenter.BOTH, segmenter.FUSED}
    assert found["steps"] > 0

    said = segmenter.tables(runs, folder, 0.5).splitlines()
    (alone,) = [line for line in said if line.startswith(f"| {RUN.title} | 2 |") and segmenter.ALONE in line]
    assert len(alone.split("|")) == len(said[0].split("|"))
    assert said[2].startswith("|  |  |  | chain |")
    assert said[-1] == "0.5 s a training on CPU."

    files[runs[1]].unlink()
    kept = files[RUN].stat().st_mtime_ns
    segmenter.measure(bench, runs, folder, seconds=0.5)
    assert files[runs[1]].exists()
    assert files[RUN].stat().st_mtime_ns == kept


def test_a_student_that_is_missing_is_missed_before_anything_is_taught(tmp_path) -> None:
    bench = Bench(tmp_path, recipe("smoke"), {"train": 2, "validation": 1}, SMALL)
    with pytest.raises(SystemExit, match=r"local-0 is not there"):
        segmenter.network_of(bench, replace(RUN, start="distilled"))
