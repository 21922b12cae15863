import json
from dataclasses import FrozenInstanceError, replace

import pytest

from diffseglung.config import RECIPES, Config, digest, from_dict, recipe, to_dict
from diffseglung.patches import PatchConfig


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_the_way_through_json(name):
    config = recipe(name)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert config.name == name


def test_a_changed_setting_changes_the_digest_and_an_unchanged_one_does_not():
    assert digest(recipe("demo")) == digest(recipe("demo"))
    base = recipe("demo")
    assert digest(replace(base, train=replace(base.train, lr=1e-3))) != digest(base)


def test_unknown_settings_are_refused_with_what_there_is():
    with pytest.raises(ValueError, match=r"has no setting moonphase; it has: .*patches"):
        from_dict({"moonphase": 1})
    with pytest.raises(ValueError, match="TrainConfig has no setting learning"):
        from_dict({"train": {"learning": 1}})


def test_unknown_recipes_are_refused_with_what_there_is():
    with pytest.raises(ValueError, match="there are: smoke, demo, paper"):
        recipe("fast")


def test_a_config_cannot_be_changed_in_place():
    with pytest.raises(FrozenInstanceError):
        recipe("demo").train.lr = 1.0


def test_patches_that_are_no_whole_strides_are_refused():
    with pytest.raises(ValueError, match="whole strides"):
        Config(patches=PatchConfig(size_vox=(12, 32, 32)))


def test_the_paper_recipe_is_the_published_network():
    paper = recipe("paper")
    assert paper.student.channels == (64, 128, 192, 256)
    assert paper.patches.size_vox == (32, 96, 96)
    assert paper.train.warmup == (4000, 6000)
