"""LayerCAM and the Score-CAMs on paper, and against NumPy written out, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from judging import recorded
from oracle import layer_cam, most_varied, relative, score_cam
from tolerances import FLOAT64
from torch import nn

from parity.contract.artifact import Artifact
from parity.contract.methods import Options
from parity.contract.network import Network
from parity.contract.samples import SAMPLES
from torch_impl import candidate as port
from torch_impl import methods
from torch_impl.__main__ import main
from torch_impl.capture.passes import Pass
from torch_impl.maps.layercam import layercam
from torch_impl.maps.scorecam import chosen_channels, masks_of
from torch_impl.network import build
from torch_impl.preserve import ModelError

pytestmark = pytest.mark.usefixtures("one_thread")

BY_SCORES = ("scorecam", "faster_scorecam")


def test_layercam_on_paper():
    activations = torch.tensor([[[[1.0, 2.0]], [[4.0, -3.0]]]])
    gradients = torch.tensor([[[[3.0, -1.0]], [[-1.0, 2.0]]]])
    given = {"activations": activations, "gradients": gradients, "capture": None}
    for relu, expected in ((True, [3, 0]), (False, [3, -6])):  # (1·3 + 4·0, 2·0 − 3·2)
        p = Pass(inputs=torch.zeros(1, 3, 2, 4), target=torch.tensor([0]), options=Options(relu=relu), **given)
        assert layercam(p).tolist() == [[expected]]


def test_masks_are_enlarged_and_then_normalized():
    activations = torch.tensor([[[0.0, 0.0, 8.0, 0.0]], [[5.0, 5.0, 5.0, 5.0]]], dtype=torch.float64)
    # At places 0, 1.5 and 3: (0, 4, 0), whose largest is 1, not the 8 between them.
    masks = masks_of(activations, (1, 3))
    np.testing.assert_allclose(masks[0], [[0, 1, 0]], atol=1e-7)
    assert not masks[1].any()  # a constant map hides everything


def test_the_channels_are_those_of_the_largest_deviation():
    activations = torch.zeros(2, 4, 1, 4)
    activations[0, 1, 0] = torch.tensor([9.0, 9, 9, 9])  # the largest, and it does not vary
    activations[0, 2, 0] = activations[0, 3, 0] = torch.tensor([0.0, 1, 0, 1])
    activations[1, 0, 0] = torch.tensor([0.0, 0, 0, 1])
    # Of equal ones the first; each photograph its own.
    assert chosen_channels(activations, 2).tolist() == [[2, 3], [0, 1]]
    assert chosen_channels(activations, None).tolist() == [[2, 3, 0, 1], [0, 1, 2, 3]]  # 10, or all
    with pytest.raises(ValueError, match="channels is 5: the target layer has 4 feature maps"):
        chosen_channels(activations, 5)


@pytest.mark.parametrize("engine", [port.candidate, port.one_pass])
def test_against_numpy_written_out(engine, family: Artifact):
    """The network and its masks in NumPy, one feature map at a time."""
    answer = recorded(family, engine)
    network = family.network
    for i, of_class in enumerate(family.classes):
        target = network.table.target
        a, g = (answer.whole(f"{kind}/{target}", "fp64")[i] for kind in ("activations", "gradients"))
        inputs = port.preprocess(family.pixels[i : i + 1], input="caffe", dtype=torch.float64)[0]
        inputs = inputs.permute(1, 2, 0).numpy()
        assert relative(answer.whole("layercam/raw", "fp64")[i], layer_cam(a, g)) < FLOAT64
        assert answer.whole("faster_scorecam/channels", "fp64")[i].tolist() == most_varied(a, 5)
        for method, channels in zip(BY_SCORES, (list(range(8)), most_varied(a, 5)), strict=True):
            for name, expected in score_cam(network, inputs, a, of_class, channels).items():
                assert relative(answer.whole(f"{method}/{name}", "fp64")[i], expected) < FLOAT64, (method, name)


def test_score_cam_takes_each_photograph_by_itself(tiny: Network):
    """Also the channels: not the union over the batch, as tf-keras-vis."""
    model, x = build(tiny).double(), torch.tensor(np.random.RandomState(2).uniform(-100, 100, (3, 3, 64, 64)))
    for method in BY_SCORES:
        draw = getattr(methods, method)
        together = draw(model, x, [2, 7, 5], target_layer="features.29", batch_size=7)
        for i, category in enumerate((2, 7, 5)):
            alone = draw(model, x[i : i + 1], category, target_layer="features.29")
            assert relative(together[i : i + 1].numpy(), alone.numpy()) < FLOAT64


def test_the_library_s_own_score_cam_draws_no_bar_of_its_own(tiny: Network, capsys):
    x = torch.tensor(np.random.RandomState(2).uniform(-100, 100, (2, 3, 64, 64)), dtype=torch.float32)
    methods.raw_maps("scorecam@pytorch-grad-cam", build(tiny), x, [2, 7], target_layer="features.29")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("method", BY_SCORES)
@pytest.mark.parametrize("question", [{"target": 1}, {"score": lambda y: y[:, 0]}], ids=["one output", "score="])
def test_score_cam_needs_classes(method: str, question: dict):
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 1 if "target" in question else 3)
    )
    with pytest.raises(
        ModelError, match=r"^Score-CAM says nothing of a network with one output.*; choose another map$"
    ):
        getattr(methods, method)(model, torch.rand(2, 3, 8, 8), target_layer="1", **question)


@pytest.mark.parametrize(("outputs", "score"), [(1, ""), (3, ", score=lambda y: y[:, 0]")])
def test_explain_refuses_score_cam_without_classes_in_one_line(tmp_path, monkeypatch, capsys, outputs, score):
    layers = f"nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, {outputs})"
    (tmp_path / f"mine{outputs}.py").write_text(
        "import torch_impl\nfrom torch import nn\n\n\ndef make():\n"
        f"    return torch_impl.Explainer(nn.Sequential({layers}), '1', size=16, device='cpu'{score})\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    command = ["explain", str(SAMPLES[0].path()), f"--explainer=mine{outputs}:make", "--methods=scorecam", "--out=out"]
    assert main([*command, "--quiet"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "Score-CAM says nothing of a network with one output, or a score of one's own" in line
    assert not list(tmp_path.glob("out/*.png"))
