"""Maps on the photograph's own grid: by hand, and by what the network saw."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from test_explainer import explainer_of
from torch import nn

from torch_impl import Explainer, framing, images
from torch_impl.framing import FramingError, laid_over, seen, sides
from torch_impl.images import ImageError

SHAPES = [(60, 40), (40, 60), (200, 90), (500, 333), (333, 500), (31, 31)]
"""(width, height) of photographs, smaller and larger than a network's input."""


def ramps(width: int, height: int) -> np.ndarray:
    """A picture whose colours say the place: red from left to right, green downwards."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[..., 0] = np.rint(255 * (np.arange(width) + 0.5) / width)
    picture[..., 1] = np.rint(255 * (np.arange(height) + 0.5) / height)[:, None]
    return picture


def test_a_squeezed_map_by_hand():
    """Middles of 4 pixels over 2 cells: at −¼, ¼, ¾ and 1¼ of the way from one cell's middle to the next."""
    assert seen((4, 2), (2, 2), "lab") == (0, 0, 4, 2)
    laid = laid_over(np.array([[0.0, 1.0], [0.0, 1.0]]), (0, 0, 4, 2), (4, 2), (2, 4))
    assert laid.tolist() == [[0, 0.25, 0.75, 1]] * 2
    coarse = laid_over(np.array([[0.0, 8.0, 8.0, 0.0]]), (0, 0, 2, 1), (2, 1), (1, 2))
    assert coarse.tolist() == [[32 / 7, 32 / 7]], "weights 3, 3, 1 of 7: all that lies in a pixel counts"


def test_a_crop_by_hand():
    """256 high is what torchvision makes of it: nothing is resized, and 224 × 224 are cut from the middle."""
    assert seen((512, 256), (224, 224), "torchvision") == (144, 16, 368, 240)
    assert seen((1024, 512), (224, 224), "torchvision") == (288, 32, 736, 480)
    values = np.random.RandomState(0).uniform(size=(224, 224))
    laid = laid_over(values, (144, 16, 368, 240), (512, 256), (256, 512))
    assert np.array_equal(laid[16:240, 144:368], values)
    assert np.isfinite(laid).sum() == 224 * 224, "the map says nothing of what was cut off"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("resize", framing.RESIZES)
@pytest.mark.parametrize("size", [64, (48, 80), (80, 48)])
def test_what_the_network_saw_laid_over_the_photograph_is_the_photograph(shape, resize, size):
    picture = ramps(*shape)
    photograph = images.load(picture, size=size, resize=resize)
    assert photograph.pixels.shape == (*sides(size), 3)
    for channel in (0, 1):
        laid = laid_over(photograph.pixels[..., channel] / 255, photograph.seen, shape, shape[::-1])
        off = np.abs(laid - picture[..., channel] / 255)
        there = np.isfinite(laid)
        assert there.all() if resize == "lab" else 0.2 < there.mean() < 0.8
        half_a_cell = 0.5 / min(sides(size))  # beyond the outermost middles a map is constant
        assert off[there].max() <= half_a_cell + 1 / min(shape) + 1 / 255


@pytest.mark.parametrize("resize", framing.RESIZES)
def test_an_overlay_fits_the_photograph_as_a_viewer_shows_it(tiny, tmp_path, resize):
    """Turned by EXIF; the map is what the network saw, so that its overlay in grey is the photograph's own red."""
    picture = ramps(100, 64)
    turned = Image.Exif()
    turned[0x0112] = 6  # a viewer turns it by 90 degrees
    raw = Image.fromarray(picture).transpose(Image.Transpose.ROTATE_90)
    raw.save(tmp_path / "turned.png", exif=turned)
    maps = explainer_of(tiny, resize=resize)([tmp_path / "turned.png", picture], 2, "gradcam,vanilla")
    maps = replace(maps, maps=dict.fromkeys(maps.maps, maps.pixels[..., 0] / 255))
    for i in (0, 1):
        assert np.array_equal(maps.photograph(i), picture)
        overlay = maps.overlay(i, "gradcam", at="photograph", alpha=1, colormap="gray").astype(int)
        assert overlay.shape == (64, 100, 3)
        inside = np.isfinite(maps.at_photograph(i, "gradcam"))
        assert np.abs(overlay - picture[..., :1])[inside].max() <= 4
        assert np.array_equal(overlay[~inside], picture[~inside]), "outside the crop: the plain photograph"
        assert np.array_equal(maps.overlay(i, "vanilla", at="photograph", alpha=0), picture)
        assert maps.overlay(i, "gradcam").shape == (64, 64, 3)
    kept = pickle.loads(pickle.dumps(maps))
    assert np.array_equal(kept.photograph(0), picture)
    with pytest.raises(ImageError, match="an array is not kept"):
        kept.photograph(1)
    with pytest.raises(ValueError, match="at 'home': give input or photograph"):
        maps.overlay(0, "gradcam", at="home")
    raw.transpose(Image.Transpose.ROTATE_180).save(tmp_path / "turned.png")
    for explanation in (maps, kept):
        with pytest.raises(ImageError, match="has changed since"):
            explanation.overlay(0, "gradcam", at="photograph")


def test_figures_and_files_of_photographs(tiny, tmp_path):
    pictures = [ramps(90, 40), ramps(30, 70)]
    maps = explainer_of(tiny, resize="torchvision")(pictures, 2, "gradcam,vanilla")
    for axis, picture in zip(maps.figure("gradcam", at="photograph").axes, pictures, strict=True):
        below, above = axis.images
        assert np.array_equal(below.get_array(), picture)
        assert above.get_array().shape == picture.shape[:2]
    written = maps.save(tmp_path / "out", at="photograph", each=True)
    each = [f"{name}-{method}.png" for name in ("1-array_1", "2-array_2") for method in ("gradcam", "vanilla")]
    assert [path.name for path in written if path.name[0] in "12"] == each
    for i, name in enumerate(each):
        with Image.open(tmp_path / "out" / name) as file:
            assert file.size == pictures[i // 2].shape[1::-1]
            method = ("gradcam", "vanilla")[i % 2]
            assert np.array_equal(np.asarray(file), maps.overlay(i // 2, method, at="photograph", alpha=None))
    with np.load(tmp_path / "out" / "maps.npz") as file:
        assert file["gradcam"].shape == (2, 64, 64)


def test_nobody_knows_what_a_function_saw(tiny):
    explainer = explainer_of(tiny)
    own = Explainer(explainer.model, explainer.target_layer, preprocess=_preprocess, precision="fp32")
    maps = own([ramps(90, 40)], 2, "gradcam")
    assert maps.manifest["photographs"][0]["seen"] is None
    for draw in (maps.figure, maps.overlay):
        with pytest.raises(FramingError, match=r"preprocess is a function, and nobody knows what it saw"):
            draw(*((0,) if draw == maps.overlay else ()), "gradcam", at="photograph")


def _preprocess(image):
    import torch

    return torch.from_numpy(np.array(image.resize((64, 64)))).permute(2, 0, 1) / 255


def test_a_network_of_rectangles():
    import torch

    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    explainer = Explainer(body, "1", preprocess="caffe", size=(24, 56))
    maps = explainer([ramps(90, 40)], 1, "gradcam,vanilla")
    assert maps.pixels.shape == (1, 24, 56, 3)
    assert {name: drawn.shape for name, drawn in maps.maps.items()} == dict.fromkeys(maps.maps, (1, 24, 56))
    assert maps.overlay(0, "gradcam", at="photograph").shape == (40, 90, 3)
    assert Explainer(body, "1", size=(32, 32)).size == 32
    for wrong in (0, (24,), (24, 0), "24", 24.0, True, (1, 5000)):
        with pytest.raises(ValueError, match="size is a number of pixels"):
            Explainer(body, "1", size=wrong)


def test_one_default_for_each_kind_of_input(tiny):
    assert [framing.usual_resize(given) for given in ("caffe", "torchvision")] == ["lab", "torchvision"]
    caffe, torchvision = (replace(tiny, input=given) for given in ("caffe", "torchvision"))
    assert (explainer_of(caffe).resize, explainer_of(torchvision).resize) == ("lab", "torchvision")
    assert explainer_of(torchvision, input="caffe").resize == "lab"
    assert explainer_of(torchvision, resize="lab").resize == "lab"
