"""`python notebooks/make.py`: writes lab.ipynb and lab.ru.ipynb from the cells below; `--check` says whether they are up to date.

One source, so that the code of the two cannot drift: a cell of code is written once, a cell of text in both languages.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import nbformat

FOLDER = Path(__file__).parent


class Text(NamedTuple):
    """A cell of prose, Markdown."""

    en: str
    ru: str


class Code(NamedTuple):
    """A cell of code, the same in both notebooks."""

    source: str


CELLS: list[Text | Code] = [
    Text(
        en="""# The lab, in PyTorch

Four attention maps of VGG16: vanilla saliency, SmoothGrad, Grad-CAM and Grad-CAM++. The lab drew them with Keras and tf-keras-vis;
here a torchvision VGG16 draws the same maps with Captum and pytorch-grad-cam. The last two cells check that they *are* the same, and
show what the libraries' plain calls would have drawn.

Run it from the top. On a CPU it takes some two minutes, most of them SmoothGrad's.""",
        ru="""# Лабораторная работа на PyTorch

Четыре карты внимания сети VGG16: простая карта значимости (vanilla saliency), SmoothGrad, Grad-CAM и Grad-CAM++. В исходной работе их
рисовали Keras и tf-keras-vis; здесь те же карты рисует VGG16 из torchvision с помощью Captum и pytorch-grad-cam. Последние две ячейки
проверяют, что карты *действительно* те же, и показывают, что нарисовали бы обычные вызовы библиотек.

Выполняйте ячейки сверху вниз. На процессоре это занимает около двух минут, большую часть — SmoothGrad.""",
    ),
    Text(
        en="""## Settings

`offline` weights are inside the package: ImageNet convolutions under a small classifier. `keras` are the lab's own weights, a download of
half a gigabyte.""",
        ru="""## Настройки

Веса `offline` лежат внутри пакета: свёртки ImageNet и небольшой классификатор. `keras` — веса самой лабораторной работы, загрузка около
половины гигабайта.""",
    ),
    Code("""%matplotlib inline
import os
import warnings

warnings.filterwarnings("ignore", message="IProgress")  # a progress bar that nobody asked for

WEIGHTS = os.environ.get("LAB_WEIGHTS", "offline")
SAMPLES = int(os.environ.get("LAB_SAMPLES", "20"))  # SmoothGrad's noisy copies
NOISE = 0.20  # and their noise, a fraction of each photograph's range"""),
    Text(
        en="""## Devices

A GPU is used where there is one.""",
        ru="""## Устройства

Если есть видеокарта, используется она.""",
    ),
    Code("""import torch

print("torch", torch.__version__)
for number in range(torch.cuda.device_count()):
    print(f"cuda:{number}", torch.cuda.get_device_name(number))
device = "cuda" if torch.cuda.is_available() else "cpu"
device"""),
    Text(
        en="""## VGG16

Keras's names stand beside torchvision's: `block5_conv3`, whose output after the ReLU both CAMs read, is `features.29`.""",
        ru="""## VGG16

Имена слоёв Keras стоят рядом с именами torchvision: `block5_conv3`, чей выход после ReLU читают обе CAM, — это `features.29`.""",
    ),
    Code("""from torch_impl import Explainer
from torch_impl.network import summary
from torch_impl.weights import load_network

network = load_network(WEIGHTS)
explainer = Explainer.vgg16(network, device=device)
print(summary(network.table))"""),
    Text(
        en="""## Four photographs

Resized as Keras's `load_img(target_size=(224, 224))` does it: nearest neighbour, the aspect ratio ignored. Put your own files into the
list, and their classes below.""",
        ru="""## Четыре фотографии

Размер меняется так же, как в `load_img(target_size=(224, 224))` из Keras: ближайший сосед, без сохранения пропорций. Впишите в список свои
файлы, а ниже — их классы.""",
    ),
    Code("""import matplotlib.pyplot as plt

from torch_impl import images

photographs, _ = images.load_all(images.defaults())
figure, axes = plt.subplots(1, len(photographs), figsize=(12, 4))
for axis, photograph in zip(axes, photographs):
    axis.imshow(photograph.pixels)
    axis.set_title(photograph.name)
    axis.axis("off")"""),
    Text(
        en="""## Linear output

The lab replaces Keras's softmax by a linear activation, because the gradient of a probability says as much about the other classes as
about its own. torchvision's network ends without a softmax: its outputs are the logits already.""",
        ru="""## Линейный выход

В лабораторной работе softmax заменяют линейной активацией: градиент вероятности говорит о других классах столько же, сколько о своём.
Сеть torchvision заканчивается без softmax: её выходы — уже логиты.""",
    ),
    Code("""explainer.model.classifier[-1]"""),
    Text(
        en="""## A score for each photograph

The score is the logit of the photograph's own class, given by its label or its index. What the network itself thinks stands beside it.""",
        ru="""## Оценка для каждой фотографии

Оценка — это логит собственного класса фотографии, заданного названием или номером. Рядом — что думает сама сеть.""",
    ),
    Code("""classes = ["Egyptian cat", "espresso", "tripod", "palace"]
maps = explainer(photographs, classes, methods="gradcam")
for row in maps.manifest["photographs"]:
    best = row["top5"][0]
    print(f"{row['name']:12}  {row['label']:14} logit {row['logit']:6.2f}  p {row['probability']:.2f}   top-1: {best['label']}")"""),
    Text(
        en="""## Vanilla saliency

The largest absolute gradient of the score over the three colour channels, at each pixel.""",
        ru="""## Простая карта значимости

Наибольший по модулю градиент оценки среди трёх цветовых каналов, в каждом пикселе.""",
    ),
    Code("""maps = explainer(photographs, classes, methods="vanilla")
maps.figure("vanilla")"""),
    Text(
        en="""## SmoothGrad

The mean over 20 noisy copies; the noise is 0.20 of each photograph's own range. Twenty forward and backward passes a photograph: this is
where the time goes.""",
        ru="""## SmoothGrad

Среднее по 20 зашумлённым копиям; шум — 0,20 от диапазона самой фотографии. Двадцать прямых и обратных проходов на фотографию: здесь и
тратится время.""",
    ),
    Code("""import time

started = time.perf_counter()
maps = explainer(photographs, classes, methods="smoothgrad", n_samples=SAMPLES, noise_level=NOISE)
print(f"{len(photographs)} photographs × {SAMPLES} samples: {time.perf_counter() - started:.2f} s on {explainer.device}")
maps.figure("smoothgrad")"""),
    Text(
        en="""## Grad-CAM

The last feature maps, each weighted by its mean gradient; 14 × 14 places, enlarged.""",
        ru="""## Grad-CAM

Последние карты признаков, каждая с весом, равным её среднему градиенту; 14 × 14 точек, затем увеличение.""",
    ),
    Code("""maps = explainer(photographs, classes, methods="gradcam")
maps.figure("gradcam")"""),
    Text(
        en="""## Grad-CAM++

A weight for each place instead of one mean. Five different maps go by this name; this is tf-keras-vis's.""",
        ru="""## Grad-CAM++

Вес для каждой точки вместо одного среднего. Под этим именем ходят пять разных карт; эта — из tf-keras-vis.""",
    ),
    Code("""maps = explainer(photographs, classes, methods="gradcam++")
maps.figure("gradcam++")"""),
    Text(
        en="""## The whole family

Three more maps of tf-keras-vis, which the lab did not draw, beside its four, on one photograph. LayerCAM weighs each place by its own
gradient. Score-CAM needs no gradient: it shows the network the photograph through each of the 512 feature maps, which takes half a minute a
photograph on a CPU; Faster-ScoreCAM takes the ten feature maps that vary most. (All 512: `methods="scorecam"`.)""",
        ru="""## Всё семейство

Ещё три карты из tf-keras-vis, которых в лабораторной работе не было, — рядом с её четырьмя, на одной фотографии. LayerCAM взвешивает каждую
точку её собственным градиентом. Score-CAM обходится без градиента: сети показывают фотографию сквозь каждую из 512 карт признаков, и на
процессоре это полминуты на фотографию; Faster-ScoreCAM берёт лишь десять карт признаков с наибольшим разбросом. (Все 512:
`methods="scorecam"`.)""",
    ),
    Code("""family = ["vanilla", "smoothgrad", "gradcam", "gradcam++", "layercam", "faster_scorecam"]
maps = explainer(photographs[:1], classes[:1], family, n_samples=SAMPLES, noise_level=NOISE)
maps.overview()[0]"""),
    Text(
        en="""## Are they the same maps?

The lab lacked this cell. Where TensorFlow is installed, Keras and tf-keras-vis draw one photograph's maps now, in a process of their own, with
the same weights; elsewhere a small network's maps that they drew earlier are taken from the project's tests. Then this port is given the same job,
and every stage between photograph and map is compared, in float64 and in float32. A difference would be an `AssertionError` that names its
place.""",
        ru="""## Те же ли это карты?

Этой ячейки в лабораторной работе не было. Если установлен TensorFlow, Keras и tf-keras-vis сейчас нарисуют карты одной фотографии, в
отдельном процессе и с теми же весами; иначе берутся карты небольшой сети, нарисованные ими раньше, из тестов проекта. Затем ту же задачу
получает эта реализация, и сравнивается каждый шаг между фотографией и картой, в float64 и в float32. Различие стало бы ошибкой
`AssertionError`, которая называет место.""",
    ),
    Code("""import importlib.util
import pathlib
import subprocess
import sys
import tempfile

from parity import assert_parity

weights, reference = network, pathlib.Path(tempfile.mkdtemp(), "reference.safetensors")
if importlib.util.find_spec("tf_keras_vis") and WEIGHTS == "offline":
    options = ["--weights", WEIGHTS, "--classes", "285", "--methods", "vanilla,gradcam,gradcam++,layercam", "--floor"]
    command = [sys.executable, "-m", "keras_ref", *options, "--quiet", "--out", str(reference), str(images.defaults()[0])]
    subprocess.run(command, check=True)
else:  # its weights are inside
    folders = [pathlib.Path.cwd(), *pathlib.Path.cwd().parents]
    golden = [file for folder in folders if (file := folder / "tests" / "golden" / "tiny.safetensors").is_file()]
    assert golden, "open this notebook in a checkout of the project, or install the extra: pip install 'attention-maps[keras]'"
    weights, reference = None, golden[0]
report = assert_parity("torch_impl.candidate:candidate", reference, network=weights)
print(report.as_table())"""),
    Text(
        en="""## What the libraries' plain calls would have drawn

The same network, photographs and classes; the calls as the READMEs show them. They look like maps. The number over each is its Pearson
correlation with the reference's map.""",
        ru="""## Что нарисовали бы обычные вызовы библиотек

Та же сеть, те же фотографии и классы; вызовы — как в README библиотек. Они похожи на карты. Число над каждой — корреляция Пирсона с
эталонной картой.""",
    ),
    Code("""import numpy as np

pairs = {
    "smoothgrad": "smoothgrad@captum",
    "gradcam": "gradcam@pytorch-grad-cam",
    "gradcam++": "gradcam++@pytorch-grad-cam",
}
both = explainer(photographs, classes, [*pairs, *pairs.values()], n_samples=min(SAMPLES, 4), noise_level=NOISE)
figure, axes = plt.subplots(len(pairs), len(photographs), figsize=(12, 9.6), layout="constrained")
for row, (ours, stock) in zip(axes, pairs.items()):
    for axis, right, plain in zip(row, both[ours], both[stock]):
        axis.imshow(plain, cmap="jet")
        axis.set_title(f"{np.corrcoef(right.ravel(), plain.ravel())[0, 1]:.2f}")
        axis.set_xticks([])
        axis.set_yticks([])
    row[0].set_ylabel(stock.replace("@", "\\n"))"""),
]


def notebook(language: str) -> nbformat.NotebookNode:
    """The lab in a language, `en` or `ru`, without outputs."""
    cells = []
    for number, cell in enumerate(CELLS):
        if isinstance(cell, Code):
            made = nbformat.v4.new_code_cell(cell.source)
        else:
            made = nbformat.v4.new_markdown_cell(cell.en if language == "en" else cell.ru)
        made["id"] = f"cell-{number:02}"  # not nbformat's random ones: the files change only where the lab does
        cells.append(made)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})


def main(arguments: list[str]) -> int:
    """Write both files, or with `--check` compare them; returns the exit status."""
    stale = 0
    for language, name in (("en", "lab.ipynb"), ("ru", "lab.ru.ipynb")):
        text = nbformat.writes(notebook(language)) + "\n"
        path = FOLDER / name
        if "--check" not in arguments:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            print(f"{path}: not up to date: run python notebooks/make.py", file=sys.stderr)
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
