"""The cells of the lab, in English and in Russian; `make.py` makes both notebooks of them.

One source, so that the code of the two cannot drift: a cell of code is written once, and only its comments and texts are translated.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class Text(NamedTuple):
    """A cell of prose, Markdown."""

    en: str
    ru: str


@dataclass(frozen=True)
class Code:
    """A cell of code.

    Attributes:
        source: with comments and texts in English.
        ru: those in Russian: English → Russian.
        alt: what its picture shows, in English and in Russian.
    """

    source: str
    ru: dict[str, str] = field(default_factory=dict)
    alt: tuple[str, str] = ("", "")


CELLS: list[Text | Code] = [
    Text(
        en="""# The lab, in PyTorch

Four attention maps of VGG16: vanilla saliency, SmoothGrad, Grad-CAM and Grad-CAM++. The lab drew them with Keras and tf-keras-vis;
here a torchvision VGG16 draws the same maps with Captum and pytorch-grad-cam. Then: the whole family of maps, whether a map is right (the
network itself is asked), and what the libraries' plain calls would have drawn. Where TensorFlow is installed, Keras draws these
photographs' four maps as well, and every stage between photograph and map is compared.

Run it from the top. On two CPU cores it took two and a half minutes: SmoothGrad 13 seconds, the question whether a map is right 20, the
comparison with Keras a minute and a half (without TensorFlow it is left out).""",
        ru="""# Лабораторная работа на PyTorch

Четыре карты внимания сети VGG16: карта значимости (vanilla saliency), SmoothGrad, Grad-CAM и Grad-CAM++. В исходной работе их строили Keras
и tf-keras-vis; здесь те же карты строит VGG16 из torchvision с помощью Captum и pytorch-grad-cam. Затем — всё семейство карт, вопрос о том,
верна ли карта (отвечает на него сама сеть), и то, что нарисовали бы библиотеки при обычном вызове. Если установлен TensorFlow, Keras тоже
строит четыре карты этих фотографий, и сравнивается каждый шаг от фотографии до карты.

Выполняйте ячейки сверху вниз. На двух ядрах процессора это заняло две с половиной минуты: SmoothGrad — 13 секунд, проверка карт на самой сети — 20,
сравнение с Keras — полторы минуты (без TensorFlow оно пропускается).""",
    ),
    Text(
        en="""## Settings

Put your own files into the list, and a class for each. `offline` weights are inside the package: ImageNet convolutions under a small
classifier. `keras` are the lab's own weights, a download of some 0.5 GB.""",
        ru="""## Настройки

Впишите в список свои файлы и класс для каждого из них. Веса `offline` входят в пакет: свёртки, обученные на ImageNet, и небольшой
классификатор. `keras` — веса из самой лабораторной работы, скачивание примерно 0,5 ГБ.""",
    ),
    Code(
        """%matplotlib inline
import os
import warnings

from torch_impl import images

warnings.filterwarnings("ignore", message="IProgress")  # a progress bar that nobody asked for

FILES = images.defaults()  # four files; or your own: ["cat.jpg", "cup.jpg", "camera.jpg", "palace.jpg"]
CLASSES = ["Egyptian cat", "espresso", "tripod", "palace"]  # a label or an index for each

WEIGHTS = os.environ.get("LAB_WEIGHTS", "offline")
SAMPLES = int(os.environ.get("LAB_SAMPLES", "20"))  # SmoothGrad's noisy copies
NOISE = 0.20  # and their noise, a fraction of each photograph's range
print(*map(os.path.basename, FILES))""",
        ru={
            "a progress bar that nobody asked for": "индикатор выполнения здесь не нужен",
            "four files; or your own:": "четыре файла; или свои:",
            "a label or an index for each": "название или номер для каждого",
            "SmoothGrad's noisy copies": "число зашумлённых копий для SmoothGrad",
            "and their noise, a fraction of each photograph's range": "и уровень шума, доля диапазона значений фотографии",
        },
    ),
    Text(
        en="""## Devices

A GPU is used where there is one.""",
        ru="""## Устройства

Если есть видеокарта, вычисления идут на ней.""",
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

Рядом с именами слоёв в torchvision стоят их имена в Keras: слой `block5_conv3`, выход которого после ReLU используют обе карты CAM, — это
`features.29`.""",
    ),
    Code("""from torch_impl import Explainer
from torch_impl.network import summary
from torch_impl.weights import load_network

network = load_network(WEIGHTS)
explainer = Explainer.vgg16(network, device=device)
print(summary(network.table))"""),
    Text(
        en="""## Four photographs

Resized as Keras's `load_img(target_size=(224, 224))` does it: nearest neighbour, the aspect ratio ignored.""",
        ru="""## Четыре фотографии

Размер меняется так же, как в `load_img(target_size=(224, 224))` из Keras: методом ближайшего соседа, без сохранения пропорций.""",
    ),
    Code(
        """import matplotlib.pyplot as plt

photographs, _ = images.load_all(FILES, size=explainer.size)
figure, axes = plt.subplots(1, len(photographs), figsize=(12, 3.4), squeeze=False)
for axis, photograph in zip(axes[0], photographs):
    axis.imshow(photograph.pixels)
    axis.set_title(photograph.name)
    axis.axis("off")""",
        alt=(
            "Four photographs: a cat, a cup of coffee, a man with a camera on a tripod, a Chinese palace.",
            "Четыре фотографии: кошка, чашка кофе, человек с камерой на штативе, китайский дворец.",
        ),
    ),
    Text(
        en="""## preprocess_input

What Keras's `vgg16.preprocess_input` does, bit for bit: channels B, G, R, the mean of ImageNet subtracted. The explainer does it by itself,
as the weights ask for it; this cell only shows the numbers.""",
        ru="""## preprocess_input

То же, что делает `vgg16.preprocess_input` из Keras, бит в бит: каналы в порядке B, G, R, вычтено среднее по ImageNet. Дальше это делается
автоматически, как требуют веса; здесь лишь показаны числа.""",
    ),
    Code(
        """import numpy as np

from torch_impl.preprocess import preprocess

inputs = preprocess(np.stack([photograph.pixels for photograph in photographs]), input=network.input)
print(f"{tuple(inputs.shape)}, {inputs.dtype}, from {inputs.min():.3f} to {inputs.max():.3f}")""",
        ru={", from {inputs.min": ", от {inputs.min", " to {inputs.max": " до {inputs.max"},
    ),
    Text(
        en="""## Linear output

The lab replaces Keras's softmax by a linear activation, because the gradient of a probability says as much about the other classes as
about its own. torchvision's network ends without a softmax: its outputs are the logits already.""",
        ru="""## Линейный выход

В лабораторной работе softmax заменяют линейной активацией: градиент вероятности говорит о других классах не меньше, чем о своём. Сеть из
torchvision заканчивается без softmax: на её выходе уже логиты.""",
    ),
    Code("""explainer.model.classifier[-1]"""),
    Text(
        en="""## A score for each photograph

The score is the logit of the photograph's own class, given by its label or its index. What the network itself thinks stands beside it.""",
        ru="""## Оценка для каждой фотографии

Оценка — это логит того класса, который указан для фотографии названием или номером. Рядом — мнение самой сети.""",
    ),
    Code(
        """maps = explainer(photographs, CLASSES, methods="gradcam")
chosen = [row["class"] for row in maps.manifest["photographs"]]
for row in maps.manifest["photographs"]:
    best = row["top5"][0]["label"]
    print(f"{row['name']:12}  {row['label']:14} logit {row['logit']:6.2f}  p {row['probability']:.2f}   top-1: {best}")""",
        ru={"logit {row": "логит {row", "top-1: {best}": "лучший класс: {best}"},
    ),
    Text(
        en="""## Vanilla saliency

The largest absolute gradient of the score over the three colour channels, at each pixel.""",
        ru="""## Карта значимости (vanilla saliency)

Для каждого пикселя — наибольший по модулю градиент оценки среди трёх цветовых каналов.""",
    ),
    Code(
        """maps = explainer(photographs, CLASSES, methods="vanilla")
maps.figure("vanilla")""",
        alt=(
            "Vanilla saliency of the four photographs: fine dots all over them, a little denser on the cup, the tripod and the roofs.",
            "Карты значимости четырёх фотографий: мелкие точки повсюду, немного гуще на чашке, штативе и крышах.",
        ),
    ),
    Text(
        en="""## SmoothGrad

The mean over 20 noisy copies; the noise is 0.20 of each photograph's own range. Twenty forward and backward passes a photograph: of the four
maps it is the one that takes time.""",
        ru="""## SmoothGrad

Среднее по 20 зашумлённым копиям; шум составляет 0,20 от диапазона значений самой фотографии. Это двадцать прямых и обратных проходов на
фотографию: из четырёх карт бóльшую часть времени занимает SmoothGrad.""",
    ),
    Code(
        """%%time
maps = explainer(photographs, CLASSES, methods="smoothgrad", n_samples=SAMPLES, noise_level=NOISE)
figure = maps.figure("smoothgrad")
figure.savefig("smoothgrad.png")
figure""",
        alt=(
            "SmoothGrad of the four photographs: brightest on the cat's eyes, on cup and saucer, on the man's head and camera, on the palace.",
            "SmoothGrad для четырёх фотографий: ярче всего глаза кошки, чашка с блюдцем, голова человека и камера, дворец.",
        ),
    ),
    Text(
        en="""## Grad-CAM

The last feature maps, each weighted by its mean gradient; 14 × 14 places, enlarged.""",
        ru="""## Grad-CAM

Последние карты признаков, каждая с весом, равным её среднему градиенту; карта 14 × 14, увеличенная до размера фотографии.""",
    ),
    Code(
        """maps = explainer(photographs, CLASSES, methods="gradcam")
maps.figure("gradcam")""",
        alt=(
            "Grad-CAM over the four photographs: red on the cat's eyes, in the cup, on the tripod's legs, on the upper roof.",
            "Grad-CAM поверх четырёх фотографий: красным — глаза кошки, чашка, ножки штатива, верхняя крыша.",
        ),
    ),
    Text(
        en="""## Grad-CAM++

A weight for each place instead of one mean. Five different maps go by this name; this is tf-keras-vis's.""",
        ru="""## Grad-CAM++

Вместо одного среднего — свой вес для каждой точки. Под этим именем известны пять разных карт; здесь та, что в tf-keras-vis.""",
    ),
    Code(
        """maps = explainer(photographs, CLASSES, methods="gradcam++")
figure = maps.figure("gradcam++")
figure.savefig("gradcam_plus_plus.png")
figure""",
        alt=(
            "Grad-CAM++ over the four photographs: as Grad-CAM, with larger red areas.",
            "Grad-CAM++ поверх четырёх фотографий: как Grad-CAM, но красные области больше.",
        ),
    ),
    Text(
        en="""## The whole family

Three more maps of tf-keras-vis, which the lab did not draw, beside its four, on one photograph. LayerCAM weighs each place by its own
gradient. Score-CAM needs no gradient: it shows the network the photograph through each of the 512 feature maps, which takes half a
minute a photograph on a CPU; Faster-ScoreCAM takes the ten feature maps that vary most. (All 512: `methods="scorecam"`.)""",
        ru="""## Всё семейство

Ещё три карты из tf-keras-vis, которых в лабораторной работе не было, — рядом с её четырьмя, на одной фотографии. LayerCAM взвешивает каждую
точку её собственным градиентом. Score-CAM обходится без градиента: сети показывают фотографию сквозь каждую из 512 карт признаков, и на
процессоре это занимает около полуминуты на фотографию; Faster-ScoreCAM берёт лишь десять карт признаков с наибольшим разбросом. (Все 512:
`methods="scorecam"`.)""",
    ),
    Code(
        """family = ["vanilla", "smoothgrad", "gradcam", "gradcam++", "layercam", "faster_scorecam"]
maps = explainer(photographs[:1], CLASSES[:1], family, n_samples=SAMPLES, noise_level=NOISE)
maps.overview()[0]""",
        alt=(
            "The cat and its six maps in a row: two of fine dots, four of coloured areas over the face.",
            "Кошка и шесть её карт в ряд: две из мелких точек, четыре с цветными областями на морде.",
        ),
    ),
    Text(
        en="""## Is the map right?

The lab ends with the remark that Grad-CAM++ may explain the network better than Grad-CAM. Here the network is asked: what a map points at is
taken away, or only that is left, and the probability of the class is read again. *drop* and *increase* are the Grad-CAM++ paper's, *ROAD* and
*deletion* take equally many pixels of every map, and three maps that know nothing of the network stand beside. Four photographs and so few
steps decide nothing; `attention-maps faithfulness FOLDER` takes more of both.""",
        ru="""## Верна ли карта?

Лабораторная работа заканчивается замечанием, что Grad-CAM++, возможно, объясняет предсказания сети лучше, чем Grad-CAM. Спросим саму сеть:
уберём то, на что указывает карта, или оставим только это, и снова посмотрим на вероятность класса. *drop* и *increase* — из статьи о
Grad-CAM++; *ROAD* и *deletion* убирают у всех карт одинаковое число пикселей. Рядом стоят три карты, которые ничего не знают о сети: случайная
(random), с максимумом в центре (centre) и контуры (edges). Стрелка показывает, больше (↑) или меньше (↓) лучше. Четыре фотографии и столь малое
число шагов ничего не решают; команда `attention-maps faithfulness ПАПКА` берёт больше и тех и других.""",
    ),
    Code("""maps = explainer(photographs, CLASSES, ["gradcam", "gradcam++"])
result = maps.faithfulness(shares=(0.5,), steps=4, stages=0)
print(result.as_table())"""),
    Text(
        en="""## Are they the same maps?

The lab lacked this cell. Where TensorFlow is installed, Keras and tf-keras-vis now draw the four maps of these photographs, in processes of
their own, with the same classes and weights (SmoothGrad with two noisy copies, which says as much as twenty); this port is given the same
job, and every stage between photograph and map is compared, in float64 and in float32. A difference would be an `AssertionError` that names
its place.""",
        ru="""## Те же ли это карты?

Этой ячейки в лабораторной работе не было. Если установлен TensorFlow, Keras и tf-keras-vis сейчас построят четыре карты этих фотографий, в
отдельных процессах, с теми же классами и весами (SmoothGrad — по двум зашумлённым копиям: для сравнения этого достаточно). Затем то же задание
получает эта реализация, и сравнивается каждый шаг от фотографии до карты, в float64 и в float32. При расхождении ячейка завершится ошибкой
`AssertionError` с указанием места.""",
    ),
    Code(
        """import importlib.util
import subprocess
import sys
import tempfile

from parity import assert_parity

if importlib.util.find_spec("tf_keras_vis"):
    reference = os.path.join(tempfile.mkdtemp(), "reference.safetensors")
    classes = ",".join(map(str, chosen))
    options = ["--weights", WEIGHTS, "--classes", classes, "--samples", "2", "--noise", str(NOISE), "--floor", "--quiet"]
    subprocess.run([sys.executable, "-m", "keras_ref", *options, "--out", reference, *map(str, FILES)], check=True)
    print(assert_parity("torch_impl.candidate:candidate", reference, network=network).as_table())
else:
    print("TensorFlow is not installed here. To compare: pip install 'attention-maps[keras]', then run this cell again.")""",
        ru={
            "TensorFlow is not installed here. To compare: pip": "TensorFlow здесь не установлен. Чтобы сравнить: pip",
            ", then run this cell again.": ", затем выполните ячейку ещё раз.",
        },
    ),
    Text(
        en="""## What the libraries' plain calls would have drawn

The same network, photographs and classes; the calls as the READMEs show them (SmoothGrad with four noisy copies). They look like maps. Each stands
to the right of this port's map; *r* is its Pearson correlation with that.""",
        ru="""## Что нарисовали бы библиотеки при обычном вызове

Та же сеть, те же фотографии и классы; вызовы — как в README библиотек (SmoothGrad — по четырём зашумлённым копиям). На вид это обычные карты.
Каждая стоит справа от карты, построенной этой реализацией; *r* — корреляция Пирсона между ними.""",
    ),
    Code(
        """pairs = {
    "smoothgrad": "smoothgrad@captum",
    "gradcam": "gradcam@pytorch-grad-cam",
    "gradcam++": "gradcam++@pytorch-grad-cam",
}
both = explainer(photographs, CLASSES, [*pairs, *pairs.values()], n_samples=min(SAMPLES, 4), noise_level=NOISE)
figure, axes = plt.subplots(len(pairs), 2 * len(photographs), figsize=(14, 6), layout="constrained")
for row, (ours, plain) in zip(axes, pairs.items()):
    for number, (right, wrong) in enumerate(zip(both[ours], both[plain])):
        r = np.corrcoef(right.ravel(), wrong.ravel())[0, 1]
        for axis, shown, title in ((row[2 * number], right, "this port"), (row[2 * number + 1], wrong, f"plain call, r = {r:.2f}")):
            axis.imshow(shown, cmap="jet")
            axis.set_title(title, fontsize=9)
            axis.set_xticks([])
            axis.set_yticks([])
    row[0].set_ylabel(plain.replace("@", "\\n"))""",
        ru={"this port": "эта реализация", "plain call, r": "обычный вызов, r"},
        alt=(
            "Three rows, SmoothGrad, Grad-CAM, Grad-CAM++: of each photograph this port's map and beside it the library's plain call's, "
            "with their correlation.",
            "Три строки, SmoothGrad, Grad-CAM и Grad-CAM++: для каждой фотографии карта этой реализации, рядом — карта обычного вызова "
            "библиотеки и корреляция между ними.",
        ),
    ),
]
