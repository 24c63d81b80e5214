"""Small made-up images in the true on-disk layouts of the data sets, every class present.

`write(root)` in a test, `python -m tests.fake_data ROOT [NAMES]` by hand. Label files have the fields, orders
and types of the published ones; images are single-colour JPEGs of 16 to 40 pixels whose colour tells the
class. Load with verify=False, since there are far fewer images than published.
"""

import colorsys
import io
import json
import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from PIL import Image
from scipy.io import savemat

from common.datasets.layout import CAPTIONS
from common.datasets.names import read_names
from common.errors import exit_cleanly
from common.options import option, read

CATS = {
    "Abyssinian",
    "Bengal",
    "Birman",
    "Bombay",
    "British Shorthair",
    "Egyptian Mau",
    "Maine Coon",
    "Persian",
    "Ragdoll",
    "Russian Blue",
    "Siamese",
    "Sphynx",
}
CALTECH_FOLDERS = """
Faces Faces_easy Leopards Motorbikes accordion airplanes anchor ant barrel bass beaver binocular bonsai brain
brontosaurus buddha butterfly camera cannon car_side ceiling_fan cellphone chair chandelier cougar_body
cougar_face crab crayfish crocodile crocodile_head cup dalmatian dollar_bill dolphin dragonfly electric_guitar
elephant emu euphonium ewer ferry flamingo flamingo_head garfield gerenuk gramophone grand_piano hawksbill
headphone hedgehog helicopter ibis inline_skate joshua_tree kangaroo ketch lamp laptop llama lobster lotus
mandolin mayfly menorah metronome minaret nautilus octopus okapi pagoda panda pigeon pizza platypus pyramid
revolver rhino rooster saxophone schooner scissors scorpion sea_horse snoopy soccer_ball stapler starfish
stegosaurus stop_sign strawberry sunflower tick trilobite umbrella watch water_lilly wheelchair wild_cat
windsor_chair wrench yin_yang
""".split()


def colour(label: int, classes: int) -> tuple[int, int, int]:
    """The RGB colour of a class: the hue runs once around the circle."""
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(label / classes, 0.8, 0.9))


@lru_cache(maxsize=None)
def jpeg(label: int, classes: int, copy: int = 0, corner: bool = False) -> bytes:
    """A JPEG of one colour, wide, tall or square by copy, or with a white corner; each eleventh class is grayscale."""
    width, height = ((32, 24), (16, 40), (28, 28))[copy % 3]
    image = Image.new("RGB", (width, height), colour(label, classes))
    if corner:
        image.paste((255, 255, 255), (0, 0, width // 4, height // 4))
    buffer = io.BytesIO()
    (image.convert("L") if label % 11 == 10 else image).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _put(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def _put_lines(path: Path, lines: Iterable[str]) -> None:
    _put(path, "".join(f"{line}\n" for line in lines))


def _put_pickle(path: Path, content: dict[str, object]) -> None:
    _put(path, pickle.dumps(content, protocol=2))


def aircraft(root: Path) -> None:
    data, names, number = root / "fgvc-aircraft-2013b" / "data", read_names("aircraft"), 34309
    _put_lines(data / "variants.txt", names)
    for copy, split in enumerate(("train", "val", "test")):
        lines = []
        for label, name in enumerate(names):
            number += 1
            lines.append(f"{number:07d} {name}")
            _put(data / "images" / f"{number:07d}.jpg", jpeg(label, len(names), copy))
        _put_lines(data / f"images_variant_{split}.txt", lines)


def caltech101(root: Path) -> None:
    folder = root / "caltech101" / "101_ObjectCategories"
    for label, category in enumerate([*CALTECH_FOLDERS, "BACKGROUND_Google"]):
        for copy in range(2):
            _put(folder / category / f"image_{copy + 1:04d}.jpg", jpeg(label, 102, copy))


def _cifar_rows(labels: list[int], classes: int) -> np.ndarray:
    rows = [np.repeat(np.array(colour(label, classes), dtype=np.uint8), 1024) for label in labels]
    return np.stack(rows)


def cifar10(root: Path) -> None:
    folder, labels = root / "cifar-10-batches-py", list(range(10))
    for batch in (
        "data_batch_1",
        "data_batch_2",
        "data_batch_3",
        "data_batch_4",
        "data_batch_5",
        "test_batch",
    ):
        files = [f"{batch}_{i:05d}.png" for i in labels]
        _put_pickle(
            folder / batch,
            {"batch_label": batch, "labels": labels, "data": _cifar_rows(labels, 10), "filenames": files},
        )
    _put_pickle(
        folder / "batches.meta",
        {"num_cases_per_batch": 10, "label_names": read_names("cifar10"), "num_vis": 3072},
    )


def cifar100(root: Path) -> None:
    folder, labels = root / "cifar-100-python", [*range(100), *range(100)]
    for split in ("train", "test"):
        _put_pickle(
            folder / split,
            {
                "filenames": [f"{split}_{i:05d}.png" for i in range(len(labels))],
                "batch_label": f"{split} batch",
                "fine_labels": labels,
                "coarse_labels": [label // 5 for label in labels],
                "data": _cifar_rows(labels, 100),
            },
        )
    _put_pickle(
        folder / "meta",
        {
            "fine_label_names": [name.replace(" ", "_") for name in read_names("cifar100")],
            "coarse_label_names": [f"group_{i}" for i in range(20)],
        },
    )


def dtd(root: Path) -> None:
    folder, names = root / "dtd" / "dtd", read_names("dtd")
    for copy, split in enumerate(("train", "val", "test")):
        files = [f"{name}/{name}_{copy + 1:04d}.jpg" for name in names]
        for label, file in enumerate(files):
            _put(folder / "images" / file, jpeg(label, len(names), copy))
        _put_lines(folder / "labels" / f"{split}1.txt", files)


def eurosat(root: Path) -> None:
    for label, name in enumerate(read_names("eurosat_folders")):
        for copy in range(5):
            _put(root / "eurosat" / "2750" / name / f"{name}_{copy + 1}.jpg", jpeg(label, 10, copy))


def flowers(root: Path) -> None:
    folder, ids = root / "flowers-102", np.arange(1, 307, dtype=np.uint16)
    labels = (ids - 1) % 102 + 1
    for number, label in zip(ids, labels):
        _put(folder / "jpg" / f"image_{number:05d}.jpg", jpeg(int(label) - 1, 102, int(number - 1) // 102))
    savemat(folder / "imagelabels.mat", {"labels": labels.astype(np.uint8)[None]})
    savemat(
        folder / "setid.mat",
        {part: ids[None, i * 102 : (i + 1) * 102] for i, part in enumerate(("trnid", "valid", "tstid"))},
    )


def food(root: Path) -> None:
    folder, names = root / "food-101", [name.replace(" ", "_") for name in read_names("food")]
    for copy, split in enumerate(("train", "test")):
        lists = {name: [f"{name}/{1_000_000 + 10 * label + copy}"] for label, name in enumerate(names)}
        for label, (entry,) in enumerate(lists.values()):
            _put(folder / "images" / f"{entry}.jpg", jpeg(label, len(names), copy))
        _put(folder / "meta" / f"{split}.json", json.dumps(lists))
        _put_lines(folder / "meta" / f"{split}.txt", (entry for (entry,) in lists.values()))
    _put_lines(folder / "meta" / "classes.txt", names)


def mnist(root: Path) -> None:
    for split, copies in (("train", 2), ("t10k", 1)):
        labels = np.tile(np.arange(10, dtype=np.uint8), copies)
        images = np.broadcast_to((labels * 25)[:, None, None], (len(labels), 28, 28))
        sizes = np.array(images.shape, dtype=">i4")
        raw = root / "MNIST" / "raw"
        _put(raw / f"{split}-images-idx3-ubyte", b"\0\0\x08\x03" + sizes.tobytes() + images.tobytes())
        _put(raw / f"{split}-labels-idx1-ubyte", b"\0\0\x08\x01" + sizes[:1].tobytes() + labels.tobytes())


def oxford_pet(root: Path) -> None:
    folder, names = root / "oxford-iiit-pet", read_names("oxford_pet")
    for copy, split in enumerate(("trainval", "test")):
        lines, breeds = [], {1: 0, 2: 0}
        for label, name in enumerate(names):
            species = 1 if name in CATS else 2
            breeds[species] += 1
            # The published files capitalise the names of cats and write those of dogs in small letters.
            stem = f"{name.replace(' ', '_') if species == 1 else name.replace(' ', '_').lower()}_{copy + 1}"
            lines.append(f"{stem} {label + 1} {species} {breeds[species]}")
            _put(folder / "images" / f"{stem}.jpg", jpeg(label, len(names), copy))
        _put_lines(folder / "annotations" / f"{split}.txt", lines)


def stanford_cars(root: Path) -> None:
    folder, names = root / "stanford_cars", read_names("stanford_cars")
    fields = [(field, object) for field in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")]
    for copy, (split, file) in enumerate(
        (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat"))
    ):
        rows = np.empty((1, len(names)), dtype=fields)
        for label in range(len(names)):
            rows[0, label] = (1, 1, 16, 16, label + 1, f"{label + 1:05d}.jpg")
            _put(folder / f"cars_{split}" / f"{label + 1:05d}.jpg", jpeg(label, len(names), copy))
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        savemat(folder / file, {"annotations": rows})
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array(names, dtype=object)[None]})


def sun397(root: Path) -> None:
    folder, names = root / "SUN397", read_names("sun397")
    paths = [f"{name[0]}/{name.replace(' ', '_')}" for name in names]
    _put_lines(folder / "ClassName.txt", (f"/{path}" for path in paths))
    for label, path in enumerate(paths):
        for copy in range(2):
            _put(folder / path / f"sun_{'ab'[copy]}{label:015d}.jpg", jpeg(label, len(names), copy))


COOP = {  # folder of the images and CoOp's list of each, as CoOp's instructions lay them out
    "Caltech101": ("caltech101/101_ObjectCategories", "caltech101/split_zhou_Caltech101.json"),
    "DTD": ("dtd/dtd/images", "dtd/split_zhou_DescribableTextures.json"),
    "EuroSAT": ("eurosat/2750", "eurosat/split_zhou_EuroSAT.json"),
    "Flowers": ("flowers-102/jpg", "flowers-102/split_zhou_OxfordFlowers.json"),
    "Food": ("food-101/images", "food-101/split_zhou_Food101.json"),
    "OxfordPet": ("oxford-iiit-pet/images", "oxford-iiit-pet/split_zhou_OxfordPets.json"),
    "StanfordCars": ("stanford_cars", "stanford_cars/split_zhou_StanfordCars.json"),
    "SUN397": ("SUN397", "SUN397/split_zhou_SUN397.json"),
}


def coop_list(root: Path, name: str) -> dict[str, list[list]]:
    """CoOp's list over nine images of a made-up set, three a split, one of each of three classes that it makes up."""
    images, file = COOP[name]
    files = sorted(path.relative_to(root / images).as_posix() for path in (root / images).rglob("*.jpg"))[:9]
    rows = [[path, 2 - number % 3, f"made_up class {number % 3}"] for number, path in enumerate(files)]
    lists = {"train": rows[:3], "val": rows[3:6], "test": rows[6:]}
    _put(root / file, json.dumps(lists))
    return lists


def tiny_imagenet(root: Path) -> None:
    folder, wnids = root / "tiny-imagenet-200", read_names("tinyimagenet_wnids")
    _put_lines(folder / "wnids.txt", wnids)
    _put_lines(folder / "words.txt", map("\t".join, zip(wnids, read_names("tinyimagenet_cil"))))
    rows = []
    for label, wnid in enumerate(wnids):
        files = [f"{wnid}_{copy}.JPEG" for copy in range(2)]
        for copy, file in enumerate(files):
            _put(folder / "train" / wnid / "images" / file, jpeg(label, 200, copy))
        _put_lines(folder / "train" / wnid / f"{wnid}_boxes.txt", (f"{file}\t0\t0\t15\t15" for file in files))
        _put(folder / "val" / "images" / f"val_{label}.JPEG", jpeg(label, 200, 2))
        rows.append(f"val_{label}.JPEG\t{wnid}\t0\t0\t15\t15")
    _put_lines(folder / "val" / "val_annotations.txt", rows)


def imagenet(root: Path) -> None:
    wnids = read_names("imagenet_wnids")
    for label, wnid in enumerate(wnids):
        _put(root / "ImageNet" / "train" / wnid / f"{wnid}_0.JPEG", jpeg(label, 1000, 0))
        _put(root / "ImageNet" / "val" / wnid / f"ILSVRC2012_val_{label + 1:08d}.JPEG", jpeg(label, 1000, 1))


def imagenet100_lists(folder: Path) -> None:
    """Subset lists over the made-up ImageNet: the training list from the last class to the first."""
    wnids = read_names("imagenet100_wnids")
    rows = [f"{wnid}/{wnid}_0.JPEG {label}" for label, wnid in enumerate(wnids)]
    _put_lines(folder / "train_100.txt", (f"train/{row}" for row in reversed(rows)))
    rows = [f"{wnid}/ILSVRC2012_val_{label + 1:08d}.JPEG {label}" for label, wnid in enumerate(wnids)]
    _put_lines(folder / "val_100.txt", (f"val/{row}" for row in rows))


def imagenet_r(root: Path) -> None:
    # Six images a class, so that hardly a class is without a test image under the published rule.
    for label, wnid in enumerate(read_names("imagenet_r_wnids")):
        for style in ("art", "misc", "sketch"):
            for copy in range(2):
                _put(root / "imagenet-r" / wnid / f"{style}_{copy}.jpg", jpeg(label, 200, copy))


def imagenet_r_lists(root: Path, train: str = "imagenet-r_train.yaml", test: str = "imagenet-r_test.yaml") -> None:
    """Lists beside the made-up ImageNet-R, as CODA-Prompt's or as text: three images a class, one for testing.

    Labels run against the order of the ids.
    """
    folder, rows_of = root / "imagenet-r", {train: ("art_0", "misc_0"), test: ("sketch_1",)}
    wnids = sorted(path.name for path in folder.iterdir() if path.is_dir())
    for name, stems in rows_of.items():
        rows = [(f"{wnid}/{stem}.jpg", 199 - place) for place, wnid in enumerate(wnids) for stem in stems]
        if name.endswith(".txt"):
            _put_lines(folder / name, (f"{file} {label}" for file, label in rows))
        else:
            data, targets = [f"data/imagenet-r/{file}" for file, _ in rows], [label for _, label in rows]
            _put(folder / name, yaml.safe_dump({"data": data, "targets": targets}))


def cub200(root: Path) -> None:
    """Four images a class, two for training, so that features vary within a class: crops see a corner or not."""
    folder, number = root / "CUB_200_2011", 0
    lists: dict[str, list[str]] = {"images": [], "image_class_labels": [], "train_test_split": []}
    for label in range(200):
        for copy in range(4):
            number += 1
            file = f"{label + 1:03d}.Made_up_Bird{label}/Made_Up_Bird{label}_{copy:04d}_{number}.jpg"
            _put(folder / "images" / file, jpeg(label, 200, copy, corner=True))
            for name, value in zip(lists, (file, label + 1, copy % 2)):
                lists[name].append(f"{number} {value}")
    for name, lines in lists.items():
        _put_lines(folder / f"{name}.txt", lines)


def domainnet(root: Path) -> None:
    """Five domains, one image a class and domain; both lists name paths as CODA-Prompt's do, one domain for testing."""
    lists = {"train": ([], []), "test": ([], [])}
    for label in range(345):
        for copy, domain in enumerate(("clipart", "infograph", "painting", "real", "sketch")):
            file = f"{domain}/thing_{344 - label}/{domain}_{label + 1:03d}_{copy:06d}.jpg"
            _put(root / "domainnet" / file, jpeg(label, 345, copy))
            data, targets = lists["test" if copy == 4 else "train"]
            data.append(f"data/domainnet/{file}")
            targets.append(label)
    for split, (data, targets) in lists.items():
        _put(root / "domainnet" / f"domainnet_{split}.yaml", yaml.safe_dump({"data": data, "targets": targets}))


def conceptual_captions(root: Path) -> None:
    things = ("boat on the lake", "dog in the snow", "actor attends the premiere", 'sign that says " open "')
    captions = [f"a {thing} , picture {i // 3}" for i in range(12) for thing in things]
    _put_lines(
        root / "Validation_GCC-1.1.0-Validation.tsv",
        (f"{caption}\thttp://example.org/{i}.jpg" for i, caption in enumerate(captions)),
    )


def gathered_captions(root: Path, count: int = 6) -> None:
    """The layout of ZSCL's gather script: captions and images; one link in two was dead, one caption has quotes."""
    rows = []
    for number in range(1, 2 * count, 2):
        file = f"cc_data/val/{number % 1000}/{number}.jpg"
        _put(root / file, jpeg(number // 2, count, number))
        rows.append((f'a sign that says "{number}" , and more' if number == 3 else f"picture {number // 2}", file))
    table = pd.DataFrame(rows, columns=["title", "filepath"])
    table.to_csv(root / "Validation_GCC-1.1.0-Validation_output.csv", sep="\t", index=False)


WRITERS = {
    "Aircraft": aircraft,
    "Caltech101": caltech101,
    "CIFAR10": cifar10,
    "CIFAR100": cifar100,
    "DTD": dtd,
    "EuroSAT": eurosat,
    "Flowers": flowers,
    "Food": food,
    "MNIST": mnist,
    "OxfordPet": oxford_pet,
    "StanfordCars": stanford_cars,
    "SUN397": sun397,
    "TinyImagenet": tiny_imagenet,
    "TinyImageNet": tiny_imagenet,
    "ImageNet": imagenet,
    "ImageNet100": imagenet,
    "ImageNet1000": imagenet,
    "ImageNetR": imagenet_r,
    "CUB200": cub200,
    "DomainNet": domainnet,
    CAPTIONS: conceptual_captions,
}
ALL = tuple(WRITERS)


def write(root: str | Path, names: Iterable[str] = ALL) -> None:
    """Write the named data sets below root."""
    for writer in dict.fromkeys(WRITERS[name] for name in names):  # some sets share their files
        writer(Path(root))


@dataclass(frozen=True)
class Options:
    root: Path = option(help="folder to write into", positional=True)
    names: list[str] = option([], "data sets, without any all of them", positional=True, choices=ALL)


@exit_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    about = "Write made-up images in the true layouts of the data sets."
    options = read(Options, argv, "tests.fake_data", about)
    write(options.root, options.names or ALL)


if __name__ == "__main__":
    main()
