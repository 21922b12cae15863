"""A model, a checkpoint or a config from a stranger is data: whatever it holds, none of it runs."""

import json
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import ray.train
import torch

from diffseglung.model import FILES, Model
from diffseglung_ray.config import WrongArgument, load_config
from diffseglung_ray.tracking import ModelNotFound, fetch_model
from diffseglung_ray.training_process import load_state


class Bomb:
    """Writes a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "it-ran"


def test_the_bomb_works(mark: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_pickle_in_place_of_a_models_file_is_refused_unopened(
    model: Model, tmp_path: Path, mark: Path, name: str, kind: str
) -> None:
    folder = model.save(tmp_path / "m")
    if kind == "pickle":
        (folder / name).write_bytes(pickle.dumps(Bomb(mark)))
    else:
        torch.save({"weights": Bomb(mark)}, folder / name)
    with pytest.raises(ValueError, match="damaged model"):
        Model.load(folder)
    with pytest.raises(ModelNotFound, match="no model that can be read"):
        fetch_model(folder)
    assert not mark.exists()


def test_a_pickle_beside_a_models_files_is_left_alone(model: Model, tmp_path: Path, mark: Path) -> None:
    folder = model.save(tmp_path / "m")
    for name in ("python_model.pkl", "student.pt", "data.pkl"):
        (folder / name).write_bytes(pickle.dumps(Bomb(mark)))
    (folder / "__init__.py").write_text(f"open({str(mark)!r}, 'w')")
    assert Model.load(folder).sha256 == model.sha256
    assert not mark.exists()


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch {mark}']",
        "__import__('pathlib').Path('{mark}').touch()",
        {"__reduce__": ["os.system", "touch {mark}"]},
        {"py/object": "pathlib.Path", "py/reduce": ["{mark}"]},
    ],
)
def test_code_in_a_models_settings_is_text(model: Model, tmp_path: Path, mark: Path, value: object) -> None:
    folder = model.save(tmp_path / "m")
    described = json.loads((folder / "model.json").read_text())
    bomb = json.loads(json.dumps(value).replace("{mark}", str(mark)))
    for section in ("name", "train", "student", "mixture"):
        hostile = {**described, "config": {**described["config"], section: bomb}}
        (folder / "model.json").write_text(json.dumps(hostile))
        with suppress(ValueError):  # any other error would be one of the program
            Model.load(folder)
        assert not mark.exists()


def test_code_in_a_config_file_or_a_setting_is_refused(tmp_path: Path, mark: Path) -> None:
    code = f"!!python/object/apply:os.system ['touch {mark}']"
    (tmp_path / "config.yaml").write_text(f"train:\n  lr: {code}\n")
    with pytest.raises(WrongArgument, match="not YAML"):
        load_config("smoke", tmp_path / "config.yaml")
    with pytest.raises(WrongArgument, match="cannot be read as a value"):
        load_config("smoke", None, [f"train.lr={code}"])
    assert not mark.exists()


def test_a_checkpoint_that_would_run_is_refused(tmp_path: Path, mark: Path) -> None:
    torch.save({"ema": Bomb(mark)}, tmp_path / "state.pt")
    with pytest.raises(pickle.UnpicklingError, match=r"[Ww]eights.only"):
        load_state(ray.train.Checkpoint.from_directory(tmp_path))
    assert not mark.exists()
