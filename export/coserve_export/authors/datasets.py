"""Labels and preprocessing of the authors' data sets."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

SMALL = 32
RESIZE = 1.15
"""ImageNet's photographs are resized to this multiple of the crop."""
_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100 = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
    lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
    pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal
    shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank
    telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""


@dataclass(frozen=True)
class Dataset:
    """A data set of the authors.

    Attributes:
        classes: the number of classes.
        mean, std: the channel statistics that images are normalised with, in units of pixel / 255.
    """

    classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


DATASETS = {
    "cifar10": Dataset(10, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": Dataset(100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": Dataset(10, (0.4309, 0.4302, 0.4463), (0.1965, 0.1983, 0.1994)),
    "imagenet": Dataset(1000, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@cache
def labels_of(dataset: str) -> tuple[str, ...]:
    """Return the labels by class index; ImageNet's are WordNet ids such as n01440764."""
    if dataset == "svhn":
        return tuple("0123456789")
    if dataset == "imagenet":
        return tuple(files("coserve_export.authors").joinpath("imagenet.txt").read_text("utf-8").split())
    return tuple((_CIFAR10 if dataset == "cifar10" else _CIFAR100).split())


def preprocessing_of(dataset: str, image_size: int) -> dict[str, object]:
    """Return how the authors prepare test images, as docs/reference/model-repository.md defines it."""
    photographs = dataset == "imagenet"
    return {
        "height": image_size,
        "width": image_size,
        "resize_size": int(image_size * RESIZE) if photographs else image_size,
        "interpolation": "bicubic" if photographs else "bilinear",
        "mean": list(DATASETS[dataset].mean),
        "std": list(DATASETS[dataset].std),
    }
