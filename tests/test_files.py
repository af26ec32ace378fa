"""Files: complete or absent, and a full disk told in words."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import pytest
import torch

from pipeline.host.errors import UserError
from pipeline.host.files import save_tensors


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full stands for a full disk; it is Linux's")
def test_checkpoint_keeps_its_old_content_and_the_disk_is_named_when_it_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pt"
    save_tensors({"weight": torch.ones(3)}, path)
    monkeypatch.setattr(secrets, "token_hex", lambda _: "0")
    (tmp_path / f"model.pt.{os.getpid()}-0.tmp").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"model\.pt: the disk is full; once there is space"):
        save_tensors({"weight": torch.zeros(1_000_000)}, path)
    assert torch.equal(torch.load(path, weights_only=True)["weight"], torch.ones(3))
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]
