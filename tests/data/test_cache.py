"""The cache: keyed by content and parameters, warm without reading sources, whole or not at all."""

from __future__ import annotations

import builtins
import io
import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from igm_fast.data.cache import FeatureCache


class Counted:
    """Decodes bytes to a tensor, and counts how often."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls = root, 0

    def __call__(self, name: str = "a.bin") -> Tensor:
        self.calls += 1
        return torch.frombuffer(bytearray((self.root / name).read_bytes()), dtype=torch.uint8).reshape(-1, 2)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a.bin").write_bytes(bytes(range(64)))
    return tmp_path / "root"


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path / "cache")


def entries(cache: FeatureCache, kind: str) -> list[Path]:
    return sorted(path for path in (cache.folder / kind).rglob("*") if path.is_file())


def test_decodes_once(root: Path, cache: FeatureCache) -> None:
    decode = Counted(root)
    first = cache.get(root, "a.bin", "p", decode)
    again = FeatureCache(cache.folder).get(root, "a.bin", "p", decode)
    assert decode.calls == 1
    assert torch.equal(first, again)
    assert again.dtype == torch.uint8
    assert len(entries(cache, "features")) == 1


@pytest.mark.parametrize(
    "tensor", [torch.arange(6.0).view(1, 2, 3), torch.arange(6).half()[None], torch.tensor(3), torch.zeros(0, 4)]
)
def test_any_shape_and_type_comes_back(root: Path, cache: FeatureCache, tensor: Tensor) -> None:
    for _ in range(2):
        found = cache.get(root, "a.bin", "p", lambda: tensor)
        assert found.dtype == tensor.dtype
        assert found.shape == tensor.shape
        assert torch.equal(found, tensor)


def test_a_warm_look_up_reads_no_source(root: Path, cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = Counted(root)
    cache.get(root, "a.bin", "p", decode)
    opened: list[str] = []
    original = io.open
    for module in (io, builtins):
        monkeypatch.setattr(module, "open", lambda path, *a, **k: opened.append(str(path)) or original(path, *a, **k))
    cache.get(root, "a.bin", "p", decode)
    assert decode.calls == 1
    assert opened
    assert all(path.startswith(str(cache.folder)) for path in opened)


def test_content_and_parameters_decide(root: Path, cache: FeatureCache) -> None:
    decode = Counted(root)
    cache.get(root, "a.bin", "p", decode)
    cache.get(root, "a.bin", "other", decode)
    assert decode.calls == 2
    (root / "b.bin").write_bytes((root / "a.bin").read_bytes())  # a copy is the same content
    cache.get(root, "b.bin", "p", decode)
    assert decode.calls == 2
    (root / "a.bin").write_bytes(bytes(64))
    assert torch.equal(cache.get(root, "a.bin", "p", decode), torch.zeros(32, 2, dtype=torch.uint8))
    assert decode.calls == 3


def test_a_changed_file_of_equal_size_is_noticed_by_its_time(root: Path, cache: FeatureCache) -> None:
    decode = Counted(root)
    cache.get(root, "a.bin", "p", decode)
    state = (root / "a.bin").stat()
    (root / "a.bin").write_bytes(bytes(64))
    os.utime(root / "a.bin", ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert int(cache.get(root, "a.bin", "p", decode).sum()) == 0


def test_values_beside_the_file_are_part_of_the_key(root: Path, cache: FeatureCache) -> None:
    decode = Counted(root)
    for source in ({"path": "a.bin", "start": 0}, {"path": "a.bin", "start": 1}, ["a.bin", 0], Path("a.bin")):
        cache.get(root, source, "p", decode)
        cache.get(root, source, "p", decode)
    assert decode.calls == 4


def test_text_is_not_kept(root: Path, cache: FeatureCache) -> None:
    decode = Counted(root)
    for text in ("a tweet", "x" * 5000, "nul\0", ""):
        cache.get(root, text, "p", decode)
        cache.get(root, text, "p", decode)
    assert decode.calls == 8
    assert not cache.folder.exists()


@pytest.mark.parametrize("damage", ["half", "nothing", "one bit", "no checksum", "other"])
def test_damaged_entries_are_made_again(root: Path, cache: FeatureCache, damage: str) -> None:
    decode = Counted(root)
    expected = cache.get(root, "a.bin", "p", decode)
    (entry,) = entries(cache, "features")
    content = bytearray(entry.read_bytes())
    content[-10] ^= 1
    entry.write_bytes(
        {
            "half": entry.read_bytes()[: len(content) // 2],
            "nothing": b"",
            "one bit": bytes(content),
            "no checksum": entry.read_bytes()[:-4],
            "other": b"no array",
        }[damage]
    )
    assert torch.equal(cache.get(root, "a.bin", "p", decode), expected)
    assert decode.calls == 2
    assert torch.equal(cache.get(root, "a.bin", "p", decode), expected)
    assert decode.calls == 2  # mended


def test_a_damaged_content_record_is_made_again(root: Path, cache: FeatureCache) -> None:
    decode = Counted(root)
    cache.get(root, "a.bin", "p", decode)
    (record,) = entries(cache, "contents")
    for content in (b"", b"\xff\xfe", record.read_bytes()[:20]):
        record.write_bytes(content)
        cache.get(root, "a.bin", "p", decode)
    assert decode.calls == 1


def test_a_failed_decoding_leaves_nothing(root: Path, cache: FeatureCache) -> None:
    def fail() -> Tensor:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        cache.get(root, "a.bin", "p", fail)
    assert entries(cache, "features") == []


def test_writing_to_what_was_returned_changes_no_entry(root: Path, cache: FeatureCache) -> None:
    decode = Counted(root)
    cache.get(root, "a.bin", "p", decode)
    cache.get(root, "a.bin", "p", decode).zero_()
    assert int(cache.get(root, "a.bin", "p", decode).sum()) == sum(range(64))


def _fill(folder: Path, root: Path) -> None:
    cache, decode = FeatureCache(folder), Counted(root)
    for turn in range(60):
        name = f"{turn % 6}.bin"
        found = cache.get(root, name, "p", lambda name=name: decode(name))
        assert found.flatten().tolist() == [turn % 6] * 4096


def test_several_processes_share_it(root: Path, cache: FeatureCache) -> None:
    for number in range(6):
        (root / f"{number}.bin").write_bytes(bytes([number]) * 4096)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_fill, args=(cache.folder, root)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(entries(cache, "features")) == 6  # and no temporary file is left
