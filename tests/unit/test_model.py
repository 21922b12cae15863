import json

import numpy as np
import pytest
import torch

from diffseglung.model import FILES, Model


def test_a_model_comes_back_from_disk_as_it_was(model, model_folder, tmp_path):
    again = Model.load(model.save(tmp_path / "again"))
    assert again.sha256 == model.sha256 == Model.load(model_folder).sha256
    assert again.config == model.config
    assert all(np.array_equal(again.mixture.arrays[k], v) for k, v in model.mixture.arrays.items())


def test_a_changed_weight_is_another_model(model, model_folder):
    other = Model.load(model_folder)
    with torch.no_grad():
        next(other.student.parameters()).add_(1e-3)
    assert other.sha256 != model.sha256


def test_a_model_holds_nothing_that_can_be_executed(model_folder):
    assert sorted(p.name for p in model_folder.iterdir()) == sorted(FILES)
    for path in model_folder.glob("*.safetensors"):
        content = path.read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        assert header


@pytest.mark.parametrize("name", FILES)
def test_an_incomplete_or_damaged_model_is_refused_in_words(model, tmp_path, name):
    folder = model.save(tmp_path / "m")
    (folder / name).write_bytes(b"\x80\x04damaged")
    with pytest.raises(ValueError, match="damaged model"):
        Model.load(folder)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"lacks {name}"):
        Model.load(folder)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"format": 99}, "has model format 99"),
        ({"evidence": ["p50_hu", "log_roughness"]}, "judges cells by other evidence"),
        ({"teacher": {"names": ["hu_mean"]}}, "taught by other descriptors"),
    ],
)
def test_a_model_of_another_version_is_refused_in_words(model, tmp_path, changed, words):
    path = model.save(tmp_path / "m") / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(ValueError, match=words):
        Model.load(tmp_path / "m")
