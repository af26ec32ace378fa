"""The export flow: any network, captured by torch.export, without a twin."""

from __future__ import annotations

import copy
import importlib.util
import io
import re
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import fx, nn

from pipeline import models, runtimes
from pipeline.commands.composition import compose_request
from pipeline.datasets import catalogue
from pipeline.datasets.spec import DatasetInfo
from pipeline.flows.export import FLOW
from pipeline.host.errors import UserError
from pipeline.run import runner
from pipeline.run.request import Request
from pipeline.runtimes import eager
from pipeline.runtimes.contents import int8_pct
from pipeline.settings.config import Config
from pipeline.training import loop
from tests.test_compilation import needs_compiler

RESIDUAL = ["model=own", "model.target=tests.export_networks:Residual"]
BACKENDS = ["openvino", "onnxruntime"]
# One in brief; the others take their time, to compile among others.
SLOW = ("onnxruntime", "inductor", "executorch")
RUNTIMES = ["openvino", *(pytest.param(name, marks=pytest.mark.operations) for name in SLOW)]


def config_of(*overrides: str) -> tuple[Config, DatasetInfo]:
    config = compose_request([*RESIDUAL, "backend=openvino", "dataset.image_size=17", *overrides]).config
    return config, catalogue.info(config.dataset)


def float_network(config: Config, info: DatasetInfo) -> nn.Module:
    torch.manual_seed(0)
    network = models.build(config.model, info)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network


def images(count: int, info: DatasetInfo, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, info.channels, info.image_size, info.image_size, generator=generator)


def trained(config: Config, info: DatasetInfo, steps: int = 4) -> nn.Module:
    """A prepared model after a few steps."""
    model = FLOW.prepare(FLOW.fuse(float_network(config, info), config, info), config)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    FLOW.set_mode(model, training=True)
    for step in range(steps):
        optimizer.zero_grad()
        model(images(6, info, step)).square().mean().backward()
        optimizer.step()
    return model


def outputs_of(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    FLOW.set_mode(model, training=False)
    with torch.no_grad(), FLOW.observers_off(model):
        return model(batch)  # type: ignore[no-any-return]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "name",
    [
        "tests.tiny:Tiny",
        pytest.param("resnet18", marks=pytest.mark.operations),
        pytest.param("blog_resnet18", marks=pytest.mark.operations),
        pytest.param("mobilenet_v2", marks=pytest.mark.operations),
        pytest.param("mobilenet_v3_large", marks=pytest.mark.operations),
    ],
)
def test_captured_graph_is_the_float_network_bit_for_bit_when_it_trains_and_when_it_does_not(
    name: str, training: bool
) -> None:
    model = f"model.target={name}" if ":" in name else f"model={name}"
    config = compose_request([model, "backend=openvino", "dataset.image_size=80"]).config
    info = catalogue.info(config.dataset)
    network = models.build(config.model, info)
    captured = FLOW.fuse(copy.deepcopy(network), config, info)
    assert captured.state_dict().keys() == network.state_dict().keys()
    found = []
    for each in (network, captured):
        FLOW.set_mode(each, training)
        torch.manual_seed(3)  # of dropout
        found.append(each(images(3, info)))
    assert torch.equal(*found)
    for key, value in network.state_dict().items():
        assert torch.equal(captured.state_dict()[key], value), key


@pytest.mark.parametrize("symmetric", ["null", "true"])
@pytest.mark.parametrize("per_channel", ["true", "false"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_fake_quantized_outputs_are_those_of_the_converted_model_bit_for_bit(
    backend: str, per_channel: str, symmetric: str
) -> None:
    config, info = config_of(
        f"backend={backend}", f"backend.per_channel={per_channel}", f"backend.symmetric={symmetric}"
    )
    model = trained(config, info)
    batch = images(5, info, 9)
    simulated = outputs_of(model, batch)
    int8 = FLOW.convert(model, config)
    assert torch.equal(int8(batch), simulated)
    assert not torch.equal(simulated, outputs_of(float_network(config, info), batch))


@pytest.mark.parametrize("backend", BACKENDS)
def test_int8_model_is_the_same_when_it_is_loaded_from_its_file(backend: str) -> None:
    config, info = config_of(f"backend={backend}")
    model = trained(config, info)
    names = {f"{name}.weight" for name in FLOW.layers(model)}
    int8 = FLOW.convert(model, config)
    file = io.BytesIO()
    torch.save(int8.state_dict(), file)
    file.seek(0)
    again = FLOW.rebuild("int8", config, info)
    again.load_state_dict(torch.load(file, weights_only=True))
    batch = images(4, info, 5)
    assert torch.equal(again(batch), int8(batch))
    state = int8.state_dict()
    assert {state[name].dtype for name in names} == {torch.int8}
    assert not [name for name, value in state.items() if value.is_floating_point() and value.dim() > 1]


def test_dropout_and_batch_norm_are_as_the_network_has_them_when_modes_were_switched() -> None:
    config, info = config_of()
    model = trained(config, info)
    for training in (False, True, False, True):
        FLOW.set_mode(model, training)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert [(norm.eps, norm.momentum) for norm in norms].count((1e-3, 0.03)) == 1
    assert [module.p for module in model.modules() if isinstance(module, nn.Dropout)] == [0.3]
    before = norms[0].running_mean.clone()  # type: ignore[union-attr, operator]
    batch = images(4, info)
    assert not torch.equal(model(batch), model(batch))  # dropout
    assert not torch.equal(norms[0].running_mean, before)
    FLOW.freeze(model, batch_norm=True, ranges=False)
    frozen = norms[0].running_mean.clone()  # type: ignore[union-attr, operator]
    model(batch)
    assert torch.equal(norms[0].running_mean, frozen)
    assert torch.equal(outputs_of(model, batch), outputs_of(model, batch))


def test_scale_of_zero_learns_when_its_batch_norm_is_trained_quantization_aware() -> None:
    config, info = config_of()
    (scale,) = [
        layer.norm.weight  # type: ignore[union-attr]
        for name, layer in FLOW.layers(trained(config, info)).items()
        if name == "body"
    ]
    assert scale.isfinite().all()
    assert (scale != 0).any()


def test_layer_computes_in_training_what_int8_will_when_its_batch_norm_is_frozen() -> None:
    config, info = config_of()
    model = trained(config, info)
    frozen, running = copy.deepcopy(model), copy.deepcopy(model)
    FLOW.freeze(frozen, batch_norm=True, ranges=True)
    FLOW.set_mode(running, training=False)
    for (name, layer), other in zip(FLOW.layers(frozen).items(), FLOW.layers(running).values(), strict=True):
        if layer.norm is None:
            continue
        channels = {"stem": info.channels}.get(name, 8)
        values = torch.randn(4, channels, 7, 7, generator=torch.Generator().manual_seed(3))
        outputs = layer(values)
        with torch.no_grad(), FLOW.observers_off(running):
            assert torch.equal(outputs, other(values))
        outputs.square().mean().backward()
        assert (layer.norm.weight.grad != 0).any()  # type: ignore[operator, union-attr]


def test_float_network_stays_within_reach_when_it_is_prepared_and_nothing_is_quantized() -> None:
    config, info = config_of()
    network = float_network(config, info)
    model = FLOW.prepare(FLOW.fuse(copy.deepcopy(network), config, info), config)
    FLOW.switch_all(model, False)
    batch = images(4, info)
    torch.testing.assert_close(outputs_of(model, batch), outputs_of(network, batch), rtol=1e-4, atol=1e-5)


def test_quantized_network_begins_from_ptq_when_ranges_are_taken() -> None:
    config, info = config_of()
    network = float_network(config, info)
    calibrated = FLOW.prepare_ptq(copy.deepcopy(network), config, info)
    with torch.no_grad(), FLOW.fake_quantize_off(calibrated):
        calibrated(images(32, info))
    prepared = FLOW.prepare(FLOW.fuse(network, config, info), config)
    FLOW.take_ranges(prepared, calibrated)
    batch = images(4, info, 8)
    expected, found = (FLOW.convert(model, config)(batch) for model in (calibrated, prepared))
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05 * expected.abs().max().item())


def test_layers_and_blocks_stay_float_when_they_are_named() -> None:
    config, info = config_of("backend.skip_layers=[stem]", "backend.float_modules=[down]")
    model = trained(config, info)
    assert set(FLOW.layers(model)) == {"body", "gate", "head"}
    batch = images(3, info)
    simulated = outputs_of(model, batch)
    int8 = FLOW.convert(model, config)
    torch.testing.assert_close(int8(batch), simulated, rtol=1e-4, atol=1e-4)
    assert int8.get_parameter("stem.weight").dtype == torch.float32


def test_gate_is_computed_in_int8_when_the_backend_is_onnxruntime(tmp_path: Path) -> None:
    import onnxruntime

    config, info = config_of("backend=onnxruntime")
    model = trained(config, info)
    assert set(FLOW.layers(model)) == {"stem", "body", "gate", "down.0", "head"}
    runtime = runtimes.find("onnxruntime")
    runtime.export(FLOW.convert(model, config), images(1, info), tmp_path)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(tmp_path / runtime.file, options, providers=["CPUExecutionProvider"])
    found = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert {"QLinearGlobalAveragePool", "QLinearMul"} <= set(found)


@pytest.mark.operations
def test_openvino_agrees_with_torch_when_grey_images_look_channels_last(tmp_path: Path) -> None:
    config, info = config_of("model.target=tests.tiny:Tiny", "dataset.image_size=32")
    torch.manual_seed(0)
    # Of the two orders of axes that fit one channel, torch takes this one for channels-last.
    batch = (torch.randint(0, 256, (8, 32, 32, 1)).permute(0, 3, 1, 2).float() / 255 - 0.306) / 0.377
    network = models.build(config.model, info).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network(batch)
        prepared = FLOW.prepare_ptq(network.eval(), config, info)
        with FLOW.fake_quantize_off(prepared):
            prepared(batch)
        int8 = FLOW.convert(prepared, config)
        expected = int8(batch)
    runtime = runtimes.find("openvino")
    runtime.export(int8, batch[:1], tmp_path)
    found = torch.from_numpy(runtime.load(tmp_path, 1)(batch.numpy()))
    torch.testing.assert_close(found, expected, rtol=0, atol=0.1 * float(expected.std()))


def test_silu_is_computed_in_int8_when_the_backend_is_onnxruntime() -> None:
    config, info = config_of("model.target=tests.export_networks:Swish", "backend=onnxruntime")
    network = float_network(config, info)
    batch = images(3, info)
    captured = FLOW.fuse(copy.deepcopy(network), config, info)
    assert torch.equal(outputs_of(captured, batch), outputs_of(network, batch))
    model = trained(config, info)
    graph = FLOW.convert(model, config).graph
    quantize = torch.ops.quantized_decomposed.quantize_per_tensor.default
    dequantize = torch.ops.quantized_decomposed.dequantize_per_tensor.default
    (sigmoid,) = (node for node in graph.nodes if node.target is torch.ops.aten.sigmoid.default)
    (product,) = (node for node in graph.nodes if node.target is torch.ops.aten.mul.Tensor)
    for node in (sigmoid, product):
        assert {one.target for one in node.all_input_nodes} == {dequantize}
        assert {one.target for one in node.users} == {quantize}


@pytest.mark.parametrize("backend", BACKENDS)
def test_layers_are_quantized_when_they_make_their_weights_of_parameters(
    backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config, info = config_of(
        "model.target=tests.export_networks:MakesWeights", f"backend={backend}", "backend.skip_layers=[pruned]"
    )
    FLOW.check(config, info)
    network = float_network(config, info)
    batch = images(3, info)
    fused = FLOW.fuse(float_network(config, info), config, info)
    assert torch.equal(outputs_of(fused, batch), outputs_of(network, batch))
    assert "standardized, normalized, conv2d_2_computed and 4 more; QAT trains the" in capsys.readouterr().out
    ptq = FLOW.prepare_ptq(network, config, info)
    named = {"standardized", "normalized", "spectral", "linear_computed", "maker", "head"}
    assert named < set(FLOW.layers(ptq))
    assert "pruned" not in FLOW.layers(ptq)
    FLOW.switch_all(ptq, False)
    torch.testing.assert_close(outputs_of(ptq, batch), outputs_of(network, batch), rtol=1e-4, atol=1e-5)
    model = trained(config, info)
    (of_a_buffer,) = (name for name, value in model.named_parameters() if not value.requires_grad)
    assert "conv2d" in of_a_buffer
    simulated = outputs_of(model, batch)
    again = FLOW.rebuild("qat", config, info)
    again.load_state_dict(model.state_dict())
    assert torch.equal(outputs_of(again, batch), simulated)
    int8 = FLOW.convert(model, config)
    assert torch.equal(int8(batch), simulated)
    assert {int8.state_dict()[f"{name}.weight"].dtype for name in named} == {torch.int8}


def test_float_file_is_made_by_the_newer_exporter_when_the_older_one_cannot(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # To a size that does not divide the map, as AlexNet and VGG pool small images.
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(6), nn.Flatten(), nn.Linear(144, 10)).eval()
    runtime, batch = runtimes.find("onnxruntime"), torch.randn(5, 3, 10, 10)
    runtime.export(network, batch[:1], tmp_path)
    with torch.no_grad():
        expected = network(batch)
    torch.testing.assert_close(torch.from_numpy(runtime.load(tmp_path, 1)(batch.numpy())), expected)
    assert "graph(" not in capfd.readouterr().out


def test_weight_that_two_layers_share_is_quantized_when_it_is_converted() -> None:
    config, info = config_of("model.target=tests.export_networks:Shared")
    model = trained(config, info)
    batch = images(3, info)
    simulated = outputs_of(model, batch)
    assert torch.equal(FLOW.convert(model, config)(batch), simulated)


@pytest.mark.parametrize("backend", BACKENDS)
def test_graph_has_one_pair_at_each_place_when_a_network_adds_to_zero_slices_all_and_makes_tensors(
    backend: str,
) -> None:
    config, info = config_of("model.target=tests.export_networks:Unusual", f"backend={backend}")
    FLOW.check(config, info)
    network = float_network(config, info)
    batch = images(3, info)
    captured = FLOW.fuse(copy.deepcopy(network), config, info)
    assert torch.equal(outputs_of(captured, batch), outputs_of(network, batch))
    model = trained(config, info)
    simulated = outputs_of(model, batch)
    int8 = FLOW.convert(model, config)
    assert torch.equal(int8(batch), simulated)
    assert isinstance(int8, fx.GraphModule)
    # OpenVINO crashes where a value is quantized that was dequantized, and nothing has changed, just before.
    quantized = [node.args[0] for node in int8.graph.nodes if ".quantize_per_tensor" in str(node.target)]
    assert not [node for node in quantized if ".dequantize" in str(node.target) or ".alias" in str(node.target)]


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (
            "DependsOnValues",
            ["inner (Inner, ", "export_networks.py:", "values of a tensor", "allowed: a forward"],
        ),
        ("FixesBatch", ["the network (FixesBatch", "export_networks.py:", "number of images"]),
        ("ReturnsDictionary", ["ReturnsDictionary returns a dict", "allowed: one tensor"]),
        ("TrainsWithTwoOutputs", ["TrainsWithTwoOutputs returns, when it trains, a tuple", "allowed: one tensor"]),
        ("WithoutLayers", ["nothing of WithoutLayers would be quantized", "allowed:"]),
    ],
)
def test_network_is_refused_in_one_line_that_names_the_place_when_it_cannot_go_this_way(
    network: str, words: list[str]
) -> None:
    config, info = config_of(f"model.target=tests.export_networks:{network}")
    with pytest.raises(UserError) as caught:
        FLOW.check(config, info)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["backend.skip_layers=[bdy]"], ["backend.skip_layers=[bdy]", "no quantizable layer 'bdy'", "'body'"]),
        (["backend.float_modules=[donw]"], ["backend.float_modules=[donw]", "no module 'donw'", "'down'"]),
        (["backend.qconfig=x86"], ["backend.qconfig=x86", "allowed: x86_inductor, onnxruntime"]),
        (["backend.engine=openvno"], ["backend.engine=openvno", "did you mean 'openvino'"]),
        (["backend.float_modules=[stem,body,gate,down,head]"], ["nothing of Residual would be quantized"]),
    ],
)
def test_setting_is_refused_with_the_nearest_right_one_when_it_is_wrong(overrides: list[str], words: list[str]) -> None:
    config, info = config_of(*overrides)
    with pytest.raises(UserError) as caught:
        FLOW.check(config, info)
    for word in words:
        assert word in str(caught.value)


def test_torchscript_is_refused_when_the_model_is_a_captured_graph(
    small_request: Callable[..., Request],
) -> None:
    stages = "stages=[train,fuse,qat,convert,export]"
    with pytest.raises(
        UserError, match=r"torchscript cannot take the models of backend[.]flow=export; allowed: eager, "
    ):
        runner.run(small_request(*RESIDUAL, "backend=openvino", "runtime.names=[torchscript]", stages))


@pytest.mark.parametrize("backend", RUNTIMES)
def test_every_stage_works_when_a_network_has_no_twin(backend: str, small_request: Callable[..., Request]) -> None:
    if backend == "executorch":
        pytest.importorskip("executorch", reason="pip install -e '.[executorch]'")
    metrics = runner.run(
        small_request(
            *RESIDUAL,
            f"backend={backend}",
            "dataset.max_train_samples=400",
            "train.epochs=3",
            "train.batch_size=20",
            "train.learning_rate=0.01",
            "export.min_agreement=90",
            "tracking=off",
            "+controls=full",
            "stages=[train,fuse,qat,ptq,finetune,convert,evaluate,sensitivity,export,benchmark]",
            *("benchmark.passes=2", "benchmark.min_repeats=4", "benchmark.max_seconds=2", "benchmark.memory=false"),
        )
    ).metrics
    assert metrics[f"{backend}/int8/parity"] == metrics[f"{backend}/ptq_int8/parity"] == 1
    assert metrics["qat/kept_epoch"] >= 0
    assert metrics["compression"] > 1.3  # of a file that holds little but its own tables
    # Not by the classes alone, of which so short a training tells few apart.
    assert metrics[f"{backend}/int8/max_difference"] < 0.02
    assert metrics[f"{backend}/int8/mean_difference"] < 0.001
    assert metrics["sensitivity/images"] > 0
    assert metrics[f"{backend}/int8/latency_ms"] > 0


def test_qat_goes_on_bit_for_bit_when_it_was_interrupted_in_its_second_epoch(
    tmp_path: Path, small_request: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [*RESIDUAL, "backend=openvino", "qat.epochs=2", "qat.batch_size=20", "tracking=off"]
    asked.append("stages=[train,fuse,qat]")

    def kept(name: str) -> dict[str, torch.Tensor]:
        (folder,) = (tmp_path / name / "artifacts").glob("qat-*")
        return torch.load(folder / "model.pt", weights_only=True)  # type: ignore[no-any-return]

    runner.run(small_request(*asked, f"outputs={tmp_path}/whole"))
    calls = 0

    def interrupt_in_second_epoch() -> None:
        nonlocal calls
        calls += 1
        if calls > 9 + 5:  # steps of the one epoch of train, and some of the second of QAT
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        runner.run(small_request(*asked[:-1], "stages=[train,fuse]", f"outputs={tmp_path}/cut"))
        patched.setattr(loop, "stop_if_interrupted", interrupt_in_second_epoch)
        with pytest.raises(KeyboardInterrupt):
            runner.run(small_request(*asked, f"outputs={tmp_path}/cut"))
    runner.run(small_request(*asked, f"outputs={tmp_path}/cut"))
    whole, cut = kept("whole"), kept("cut")
    assert whole.keys() == cut.keys()
    for name, value in whole.items():
        assert torch.equal(cut[name], value), name


@pytest.mark.operations  # it compiles for half a minute
@pytest.mark.parametrize("channels", [1, 3])
def test_inductor_computes_what_torch_computes_for_any_batch_when_a_network_is_int8(
    channels: int, tmp_path: Path
) -> None:
    needs_compiler()
    inductor = runtimes.registry()["inductor"]
    config, info = config_of(f"dataset={'digits' if channels == 1 else 'cifar10'}", "dataset.image_size=17")
    int8 = FLOW.convert(trained(config, info), config)
    batch = images(5, info)
    before = int8(batch)
    inductor.export(int8, batch[:1], tmp_path)
    predictor = inductor.load(tmp_path, 1)
    for count in (5, 1):
        torch.testing.assert_close(
            torch.from_numpy(predictor(batch[:count].numpy())), before[:count], atol=0.02, rtol=0
        )
    assert torch.equal(int8(batch), before)
    assert inductor.inspect is not None
    contents = inductor.inspect(tmp_path, batch[:1].numpy())
    assert contents.int8_weights_pct == pytest.approx(int8_pct(eager.weights(int8)), abs=1)
    assert sum(one.count for one in contents.operators if one.arithmetic == "int8" and "qconv" in one.kind) == 4


@pytest.mark.operations
def test_inductor_computes_what_torch_computes_when_a_relu_is_added_to_something(tmp_path: Path) -> None:
    needs_compiler()
    config = compose_request(["model=compact_resnet", "backend=inductor", "dataset=cifar10"]).config
    info = catalogue.info(config.dataset)
    int8 = FLOW.convert(trained(config, info), config)
    batch = images(5, info)
    runtimes.registry()["inductor"].export(int8, batch[:1], tmp_path)
    outputs = torch.from_numpy(runtimes.registry()["inductor"].load(tmp_path, 1)(batch.numpy()))
    torch.testing.assert_close(outputs, int8(batch), atol=0.02, rtol=0)


def test_run_that_exports_is_refused_in_one_line_when_there_is_no_compiler(
    small_request: Callable[..., Request],
) -> None:
    from torch._inductor import config as inductor

    request = small_request(*RESIDUAL, "backend=inductor", "stages=[train,fuse,qat,convert,export]")
    with (
        inductor.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(UserError, match=r"exporting to inductor needs a C[+][+] compiler"),
    ):
        runner.run(request)


@pytest.mark.operations  # half a minute each
@pytest.mark.parametrize("overrides", [[], ["backend.symmetric=true", "backend.per_channel=false"]])
def test_executorch_computes_what_torch_computes_for_any_batch_when_a_network_is_int8(
    overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("executorch", reason="pip install -e '.[executorch]'")
    executorch = runtimes.registry()["executorch"]
    config, info = config_of("backend=executorch", *overrides)
    model, batch = trained(config, info), images(70, info)
    simulated = outputs_of(model, batch)
    int8 = FLOW.convert(model, config)
    assert torch.equal(int8(batch), simulated)
    told = executorch.export(int8, batch[:1], tmp_path)
    assert told is not None
    assert 50 < told["delegated_pct"] < 100
    assert f"XNNPACK computes {told['delegated_pct']:.1f} % of the operators" in "".join(capsys.readouterr())
    predictor = executorch.load(tmp_path, 1)
    for count in (70, 1):  # more images than a program takes at once, and one
        found = torch.from_numpy(predictor(batch[:count].numpy()))
        torch.testing.assert_close(found, simulated[:count], atol=0.02, rtol=0)
    assert executorch.inspect is not None
    contents = executorch.inspect(tmp_path, batch[:1].numpy())
    assert contents.int8_weights_pct == int8_pct(eager.weights(int8))
    arithmetic = {one.kind: one.arithmetic for one in contents.operators}
    assert arithmetic["XNNConv2d"] == "int8"
    assert arithmetic["aten::mean"] == "float"


@pytest.mark.parametrize(
    ("missing", "overrides", "told"),
    [
        (True, [], "executorch is not installed here; pip install -e '.[executorch]' brings it"),
        (False, ["backend.activation_bits=7"], "has activations of 8 bits; allowed: 8"),
    ],
)
def test_executorch_is_refused_in_one_line_when_it_cannot_be_had_as_asked(
    missing: bool,
    overrides: list[str],
    told: str,
    small_request: Callable[..., Request],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = importlib.util.find_spec
    found = None if missing else real("json")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found if name == "executorch" else real(name))
    with pytest.raises(UserError, match=re.escape(told)):
        runner.run(small_request(*RESIDUAL, "backend=executorch", *overrides))
