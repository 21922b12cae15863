"""Cohorts from folders, manifests and URIs; what cannot be a cohort is refused before anything starts."""

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffseglung.volume import VolumeConfig
from diffseglung_ray.cohort import LONGEST_ID, find_cohort, local_copy, quick_digest, read_case, safe_id
from diffseglung_ray.config import WrongArgument


def scan(path: Path) -> Path:
    """A scan (x, y, z) large enough to be read as a chest, on a grid of 5 mm."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hu = np.full((40, 40, 24), -1000, np.int16)
    hu[5:35] = 40
    hu[10:30] = -800
    nib.save(nib.Nifti1Image(hu, np.diag([5.0, 5.0, 5.0, 1.0])), path)
    return path


def manifest(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("weight", ["0", "-1", "many", "nan", "1e9"])
def test_a_weight_that_is_none_is_the_problem_of_its_case(tmp_path, weight):
    (tmp_path / "study.csv").write_text(f"case_id,image,weight\na,a.nii.gz,4\nb,b.nii.gz,{weight}\n")
    a, b = find_cohort(tmp_path / "study.csv")
    assert a.problem == ""
    assert re.match(r"row 2 .* weight", b.problem)


def test_a_folder_gives_its_scans_sorted_by_name(tmp_path: Path) -> None:
    for name in ("b.nii.gz", "deep/a.nii.gz"):
        scan(tmp_path / name)
    cases = find_cohort(tmp_path)
    assert [case.case_id for case in cases] == ["a", "b"]
    assert cases[0].image == str(tmp_path / "deep/a.nii.gz")


def test_paths_of_a_manifest_are_relative_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest(
        tmp_path / "m/study.csv",
        "case_id,image,truth",
        "007,../scans/x.nii,t/x.nii",
        "8,/data/y.nii,",
        "9,s3://b/z.nii,",
    )
    monkeypatch.chdir(tmp_path)
    seven, eight, nine = find_cohort("m/study.csv")
    assert seven.case_id == "007"
    assert (seven.image, seven.truth) == (str(tmp_path / "scans/x.nii"), str(tmp_path / "m/t/x.nii"))
    assert (eight.image, eight.truth, nine.image) == ("/data/y.nii", "", "s3://b/z.nii")


def test_parquet_and_csv_say_the_same(tmp_path: Path) -> None:
    table = pa.table(
        {"case_id": ["a", "b"], "image": ["a.nii", "b.nii"], "lungs": ["l.nii", None], "age": [3, 4]}
    )
    pq.write_table(table, tmp_path / "m.parquet")
    manifest(tmp_path / "m.csv", "\ufeffcase_id,image,lungs,age", "a,a.nii,l.nii,3", "b,b.nii,,4")
    assert find_cohort(tmp_path / "m.parquet") == find_cohort(tmp_path / "m.csv")


def test_a_uri_says_the_same_as_its_folder(tmp_path: Path) -> None:
    for name in ("b.nii.gz", "b_lungs.nii.gz", "deep/a.nii.gz"):
        scan(tmp_path / "c" / name)
    manifest(tmp_path / "c/study.csv", "case_id,image", "a,deep/a.nii.gz")
    uri = f"file://{tmp_path}/c"
    assert [(c.case_id, c.image) for c in find_cohort(uri)] == [
        ("b", f"{uri}/b.nii.gz"), ("deep-a", f"{uri}/deep/a.nii.gz"),
    ]  # fmt: skip
    assert find_cohort(f"{uri}/study.csv")[0].image == f"{uri}/deep/a.nii.gz"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["case_id,image"], "holds no scan"),
        (["id,image", "a,b.nii"], "lacks the column case_id"),
        (["case_id,image", "a,x.nii,1,2,3"], "cannot be read"),
    ],
)
def test_a_manifest_that_cannot_work_is_refused_in_one_line(
    tmp_path: Path, lines: list[str], words: str
) -> None:
    with pytest.raises(WrongArgument, match=words) as refusal:
        find_cohort(manifest(tmp_path / "m.csv", *lines))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("../../etc/passwd,x.nii", "cannot be a folder"),
        ("/abs,x.nii", "cannot be a folder"),
        (r"a\b,x.nii", "cannot be a folder"),
        (".hidden,x.nii", "cannot be a folder"),
        ("end.,x.nii", "cannot be a folder"),
        ("a\u202eb,x.nii", "cannot be a folder"),
        (f"{'x' * 200},x.nii", "cannot be a folder"),
        ("a,", "row 1 .* has no image"),
        (",x.nii", "row 1 .* has no case_id"),
        ("GOOD,x.nii", "named 'GOOD'"),
        ("Good,x.nii", "named 'Good'"),
    ],
)
def test_a_bad_row_of_a_manifest_is_a_case_with_a_problem(tmp_path: Path, row: str, words: str) -> None:
    cases = find_cohort(manifest(tmp_path / "m.csv", "case_id,image", row, "Größe 7 (b),y.nii", "good,z.nii"))
    (bad, *rest) = sorted(cases, key=lambda case: case.image.endswith(("y.nii", "z.nii")))
    assert re.search(words, bad.problem)
    assert {case.case_id: bool(case.problem) for case in rest} == {
        "Größe 7 (b)": False,
        "good": row[:4].lower() == "good",
    }


def test_what_is_not_there_or_empty_is_refused(tmp_path: Path) -> None:
    for place in (tmp_path / "none", tmp_path / "none.csv", f"file://{tmp_path}/none.csv"):
        with pytest.raises(WrongArgument, match="there is no cohort at"):
            find_cohort(place)
    with pytest.raises(WrongArgument, match="holds no scan"):
        find_cohort(tmp_path)
    with pytest.raises(WrongArgument, match="cannot be read"):
        find_cohort("nosuchscheme://bucket/x.csv")


@pytest.mark.parametrize("name", ["../../x", "a/b", "..", ".", "", "ä ö", "CON:1", "x" * 300, "ok-1.2_b"])
def test_a_safe_id_is_one_plain_folder_name(name: str) -> None:
    safe = safe_id(name)
    assert safe == safe_id(safe)
    assert 0 < len(safe) <= LONGEST_ID
    assert Path("/out", safe).resolve().parent == Path("/out")
    assert not safe.startswith(".")
    assert safe.isascii()


def test_the_quick_digest_is_the_one_that_reading_gives(tmp_path: Path) -> None:
    image, lungs = scan(tmp_path / "a.nii.gz"), tmp_path / "l.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((40, 40, 24), np.uint8), nib.load(image).affine), lungs)
    bare = {"case_id": "a", "image": str(image), "lungs": "", "series": ""}
    masked = bare | {"lungs": str(lungs)}
    for case in (bare, masked):
        assert read_case(case, VolumeConfig()).input_sha256 == quick_digest(case)
    assert quick_digest(bare) != quick_digest(masked)
    assert quick_digest({**bare, "image": str(tmp_path)}) is None


def test_a_remote_file_is_fetched_and_taken_away_again(tmp_path: Path) -> None:
    path = scan(tmp_path / "a.nii.gz")
    with local_copy(f"file://{path}") as fetched:
        assert fetched != path
        assert fetched.read_bytes() == path.read_bytes()
    assert not fetched.exists()
    assert path.exists()
