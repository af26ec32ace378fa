"""The quantizable twin of the blog post's network."""

from __future__ import annotations

from pipeline.flows.eager.twins.between_stubs import AddingBlock, BetweenStubs
from pipeline.models.blog_resnet import BlogBlock, BlogResNet18


class QuantizableBlogBlock(AddingBlock, BlogBlock):
    """The twin of a block."""


class QuantizableBlogResNet18(BetweenStubs, BlogResNet18):
    """The twin of the whole network."""

    block, stem = QuantizableBlogBlock, ("conv", "bn", "relu")


TWINS = {"blog_resnet18": QuantizableBlogResNet18}
