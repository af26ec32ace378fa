"""The results table and what is said below it."""

from __future__ import annotations

from pipeline.config import EvaluateConfig
from pipeline.report import conditions, in_words, results_table

BOTH = {
    **{f"{form}/{name}": 2.0 for form in ("fp32", "int8") for name in ("latency_ms", "latency_p90_ms")},
    **{f"{form}/{name}": 3.0 for form in ("fp32", "int8") for name in ("latency_p99_ms", "size_mb")},
    **{f"{form}/accuracy_ci_low_pct": 97.04 for form in ("fp32", "int8")},
    **{f"{form}/accuracy_ci_high_pct": 99.37 for form in ("fp32", "int8")},
    **{"fp32/accuracy_pct": 99.0, "int8/accuracy_pct": 98.61},
    **{"accuracy_drop_pct": 0.39, "speedup": 4.0, "compression": 3.5},
    **{"mcnemar_fp32_only_right": 12.0, "mcnemar_int8_only_right": 9.0, "mcnemar_p": 0.6636},
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
}


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
    assert cells["QAT int8"] == ["98.61", "[97.04, 99.37]", "2.00", "2.00", "3.00", "3.00"]
    assert cells["QAT fake-quantized"] == ["98.00", "[96.00, 99.00]", "–", "–", "–", "44.00"]
    assert cells["change"] == ["-0.39", "", "4.00x faster", "", "", "3.50x smaller"]


def test_words_say_whether_the_images_show_a_difference() -> None:
    assert in_words(BOTH) == (
        "fp32 right where int8 is wrong: 12 images; the reverse: 9\n"
        "exact McNemar p = 0.66: no difference that these images show"
    )
    assert in_words(BOTH | {"mcnemar_p": 0.012}).endswith("p = 0.012: a difference beyond chance")
    assert in_words(BOTH | {"accuracy_drop_vs_finetuned_pct": 0.5}).endswith("QAT int8 is -0.50 points")


def test_conditions_name_the_images_that_the_accuracies_rest_on() -> None:
    assert conditions(EvaluateConfig(), 360.0, "a processor").startswith("accuracy: 360 images, 95 % Wilson")
