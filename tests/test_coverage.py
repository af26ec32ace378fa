"""Networks of torchvision and timm from float to a file that a runtime runs, by the command that makes the table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.host.files import PROJECT_ROOT

# Of each kind one: plain, mobile, transformer, shuffled channels, wide kernels. The first few in brief.
NETWORKS = ["squeezenet1_1", "lcnet_050", "vit_tiny_patch16_224", "shufflenet_v2_x0_5", "convnext_atto"]
COUNT = int(os.environ.get("PIPELINE_COVERAGE", "2"))


@pytest.mark.operations
@pytest.mark.parametrize("network", NETWORKS[:COUNT])
def test_network_of_a_library_goes_all_the_way_to_its_runtime(network: str, tmp_path: Path) -> None:
    asked = [sys.executable, "-m", "benchmarks.coverage", "openvino", "--only", network, "--outputs", str(tmp_path)]
    subprocess.run(asked, cwd=PROJECT_ROOT, check=True)
    (file,) = (tmp_path / "openvino").glob("*.json")
    found = json.loads(file.read_text())
    assert "cause" not in found
    assert found["difference"] == pytest.approx(0, abs=1e-3)
    assert min(found["ptq_agrees"], found["qat_agrees"]) >= 95
    assert found["mb_fp32"] / found["mb_int8"] > 1.5
