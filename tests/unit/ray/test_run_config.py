"""The config at the edge: what is understood, and how what is not is refused."""

import subprocess
import sys
from argparse import ArgumentTypeError, Namespace
from pathlib import Path

import pytest

from diffseglung.config import Config, digest, recipe
from diffseglung_ray.config import (
    JobParser,
    RunConfig,
    UserError,
    WrongArgument,
    add_config_arguments,
    config_from,
    config_of_model,
    load_config,
    run_job,
    share,
)


def test_a_recipe_alone_is_the_recipe() -> None:
    config = load_config("smoke")
    assert isinstance(config, RunConfig)
    assert config.method == recipe("smoke")
    assert type(config.method) is Config


def test_the_file_changes_the_recipe_and_set_changes_both(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("train: {lr: 0.01, steps: 9}\nresources: {workers: 3}\n")
    config = load_config("smoke", file, ["train.lr=1e-4", "patches.size_vox=[16, 16, 16]"])
    assert (config.train.lr, config.train.steps, config.resources.workers) == (1e-4, 9, 3)
    assert config.patches.size_vox == (16, 16, 16)
    assert config.train.batch == recipe("smoke").train.batch


def test_where_it_runs_does_not_change_the_digest_but_what_it_does_does() -> None:
    plain = load_config("smoke")
    elsewhere = load_config("smoke", None, ["resources.workers=7", "tracking.experiment=x"])
    other = load_config("smoke", None, ["train.lr=0.5"])
    assert plain.sha256 == elsewhere.sha256 == digest(recipe("smoke"))
    assert other.sha256 != plain.sha256


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("train.lrr=1", "train.lrr is not a setting; did you mean train.lr?"),
        ("trian.lr=1", "did you mean train.lr?"),
        ("ema=1", "did you mean train.ema?"),
        ("resources.worker=2", "did you mean resources.workers?"),
        ("train.qqq=1", "the settings of train are steps, batch"),
        ("qqq.lr.x=1", "the sections are name, volume, anatomy"),
        ("train=3", "train is a section, not a value"),
        ("train.lr", "section.key=value"),
        ("train.lr=fast", "train.lr: Input should be a valid number"),
        ("train.variant=sideways", "train.variant 'sideways' is none of"),
        ("resources.cpus_per_worker=0", "at least one CPU"),
        ("resources.nodes={pool: '!gpu'}", "resources.nodes '!gpu' is no label"),
        ("train.lr=[", "cannot be read as a value"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line(assignment: str, words: str) -> None:
    with pytest.raises(WrongArgument) as refusal:
        load_config("smoke", None, [assignment])
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_wrong_recipe_or_file_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(WrongArgument, match="did you mean smoke"):
        load_config("smokey")
    with pytest.raises(WrongArgument, match="no config file"):
        load_config("smoke", tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("train: {lr: [")
    with pytest.raises(WrongArgument, match="is not YAML"):
        load_config("smoke", broken)
    broken.write_text("- train")
    with pytest.raises(WrongArgument, match="must hold sections"):
        load_config("smoke", broken)


def test_labels_of_nodes_are_set_one_by_one_or_together_and_change_no_result() -> None:
    one = load_config("smoke", None, ["resources.nodes.pool=gpu"])
    both = load_config("smoke", None, ["resources.nodes={pool: gpu, zone: b}"])
    assert one.resources.nodes == {"pool": "gpu"}
    assert both.resources.nodes == {"pool": "gpu", "zone": "b"}
    assert one.sha256 == both.sha256 == load_config("smoke").sha256


def arguments(*words: str, of_model: bool = False) -> Namespace:
    parser = JobParser("a job")
    add_config_arguments(parser, of_model=of_model)
    return parser.parse_args(words)


def test_the_arguments_of_every_job_give_a_config() -> None:
    config = config_from(arguments("--recipe", "smoke", "--set", "train.lr=0.1", "--set", "train.steps=3"))
    assert (config.name, config.train.lr, config.train.steps) == ("smoke", 0.1, 3)
    assert config_from(arguments()).name == "demo"


def test_a_model_brings_its_settings_and_no_other_recipe() -> None:
    own = recipe("smoke")
    config = config_of_model(arguments("--set", "refine.flow_time=2", of_model=True), own)
    assert (config.name, config.refine.flow_time) == ("smoke", 2)
    with pytest.raises(WrongArgument, match="trained with recipe smoke"):
        config_of_model(arguments("--recipe", "paper", of_model=True), own)


def test_an_unknown_argument_ends_2_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        arguments("--rceipe", "smoke")
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert said.count("\n") == 1
    assert "--rceipe" in said


@pytest.mark.parametrize(
    ("error", "code"), [(WrongArgument("no"), 2), (UserError("no"), 1), (KeyboardInterrupt(), 130), (None, 0)]
)
def test_what_goes_wrong_decides_the_exit_code(
    error: BaseException | None, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        if error:
            raise error

    with pytest.raises(SystemExit) as end:
        run_job(main)
    assert end.value.code == code
    assert "Traceback" not in capsys.readouterr().err


def test_an_error_of_the_program_keeps_its_traceback() -> None:
    code = "from diffseglung_ray.config import run_job\ndef main(): raise KeyError('ours')\nrun_job(main)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr


def test_a_share_lies_between_0_and_1() -> None:
    assert share("0.25") == 0.25
    for wrong in ("2", "-1", "half", "nan"):
        with pytest.raises(ArgumentTypeError, match="fraction"):
            share(wrong)
