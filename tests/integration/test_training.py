"""Training on Ray: one network whatever happens to the workers, and a model in the registry at its end."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import mlflow
import nibabel as nib
import numpy as np
import pytest
import ray
import ray.train
from made_workspace import made_workspace
from ray import cloudpickle

import diffseglung
import diffseglung_ray
from diffseglung.distill import Distillation, distill
from diffseglung.model import Model
from diffseglung.student import Student, StudentConfig
from diffseglung.teacher import TEACHER
from diffseglung_ray import fitting, training
from diffseglung_ray.cluster import Workers, train_workers
from diffseglung_ray.config import RunConfig, UserError, WrongArgument, load_config
from diffseglung_ray.tracking import Run, fetch_model, start_run
from diffseglung_ray.training import TrainedModel, check_sizes, train
from diffseglung_ray.training_process import COLUMNS, MEMORY_BYTES, fit_to, in_memory
from diffseglung_ray.workspace import fit_standardiser, open_workspace

# Workers do not find the module of a test by its name.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

# Another seed than that of the model it starts from, whose weights chance would otherwise draw again.
SMOKE = load_config("smoke", None, ["resources.workers=2", "train.seed=1"])
ALONE = load_config("smoke", None, ["resources.workers=1", "train.seed=2"])

pytestmark = pytest.mark.timeout(900)  # several trainings, each with processes to start


@pytest.fixture(scope="module")
def workspace(cohort: Path) -> str:
    return str(made_workspace(cohort))


@pytest.fixture(scope="module", autouse=True)
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        yield


@pytest.fixture(scope="module", autouse=True)
def fed_by_ray_data() -> Iterator[None]:
    """As if the patches were too many to be held: what the trainings of other tests do not need."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "MEMORY_BYTES", 0)
        yield


@pytest.fixture(scope="module")
def annotated(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantoms of the cohort with their truth."""
    manifest = tmp_path_factory.mktemp("annotated") / "labels.csv"
    rows = [
        f"{name},{cohort.parent}/images/{name}.nii.gz,{cohort.parent}/truth/{name}.nii.gz"
        for name in ("phantom-0000", "phantom-0001")
    ]
    manifest.write_text("\n".join(["case_id,image,truth", *rows]) + "\n")
    return manifest


@pytest.fixture(scope="module")
def trained(workspace: str, model: Path, annotated: Path) -> TrainedModel:
    """By two processes, from a model on, on all the CPUs that there are, corrected by labelled scans."""
    return train(SMOKE, workspace, init=str(model), labels=str(annotated))


def distilled(
    config: RunConfig, place: str, name: str, init: Student | None = None, go_on: bool = False
) -> tuple[Student, Run]:
    """The part of a training that may be disturbed, without what comes after it."""
    workspace = open_workspace(place, config.method)
    standardiser = fit_standardiser(workspace, config.method)
    weights = init.state_dict() if init else None
    details = {"name": name, "manifest": workspace.manifest, "go_on": go_on}
    with start_run(config.method, config.tracking, **details) as run:
        workers = train_workers(config.resources)
        student, _, _ = training.distil(config, workspace, standardiser, workers, run, weights)
    return student, run


def load(model: TrainedModel, folder: Path) -> Model:
    return Model.load(fetch_model(model.uri, folder).path)


def curve(run_id: str, name: str = "loss") -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in mlflow.MlflowClient().get_metric_history(run_id, name)]


def assert_same_weights(one: Student, other: Student, within: float = 0.0) -> None:
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert a.sub(b).abs().max() <= within, name


def test_training_leaves_a_version_that_the_alias_points_at(trained: TrainedModel, tmp_path: Path) -> None:
    fetched = fetch_model(f"models:/diffseglung@{SMOKE.tracking.alias}", tmp_path)
    assert fetched.version == trained.version
    model = Model.load(fetched.path)
    assert replace(model.config, mixture=SMOKE.method.mixture) == SMOKE.method
    assert model.info["steps"] == SMOKE.train.steps
    run = mlflow.MlflowClient().get_run(trained.run_id)
    assert run.info.status == "FINISHED"


def test_labels_correct_the_mixture_and_the_model_says_so(trained: TrainedModel, tmp_path: Path) -> None:
    model = load(trained, tmp_path)
    assert model.config.mixture.mode == "labelled"
    assert "labelled" in model.mixture.modes
    assert model.info["labels"]["scans"] == ["phantom-0000", "phantom-0001"]
    assert model.info["labels"]["cells"]["healthy"] > 100
    version = mlflow.MlflowClient().get_model_version("diffseglung", trained.version)
    assert version.tags["label_free"] == "no: 2 labelled scans"


def test_labels_without_a_truth_are_refused(
    workspace: str, cohort: Path, annotated: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare.csv"
    bare.write_text(f"case_id,image\na,{cohort.parent}/images/phantom-0000.nii.gz\n")
    with pytest.raises(WrongArgument, match=r"--labels .*a has no truth"):
        train(SMOKE, workspace, labels=str(bare))
    image = nib.load(cohort.parent / "truth" / "phantom-0000.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), tmp_path / "empty.nii.gz")
    bare.write_text(
        f"case_id,image,truth\na,{cohort.parent}/images/phantom-0000.nii.gz,{tmp_path}/empty.nii.gz\n"
    )
    with pytest.raises(UserError, match=r"--labels: .*fewer than two tissues"):
        train(SMOKE, workspace, labels=str(bare))
    with pytest.raises(WrongArgument, match="needs annotated scans"):
        train(load_config("smoke", None, ["mixture.mode=labelled"]), workspace)


def test_the_run_keeps_what_one_would_look_at(trained: TrainedModel, model: Path, tmp_path: Path) -> None:
    client = mlflow.MlflowClient()
    pictures = {item.path for item in client.list_artifacts(trained.run_id, "pictures")}
    assert pictures == {f"pictures/{name}.png" for name in ("samples", "clusters", "check")}
    held = json.loads(
        Path(client.download_artifacts(trained.run_id, "standardiser.json", tmp_path)).read_text()
    )
    assert held["names"] == list(TEACHER.names)
    assert held["center"] == load(trained, tmp_path / "model").standardiser.to_dict()["center"]
    run = client.get_run(trained.run_id).data
    assert {"loss", "noise_loss", "distill_loss", "lr", "patches_per_s"} <= set(run.metrics)
    assert {"config_sha256", "data_sha256"} <= set(run.tags)
    assert run.tags["init"] == str(model)
    assert run.params["train.lr"] == str(SMOKE.train.lr)


def test_both_processes_went_on_from_the_model(trained: TrainedModel, model: Path, tmp_path: Path) -> None:
    assert dict(curve(trained.run_id, "processes")) == dict.fromkeys(range(1, SMOKE.train.steps + 1), 2.0)
    farthest = SMOKE.train.steps * SMOKE.train.lr  # Adam's first steps are no longer than its rate
    assert_same_weights(load(trained, tmp_path).student, Model.load(model).student, within=1.1 * farthest)


def test_the_curve_has_every_step_once(trained: TrainedModel) -> None:
    assert [step for step, _ in curve(trained.run_id)] == list(range(1, SMOKE.train.steps + 1))


def test_a_killed_worker_changes_nothing(
    trained: TrainedModel, workspace: str, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    died, resumed = tmp_path / "died", tmp_path / "resumed"

    def dies_once(config: dict[str, Any]) -> None:
        from diffseglung_ray import training_process as inside

        whole = inside.distill

        def fragile(*args: Any, **kwargs: Any) -> Iterator[tuple[int, dict[str, float]]]:
            second_life = died.exists()
            for step, metrics in whole(*args, **kwargs):
                if second_life:
                    with resumed.open("a") as steps:
                        steps.write(f"{step} ")
                elif step == 5:
                    ray.train.get_all_reported_checkpoints(ray.train.CheckpointConsistencyMode.COMMITTED)
                    died.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                yield step, metrics

        inside.distill = fragile
        try:
            inside.train_process(config)
        finally:
            inside.distill = whole

    monkeypatch.setattr(training, "train_process", dies_once)
    student, run = distilled(SMOKE, workspace, "survivor", init=Model.load(model).student)
    # Both processes went on from the checkpoint at step 3, with the same patches in the same order: bitwise.
    assert sorted(resumed.read_text().split()) == ["4", "4", "5", "5", "6", "6"]
    assert_same_weights(student, load(trained, tmp_path / "once").student)
    assert dict(curve(run.id)) == dict(curve(trained.run_id))


DRIVER = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
import ray
from diffseglung_ray import training
import test_training
test_training.kill_at_step_5(training, sys.argv[2])
ray.init(address=sys.argv[3], log_to_driver=False)
test_training.distilled(test_training.ALONE, sys.argv[4], "mortal", go_on=True)
"""


def kill_at_step_5(module: Any, diary: str, victims: tuple[str, ...] = ("driver", "controller")) -> None:
    """Let each training process write down its steps; rank 0 kills one victim at step 5 of each life, in turn."""
    folder = Path(diary)

    def fragile(config: dict[str, Any]) -> None:
        from diffseglung_ray import training_process as inside

        whole = inside.distill

        def steps(*args: Any, **kwargs: Any) -> Iterator[tuple[int, dict[str, float]]]:
            life = len(list(folder.iterdir())) + 1 if kwargs["rank"] == 0 else 0
            for step, metrics in whole(*args, **kwargs):
                if life:
                    with (folder / str(life)).open("a") as lines:
                        lines.write(f"{step} ")
                if life and step == 5 and life <= len(victims):
                    ray.train.get_all_reported_checkpoints(ray.train.CheckpointConsistencyMode.COMMITTED)
                    os.kill(victim(victims[life - 1], folder), signal.SIGKILL)
                    time.sleep(600)  # until whoever looks after this process ends it too
                yield step, metrics

        inside.distill = steps
        try:
            inside.train_process(config)
        finally:
            inside.distill = whole

    module.train_process = fragile


def victim(name: str, folder: Path) -> int:
    """The process that started the job, or the one that directs Ray Train on this machine for it."""
    if name == "driver":
        return int((folder.parent / "driver").read_text())
    controllers = [
        int(place.name)
        for place in Path("/proc").iterdir()
        if place.name.isdigit()
        and b"TrainController" in (place / "cmdline").read_bytes()
        and f"PPid:\t{os.getppid()}\n" in (place / "status").read_text()
    ]
    (found,) = controllers
    return found


def test_a_killed_job_goes_on_in_its_run_and_so_without_its_controller(
    workspace: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    diary = tmp_path / "lives"
    diary.mkdir()
    monkeypatch.setattr(training, "MEMORY_BYTES", MEMORY_BYTES)  # held: a life begins sooner
    monkeypatch.setattr(training, "train_process", training.train_process)  # as it was, afterwards
    kill_at_step_5(training, str(diary))
    paths = [str(Path(module.__file__).parents[1]) for module in (diffseglung_ray, diffseglung)]
    paths += [str(Path(__file__).parents[i]) for i in (0, 1)]
    words = (json.dumps(paths), str(diary), ray.get_runtime_context().gcs_address, workspace)
    job = subprocess.Popen([sys.executable, "-c", DRIVER, *words])
    (tmp_path / "driver").write_text(str(job.pid))
    assert job.wait(timeout=600) == -signal.SIGKILL
    student, run = distilled(ALONE, workspace, "mortal", go_on=True)
    lives = [(diary / str(life)).read_text().split() for life in (1, 2, 3)]
    assert lives == [["1", "2", "3", "4", "5"], ["4", "5"], ["4", "5", "6"]]
    (only,) = mlflow.search_runs([run.experiment_id], "tags.`mlflow.source.name` = 'mortal'")["run_id"]
    assert only == run.id
    assert mlflow.get_run(run.id).info.status == "FINISHED"
    losses, undisturbed = without_ray(ALONE, workspace)
    steps, values = zip(*curve(run.id), strict=True)
    assert steps == (1, 2, 3, 4, 5, 6)
    assert values == pytest.approx(losses, rel=1e-6)
    assert_same_weights(student, undisturbed, within=1e-6)


def without_ray(config: RunConfig, place: str) -> tuple[list[float], Student]:
    """The same training in this process, by nobody disturbed."""
    opened = open_workspace(place, config.method)
    run = Distillation(config.student, config.train, fit_standardiser(opened, config.method))
    held = {name: column.copy() for name, column in opened.share(COLUMNS, 0, 1).items()}
    epoch_of = in_memory(held, config.train.micro_batch(1))
    batches = (batch for epoch in count() for batch in epoch_of(config.train.seed + epoch))
    return [metrics["loss"] for _, metrics in distill(run, batches)], run.ema


def test_cells_gathered_by_actors_are_those_gathered_here(
    trained: TrainedModel, workspace: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    student, features = load(trained, tmp_path).student, SMOKE.features
    opened, workers = open_workspace(workspace, SMOKE.method), Workers(1, 1, 0.0, None)
    here = fitting.gather_cells(student, features, opened, workers)
    monkeypatch.setattr(fitting, "PATCHES_A_WORKER", opened.patches - 1)
    there = fitting.gather_cells(student, features, opened, workers)
    assert there.equals(here)


def test_a_start_of_another_shape_is_refused(model: Path, workspace: str) -> None:
    wide = replace(SMOKE, student=StudentConfig(channels=(8, 16, 16), norm_groups=4, timesteps=50))
    with pytest.raises(WrongArgument, match="another network"):
        train(wide, workspace, init=str(model))


def test_patches_of_another_size_are_refused(workspace: str) -> None:
    with pytest.raises(WrongArgument, match=r"\(16, 32, 32\).*\(16, 16, 16\)"):
        train(resized(SMOKE, (16, 16, 16)), workspace)


def resized(config: RunConfig, size_vox: tuple[int, int, int]) -> RunConfig:
    return replace(config, patches=replace(config.patches, size_vox=size_vox))


def test_an_unprepared_workspace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongArgument, match=r"run jobs/prepare.py"):
        train(SMOKE, str(tmp_path))


def test_a_batch_that_cannot_be_filled_is_refused() -> None:
    with pytest.raises(WrongArgument, match="does not split over 3 workers"):
        check_sizes(100, SMOKE.train, 3)
    with pytest.raises(WrongArgument, match="prepare more cases"):
        check_sizes(3, SMOKE.train, 1)


def test_a_run_may_go_on_with_fewer_processes_only_where_that_was_asked_for() -> None:
    workers = Workers(4, 1, 0.0, None)
    for fewest, asked in ((0, 4), (2, (2, 4)), (4, 4)):
        config = replace(SMOKE, resources=replace(SMOKE.resources, workers=4, min_workers=fewest))
        scaling = training._scaling(config, workers, held=True)
        assert scaling.num_workers == asked
        assert scaling.elasticity_enabled == isinstance(asked, tuple)


def test_an_elastic_run_takes_the_largest_batch_that_divides() -> None:
    train16 = replace(SMOKE.train, batch=16, accumulate=2)
    assert [fit_to(train16, world).batch for world in (1, 2, 3, 4, 8)] == [16, 16, 12, 16, 16]
