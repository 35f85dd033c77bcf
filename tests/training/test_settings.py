"""What no run can work with is said at once, all of it, by the names of the settings."""

from dataclasses import asdict, fields, is_dataclass

import pytest

from blip2ft.config import (
    CaptionConfig,
    DataConfig,
    ModelConfig,
    RetrievalConfig,
    SourceConfig,
    StreamConfig,
)
from blip2ft.parse import parse_config
from blip2ft.training.settings import RULES, check_settings, lora_warning, warmup_warning

SOURCES = {"train": SourceConfig("a.csv"), "validation": SourceConfig("b.csv")}
CONFIGS = [
    config(output="run", model=ModelConfig("m"), data=DataConfig(**SOURCES))
    for config in (CaptionConfig, RetrievalConfig)
]
COUNTS = ["epochs", "max_steps", "batch_size", "micro_batch_size", "evaluate_every"]
COUNTS += ["checkpoint_every", "keep_checkpoints", "log_every"]


def changed(key: str, value: object) -> dict:
    *groups, name = key.split(".")
    found = asdict(CONFIGS[0])[groups[0]] | {name: value}
    return {groups[0]: found if len(groups) == 1 else {groups[1]: {name: value}}}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_the_defaults_pass(config):
    check_settings(asdict(config))


def test_every_rule_is_that_of_a_setting():
    known = {
        f"{group.name}.{field.name}"
        for config in CONFIGS
        for group in fields(config)
        if is_dataclass(getattr(config, group.name))
        for field in fields(getattr(config, group.name))
    }
    known |= {f"data.stream.{field.name}" for field in fields(StreamConfig)}
    assert RULES.keys() <= known
    assert {f"train.{name}" for name in COUNTS} <= RULES.keys()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((f"train.{name}", value) for name in COUNTS for value in (0, -1)),
        ("generation.num_beams", 0),
        ("generation.batch_size", 0),
        ("optimizer.lr", -1.0),
        ("optimizer.lr", 0.0),
        ("optimizer.lr", float("nan")),
        ("optimizer.warmup_steps", -1),
        ("optimizer.max_grad_norm", 0.0),
        ("lora.dropout", 1.0),
        ("optimizer.lora_lr_ratio", 0.0),
        ("data.workers", -1),
        ("data.stream.max_broken", 5),
        ("data.stream.max_broken", float("nan")),
        ("data.stream.cache_gb", 0.0),
        ("data.stream.shuffle", 0),
        ("model.image_size", 0),
    ],
)
def test_a_value_outside_its_range_is_refused_by_name(key, value):
    with pytest.raises(ValueError, match=rf"^{key} is {value}: allowed is "):
        check_settings(changed(key, value))


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("optimizer.betas", (0.9, 1.0), r"\[0\.9, 1\.0\]: allowed is two numbers of 0 or more"),
        ("data.crop_scale", (1.0, 0.5), r"\[1\.0, 0\.5\]: allowed is two shares of the area"),
        ("optimizer.min_lr", 1.0, r"1\.0: allowed is 0 up to optimizer\.lr, 1e-05"),
    ],
)
def test_pairs_are_shown_as_they_are_written(key, value, shown):
    with pytest.raises(ValueError, match=rf"^{key} is {shown}"):
        check_settings(changed(key, value))


def test_null_and_1_pass():
    check_settings(changed("train.max_steps", None))
    check_settings(changed("train.max_steps", 1))
    check_settings({})


def test_all_that_is_wrong_is_said_at_once():
    words = ["--output", "r", "--model.name", "m", "--data.train.source", "a"]
    words += ["--data.validation.source", "b", "--train.batch_size", "0", "--optimizer.lr", "-1"]
    config, _ = parse_config(CaptionConfig, words, "caption.py")
    with pytest.raises(ValueError, match=r"optimizer\.lr is -1.*\ntrain\.batch_size is 0"):
        check_settings(asdict(config))


def test_a_warm_up_as_long_as_the_run_is_said():
    assert warmup_warning(9, 10) is None
    assert "warmup_steps is 1000 and the run has 30 steps" in (warmup_warning(1000, 30) or "")
    assert "take about 1," in (warmup_warning(5, 5) or "")


@pytest.mark.parametrize(
    ("quantize", "told"),
    [
        ({"language": "nf3"}, r"^quantize\.language is 'nf3': allowed are nf4 and int8$"),
        (
            {"language": "nf4", "vision": "int8"},
            r"^quantize has language in nf4 and vision in int8: allowed is one kind for both",
        ),
    ],
    ids=["unknown", "mixed"],
)
def test_kinds_of_fewer_bits_are_told_by_part(quantize, told):
    with pytest.raises(ValueError, match=told):
        check_settings({"quantize": quantize})


def test_both_parts_may_be_held_in_the_same_fewer_bits():
    check_settings({"quantize": {"language": "int8", "vision": "int8"}})


def test_filters_that_cannot_be_are_told():
    told = r"^data\.filters\.languages has 'germn'.*\ndata\.filters\.countries has 'UK'"
    filters = {"harmful": "drop", "languages": ["germn"], "countries": ["UK"]}
    with pytest.raises(ValueError, match=told):
        check_settings({"data": {"filters": filters}})
    check_settings({"data": {"filters": filters | {"harmful": "keep"}}})


def test_a_stream_is_filtered_as_its_shards_are_written():
    data = {"filters": {"personal": "mask"}, "stream": {"sources": []}}
    with pytest.raises(ValueError, match=r"^data\.filters is for data\.train.* blip2ft shard"):
        check_settings({"data": data})
    check_settings({"data": data | {"filters": {}}})


def test_settings_of_a_lora_that_no_part_has_are_told():
    settings = asdict(CONFIGS[0])
    assert lora_warning(settings) is None
    settings["lora"] |= {"init": "pissa", "r": 8}
    settings["optimizer"]["lora_lr_ratio"] = 16.0
    told = "no part is lora, so nothing comes of lora.r, lora.init, optimizer.lora_lr_ratio; set"
    assert told in (lora_warning(settings) or "")
    settings["parts"]["language"] = "lora"
    assert lora_warning(settings) is None
