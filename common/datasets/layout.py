"""Facts about the published data sets: where their files lie, how many images they have, how to get them."""

import difflib
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

from common.errors import UserError


@dataclass(frozen=True)
class Published:
    """needs: paths below the data location that must exist. how: what a user has to do to get the set.

    train, test, classes: the published counts, of the splits used here; None: not stated anywhere. instead:
    another layout that is accepted, as `needs`.
    """

    needs: tuple[str, ...]
    train: int | None
    test: int | None
    classes: int
    how: str
    instead: tuple[str, ...] = ()


def _below(folder: str, paths: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{path}" for path in paths.split())


DOWNLOAD = "python -m common.datasets download --data-location {root} {name}"
DELETE_FIRST = " (it keeps what is already there: delete an incomplete copy first)"

TINY_IMAGENET = "By hand: unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip into {root}."
IMAGENET = "By hand, with a login at https://image-net.org: ILSVRC2012 "

CAPTIONS = "ConceptualCaptions"
CAPTION_FILES = tuple(
    f"{folder}Validation_GCC-1.1.0-Validation{ending}"
    for ending in (".tsv", "_output.csv")
    for folder in ("", "conceptual_captions/")
)
# Announced as 15,840 rows; the copies that can be had today hold 15,833.
CAPTION_ROWS = (15_833, 15_840)

PUBLISHED = {
    "Aircraft": Published(
        _below(
            "fgvc-aircraft-2013b/data",
            "variants.txt images_variant_train.txt images_variant_test.txt images",
        ),
        3_334,
        3_333,
        100,
        DOWNLOAD + DELETE_FIRST,
    ),
    "Caltech101": Published(
        _below("caltech101", "101_ObjectCategories"),
        6_941,
        1_736,
        101,
        DOWNLOAD + DELETE_FIRST + ", or unpack 101_ObjectCategories.tar.gz, which is in the zip of "
        "https://data.caltech.edu/records/mzrjq-6wc02 (md5 3138e1922a9193bfa496528edbbc45d0), into "
        "{root}/caltech101. 101 class folders; BACKGROUND_Google may be absent.",
    ),
    "CIFAR100": Published(_below("cifar-100-python", "train test meta"), 50_000, 10_000, 100, DOWNLOAD),
    "DTD": Published(
        _below("dtd/dtd", "images labels/train1.txt labels/test1.txt"),
        1_880,
        1_880,
        47,
        DOWNLOAD + DELETE_FIRST,
    ),
    "EuroSAT": Published(
        _below("eurosat", "2750"),
        21_600,
        5_400,
        10,
        DOWNLOAD + DELETE_FIRST + "; the original host's certificate has expired, recent torchvision uses a "
        "mirror. Or unpack EuroSAT.zip (the RGB version, md5 c8fa014336c82ac7804f0398fcb19387) into "
        "{root}/eurosat so that eurosat/2750/AnnualCrop and nine more class folders exist.",
    ),
    "Flowers": Published(_below("flowers-102", "jpg imagelabels.mat setid.mat"), 1_020, 6_149, 102, DOWNLOAD),
    "Food": Published(
        _below("food-101", "images meta/train.json meta/test.json"),
        75_750,
        25_250,
        101,
        DOWNLOAD + ", 5 GB" + DELETE_FIRST,
    ),
    "MNIST": Published(
        _below(
            "MNIST/raw",
            "train-images-idx3-ubyte train-labels-idx1-ubyte t10k-images-idx3-ubyte t10k-labels-idx1-ubyte",
        ),
        60_000,
        10_000,
        10,
        DOWNLOAD + DELETE_FIRST + "; files from elsewhere must be unpacked, without .gz.",
    ),
    "OxfordPet": Published(
        _below("oxford-iiit-pet", "images annotations/trainval.txt annotations/test.txt"),
        3_680,
        3_669,
        37,
        DOWNLOAD + DELETE_FIRST,
    ),
    "StanfordCars": Published(
        _below(
            "stanford_cars",
            "devkit/cars_meta.mat devkit/cars_train_annos.mat cars_train cars_test "
            "cars_test_annos_withlabels.mat",
        ),
        8_144,
        8_041,
        196,
        "By hand: the original host is gone since 2023 and torchvision can not download it. From a copy, "
        "place four parts under {root}/stanford_cars: devkit/ (cars_meta.mat, cars_train_annos.mat), "
        "cars_train/ and cars_test/ (the .jpg files), and cars_test_annos_withlabels.mat beside devkit, "
        "not in it.",
    ),
    "SUN397": Published(
        _below("SUN397", "ClassName.txt"),
        87_003,
        21_751,
        397,
        "By hand: the Princeton host no longer serves it. From a copy of SUN397.tar.gz (37 GB; its md5 must "
        "be 8ca2778205c41d23104230ba66911c7a), unpack so that {root}/SUN397/ClassName.txt and "
        "{root}/SUN397/a/abbey/sun_*.jpg exist.",
    ),
    "CIFAR10": Published(
        _below(
            "cifar-10-batches-py",
            "data_batch_1 data_batch_2 data_batch_3 data_batch_4 data_batch_5 test_batch batches.meta",
        ),
        50_000,
        10_000,
        10,
        DOWNLOAD,
    ),
    "TinyImagenet": Published(
        _below("tiny-imagenet-200", "wnids.txt train val/images val/val_annotations.txt"),
        100_000,
        10_000,
        200,
        TINY_IMAGENET,
    ),
    # The same files under two numberings of the classes: this one is that of the class-incremental protocols.
    "TinyImageNet": Published(
        _below("tiny-imagenet-200", "wnids.txt train val/images val/val_annotations.txt"),
        100_000,
        10_000,
        200,
        TINY_IMAGENET,
    ),
    "ImageNet": Published(
        _below("ImageNet", "train"),
        1_281_167,
        50_000,
        1_000,
        IMAGENET + "training images as {root}/ImageNet/train/<wnid>/*.JPEG; validation images sorted into class "
        "folders as {root}/ImageNet/val_in_folder/<wnid>/ or {root}/ImageNet/val/<wnid>/.",
    ),
    "ImageNet100": Published(
        _below("ImageNet", "train"),
        None,
        5_000,
        100,
        IMAGENET + "training and validation images as for ImageNet; of the class folders only the 100 of "
        "common/datasets/names/imagenet100_wnids.txt are needed, in {root}/ImageNet/train and {root}/ImageNet/val.",
    ),
    "ImageNet1000": Published(
        _below("imagenet1000", "train val"),
        1_281_167,
        50_000,
        1_000,
        IMAGENET + "training and validation images in class folders as {root}/imagenet1000/train/<wnid>/ and "
        "{root}/imagenet1000/val/<wnid>/, or as for ImageNet.",
        instead=_below("ImageNet", "train"),
    ),
    "ImageNetR": Published(
        ("imagenet-r",),
        24_000,
        6_000,
        200,
        "By hand: unpack https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar into {root}, so that "
        "{root}/imagenet-r/n01443537 and 199 more class folders exist.",
    ),
    "CUB200": Published(
        _below("CUB_200_2011", "images images.txt image_class_labels.txt train_test_split.txt"),
        5_994,
        5_794,
        200,
        "By hand: unpack CUB_200_2011.tgz (md5 97eceeb196236b17998738112f37df78) of "
        "https://data.caltech.edu/records/65de6-vp158 into {root}, so that {root}/CUB_200_2011/images.txt exists.",
    ),
    "DomainNet": Published(
        _below("domainnet", "clipart infograph painting real sketch"),
        None,
        None,
        345,
        "By hand, from https://ai.bu.edu/M3SDA/: the cleaned archives of the domains, unpacked so that "
        "{root}/domainnet/clipart/aircraft_carrier exists. InfLoRA splits them by dataloaders/splits/"
        "domainnet_train.yaml and domainnet_test.yaml of https://github.com/GT-RIPL/CODA-Prompt; put both into "
        "{root}/domainnet.",
    ),
    CAPTIONS: Published(
        CAPTION_FILES[:1],
        CAPTION_ROWS[0],
        0,
        0,
        "By hand: Validation_GCC-1.1.0-Validation.tsv from "
        "https://ai.google.com/research/ConceptualCaptions/download into {root} or "
        "{root}/conceptual_captions; no images are needed. The _output.csv of ZSCL's gather script is read "
        "too.",
    ),
}


def how_to_get(name: str, root: str) -> str:
    """The instruction for one data set with the data location filled in."""
    return PUBLISHED[name].how.format(root=root, name=name)


def canonical(name: str, known: Collection[str] = tuple(PUBLISHED)) -> str:
    """name itself if it is one of the known data sets, else UserError with the known names and the nearest one."""
    if name in known:
        return name
    lower = defaultdict(list)
    for other in known:
        lower[other.lower()].append(other)  # TinyImagenet and TinyImageNet are two numberings of one set
    near = difflib.get_close_matches(name.lower(), lower, n=1)
    hint = f" Did you mean {' or '.join(lower[near[0]])}?" if near else ""
    raise UserError(f"unknown data set {name!r}.{hint} Known are {', '.join(known)}.")
