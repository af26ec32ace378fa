"""Eager-mode quantization: qconfig, fuse, prepare, convert, and the rebuilding of a form.

The only package that imports `torch.ao.quantization`, which is deprecated in favour of torchao's PT2E
but without a removal version: when it goes, this is the room to refurnish.

    engines.py         what this machine runs int8 with
    qconfig.py         what is observed and fake-quantized, and how
    layers.py          the quantizable layers by name, and those that stay float
    twins/             the quantizable twin of each model
    fusing.py          neighbouring modules in one
    graph.py           the forms of a model: fuse, prepare, convert, rebuild
    ranges.py          from calibrated observers to fake-quantize modules
    fake_quantize.py   switching observers and fake-quantize modules of a prepared model
    products.py        int8 matrix products, for the machine's peak
    vectorized.py      the arithmetic of fake-quantize on the CPU, to torch's bits in a fraction of its time
"""

from pipeline.flows.contract import Flow, Form
from pipeline.flows.eager import flow
from pipeline.flows.eager.engines import check_backend, silence_known_warnings, supported_engines, use_engine
from pipeline.flows.eager.fake_quantize import (
    count_fake_quantize,
    fake_quantize_off,
    freeze_batch_norm,
    freeze_observers,
    observers_off,
    switch,
    switch_all,
)
from pipeline.flows.eager.graph import (
    convert,
    fuse,
    prepare,
    prepare_ptq,
    prepare_simulation,
    rebuild,
)
from pipeline.flows.eager.layers import check_skip_layers, quantizable_layers
from pipeline.flows.eager.products import int8_products
from pipeline.flows.eager.qconfig import (
    activation_levels,
    has_vnni,
    resolved_ptq_qconfig,
    resolved_qconfig,
    saturation_warning,
)
from pipeline.flows.eager.ranges import take_ranges
from pipeline.flows.eager.vectorized import observe_over_all, size_ranges

FLOW: Flow = flow

__all__ = [
    "FLOW",
    "Form",
    "activation_levels",
    "check_backend",
    "check_skip_layers",
    "convert",
    "count_fake_quantize",
    "fake_quantize_off",
    "freeze_batch_norm",
    "freeze_observers",
    "fuse",
    "has_vnni",
    "int8_products",
    "observe_over_all",
    "observers_off",
    "prepare",
    "prepare_ptq",
    "prepare_simulation",
    "quantizable_layers",
    "rebuild",
    "resolved_ptq_qconfig",
    "resolved_qconfig",
    "saturation_warning",
    "silence_known_warnings",
    "size_ranges",
    "supported_engines",
    "switch",
    "switch_all",
    "take_ranges",
    "use_engine",
]
