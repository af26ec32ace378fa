"""The flow for any network: torch.export captures it, torchao's PT2E quantizes the graph.

The only package that imports torchao. It asks no twin of a network and no stubs.

    capture.py         a float network as a graph, with BatchNorm and dropout as modules
    quantizers.py      where a backend quantizes, and with which numbers
    fake_quantize.py   the fake-quantize module, and switching those of a prepared graph
    layers.py          a layer with weights, and the BatchNorm behind it
    graph.py           the forms of a network: fold, prepare, convert
    flow.py            the contract's functions
"""

import logging

from pipeline.flows.contract import Flow

_before = logging.root.manager.disable
logging.disable(logging.WARNING)  # torchao tells of its kernels for GPUs that do not load here
from pipeline.flows.export import flow  # noqa: E402

logging.disable(_before)

FLOW: Flow = flow
