import json

import pytest

from diffseglung.__main__ import main


def test_one_scan_from_the_command_line(scan_path, model_folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["segment", str(scan_path), "--model", str(model_folder), "--out", str(out)]) == 0
    assert (out / "segmentation.nii.gz").is_file()
    assert (out / "report.html").is_file()
    assert json.loads((out / "result.json").read_text())["status"] == "ok"
    assert "consolidation" in capsys.readouterr().out


def test_a_scan_that_cannot_be_read_ends_in_one_line(model_folder, tmp_path, capsys):
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(b"nothing")
    assert main(["segment", str(bad), "--model", str(model_folder), "--out", str(tmp_path / "o")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("diffseglung: ")
    assert "Traceback" not in error
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("arguments", [["segment", "nowhere.nii"], ["segment"], ["paint"]])
def test_wrong_arguments_end_2(arguments, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--model", str(tmp_path), "--out", str(tmp_path / "o")])
    assert stop.value.code == 2


def test_a_folder_that_is_no_model_ends_2(scan_path, tmp_path, capsys):
    assert main(["segment", str(scan_path), "--model", str(tmp_path), "--out", str(tmp_path / "o")]) == 2
    assert "no DiffSegLung model" in capsys.readouterr().err
