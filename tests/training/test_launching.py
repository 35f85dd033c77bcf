"""What `accelerate launch` makes of each file in recipes/accelerate/."""

import os
import re
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
import yaml
from accelerate.commands import launch as accelerate_launch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from blip2ft.training.processes import start_processes
from blip2ft.training.run import read_lines
from blip2ft.training.sharded import Sharding, asked_sharding

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "recipes" / "accelerate"
FILES = sorted(FOLDER.glob("*.yaml"))
WHOLE, SHARDS = DistributedType.MULTI_GPU, DistributedType.FSDP
EXPECTED = {
    "cpu": (DistributedType.NO, 1, 1, None),
    "one_gpu": (DistributedType.NO, 1, 1, None),
    "ddp": (WHOLE, 1, 8, None),
    "ddp_many_nodes": (WHOLE, 2, 16, None),
    "fsdp2": (SHARDS, 1, 8, Sharding(reshard=True)),
    "fsdp2_zero2": (SHARDS, 1, 8, Sharding(reshard=False)),
    "fsdp2_many_nodes": (SHARDS, 2, 16, Sharding(reshard=True)),
}
PROGRAM = """
from blip2ft.training.processes import start_processes
from blip2ft.training.sharded import asked_sharding

accelerator = start_processes("auto", [], ".")
place = f"{accelerator.process_index} of {accelerator.num_processes}"
print(f"process {place}, {asked_sharding()}", flush=True)
accelerator.wait_for_everyone()
accelerator.end_training()
"""


def test_every_file_is_known():
    assert {path.stem for path in FILES} == EXPECTED.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_says_what_accelerate_reads(path, monkeypatch):
    kind, machines, processes, sharding = EXPECTED[path.stem]
    config = load_config_from_file(str(path))
    assert config.distributed_type == kind
    assert (config.num_machines, config.num_processes) == (machines, processes)
    assert config.use_cpu == (path.stem == "cpu")
    header = path.read_text().partition("\ncompute_environment:")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    assert f"accelerate launch --config_file recipes/accelerate/{path.name} " in header
    assert "# Hardware: " in header

    args = launch_command_parser().parse_args(["--config_file", str(path), "recipes/caption.py"])
    args, *_ = _validate_launch_command(args)
    assert args.use_fsdp == (kind == SHARDS)
    for name, value in prepare_multi_gpu_env(args).items():
        if name.startswith(("ACCELERATE_USE_FSDP", "FSDP_")):
            monkeypatch.setenv(name, value)
    assert asked_sharding() == sharding


DEEPSPEED = {
    "zero2": "{zero_stage: 2, gradient_clipping: 1.0, gradient_accumulation_steps: 4}",
    "zero3": "{zero_stage: 3, offload_optimizer_device: cpu, offload_param_device: cpu}",
    "file": "{deepspeed_config_file: ds.json}",
}


@pytest.mark.parametrize("settings", DEEPSPEED.values(), ids=DEEPSPEED)
def test_a_file_for_deepspeed_is_refused_with_what_does_the_same(settings, tmp_path, monkeypatch):
    """As accelerate reads it; to start the processes it wants DeepSpeed to be installed."""
    path = tmp_path / "deepspeed.yaml"
    lines = ["compute_environment: LOCAL_MACHINE", "distributed_type: DEEPSPEED"]
    lines += [f"deepspeed_config: {settings}", "num_machines: 1", "num_processes: 2"]
    path.write_text("\n".join([*lines, "mixed_precision: bf16", "use_cpu: false", ""]))
    args = launch_command_parser().parse_args(["--config_file", str(path), "recipes/caption.py"])
    launched: list[Namespace] = []
    monkeypatch.setattr(accelerate_launch, "deepspeed_launcher", launched.append)
    accelerate_launch.launch_command(args)
    for name, value in prepare_deepspeed_cmd_env(launched[0])[1].items():
        if name.startswith("ACCELERATE_"):
            monkeypatch.setenv(name, value)
    with pytest.raises(
        ValueError, match=r"told to use DeepSpeed \(ACCELERATE_USE_DEEPSPEED"
    ) as told:
        start_processes("auto", [], tmp_path)
    page = (ROOT / "docs" / "launching.md").read_text()
    assert "docs/launching.md, From DeepSpeed" in str(told.value)
    assert "\n## From DeepSpeed\n" in page
    for name in re.findall(r"\w+\.yaml", str(told.value)):
        assert (FOLDER / name).is_file(), name
        assert f"`{name}`" in page, name


@pytest.mark.parametrize(
    "value", ["true", *(pytest.param(other, marks=pytest.mark.slow) for other in ("True", "1"))]
)
def test_a_recipe_refuses_deepspeed_in_a_line_and_writes_nothing(value, tmp_path):
    words = ["--config", "recipes/caption/tiny.yaml", "--output", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "recipes/caption.py", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"ACCELERATE_USE_DEEPSPEED": value},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch("error: accelerate was told to use DeepSpeed .*FSDP2.*\n", done.stderr)
    assert not (tmp_path / "run").exists()


def test_commands_in_headers_name_what_there_is():
    named = [name for path in FILES for name in re.findall(r"recipes/[\w./-]+\w", path.read_text())]
    assert named
    for name in named:
        assert (ROOT / name).exists(), name


def test_yaml_of_the_page_on_launching_is_yaml():
    page = (ROOT / "docs" / "launching.md").read_text()
    (job,) = re.findall(r"```yaml\n(.*?)```", page, re.S)
    replicas = yaml.safe_load(job)["spec"]["pytorchReplicaSpecs"]
    (container,) = replicas["Worker"]["template"]["spec"]["containers"]
    subprocess.run(["bash", "-n", "-c", container["args"][0]], check=True)
    (program,) = re.findall(r"```python\n(.*?)```", page, re.S)
    compile(program, "launching.md", "exec")


def launch(*words: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "accelerate.commands.launch", *map(str, words)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_every_file_launches(name, tmp_path):
    """On this machine, without a GPU; many machines are two launchers."""
    kind, machines, _, sharding = EXPECTED[name]
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    words = ["--config_file", FOLDER / f"{name}.yaml", "--mixed_precision", "no"]
    processes = 1 if kind == DistributedType.NO else 2
    launched = [
        launch(
            *words,
            *(["--num_processes", processes] if processes > 1 else []),
            *(["--machine_rank", rank, "--main_process_port", 29541] if machines > 1 else []),
            program,
        )
        for rank in range(machines)
    ]
    said = [process.communicate(timeout=120) for process in launched]
    assert [process.returncode for process in launched] == [0] * machines, said
    told = sorted("".join(out for out, _ in said).splitlines())
    assert told == [f"process {i} of {processes}, {sharding}" for i in range(processes)]


def words_of_a_run(model: Path, photos: Path, run: Path) -> list[object]:
    words = ["--model.name", model, "--model.image_size", 28, "--output", run]
    for split in ("train", "validation"):
        words += [f"--data.{split}.source", photos / "captions.csv"]
    words += ["--data.workers", 0, "--train.batch_size", 4, "--train.micro_batch_size", 2]
    words += ["--train.evaluate_every", 9999, "--train.checkpoint_every", 5, "--train.epochs", 999]
    words += ["--train.log_every", 1, "--generation.num_beams", 1, "--optimizer.warmup_steps", 1]
    return [*words, "--generation.max_new_tokens", 3]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_a_killed_process_is_named_and_the_run_resumes(name, opt_folder, photo_folder, tmp_path):
    run = tmp_path / "run"
    words = ["--config_file", FOLDER / f"{name}.yaml", "--num_processes", 2]
    words += ["--mixed_precision", "no", "recipes/caption.py"]
    words += words_of_a_run(opt_folder, photo_folder, run)
    first = launch(*words)
    while not (run / "checkpoints" / "step-00000005").exists():
        assert first.poll() is None, first.communicate()[1][-3000:]
        time.sleep(0.1)
    children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
    second = next(pid for pid in children if b"\0LOCAL_RANK=1\0" in environment_of(pid))
    os.kill(int(second), signal.SIGKILL)
    killed = time.monotonic()
    _, said = first.communicate(timeout=90)
    assert time.monotonic() - killed < 60
    assert first.returncode == 1
    assert f"error: process 1 of 2 (pid {second} on " in said
    assert "was killed, so the others stop" in said
    done = max(int(path.name[5:]) for path in (run / "checkpoints").glob("step-*"))
    again = launch(*words, "--train.max_steps", done + 2, "--resume")
    assert "best step" in again.communicate(timeout=120)[0]
    assert [row["step"] for row in read_lines(run / "log.jsonl")] == list(range(1, done + 3))
    assert (run / "adapter" / "trained.safetensors").is_file()


def environment_of(pid: str) -> bytes:
    return b"\0" + Path(f"/proc/{pid}/environ").read_bytes()
