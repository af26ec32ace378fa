"""Eager-mode quantization: qconfig, fuse, prepare, convert, and the rebuilding of a form.

The only package that imports `torch.ao.quantization`, which is deprecated in favour of torchao's PT2E
but without a removal version: when it goes, this is the room to refurnish.

    engines.py         what this machine runs int8 with
    qconfig.py         what is observed and fake-quantized, and how
    layers.py          neighbouring layers in one, the quantizable ones by name, those that stay float
    twins/             the quantizable twin of each model
    graph.py           the forms of a model: fuse, prepare, convert, rebuild
    ranges.py          what observers hold: moved to what is seen, or taken from calibrated ones
    fake_quantize.py   switching observers and fake-quantize modules of a prepared model
    vectorized.py      fake-quantize modules that compute with ../straight_through.py, the arithmetic on the CPU, to
                       torch's bits in a fraction of its time
"""

from pipeline.flows.contract import Flow
from pipeline.flows.eager import flow
from pipeline.flows.eager.engines import (
    check_backend,
    silence_known_warnings,
    use_engine,
)
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
from pipeline.flows.eager.qconfig import (
    resolved_ptq_qconfig,
    resolved_qconfig,
    saturation_warning,
)
from pipeline.flows.eager.ranges import take_ranges
from pipeline.flows.eager.vectorized import observe_over_all
from pipeline.flows.processor import supported_engines

FLOW: Flow = flow
