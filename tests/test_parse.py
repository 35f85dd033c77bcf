"""Settings from YAML and command line: order, types, unknown keys, and errors as one line."""

import dataclasses
import errno
import os
import signal
import subprocess
import sys

import pytest

from blip2ft.config import CaptionConfig
from blip2ft.errors import Interrupted
from blip2ft.parse import parse_config, run_cleanly

REQUIRED = [
    *("--output", "runs/a", "--model.name", "some/model"),
    *("--data.train.source", "train.csv", "--data.validation.source", "val.csv"),
]


def parse(*argv: str) -> CaptionConfig:
    return parse_config(CaptionConfig, [*REQUIRED, *argv], "caption.py")[0]


@pytest.fixture
def yaml(tmp_path):
    """Write text to a YAML file and return its path as the command line takes it."""

    def write(text: str, name: str = "run.yaml") -> str:
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


def leaves(config_class: type, prefix: str = ""):
    """Key and docstring's first words of every field that isn't a group."""
    for field in dataclasses.fields(config_class):
        if dataclasses.is_dataclass(field.type):
            yield from leaves(field.type, f"{prefix}{field.name}.")
        else:
            start = config_class.__doc__.split(f"    {field.name}: ")[1]
            yield prefix + field.name, " ".join(start.split("\n")[0].split()[:4])


def test_defaults_are_the_papers():
    config = parse()
    assert config.generation.num_beams == 5
    assert config.parts.language == "frozen"
    assert config.optimizer.weight_decay == 0.05
    assert config.prompt == "a photo of"


def test_the_command_line_overrides_the_yaml(yaml):
    path = yaml("train:\n  epochs: 3\n  batch_size: 8\nprompt: from the file\n")
    config = parse("--config", path, "--train.epochs", "7")
    assert config.train.epochs == 7
    assert config.train.batch_size == 8
    assert config.prompt == "from the file"


def test_what_comes_later_wins(yaml):
    first, second = yaml("seed: 1\nprompt: one\n", "1.yaml"), yaml("seed: 2\n", "2.yaml")
    config = parse("--config", first, "--config", second)
    assert (config.seed, config.prompt) == (2, "one")
    assert parse("--seed", "3", "--config", second).seed == 2
    assert parse("--config", second, "--seed", "3").seed == 3


def test_values_get_their_types(yaml):
    path = yaml(
        "optimizer:\n  lr: 1e-5\n  betas: [0.9, 0.98]\ntrain:\n  resume: yes\n"
        "data:\n  crop_scale: null\n  test:\n    source: test.csv\n"
        "quantize:\n  language: nf4\nmodel:\n  gradient_checkpointing: [vision]\n"
    )
    config = parse("--config", path, "--data.flip", "False")
    assert config.optimizer.lr == 1e-5
    assert config.optimizer.betas == (0.9, 0.98)
    assert config.train.resume is True
    assert config.data.flip is False
    assert config.data.crop_scale is None
    assert config.data.test is not None
    assert (config.data.test.source, config.data.test.format) == ("test.csv", "auto")
    assert config.quantize == {"language": "nf4"}
    assert config.model.gradient_checkpointing == ["vision"]


def test_null_is_taken_where_it_means_something(yaml):
    path = yaml("model:\n  image_size: 364\n")
    assert parse("--config", path, "--model.image_size", "null").model.image_size is None
    assert parse("--optimizer.max_grad_norm", "null").optimizer.max_grad_norm is None


@pytest.mark.parametrize(
    ("words", "resume"),
    [
        ("--resume", True),
        ("--resume --seed 3", True),
        ("--resume true", True),
        ("--resume false", False),
        ("--train.resume true", True),
        ("", False),
    ],
)
def test_resume_alone_is_a_word_for_the_setting(words, resume):
    argv = ["--output", "x", "--model.name", "m", "--data.validation.source", "v", *words.split()]
    config, yaml_text = parse_config(CaptionConfig, argv, "recipes/caption.py")
    assert config.train.resume is resume
    assert f"  resume: {str(resume).lower()}\n" in yaml_text
    assert "\nresume" not in yaml_text


@pytest.mark.parametrize("key", ["train.epochs", "seed", "prompt", "train.resume"])
def test_null_is_refused_where_a_value_is_needed(yaml, key):
    group, _, name = key.rpartition(".")
    text = f"{group}:\n  {name}: null\n" if group else f"{name}: null\n"
    with pytest.raises(ValueError, match=f"{key} is 'None': allowed is"):
        parse("--config", yaml(text))


def test_the_resolved_yaml_gives_the_same_config(yaml):
    argv = [
        *REQUIRED,
        *("--data.test.source", "test.csv", "--data.crop_scale", "null", "--optimizer.lr", "3e-4"),
        *("--parts.language", "lora", "--quantize", '{"language": "int8"}'),
        *("--model.gradient_checkpointing", "[vision,language]", "--prompt", "a: 'b' #ü"),
        *("--train.log_with", "[tensorboard]", "--optimizer.betas", "[0.8,0.9]"),
    ]
    config, resolved = parse_config(CaptionConfig, argv, "caption.py")
    again, same = parse_config(CaptionConfig, ["--config", yaml(resolved)], "caption.py")
    assert again == config
    assert same == resolved
    for key, _ in leaves(CaptionConfig):
        assert f"{key.rpartition('.')[2]}:" in resolved


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("train.epochz", "train.epochs"),
        ("trian.epochs", "train.epochs"),
        ("data.train.sorce", "data.train.source"),
        ("modle.name", "model.name"),
        ("promt", "prompt"),
        ("epochs", "train.epochs"),
        ("epcohs", "train.epochs"),
        ("lr", "optimizer.lr"),
        ("train.lr", "optimizer.lr"),
    ],
)
def test_an_unknown_key_names_the_nearest(yaml, written, meant):
    expected = f"unknown setting '{written}': did you mean '({meant})'"
    for argv in ([f"--{written}", "3"], [f"--{written}=3"]):
        with pytest.raises(ValueError, match=expected):
            parse(*argv)
    *groups, name = written.split(".")
    text = "".join(f"{'  ' * i}{group}:\n" for i, group in enumerate(groups))
    path = yaml(f"{text}{'  ' * len(groups)}{name}: 3\n")
    for argv in ([*REQUIRED, "--config", path], ["--config", path, *REQUIRED]):
        with pytest.raises(ValueError, match=expected):
            parse_config(CaptionConfig, argv, "caption.py")


def test_an_unknown_key_of_an_optional_group_names_the_nearest(yaml):
    expected = "unknown setting 'data.test.formt': did you mean 'data.test.format'"
    with pytest.raises(ValueError, match=expected):
        parse("--data.test.source", "a", "--data.test.formt", "csv")
    with pytest.raises(ValueError, match=expected):
        parse("--config", yaml("data:\n  test:\n    source: a\n    formt: csv\n"))


def test_an_unknown_key_that_several_groups_have_names_them():
    expected = "'batch_size': did you mean 'train.batch_size' or 'generation.batch_size'?"
    with pytest.raises(ValueError, match=expected):
        parse("--batch_size", "3")


@pytest.mark.parametrize("word", ["--deepspeed=ds.json", "--deepspeed_config", "--local_rank=0"])
def test_a_command_for_deepspeed_is_told_what_does_the_same(word):
    expected = r"unknown setting '\w+', of a command for DeepSpeed: it isn't used here.*ZeRO-3 take"
    with pytest.raises(ValueError, match=rf"{expected} recipes/accelerate/fsdp2\.yaml"):
        parse(word, *([] if "=" in word else ["ds.json"]))


def test_an_unknown_key_like_no_other_points_to_help():
    with pytest.raises(ValueError, match="unknown setting 'xxqqzz': --help lists them all"):
        parse("--xxqqzz", "3")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optimizer.lr", "fast", "optimizer.lr is 'fast': allowed is float"),
        ("train.epochs", "1.5", "train.epochs is '1.5': allowed is int"),
        ("train.resume", "maybe", "train.resume is 'maybe': allowed is true or false"),
        (
            "parts.vision",
            "half",
            r"parts.vision is 'half': allowed is \['frozen', 'lora', 'full'\]",
        ),
        ("model.precision", "fp8", r"model.precision is 'fp8': allowed is \['auto', 'fp32', "),
        ("optimizer.max_grad_norm", "abc", "max_grad_norm is 'abc': allowed is float, null"),
        ("model.image_size", "big", "model.image_size is 'big': allowed is int, null"),
        ("data.crop_scale", "[1, 2, 3]", r"crop_scale is '\[1, 2, 3\]': allowed is tuple"),
        ("quantize", '{"language": 4}', "a value of quantize is '4': allowed is str"),
        ("quantize", "nf4", "quantize is 'nf4': allowed is a mapping, such as {language: nf4}$"),
        (
            "model.attention",
            "eager",
            "is 'eager': allowed is a mapping, such as {vision: sdpa}$",
        ),
        ("train.log_with", "wandb", "train.log_with is 'wandb': allowed is list"),
    ],
)
def test_a_wrong_value_names_key_value_and_what_is_allowed(yaml, key, value, message):
    if key != "train.log_with":  # the command line splits words into lists
        with pytest.raises(ValueError, match=message):
            parse(f"--{key}", value)
    group, _, name = key.rpartition(".")
    text = f"{name}: {value}\n"
    path = yaml(f"{group}:\n  {text}" if group else text)
    with pytest.raises(ValueError, match=f"run.yaml: .*{message}"):
        parse("--config", path)


def test_a_mapping_without_the_space_is_told_with_it():
    said = r"quantize is '{language:nf4}': allowed is a mapping, such as {language: nf4}; did you "
    with pytest.raises(ValueError, match=said + r"mean '{language: nf4}'\?$"):
        parse("--quantize", "{language:nf4}")


def test_a_wrong_value_in_an_optional_group_names_its_key(yaml):
    with pytest.raises(ValueError, match=r"data.test.source is '3': allowed is str"):
        parse("--config", yaml("data:\n  test:\n    source: 3\n"))


@pytest.mark.parametrize("value", ["3", "[3]", "null", "some words"])
def test_a_group_that_is_a_value_names_a_setting_of_it(yaml, value):
    with pytest.raises(ValueError, match=r"train is .*: allowed is a group .* train\.epochs"):
        parse("--config", yaml(f"train: {value}\n"))


def test_a_source_given_as_a_path_says_what_to_write(yaml):
    message = "data.train is 'photos.csv': allowed is a group .* data.train.source"
    with pytest.raises(ValueError, match=message):
        parse("--config", yaml("data:\n  train: photos.csv\n"))
    with pytest.raises(ValueError, match=message):
        parse("--data.train", "photos.csv")
    with pytest.raises(ValueError, match=r"data.test is 'photos.csv': allowed is a group"):
        parse("--config", yaml("data:\n  test: photos.csv\n"))


def test_missing_settings_are_all_named():
    message = "required: model.name, data.validation.source"
    with pytest.raises(ValueError, match=message):
        parse_config(CaptionConfig, ["--output", "a"], "caption.py")
    with pytest.raises(ValueError, match=r"data.test lacks a setting .*: data.test.source"):
        parse("--data.test.format", "csv")


def test_a_stray_word_is_refused():
    with pytest.raises(ValueError, match="unrecognized arguments: word"):
        parse("word")


def test_a_missing_yaml_is_named(tmp_path):
    path = tmp_path / "nowhere.yaml"
    for words in (["--config", str(path)], [f"--config={path}"]):
        with pytest.raises(
            ValueError, match=rf"^--config {path}: there is no such file; give a re"
        ):
            parse(*words)


def test_a_folder_given_as_yaml_is_told_with_the_yaml_in_it(tmp_path):
    said = rf"^--config {tmp_path}: this is a folder; give a recipe's YAML, "
    with pytest.raises(ValueError, match=said + "no YAML file is in it"):
        parse("--config", str(tmp_path))
    for name in ("b.yaml", "a.yaml", "notes.txt"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=said + r"it holds a\.yaml, b\.yaml$"):
        parse("--config", str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"train: [1\n x: {", "not valid YAML: .* line 2, column 3"),
        (b"lora:\n  r: 8\n alpha: 3", "not valid YAML: .* line 3, column 2"),
        (b"only words", "expected lines of `key: value`, got: only words"),
        (b"", "expected lines of `key: value`, got:"),
        (b"\xff\xfe", "'utf-8' codec can't decode"),
    ],
)
def test_a_broken_yaml_is_named(tmp_path, content, message):
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"broken\.yaml: {message}"):
        parse("--config", str(path))


def test_help_tells_every_field_with_its_meaning(capsys):
    with pytest.raises(SystemExit, match="0"):
        parse("--help")
    shown = " ".join(capsys.readouterr().out.split())
    for key, meaning in leaves(CaptionConfig):
        assert f"--{key} " in shown, key
        assert meaning in shown, key


def stop_status(main, capsys, *, debug: bool = False) -> tuple[int, str]:
    """Exit status and standard error of `main` under run_cleanly."""
    with pytest.raises(SystemExit) as stopped:
        run_cleanly(main, debug=debug)
    return stopped.value.code, capsys.readouterr().err


def raising(error: BaseException):
    def main() -> None:
        raise error

    return main


def test_a_run_that_ends_well_has_its_own_status(capsys):
    assert stop_status(lambda: None, capsys) == (0, "")
    assert stop_status(lambda: 2, capsys) == (2, "")


def test_an_error_is_its_message_and_status_2(capsys):
    status, err = stop_status(raising(ValueError("such as:\n  a,b\n")), capsys)
    assert (status, err) == (2, "error: such as:\n  a,b\n")
    status, err = stop_status(raising(PermissionError(errno.EACCES, "no way", "/x/y")), capsys)
    assert status == 2
    assert err.count("\n") == 1
    assert err.startswith("error: /x/y: not allowed to read or write it; change its permissions")


def test_debug_shows_the_traceback(capsys):
    status, err = stop_status(raising(ValueError("bad")), capsys, debug=True)
    assert status == 2
    assert err.startswith("Traceback")
    assert err.endswith("error: bad\n")


def test_a_bug_keeps_its_traceback():
    with pytest.raises(KeyError, match="bug"):
        run_cleanly(raising(KeyError("bug")), debug=False)


STOPPED_WHILE_WRITING = """
import threading, time, torch
from blip2ft.parse import run_cleanly
from blip2ft.training.background import Writer

def main():
    file = open("written", "wb")
    with Writer() as writer:
        tensors = [torch.ones(1000, 1000) for _ in range(100)]
        writer.start(lambda: torch.save(tensors, file))
        while file.tell() < 1e7:
            time.sleep(0.001)
        raise KeyboardInterrupt

run_cleanly(main, debug=False)
"""


def test_an_end_in_the_middle_of_writing_is_no_abort(tmp_path):
    """As after a second Ctrl-C."""
    command = [sys.executable, "-c", STOPPED_WHILE_WRITING]
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (found.returncode, found.stderr) == (130, "\nstopped\n")


def test_ctrl_c_is_130(capsys):
    status, err = stop_status(raising(KeyboardInterrupt()), capsys)
    assert (status, err) == (130, "\nstopped\n")


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)]
)
def test_an_interrupted_run_says_how_to_go_on(capsys, tmp_path, number, status):
    stopped, err = stop_status(raising(Interrupted(tmp_path / "step-7", number)), capsys)
    assert stopped == status
    assert "step-7" in err
    assert "--resume" in err


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "/x/y"),
        # safetensors' own class, which is no OSError
        RuntimeError("Error while serializing: I/O error: No space left (os error 28)"),
    ],
)
def test_a_full_disk_says_what_to_do(capsys, error):
    status, err = stop_status(raising(error), capsys)
    assert status == 2
    assert err.startswith("error: no space left on the disk")
    assert ("/x/y" in err) == isinstance(error, OSError)
    assert "--resume" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("number", "said"), [(errno.EDQUOT, "error: your share"), (errno.EFBIG, "error: the disk, or")]
)
def test_a_limit_of_what_may_be_written_is_told_as_a_full_disk_is(capsys, number, said):
    status, err = stop_status(raising(OSError(number, os.strerror(number), "/x/y")), capsys)
    assert status == 2
    assert err.startswith(said)
    assert "at /x/y; what was saved before is whole: free some space" in err
