"""The results table and what is said below it."""

from __future__ import annotations

import pytest

from pipeline.reports.results import conditions, in_words, pairs_table, results_table
from pipeline.settings.config import EvaluateConfig

BOTH = {
    **{f"{form}/{name}": 2.0 for form in ("fp32", "int8") for name in ("latency_ms", "latency_p90_ms")},
    **{f"{form}/{name}": 3.0 for form in ("fp32", "int8") for name in ("latency_p99_ms", "size_mb")},
    **{f"{form}/accuracy_ci_low_pct": 97.04 for form in ("fp32", "int8")},
    **{f"{form}/accuracy_ci_high_pct": 99.37 for form in ("fp32", "int8")},
    **{"fp32/accuracy_pct": 99.0, "int8/accuracy_pct": 98.61},
    **{"accuracy_drop_pct": 0.39, "speedup": 4.0, "compression": 3.5},
    **{"accuracy_drop_ci_low_pct": -0.9, "accuracy_drop_ci_high_pct": 1.7},
    **{"val/fp32_accuracy_pct": 99.5, "val/int8_accuracy_pct": 98.5},
    **{
        f"int8_vs_fp32/{name}": value
        for name, value in (
            *(("difference_pct", -0.39), ("difference_ci_low_pct", -1.7), ("difference_ci_high_pct", 0.9)),
            *(("lost_images", 12.0), ("won_images", 9.0), ("mcnemar_p", 0.6636), ("mcnemar_p_holm", 0.6636)),
        )
    },
}
CHANCE = {
    **{"qat/start_val_int8_accuracy_pct": 99.0, "qat/kept_val_int8_accuracy_pct": 99.2, "qat/kept_epoch": 1},
    **{"qat/val_mcnemar_p": 0.7266, "qat/start_seconds": 1.34, "qat/seconds": 224.4},
}
CONTROLS = {
    f"{form}/{name}": value
    for form in ("fp32_finetuned", "ptq_int8", "qat_fake")
    for name, value in (
        ("accuracy_pct", 98.0),
        ("accuracy_ci_low_pct", 96.0),
        ("accuracy_ci_high_pct", 99.0),
        ("size_mb", 44.0),
    )
} | {f"val/{form}_accuracy_pct": 98.25 for form in ("fp32_finetuned", "ptq_int8", "qat_fake")}


def first_cells(table: str) -> list[str]:
    return [line.split("|")[1].strip() for line in table.splitlines()[2:]]


def test_table_has_a_row_for_each_form_that_is_there_and_the_change_last() -> None:
    assert first_cells(results_table(BOTH, "github")) == ["fp32", "QAT int8", "change"]
    full = results_table(BOTH | CONTROLS, "github")
    assert first_cells(full) == ["fp32", "fp32 fine-tuned", "PTQ int8", "QAT fake-quantized", "QAT int8", "change"]
    assert max(map(len, results_table(BOTH | CONTROLS, "simple").splitlines())) <= 100


def test_row_has_its_interval_and_a_dash_for_what_was_not_timed() -> None:
    rows = results_table(BOTH | CONTROLS, "github").splitlines()
    cells = {row.split("|")[1].strip(): [cell.strip() for cell in row.split("|")[2:-1]] for row in rows}
    assert cells["QAT int8"] == ["98.50", "98.61", "[97.04, 99.37]", "2.00", "2.00", "3.00", "3.00"]
    assert cells["QAT fake-quantized"] == ["98.25", "98.00", "[96.00, 99.00]", "–", "–", "–", "44.00"]
    assert cells["change"] == ["", "-0.39", "[-1.70, +0.90]", "4.00x faster", "", "", "3.50x smaller"]


def test_pairs_are_those_that_were_compared_with_interval_and_corrected_p() -> None:
    rows = pairs_table(BOTH, "github").splitlines()[2:]
    assert [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows] == [
        ["QAT int8 – fp32", "-0.39", "[-1.70, +0.90]", "12 / 9", "0.66"]
    ]


def test_words_say_whether_the_images_show_a_difference() -> None:
    assert in_words(BOTH) == "int8 against fp32: no difference that these images show (p = 0.66)"
    beyond = {"int8_vs_fp32/mcnemar_p_holm": 0.012}
    assert in_words(BOTH | beyond) == "int8 against fp32: int8 is worse, beyond chance (p = 0.012)"
    assert "int8 is better" in in_words(BOTH | beyond | {"accuracy_drop_pct": -0.39})


def test_words_say_that_ptq_reaches_the_same_when_qat_gains_no_more_than_chance() -> None:
    assert in_words(BOTH | CHANCE).splitlines()[1] == (
        "QAT gains +0.20 points on validation over PTQ, its start, no more than chance (p = 0.73): PTQ reaches "
        "the same in 1.3 s; QAT took 224 s"
    )
    kept_start = CHANCE | {"qat/kept_epoch": 0, "qat/kept_val_int8_accuracy_pct": 99.0}
    assert in_words(BOTH | kept_start).splitlines()[1] == (
        "no epoch of QAT was better on validation than its start, which is kept: PTQ reaches the same in 1.3 s; QAT "
        "took 224 s"
    )
    gain = CHANCE | {"qat/val_mcnemar_p": 0.001}
    assert (
        in_words(BOTH | gain)
        .splitlines()[1]
        .startswith("QAT gains +0.20 points on validation over PTQ, its start, beyond chance")
    )


def test_words_say_so_when_a_model_names_one_class_for_everything() -> None:
    assert "names one class" not in in_words(BOTH | {"int8/named_classes": 10.0})
    assert (
        in_words(BOTH | {"int8/named_classes": 1.0}).splitlines()[-1].startswith("QAT int8 names one class for every")
    )


@pytest.mark.parametrize("form", ["fp32", "int8"])
def test_words_compare_nothing_when_either_model_names_one_class_for_everything(form: str) -> None:
    beyond = {"int8_vs_fp32/mcnemar_p_holm": 1e-9, "accuracy_drop_pct": -81.8, f"{form}/named_classes": 1.0}
    words = in_words(BOTH | beyond)
    assert "beyond chance" not in words
    assert words.startswith("int8 against fp32: nothing to compare, as the lines about one class say")


def test_conditions_name_the_images_that_the_accuracies_and_the_choices_rest_on() -> None:
    known = {"test_images": 360.0, "val/images": 144.0, "test_largest_class_pct": 10.3}
    text = conditions(EvaluateConfig(), known, "a processor")
    assert text.startswith("test: 360 images, 10.3 % of them of the largest class; 95 % intervals: Wilson's")
    assert "validation: 144 images; choices rest on it" in text
