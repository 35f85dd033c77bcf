"""What a run gets of Accelerate: its precision, and no more than data parallelism."""

import os
import subprocess
import sys
from datetime import timedelta

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, LoggerType
from transformers import OPTConfig, PreTrainedConfig, T5Config

from blip2ft.training import processes
from blip2ft.training.processes import frozen_dtype, precision_of, start_processes

on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says what a CPU does")


def config_with(text) -> PreTrainedConfig:
    config = PreTrainedConfig()
    config.text_config = text
    return config


@on_cpu
def test_auto_on_a_cpu_is_fp32(tmp_path):
    accelerator = start_processes("auto", [], tmp_path)
    assert (accelerator.mixed_precision, precision_of(accelerator)) == ("no", "fp32")
    assert frozen_dtype(accelerator, config_with(OPTConfig())) == torch.float32


@on_cpu
def test_auto_takes_what_accelerate_was_told(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert start_processes("auto", [], tmp_path).mixed_precision == "bf16"


@pytest.mark.parametrize("several", [True, False])
def test_one_process_in_the_place_of_several_is_told(tmp_path, monkeypatch, caplog, several):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # as accelerate launch sets them
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    if several:
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    start_processes("auto", [], tmp_path)
    assert ("starts this one alone" in caplog.text) == several
    assert ("torchrun --standalone --nproc_per_node N" in caplog.text) == several


def test_fp32_means_fp32_whatever_accelerate_was_told(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert start_processes("fp32", [], tmp_path).mixed_precision == "no"


@on_cpu
def test_bf16_keeps_frozen_weights_in_bf16(tmp_path):
    accelerator = start_processes("bf16", [], tmp_path)
    assert precision_of(accelerator) == "bf16"
    assert frozen_dtype(accelerator, config_with(T5Config())) == torch.bfloat16


def test_bf16_on_a_gpu_without_it_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    with pytest.raises(ValueError, match=r"model\.precision is bf16, which this GPU lacks"):
        start_processes("bf16", [], tmp_path)


class Fp16:
    mixed_precision = "fp16"


def test_flan_t5_in_fp16_is_refused():
    with pytest.raises(ValueError, match=r"FlanT5 overflows in fp16; set model.precision to bf16"):
        frozen_dtype(Fp16(), config_with(T5Config()))


def test_opt_in_fp16_is_not():
    assert frozen_dtype(Fp16(), config_with(OPTConfig())) == torch.float16


@pytest.mark.parametrize(
    ("variable", "name"),
    [
        ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "a parallelism config"),
    ],
)
def test_a_model_in_other_pieces_than_shards_is_refused(tmp_path, monkeypatch, variable, name):
    monkeypatch.setenv(variable, "true")
    expected = rf"told to use {name} \({variable} is true\); allowed are one process.*or FSDP2"
    with pytest.raises(ValueError, match=expected):
        start_processes("fp32", [], tmp_path)
    monkeypatch.setenv(variable, "false")
    start_processes("fp32", [], tmp_path)


def test_shards_are_not_accelerates(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="FSDP's first version"):
        start_processes("fp32", [], tmp_path)
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    accelerator = start_processes("fp32", [], tmp_path)
    assert accelerator.distributed_type == DistributedType.NO
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"


@pytest.mark.parametrize("kind", ["XLA", "FSDP", "MULTI_GPU", "MULTI_XPU"])
def test_only_data_parallelism_is_allowed(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType(kind))
    if kind.startswith("MULTI_"):
        start_processes("fp32", [], tmp_path)
    else:
        with pytest.raises(ValueError, match=f"told to use {kind}; allowed are one process"):
            start_processes("fp32", [], tmp_path)


def test_accumulation_is_the_loops_own(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    accelerator = start_processes("fp32", [], tmp_path)
    value = torch.ones((), requires_grad=True)
    accelerator.backward(value * 3)
    assert value.grad == 3


def test_processes_wait_for_hours(tmp_path):
    assert start_processes("fp32", [], tmp_path).init_handler.timeout >= timedelta(hours=1)


@on_cpu
def test_fp16_on_a_cpu_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"model\.precision is fp16, which needs a GPU"):
        start_processes("fp16", [], tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ValueError, match=r"model\.precision is fp16, which needs a GPU"):
        start_processes("auto", [], tmp_path)


def test_a_tracker_that_is_unknown_or_not_installed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "get_available_trackers", lambda: [LoggerType.TENSORBOARD])
    with pytest.raises(ValueError, match=r"log_with has 'wnadb': allowed are all, .*wandb"):
        start_processes("fp32", ["wnadb"], tmp_path)
    with pytest.raises(ValueError, match=r"isn't installed: pip install comet-ml"):
        start_processes("fp32", ["tensorboard", "comet_ml"], tmp_path)
    processes.check_trackers(["tensorboard"])
    processes.check_trackers(["all"])


@on_cpu
def test_processes_without_a_device_know_of_each_other(tmp_path):
    program = (
        "from pathlib import Path\n"
        "from blip2ft.training.processes import start_processes\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "accelerator = start_processes('auto', [], folder)\n"
        "found = folder / f'{accelerator.process_index}.txt'\n"
        "found.write_text(str(accelerator.num_processes))"
    )
    (tmp_path / "program.py").write_text(program)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", tmp_path / "program.py"]
    found = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-3000:]
    assert [(tmp_path / f"{i}.txt").read_text() for i in range(2)] == ["2", "2"]


def test_workers_are_no_more_than_the_cores(monkeypatch, caplog):
    monkeypatch.setattr(processes.os, "sched_getaffinity", lambda _: {0, 3}, raising=False)
    with caplog.at_level("INFO", "blip2ft"):
        assert [processes.usable_workers(asked) for asked in (0, 2)] == [0, 2]
        assert caplog.messages == []
        assert processes.usable_workers(4) == 2
    assert caplog.messages == ["data.workers is 4, of which 2 are used, one for each core"]
