"""Archives of torch.save: changed, cut, compressed and without checksums."""

import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

from retina_plugin.checkpoint import CheckpointError, read_checkpoint

from .pickle_programs import PROTO, items, tensor, torch_zip


def saved():
    state = {f"layer{i}.weight": torch.randn(30, 4) for i in range(4)}
    file = io.BytesIO()
    torch.save({"model": state, "iteration": 7}, file)
    return file.getvalue(), state


def places(content):
    """Entry -> the place of its content."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for entry in archive.infolist():
            lengths = struct.unpack("<HH", content[entry.header_offset + 26 : entry.header_offset + 30])
            yield entry.filename.partition("/")[2], entry.header_offset + 30 + sum(lengths), entry.file_size


def test_a_changed_byte_of_weights_or_their_description_is_an_error(tmp_path, report):
    content, _ = saved()
    changed = [(name, start, size) for name, start, size in places(content) if name.startswith(("data", "byteorder"))]
    assert len(changed) == 6
    for name, start, size in changed:
        for _ in range(5):
            damaged = bytearray(content)
            damaged[start + np.random.randint(size)] ^= 1 << np.random.randint(8)
            (tmp_path / "m.pth").write_bytes(damaged)
            with pytest.raises(CheckpointError, match=f"damaged: the checksum of its entry {name} is not") as error:
                read_checkpoint(tmp_path / "m.pth")
    report("Broken files: what is said", "changed.pth", str(error.value).replace(f"{tmp_path}/", ""))


def test_any_change_of_an_archive_ends_in_an_error_or_in_the_same_weights(tmp_path):
    """Outside of the entries' content, there are names, sizes, places and padding."""
    content, state = saved()
    outcomes = set()
    for _ in range(300):
        damaged = bytearray(content)
        damaged[np.random.randint(len(damaged))] = np.random.randint(256)
        (tmp_path / "m.pth").write_bytes(damaged)
        try:
            weights = read_checkpoint(tmp_path / "m.pth")["model"]
        except CheckpointError:
            outcomes.add("refused")
            continue
        outcomes.add("read")
        assert weights.keys() == state.keys() and all(torch.equal(weights[name], state[name]) for name in state)
    assert outcomes == {"refused", "read"}


def test_an_archive_that_was_written_without_checksums_is_read(tmp_path):
    set_checksums = getattr(torch.serialization, "set_crc32_options", None)
    if set_checksums is None:
        pytest.skip("this torch always writes checksums")
    set_checksums(False)
    try:
        content, state = saved()
    finally:
        set_checksums(True)
    assert zipfile.ZipFile(io.BytesIO(content)).testzip() is not None, "the checksums are wrong"
    (tmp_path / "m.pth").write_bytes(content)
    weights = read_checkpoint(tmp_path / "m.pth")["model"]
    assert all(torch.equal(weights[name], state[name]) for name in state)


@pytest.mark.parametrize("count", [100, 50_000_000])
def test_compressed_entries_are_refused_before_they_are_unpacked(count, tmp_path):
    """200 MB of zeros take 200 kB."""
    program = PROTO + items(("model", items(("a", tensor("0", count, 0, (count,), (1,)))))) + b"."
    (tmp_path / "m.pth").write_bytes(torch_zip(program, {"0": bytes(4 * count)}, zipfile.ZIP_DEFLATED))
    assert (tmp_path / "m.pth").stat().st_size < 300_000
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=r"are compressed, which torch.save never does: unpack it.*zip -0 -r"):
            read_checkpoint(tmp_path / "m.pth")
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()


def test_entries_that_share_their_bytes_are_bounded(tmp_path):
    """An archive may list the same bytes under many names: here 1,000 storages of 100 kB each."""
    one, count = bytes(100_000), 1000
    tensors = [(f"w{i}", tensor(str(i), 25_000, 0, (25_000,), (1,))) for i in range(count)]
    content = torch_zip(PROTO + items(("model", items(*tensors))) + b".", {"0": one})
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        place = archive.getinfo("archive/data/0").header_offset
    end = content.rindex(b"PK\x05\x06")
    directory = content[struct.unpack("<I", content[end + 16 : end + 20])[0] : end]
    entry = directory[directory.rindex(b"PK\x01\x02") :]
    assert struct.unpack("<I", entry[42:46])[0] == place
    more = b"".join(
        entry[:28] + struct.pack("<H", 13 + len(str(i))) + entry[30:46] + f"archive/data/{i}".encode()
        for i in range(1, count)
    )
    sizes = struct.pack("<HHI", *2 * (4 + count - 1,), len(directory + more))
    (tmp_path / "m.pth").write_bytes(content[:end] + more + content[end : end + 8] + sizes + content[end + 16 :])
    assert len(zipfile.ZipFile(tmp_path / "m.pth").namelist()) == 1003
    with pytest.raises(CheckpointError, match="many times more memory than the file|damaged"):
        read_checkpoint(tmp_path / "m.pth")
