"""Every model in conf/model: the float network and its quantizable twin are the same network."""

from __future__ import annotations

import pytest
import torch

from pipeline import models
from pipeline.commands.composition import compose_request
from pipeline.datasets.spec import DatasetInfo
from pipeline.flows import eager as quantization
from pipeline.flows.eager import twins
from pipeline.host.errors import UserError
from pipeline.models import weights
from pipeline.settings.config import Config

NAMES = sorted(models.registry())
STEMS = [(name, stem) for name in NAMES for stem in (models.registry()[name].stems or (None,))]
RGB = DatasetInfo(3, tuple("abcde"))
GREY = DatasetInfo(1, tuple("0123456789"))


def config_of(name: str, stem: str | None) -> Config:
    size = max(32, models.registry()[name].min_image_size)
    return compose_request([f"model={name}", f"model.stem={stem or 'null'}", f"dataset.image_size={size}"]).config


def images(config: Config, info: DatasetInfo) -> torch.Tensor:
    size = config.dataset.image_size
    return torch.randn(4, info.channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("info", [RGB, GREY], ids=["rgb", "grey"])
@pytest.mark.parametrize(("name", "stem"), STEMS)
def test_twin_has_equal_keys_and_bit_equal_outputs(name: str, stem: str | None, info: DatasetInfo) -> None:
    config = config_of(name, stem)
    torch.manual_seed(0)
    network = models.build(config.model, info)
    twin = twins.build(config.model, info)
    assert list(network.state_dict()) == list(twin.state_dict())
    # Two steps in training mode first: BatchNorm statistics away from their initial 0 and 1.
    with torch.no_grad():
        for _ in range(2):
            network.train()(images(config, info))
    twin.load_state_dict(network.state_dict())
    batch = images(config, info)
    with torch.no_grad():
        expected = network.eval()(batch)
        assert expected.shape == (4, info.num_classes)
        assert torch.equal(twin.eval()(batch), expected)


@pytest.mark.parametrize("name", NAMES)
def test_twin_fuses_every_batch_norm_and_gets_fake_quantize_modules_when_prepared(name: str) -> None:
    config = config_of(name, (models.registry()[name].stems or (None,))[0])
    fused = quantization.rebuild("fused", twins.build(config.model, GREY))
    # A BatchNorm outside a fused module would be left behind in float.
    fused_kinds = tuple(module for module in fused.modules() if type(module).__module__.startswith("torch.ao.nn"))
    taken_in = {id(child) for module in fused_kinds for child in module.modules()}
    norms = [module for module in fused.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len(norms) >= 7
    assert all(id(norm) in taken_in for norm in norms)
    convolutions = sum(isinstance(module, torch.nn.Conv2d) for module in fused.modules())
    prepared = quantization.prepare(fused, config.backend)
    assert quantization.count_fake_quantize(prepared) >= 2 * convolutions  # a weight and an output each


@pytest.mark.parametrize("name", NAMES)
def test_model_accepts_its_smallest_image_and_fails_one_pixel_below(name: str) -> None:
    spec = models.registry()[name]
    config = config_of(name, (models.registry()[name].stems or (None,))[0])
    network = models.build(config.model, GREY).eval()
    assert network(torch.randn(2, 1, spec.min_image_size, spec.min_image_size)).shape == (2, 10)
    with pytest.raises(UserError, match=f"dataset.image_size={spec.min_image_size - 1}: .*{spec.min_image_size}"):
        models.check_model(config.model, GREY, spec.min_image_size - 1)


def test_blog_resnet18_has_the_posts_size() -> None:
    from pipeline.measure.measurement import size_mb

    config = config_of("blog_resnet18", None)
    network = models.build(config.model, GREY)
    assert size_mb(network) == pytest.approx(46.2, abs=0.3)
    int8 = quantization.rebuild("int8", twins.build(config.model, GREY), config.backend)
    assert size_mb(int8) == pytest.approx(11.7, abs=0.1)
    assert all(module.bias is not None for module in network.modules() if isinstance(module, torch.nn.Conv2d))


def test_resnet18_has_torchvisions_parameter_names_and_outputs() -> None:
    import torchvision.models

    reference = torchvision.models.resnet18(weights=None, num_classes=5).eval()
    network = models.build(config_of("resnet18", "imagenet").model, RGB).eval()
    network.load_state_dict(reference.state_dict())
    batch = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(network(batch), reference(batch))


def test_weights_are_summed_over_channels_and_keep_a_fresh_classifier_when_the_data_differ(tmp_path) -> None:  # type: ignore[no-untyped-def]
    config = config_of("resnet18", "imagenet")
    trained = models.build(config.model, RGB).eval()
    torch.save(trained.state_dict(), tmp_path / "trained.pt")
    config.model.weights = str(tmp_path / "trained.pt")
    grey = models.build(config.model, GREY).eval()
    fresh = weights.load_into(grey, config.model, GREY).fresh
    assert fresh == ["fc.weight", "fc.bias"]
    # A grey picture given as RGB and as one channel: the first convolution answers the same.
    picture = torch.randn(1, 1, 32, 32)
    assert isinstance(grey.conv1, torch.nn.Module)
    assert isinstance(trained.conv1, torch.nn.Module)
    torch.testing.assert_close(grey.conv1(picture), trained.conv1(picture.expand(-1, 3, -1, -1)))
    assert torch.equal(grey.state_dict()["layer4.1.conv2.weight"], trained.state_dict()["layer4.1.conv2.weight"])


def test_weights_load_when_they_do_not_count_batches(tmp_path) -> None:  # type: ignore[no-untyped-def]
    config = config_of("resnet18", "imagenet")
    state = models.build(config.model, RGB).state_dict()
    older = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    torch.save(older, tmp_path / "older.pt")
    config.model.weights = str(tmp_path / "older.pt")
    network = models.build(config.model, RGB)
    assert weights.load_into(network, config.model, RGB) == ([], "")
    assert torch.equal(network.state_dict()["fc.weight"], state["fc.weight"])


def test_compact_resnet_begins_with_hardly_correlated_channels_when_neighbours_are_alike() -> None:
    torch.manual_seed(0)
    smooth = torch.nn.functional.avg_pool2d(torch.randn(64, 3, 40, 40), 5, 1)
    photographs = smooth.mean(1, keepdim=True) + 0.3 * smooth  # colours are alike too
    first = models.build(config_of("compact_resnet", None).model, RGB).conv
    another = torch.nn.Conv2d(3, 12, 2, bias=False)

    def correlation(weight: torch.Tensor) -> float:
        outputs = torch.nn.functional.conv2d(photographs, weight).transpose(0, 1).flatten(1)
        return float((torch.corrcoef(outputs) - torch.eye(12)).abs().mean())

    with torch.no_grad():
        assert correlation(first.weight[:12]) < 0.1 * correlation(another.weight)
        assert torch.equal(first.weight[12:], -first.weight[:12])
