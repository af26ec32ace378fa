"""Networks of a user who knows of no quantization, for the export flow."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune


class Residual(nn.Module):
    """Functional ReLU and `+`, a BatchNorm scale of 0, padding by name, a gate, and a module that nothing uses."""

    def __init__(self, num_classes: int, in_channels: int, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width, 3, padding="same", bias=False)
        self.stem_norm = nn.BatchNorm2d(width, eps=1e-3, momentum=0.03)
        self.body = nn.Conv2d(width, width, 3, padding=1)
        self.body_norm = nn.BatchNorm2d(width)
        nn.init.zeros_(self.body_norm.weight)
        self.gate = nn.Conv2d(width, width, 1)
        self.down = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, 2, groups=2), nn.BatchNorm2d(2 * width), nn.Hardswish()
        )
        self.dropout = nn.Dropout(0.3)
        self.unused = nn.Linear(3, 3)
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.stem_norm(self.stem(x))), 2)
        x = functional.relu(x + self.body_norm(self.body(x)))
        if x.shape[-1] > 2:
            x = x * torch.sigmoid(self.gate(functional.adaptive_avg_pool2d(x, 1)))
        return self.head(self.dropout(self.down(x).mean((2, 3))))


class Standardized(nn.Conv2d):
    """A convolution whose weight has mean 0 and variance 1 in each channel (Qiao et al. 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        rows = functional.batch_norm(self.weight.reshape(1, len(self.weight), -1), None, None, training=True)
        return functional.conv2d(x, rows.reshape_as(self.weight), self.bias, padding="same")


class Block(nn.Module):
    """A convolution by function, whose weight the block holds beside other things; a bias that is changed in place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width, 3, 3) / 8)
        self.small = nn.Parameter(torch.randn(width, width, 1, 1) / 3)
        self.bias = nn.Parameter(torch.randn(width))
        self.norm = nn.GroupNorm(2, width)
        self.convolution = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias.clone()
        bias[1:4].zero_()  # as torchvision's Swin V2 does
        x = functional.relu(self.norm(functional.conv2d(x, self.weight, padding=1)))
        return self.convolution(functional.relu(functional.conv2d(x, self.small * 2, bias)))


class MakesWeights(nn.Module):
    """Layers that make their weights of parameters in each forward, and one whose weight the images make."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.standardized = Standardized(in_channels, 8, 3)
        self.normalized = parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1, bias=False))
        self.norm = nn.BatchNorm2d(8)
        self.spectral = parametrizations.spectral_norm(nn.Conv2d(8, 8, 3, stride=2))
        self.block = Block(8)
        self.register_buffer("blur", torch.full((1, 1, 3, 3), 1 / 9))
        self.pruned = prune.l1_unstructured(nn.Conv2d(8, 8, 1), "weight", 0.5)
        self.rows = nn.Parameter(torch.randn(8, 8))
        self.linear_computed = nn.Linear(8, 8)
        self.maker = nn.Linear(8, 64)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.normalized(functional.relu(self.standardized(x)))))
        x = functional.conv2d(x, self.blur.expand(8, 1, 3, 3), padding=1, groups=8)
        x = self.block(functional.relu(self.spectral(x)))
        x = functional.relu(self.pruned(x)).mean((2, 3))
        x = functional.linear(x, self.rows.softmax(-1)) + functional.linear(x, self.rows)
        x = self.linear_computed(x)
        made = self.maker(x).mean(0).reshape(8, 8)
        return self.head(functional.linear(x, made))


class Shared(nn.Module):
    """One convolution, used twice."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.widen = nn.Conv2d(in_channels, 8, 3, padding=1)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.twice(torch.relu(self.widen(x))))
        return self.head(torch.relu(self.twice(x)).mean((2, 3)))


class Outlying(nn.Module):
    """A channel behind a LayerNorm a hundred times as large as the others, of which the layers take a hundredth."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(in_channels, 16, 8, 8)
        self.norm = nn.LayerNorm(16)
        self.value, self.gate = nn.Linear(16, 32), nn.Linear(16, 32)
        self.head = nn.Linear(32, num_classes)
        with torch.no_grad():
            self.norm.weight[0] = 100
            for layer in (self.value, self.gate):
                layer.weight[:, 0] /= 100

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.patches(x).flatten(2).transpose(1, 2))
        return self.head((self.value(x) * torch.sigmoid(self.gate(x))).mean(1))


class Gathering(nn.Module):
    """A small table of which an exporter makes a large constant beforehand, as of Swin's relative positions."""

    places: Tensor

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(in_channels, 16, 4, 4)
        self.table = nn.Parameter(torch.zeros(4, 16))
        self.register_buffer("places", torch.arange(64) % 4)
        self.head = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.patches(x).flatten(2).transpose(1, 2) + self.table[self.places]).mean(1))


class Swish(nn.Module):
    """A convolution and a SiLU."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(in_channels, 8, 3), nn.BatchNorm2d(8), nn.SiLU(inplace=True))
        self.head = nn.Conv2d(8, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)).mean((2, 3))


class Inner(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


class DependsOnValues(nn.Module):
    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, num_classes, 3)
        self.inner = Inner()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.convolution(x))


class FixesBatch(nn.Module):
    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, num_classes, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.convolution(one[None]).mean((2, 3)) for one in x.unbind()])


class WithoutLayers(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((1, 2, 3))[:, None] * self.scale


class Unusual(nn.Module):
    """What mobileone, ghostnet and swin do: a sum that begins with 0, a slice of everything, a tensor that it makes."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(in_channels, 8, 3, padding=1) for _ in range(2))
        self.cheap = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.mix = nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor | int = 0
        for branch in self.branches:
            total = total + branch(x)
        x = torch.relu(total)
        x = torch.cat([x, self.cheap(x)], 1)[:, :16]
        x = torch.relu(self.mix(x)).mean((2, 3))
        return self.head(x + torch.tensor([0.5]))


class ReturnsDictionary(nn.Module):
    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, num_classes, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.convolution(x).mean((2, 3))}


class TrainsWithTwoOutputs(nn.Module):
    """As torchvision's googlenet and inception_v3 do."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, num_classes, 3)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.convolution(x).mean((2, 3))
        return (x, x) if self.training else x
