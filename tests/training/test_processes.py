"""What a run gets of Accelerate: its precision, and no more than plain data parallelism."""

from datetime import timedelta

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from transformers import OPTConfig, PreTrainedConfig, T5Config

from blip2ft.training.processes import frozen_dtype, start_processes

on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says what a CPU does")


def config_with(text) -> PreTrainedConfig:
    config = PreTrainedConfig()
    config.text_config = text
    return config


@on_cpu
def test_auto_on_a_cpu_is_fp32(tmp_path):
    accelerator = start_processes("auto", [], tmp_path)
    assert accelerator.mixed_precision == "no"
    assert frozen_dtype(accelerator, config_with(OPTConfig())) == torch.float32


@on_cpu
def test_auto_takes_what_accelerate_was_told(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert start_processes("auto", [], tmp_path).mixed_precision == "bf16"


def test_fp32_means_fp32_whatever_accelerate_was_told(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert start_processes("fp32", [], tmp_path).mixed_precision == "no"


@on_cpu
def test_bf16_keeps_frozen_weights_in_bf16(tmp_path):
    accelerator = start_processes("bf16", [], tmp_path)
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
        ("ACCELERATE_USE_FSDP", "FSDP"),
        ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"),
        ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "a parallelism config"),
    ],
)
def test_a_model_in_pieces_is_refused(tmp_path, monkeypatch, variable, name):
    monkeypatch.setenv(variable, "true")
    with pytest.raises(ValueError, match=f"told to use {name}; here every process holds the whole"):
        start_processes("fp32", [], tmp_path)
    monkeypatch.setenv(variable, "false")
    start_processes("fp32", [], tmp_path)


@pytest.mark.parametrize("kind", ["XLA", "FSDP", "MULTI_GPU", "MULTI_XPU"])
def test_only_plain_data_parallelism_is_allowed(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType(kind))
    if kind.startswith("MULTI_"):
        start_processes("fp32", [], tmp_path)
    else:
        with pytest.raises(ValueError, match=f"told to use {kind}; here every process"):
            start_processes("fp32", [], tmp_path)


def test_accumulation_is_the_loops_own(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    accelerator = start_processes("fp32", [], tmp_path)
    value = torch.ones((), requires_grad=True)
    accelerator.backward(value * 3)
    assert value.grad == 3


def test_processes_wait_for_hours(tmp_path):
    assert start_processes("fp32", [], tmp_path).init_handler.timeout >= timedelta(hours=1)
