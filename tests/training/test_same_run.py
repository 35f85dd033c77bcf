"""A run that goes on is the run that was begun."""

from dataclasses import asdict

import pytest
import yaml

from blip2ft.config import CaptionConfig
from blip2ft.config.data import DataConfig, SourceConfig
from blip2ft.config.model import LoraConfig, ModelConfig, PartsConfig
from blip2ft.config.training import OptimizerConfig, TrainConfig
from blip2ft.filters.rules import Rules
from blip2ft.models.identity import Base
from blip2ft.training.same_run import (
    changed_settings,
    check_same_base,
    check_same_settings,
    keep_base,
)


def settings(**changed):
    splits = DataConfig(train=SourceConfig("a.csv"), validation=SourceConfig("b.csv"))
    config = {"output": "run", "model": ModelConfig("base"), "data": splits} | changed
    return asdict(CaptionConfig(**config))


@pytest.fixture
def run(tmp_path):
    begun = settings(parts=PartsConfig(language="lora"), quantize={"language": "nf4"})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(begun))
    return tmp_path


SAME = {"parts": PartsConfig(language="lora"), "quantize": {"language": "nf4"}}


def test_what_may_change_may(run):
    moved = {"model": ModelConfig("/elsewhere"), "output": "moved"}
    rates = {"optimizer": OptimizerConfig(lr=1e-3), "train": TrainConfig(micro_batch_size=1)}
    check_same_settings(run, settings(**SAME, **moved, **rates))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"quantize": {}}, r"quantize was \{language: nf4\} and is \{\}"),
        ({"lora": LoraConfig(init="pissa")}, "lora.init was default and is pissa"),
        ({"lora": LoraConfig(alpha=8)}, "lora.alpha was 32 and is 8"),
        ({"seed": 1}, "seed was 42 and is 1"),
        ({"train": TrainConfig(batch_size=8)}, "train.batch_size was 256 and is 8"),
        ({"model": ModelConfig("base", image_size=364)}, "image_size was null and is 364"),
        ({"parts": PartsConfig()}, "parts was .*language: lora.* and is .*language: frozen"),
    ],
)
def test_what_makes_another_run_is_refused(run, changed, said):
    with pytest.raises(ValueError, match=said) as error:
        check_same_settings(run, settings(**(SAME | changed)))
    assert "go on with those of before (its config.yaml has them)" in str(error.value)


def test_other_filters_make_another_run(run):
    splits = {"train": SourceConfig("a.csv"), "validation": SourceConfig("b.csv")}
    data = DataConfig(**splits, filters=Rules(harmful="drop"))
    with pytest.raises(ValueError, match=r"data\.filters was null and is .*harmful: drop"):
        check_same_settings(run, settings(**SAME, data=data))
    idle = DataConfig(**splits, filters=Rules(languages=["german"]))
    check_same_settings(run, settings(**SAME, data=idle))


def test_a_run_from_before_there_were_filters_goes_on(run):
    begun = yaml.safe_load((run / "config.yaml").read_text())
    del begun["data"]["filters"]
    (run / "config.yaml").write_text(yaml.safe_dump(begun))
    check_same_settings(run, settings(**SAME))


def test_where_a_text_branch_lies_may_change_and_which_it_is_may_not(tmp_path):
    begun = {"parts": {}, "stage1": "/here/stage1", "data": {"answers": "sample"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(begun))
    check_same_settings(tmp_path, begun | {"stage1": "/there/stage1"})
    with pytest.raises(ValueError, match="stage1 was stage1 and is other"):
        check_same_settings(tmp_path, begun | {"stage1": "other"})
    with pytest.raises(ValueError, match=r"data\.answers was sample and is all"):
        check_same_settings(tmp_path, begun | {"data": {"answers": "all"}})


def test_adapters_that_nothing_has_may_be_set_otherwise(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings()))
    check_same_settings(tmp_path, settings(lora=LoraConfig(r=2)))


@pytest.mark.parametrize(
    ("commit", "hint"), [("abc", "--model.revision abc"), (None, "the weights of before as")]
)
def test_a_run_goes_on_upon_the_weights_that_it_was_begun_on(tmp_path, commit, hint):
    check_same_base(tmp_path, Base("some/model", commit, "1"))  # a new run
    keep_base(tmp_path, Base("some/model", commit, "1"))
    check_same_base(tmp_path, Base("/copy", None, "1"))
    keep_base(tmp_path, Base("/copy", None, "1"))  # the first stays
    said = f"begun on some/model, and the weights of /other are others: .* go on with {hint}"
    with pytest.raises(ValueError, match=said):
        check_same_base(tmp_path, Base("/other", None, "2"))


def test_settings_that_may_change_are_told_with_those_of_before(run):
    assert changed_settings(run, settings(**SAME, output="moved")) is None
    optimizer, train = OptimizerConfig(lr=1e-3), TrainConfig(max_steps=9, resume=True)
    told = changed_settings(run, settings(**SAME, optimizer=optimizer, train=train))
    assert told == (
        f"the run goes on with other settings than before ({run / 'config.yaml'}): "
        "optimizer.lr 1.0e-05 -> 0.001, train.max_steps null -> 9"
    )


def test_a_run_that_goes_on_again_is_compared_with_its_last_settings(run):
    for times in (2, 10):
        later = settings(**SAME, train=TrainConfig(max_steps=times))
        (run / f"config-resumed-{times}.yaml").write_text(yaml.safe_dump(later))
    assert changed_settings(run, settings(**SAME, train=TrainConfig(max_steps=10))) is None
    told = changed_settings(run, settings(**SAME))
    assert told.endswith("-resumed-10.yaml): train.max_steps 10 -> null")


def test_what_older_settings_dont_name_isnt_told(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"train": {"epochs": 2}, "data": None}))
    now = {"train": {"epochs": 3, "new": 1}, "data": {"workers": 1}, "added": {}}
    told = changed_settings(tmp_path, now)
    assert told.endswith(": train.epochs 2 -> 3")
