"""Rows come back as they were kept, and half-written ones never."""

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from blip2ft.features.key import Key
from blip2ft.features.store import Store, Writer, decode, encode, read_key, row_bytes

KEY = Key("vision", "ab", "28 px", "fp32", "fp32", (3, 8), "a model")
ROOT = Path(__file__).parents[2]


def digests(*names: str) -> list[bytes]:
    return [name.encode().ljust(32, b".") for name in names]


def features(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, 8, generator=torch.Generator().manual_seed(seed))


def opened(folder: Path, key: Key = KEY) -> Store:
    store = Store(folder, key)
    store.open()
    return store


def filled(folder: Path, *names: str, key: Key = KEY) -> Store:
    store = opened(folder, key)
    writer = Writer(store)
    writer.add(digests(*names), features(len(names)))
    writer.close()
    store.refresh()
    return store


def test_rows_come_back_bit_for_bit_in_any_order(tmp_path):
    store = filled(tmp_path, "a", "b", "c")
    for i in (2, 0, 1):
        assert torch.equal(store.row(digests("abc"[i])[0]), features(3)[i])
    assert len(store) == 3
    assert digests("a")[0] in store
    assert digests("d")[0] not in store


def test_others_find_what_one_wrote(tmp_path):
    early = opened(tmp_path)
    filled(tmp_path, "a")
    assert len(early) == 0
    early.refresh()
    assert len(early) == 1
    assert torch.equal(opened(tmp_path).row(digests("a")[0]), features(1)[0])


def test_a_file_that_grew_is_mapped_anew(tmp_path):
    store = opened(tmp_path)
    writer = Writer(store)
    writer.add(digests("a"), features(1))
    store.refresh()
    writer.add(digests("b"), features(1, seed=1))
    store.refresh()
    writer.close()
    assert torch.equal(store.row(digests("b")[0]), features(1, seed=1)[0])
    assert torch.equal(store.row(digests("a")[0]), features(1)[0])


def test_a_loaders_process_is_sent_no_rows(tmp_path):
    store = filled(tmp_path, *map(str, range(100)))
    sent = pickle.dumps(store)
    assert len(sent) < 100 * KEY.shape[0] * KEY.shape[1] * 4
    assert torch.equal(pickle.loads(sent).row(digests("7")[0]), features(100)[7])


def test_a_row_without_identity_doesnt_count_nor_an_identity_without_row(tmp_path):
    store = filled(tmp_path, "a", "b", "c")
    (ids,), (rows,) = store.folder.glob("*.ids"), store.folder.glob("*.rows")
    ids.write_bytes(ids.read_bytes()[: 2 * 32 + 31])
    assert len(opened(tmp_path)) == 2
    rows.write_bytes(rows.read_bytes()[: 2 * store.row_bytes - 1])
    found = opened(tmp_path)
    assert len(found) == 1
    assert torch.equal(found.row(digests("a")[0]), features(3)[0])
    rows.unlink()
    assert len(opened(tmp_path)) == 0


def test_a_kill_loses_the_row_in_flight_alone(tmp_path):
    """The third batch's rows are written and its identities aren't."""
    program = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_store
import blip2ft.features.store as module
from pathlib import Path
store = test_store.opened(Path({str(tmp_path)!r}))
writer, write = module.Writer(store), module._write
calls = []
def killed(file, data):
    calls.append(1)
    if len(calls) == 6:
        os.kill(os.getpid(), 9)
    write(file, data)
module._write = killed
for name in "abc":
    writer.add(test_store.digests(name), test_store.features(1, seed=ord(name)))
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True)
    assert ended.returncode == -9, ended.stderr[-2000:]
    store = opened(tmp_path)
    assert len(store) == 2
    (rows,) = store.folder.glob("*.rows")
    assert rows.stat().st_size == 3 * store.row_bytes
    for name in "ab":
        expected = features(1, seed=ord(name))[0]
        assert torch.equal(store.row(digests(name)[0]), expected)
    # and goes on in a file of its own
    assert len(filled(tmp_path, "c", "d")) == 4


def test_a_disk_that_fills_up_leaves_what_was_there(tmp_path):
    program = f"""
import resource, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_store
from blip2ft.features.store import Writer
from pathlib import Path
store = test_store.opened(Path({str(tmp_path)!r}))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3 * store.row_bytes // 2,) * 2)
writer = Writer(store)
writer.add(test_store.digests("a"), test_store.features(1))
try:
    writer.add(test_store.digests("b"), test_store.features(1))
except ValueError as error:
    print(error)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert "the disk is full after 1 images of this process. They stay: make room" in ended.stdout
    store = opened(tmp_path)
    assert len(store) == 1
    (rows,) = store.folder.glob("*.rows")
    assert rows.stat().st_size == store.row_bytes
    assert torch.equal(store.row(digests("a")[0]), features(1)[0])


def test_a_writer_that_wrote_nothing_leaves_nothing(tmp_path):
    store = opened(tmp_path)
    Writer(store).close()
    assert {path.name for path in store.folder.iterdir()} == {"cache.json", "used"}


def test_another_key_has_other_rows(tmp_path):
    filled(tmp_path, "a")
    assert len(opened(tmp_path, replace(KEY, weights="ac"))) == 0


def test_a_description_that_was_changed_is_refused(tmp_path):
    store = filled(tmp_path, "a")
    path = store.folder / "cache.json"
    path.write_text(path.read_text().replace('"ab"', '"ac"'))
    with pytest.raises(ValueError, match=r"cache\.json has been changed; remove"):
        opened(tmp_path)
    path.write_text(json.dumps({"level": "vision"}))
    with pytest.raises(ValueError, match="is no cache of features"):
        read_key(store.folder)


def test_a_folder_that_cant_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cache\.folder: .* can't be written"):
        opened(tmp_path / "file")


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ValueError, match=r"cache\.dtype is 'fp8': allowed are bf16, fp32, int8"):
        row_bytes((3, 8), "fp8")


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 24), (5, 96)], ids=str)
def test_a_row_has_the_bytes_that_were_estimated_and_its_values(dtype, shape):
    states = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    rows = encode(states, dtype)
    assert rows.shape == (2, row_bytes(shape, dtype))
    found = torch.stack([decode(torch.from_numpy(row.copy()), shape, dtype) for row in rows])
    tolerance = {"fp32": 0.0, "bf16": 2**-8, "int8": 1 / 253}[dtype]
    assert float((found.float() - states).abs().max()) <= tolerance * float(states.abs().max())


def test_int8_survives_a_huge_channel_and_zeros():
    states = torch.randn(1, 4, 128, generator=torch.Generator().manual_seed(0))
    states[0, :, 5] = 1000.0
    states[0, 3] = 0.0
    found = decode(torch.from_numpy(encode(states, "int8")[0].copy()), (4, 128), "int8")
    assert torch.equal(found[3], torch.zeros(128))
    away = (found - states[0])[:3, 64:].abs().max()
    assert float(away) < 4 / 253
