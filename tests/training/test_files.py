from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time

import pytest
import torch

from shared_components.errors import InputError
from shared_components.training.files import load_safely, save_atomically


def test_round_trip_and_permissions(tmp_path):
    path = save_atomically({"a": torch.arange(3)}, tmp_path / "new" / "weights.pt")
    assert torch.equal(load_safely(path)["a"], torch.arange(3))
    assert path.stat().st_mode & 0o777 == 0o644
    assert [p.name for p in path.parent.iterdir()] == ["weights.pt"]


def test_failed_save_leaves_the_old_file(tmp_path):
    path = save_atomically({"a": torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises((AttributeError, pickle.PicklingError, TypeError)):
        save_atomically({"a": lambda: 0}, path)
    assert torch.equal(load_safely(path)["a"], torch.zeros(1))
    assert [p.name for p in tmp_path.iterdir()] == ["weights.pt"]


def test_kill_while_saving_leaves_a_complete_file(tmp_path):
    """SIGKILL at random moments of a process that does nothing but save: what is there always loads."""
    code = (
        "import sys, torch\nfrom shared_components.training.files import save_atomically\n"
        "big = torch.zeros(2_000_000)\n"
        "n = 0\nwhile True:\n    n += 1\n    save_atomically({'n': torch.full_like(big, n)}, sys.argv[1])\n"
    )
    path, seen = tmp_path / "state.pt", set()
    for attempt in range(4):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)])
        while not path.exists():
            time.sleep(0.05)
        time.sleep(0.3 + 0.037 * attempt)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        values = load_safely(path)["n"]
        assert torch.equal(values, values[0].expand_as(values))
        seen.add(float(values[0]))
    assert max(seen) > 1


class _Payload:
    def __reduce__(self):
        return os.mkdir, ("payload-ran",)


def test_pickled_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"weights": _Payload()}, "evil.pt")
    with pytest.raises(InputError, match="evil.pt: holds more than tensors"):
        load_safely("evil.pt")
    assert not (tmp_path / "payload-ran").exists()


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "flipped"])
def test_damaged_files_are_named(tmp_path, damage):
    path = save_atomically({"a": torch.randn(5000)}, tmp_path / "weights.pt")
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 0x10
    path.write_bytes({"truncated": bytes(data[:4000]), "empty": b"", "text": b"<html>", "flipped": bytes(data)}[damage])
    with pytest.raises(InputError, match="weights.pt: "):
        load_safely(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere.pt: no such file"):
        load_safely(tmp_path / "nowhere.pt")
