"""TensorShards: tensors are read as they were written, by any process; damage and a full disk lose only their part."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from gkd_rl.training import teacher_data
from gkd_rl.training.teacher_data import TensorShards

MIB = 2**20


def tensor_of(i: int, dtype: torch.dtype = torch.float32, length: int = 5) -> Tensor:
    return torch.randn(length, 16, generator=torch.Generator().manual_seed(i)).to(dtype)


def filled(folder: Path, numbers: Iterable[int], limit: int = MIB, buffer: int = MIB) -> TensorShards:
    """Shards with the tensors `numbers`, written."""
    shards = TensorShards(folder, limit, buffer)
    for i in numbers:
        shards.add(f"{i:032x}", tensor_of(i))
    shards.write()
    return shards


def readable(shards: TensorShards, numbers: Iterable[int]) -> set[int]:
    """Which of the tensors can be read; checks that they are unchanged."""
    found = shards.read([f"{i:032x}" for i in numbers])
    for name, tensor in found.items():
        assert torch.equal(tensor, tensor_of(int(name, 16)))
    return {int(name, 16) for name in found}


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_another_process_reads_what_was_written(dtype: torch.dtype, tmp_path: Path) -> None:
    writer = TensorShards(tmp_path / "a" / "b", MIB)
    tensor, first_two = tensor_of(0, dtype), tensor_of(0, dtype)[:2]
    writer.add("x", tensor[:2])
    tensor.zero_()
    assert torch.equal(writer.read(["x", "y"])["x"], first_two) and not writer.on_disk("x")
    writer.write()
    assert writer.on_disk("x")
    found = TensorShards(tmp_path / "a" / "b", MIB).read(["y", "x"])
    assert found.keys() == {"x"} and found["x"].dtype == dtype
    assert torch.equal(found["x"], first_two)


def test_a_full_buffer_is_written(tmp_path: Path) -> None:
    shards = TensorShards(tmp_path, MIB, buffer=4 * (5 * 16 * 4 + teacher_data.HEADER_BYTES))
    counts = []
    for i in range(9):
        shards.add(f"{i:032x}", tensor_of(i))
        counts.append(len(files(tmp_path)))
    assert counts == [0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert readable(shards, range(9)) == set(range(9))
    assert readable(TensorShards(tmp_path, MIB), range(9)) == set(range(8))


def spoil(shard: Path, damage: str) -> None:
    content = shard.read_bytes()
    changed = {
        "truncated": content[:-9],
        "empty": b"",
        "other": b"no tensors in here",
        "bit": content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
    }
    shard.write_bytes(changed[damage])


@pytest.mark.parametrize("damage", ["truncated", "empty", "other", "bit", "no checksums", "missing"])
@pytest.mark.parametrize("opened", [True, False])
def test_damaged_shards_are_ignored(
    damage: str, opened: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two of three are damaged, before the folder is opened or later; one of their tensors is in the third as well."""
    filled(tmp_path, range(3))
    filled(tmp_path, range(3, 6))
    damaged = files(tmp_path)
    whole = {*range(6, 9), 1}
    copy = filled(tmp_path / "copy", whole)
    files(copy.folder)[0].rename(tmp_path / "0.safetensors")
    shards = TensorShards(tmp_path, MIB) if opened else None
    for shard in damaged:
        if damage == "missing":
            shard.unlink()
        elif damage == "no checksums":
            save_file({f"{i:032x}": tensor_of(i) for i in range(6)}, shard)
        else:
            spoil(shard, damage)
    shards = TensorShards(tmp_path, MIB) if shards is None else shards
    assert readable(shards, range(9)) == whole
    assert readable(shards, range(9)) == whole
    named = [str(shard) for shard in damaged if any(str(shard) in record.message for record in caplog.records)]
    if damage != "missing":
        assert named == [str(shard) for shard in damaged] and len(caplog.records) == 2
        assert all("cannot be read" in record.message for record in caplog.records)
    for i in range(9):
        if i not in whole:
            shards.add(f"{i:032x}", tensor_of(i))
    shards.write()
    assert readable(TensorShards(tmp_path, MIB), range(9)) == set(range(9))


@pytest.mark.parametrize("buffer", [1, 3000, MIB])
def test_nothing_is_added_to_a_full_folder(buffer: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    limit = 10_000
    shards = filled(tmp_path, range(100), limit, buffer)
    size = sum(file.stat().st_size for file in files(tmp_path))
    assert 0.5 * limit < size <= limit
    kept = readable(shards, range(100))
    assert kept == set(range(len(kept))) and 8 < len(kept) < 100
    (record,) = caplog.records
    assert str(tmp_path) in record.message and record.levelno == logging.WARNING
    caplog.clear()
    assert readable(filled(tmp_path, range(100, 200), limit, buffer), range(200)) >= kept
    assert sum(file.stat().st_size for file in files(tmp_path)) <= limit
    assert len(caplog.records) == 1


@pytest.mark.parametrize("added", [10, 18])  # 17 fit
def test_shards_of_other_processes_count(added: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One warning, whether the other process, this one or both fill the folder."""
    first, second = (TensorShards(tmp_path, 10_000) for _ in range(2))
    for i in range(10):
        first.add(f"{i:032x}", tensor_of(i))
    first.write()
    assert not caplog.records
    for i in range(10, 10 + added):
        second.add(f"{i:032x}", tensor_of(i))
    second.write()
    assert len(files(tmp_path)) == 1 and len(caplog.records) == 1
    assert readable(second, range(30)) == set(range(10))


def test_tensors_of_another_process_are_not_written_again(tmp_path: Path) -> None:
    first, second = (TensorShards(tmp_path, MIB) for _ in range(2))
    for i in range(6):
        first.add(f"{i:032x}", tensor_of(i))
        second.add(f"{i:032x}", tensor_of(i))
    first.write()
    second.write()
    assert len(files(tmp_path)) == 1
    assert readable(second, range(6)) == set(range(6)) and second.on_disk(f"{0:032x}")


def test_many_writers_share_a_folder(tmp_path: Path) -> None:
    def work(number: int) -> None:
        shards = TensorShards(tmp_path, 10 * MIB, buffer=2000)
        for i in range(40):
            one = (7 * number + i) % 60
            if one not in readable(shards, [one]):
                shards.add(f"{one:032x}", tensor_of(one))
        shards.write()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert readable(TensorShards(tmp_path, MIB), range(60)) == set(range(60))
    assert {file.suffix for file in files(tmp_path)} == {".safetensors"}


def test_a_full_disk_does_not_end_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = filled(tmp_path, range(3))

    def refuse(_: object, file: Path, __: object) -> None:
        file.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(teacher_data, "save_file", refuse)
    for i in range(3, 9):
        shards.add(f"{i:032x}", tensor_of(i))
    shards.write()
    shards.add(f"{10:032x}", tensor_of(10))
    shards.write()
    (record,) = caplog.records
    assert "No space left" in record.message and str(tmp_path) in record.message
    assert readable(shards, range(11)) == {0, 1, 2} and len(files(tmp_path)) == 1
