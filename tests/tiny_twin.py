"""The quantizable twin of tests/tiny.py, apart from it: other flows need none."""

from __future__ import annotations

from pipeline.flows.eager.twins.between_stubs import BetweenStubs
from pipeline.flows.eager.twins.resnet import QuantizableBasicBlock
from tests.tiny import Tiny


class QuantizableTiny(BetweenStubs, Tiny):
    """The twin of the whole network."""

    block, stem = QuantizableBasicBlock, ("conv1", "bn1", "relu")
