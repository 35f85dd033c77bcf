"""What the docs tell a reader to type works."""

import importlib.util
import re
import shutil
import warnings
from pathlib import Path

import pytest
import yaml
from accelerate.state import AcceleratorState
from code_blocks import PAGES, ROOT, Block, blocks, commands
from stand_ins import provide

from blip2ft.parse import _keys as setting_names
from blip2ft.parse import parse_config
from blip2ft.settings import CONFIGS

# two steps of two samples, whatever the settings say
SMALL = {
    "--train.max_steps": "2",
    "--train.batch_size": "2",
    "--train.micro_batch_size": "2",
    "--data.workers": "0",
    "--optimizer.warmup_steps": "1",
}
SHORT = {"--generation.num_beams": "1", "--generation.max_new_tokens": "3"}
# programs that change the machine or aren't ours; of what they name in the repository it is looked
# whether it is there
OTHERS = {"pip", "python3", ".", "bash", "sbatch", "torchrun", "export", "hf", "git", "cd"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_tells_to_type_works(page, newcomer, blip2ft_main):
    found = blocks(page)
    there = provide("\n".join(block.text for block in found if block.language != "text"))
    for block in found:
        place = f"{page.name}:{block.line}"
        try:
            run_block(block, there, blip2ft_main)
        except BaseException as error:
            raise AssertionError(f"{place}: {error}") from error


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_settings_that_a_page_names_are_settings(page):
    """Such as `train.batch_size`, and --train.batch_size."""
    known = {key for config in CONFIGS.values() for key in setting_names(config)}
    groups = {key.split(".")[0] for key in known if "." in key}
    known |= {key.rpartition(".")[0] for key in known}
    spans = re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8"))
    named = {
        name
        for span in spans
        for name in re.findall(r"(?<![\w./=-])(?:--)?([a-z_]+(?:\.[a-z_0-9]+)+)(?![\w(/-])", span)
        if name.split(".")[0] in groups and not name.endswith((".csv", ".py"))
    }
    assert named <= known


def run_block(block: Block, there: set[Path], blip2ft_main) -> None:
    if block.language == "python":
        code = compile(block.text, "block", "exec")
        if block.not_run is None:
            exec(code, {})
    elif block.language in ("yaml", "yml"):
        list(yaml.safe_load_all(block.text))
    elif block.language in ("bash", "sh"):
        for words in commands(block.text):
            run_command(words, block.not_run, there, blip2ft_main)
    else:
        assert block.language in ("", "csv", "text", "json"), f"unknown language {block.language}"


def run_command(words: list[str], not_run: str | None, there: set[Path], blip2ft_main) -> None:
    recipe = next((w for w in words if re.fullmatch(r"recipes/\w+\.py", w)), None)
    if recipe is not None and words[0] not in OTHERS:
        run_recipe(recipe, words[words.index(recipe) + 1 :], not_run, there)
    elif words[0] == "blip2ft" and not_run is None:
        status, _, err = blip2ft_main(*words[1:])
        # check says 1 of data that has faults
        assert status in ((0, 1) if words[1] == "check" else (0,)), f"{' '.join(words)}: {err}"
    elif words[0] == "blip2ft":
        status, out, _ = blip2ft_main(words[1], "--help")
        unknown = {w for w in words if w.startswith("--")} - set(re.findall(r"--[\w-]+", out))
        assert status == 0
        assert not unknown, f"{words[1]} has no {unknown}"
    else:
        assert words[0] in OTHERS or Path(words[1]).is_file(), f"what is {words[0]}?"
        for word in words:
            if re.match(r"(scripts|recipes|docs)/", word):
                assert (ROOT / word).exists(), f"there is no {word}"


def run_recipe(recipe: str, words: list[str], not_run: str | None, there: set[Path]) -> None:
    task = Path(recipe).stem
    small = SMALL if task == "retrieval" else SMALL | SHORT
    given = [word for pair in small.items() for word in pair]
    config, text = parse_config(CONFIGS[task], [*words, *given], recipe)
    if not_run is not None:
        return
    if Path(config.output) in there:
        shutil.rmtree(config.output)
    spec = importlib.util.spec_from_file_location(f"docs_{task}", ROOT / recipe)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    AcceleratorState._reset_state(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module.main(config, text)
