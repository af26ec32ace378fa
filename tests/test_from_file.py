"""From picture files to outputs: what is timed is what predict does, and what is said of it follows from the times."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.commands.composition import compose_request
from pipeline.datasets import catalogue
from pipeline.datasets.preprocessing import Preprocessing
from pipeline.reports.from_file_report import Way, ways_table
from pipeline.run import runner
from pipeline.runtimes.from_file import FromFile, folder_call, picture_files, threads_for
from tests.conftest import SMALL

PREPROCESSING = Preprocessing(8, 3, (0.5,) * 3, (0.25,) * 3, ("left", "right"))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    draw = np.random.default_rng(0)
    made = [tmp_path / f"{place}.jpg" for place in range(7)]
    for file in made:
        Image.fromarray(draw.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(file)
    return made


@pytest.mark.parametrize("threads", [1, 2])
def test_timed_parts_make_what_predict_makes_when_pictures_are_many(files: list[Path], threads: int) -> None:
    expected = np.concatenate([PREPROCESSING.apply(file) for file in files])
    with threads_for(threads, len(files)) as pool:
        assert (pool is None) == (threads == 1)
        way = FromFile(files, PREPROCESSING, pool)
        np.testing.assert_array_equal(way.images(), expected)
        np.testing.assert_array_equal(way.parts()["normalize"](), expected)


@pytest.mark.parametrize("workers", [1, 2])
def test_folder_is_predicted_once_whole_when_threads_share_it(files: list[Path], workers: int) -> None:
    seen: list[np.ndarray] = []

    def predictor(images: np.ndarray) -> np.ndarray:
        assert len(images) <= 3
        seen.append(images)
        return images

    folder_call(files, PREPROCESSING, [predictor] * workers, 3)()
    expected = np.concatenate([PREPROCESSING.apply(file) for file in files])
    assert sorted(np.concatenate(seen).sum((1, 2, 3)).tolist()) == sorted(expected.sum((1, 2, 3)).tolist())


def test_pictures_are_the_files_of_a_folder_and_are_made_of_a_data_set_that_has_none(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in "ab":
            (tmp_path / part / name).mkdir(parents=True)
            for count in range(3):
                Image.new("RGB", (9, 9), (count, 0, 0)).save(tmp_path / part / name / f"{count}.png")
    asked = ["dataset=image_folder", f"dataset.root={tmp_path}", "dataset.mean=[0,0,0]", "dataset.std=[1,1,1]"]
    config = compose_request(asked).config.dataset
    found, told = picture_files(config, catalogue.load_test(config), 7, tmp_path)
    assert [file.parent.parent for file in found] == [tmp_path / "test"] * 7
    assert len(set(found)) == 6
    assert told == "the data set's own files"
    config = compose_request([]).config.dataset
    found, told = picture_files(config, catalogue.load_test(config), 2, tmp_path)
    assert [Image.open(file).size for file in found] == [(500, 375)] * 2
    assert Image.open(found[0]).format == "JPEG"
    assert told == "the data set's of 32 px, as JPEGs of 500 × 375 px"


def way(int8_ms: float) -> Way:
    """A picture of 3 + 2 + 1 ms, fp32 of 4 ms; two passes that agree."""

    def passes(value: float) -> list[list[float]]:
        return [[value] * 3] * 2

    parts = {"decode": passes(3), "resize": passes(2), "normalize": passes(1)}
    networks = {"openvino/fp32": passes(4), "openvino/int8": passes(int8_ms)}
    wholes = {"openvino/fp32": passes(10), "openvino/int8": passes(6 + int8_ms)}
    return Way(1, 1, parts, networks, wholes, {"openvino/int8": passes(160)}, 32)


def test_report_says_what_int8_gains_of_the_network_and_of_the_whole() -> None:
    line = way(2.0).in_words()
    assert line == (
        "1 thread, batch 1: int8 (openvino/int8) makes the network 2.00 [2.00, 2.00] times as fast as the best fp32 "
        "(openvino/fp32), and the way from the file 1.25 [1.25, 1.25] times; the picture takes 3.0 times as long as "
        "the int8 network: smaller files or a faster decoder gain more now"
    )
    assert "the picture takes" not in str(way(7.0).in_words())
    metrics = way(2.0).metrics()
    assert metrics["file/decode_ms"] == pytest.approx(3)
    assert metrics["openvino/int8/file_ms"] == pytest.approx(8)
    assert metrics["openvino/int8/folder_t1_ips"] == pytest.approx(200)
    assert re.search(
        r"openvino +int8 +3\.00 +2\.00 +1\.00 +2\.00 +8\.00 .* 75 % +200", ways_table([way(2.0)], "", "simple")
    )


@pytest.mark.operations
def test_benchmark_tells_the_way_from_files_when_source_is_file(
    outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = [f"benchmark.{given}" for given in ("max_seconds=1", "min_repeats=2", "passes=2", "batch_sizes=[1,2]")]
    request = compose_request(
        [
            *(*SMALL, *quick, f"outputs={outputs}", "tracking=off", "method=ptq", "export.min_agreement=0"),
            *("stages=[train,ptq,evaluate,export,benchmark]", "benchmark.source=file", "benchmark.memory=false"),
        ]
    )
    metrics = runner.run(request).metrics
    for name in ("file/decode", "file/resize_t1_b2", "torchscript/int8/file", "torchscript/fp32/file_ci_high_t1_b2"):
        assert metrics[f"{name}_ms"] > 0
    assert metrics["torchscript/int8/folder_t1_ips"] > 0
    assert metrics["torchscript/int8/latency_ms"] > 0
    (folder,) = (outputs / "artifacts").glob("benchmark-*")
    assert "1 thread, batch 2: int8 (torchscript/int8) makes" in (folder / "from_file.md").read_text()
    assert "as JPEGs of 500 × 375 px, decoded and resized by Pillow" in capsys.readouterr().out
