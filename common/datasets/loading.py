"""Loads any data set by name: from a folder and two transforms to an ImageSet."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from common.datasets import coop, cub200, domainnet, imagenet_incremental, imagenet_r, miniature, mtil, reference
from common.datasets.coop import COOP, MTIL
from common.datasets.images import ImageSet, Transform, fingerprint
from common.datasets.layout import CAPTIONS, PUBLISHED, absolute, canonical, how_to_get
from common.datasets.listing import nearby, unlisted
from common.datasets.lists import refuse_outside
from common.errors import UserError, machine_fault
from common.mini import MINI

READERS = {
    "Aircraft": mtil.aircraft,
    "Caltech101": mtil.caltech101,
    "CIFAR10": mtil.cifar10,
    "CIFAR100": mtil.cifar100,
    "DTD": mtil.dtd,
    "EuroSAT": mtil.eurosat,
    "Flowers": mtil.flowers,
    "Food": mtil.food,
    "MNIST": mtil.mnist,
    "OxfordPet": mtil.oxford_pet,
    "StanfordCars": mtil.stanford_cars,
    "SUN397": mtil.sun397,
    "TinyImagenet": reference.tiny_imagenet_sorted,
    "TinyImageNet": reference.tiny_imagenet,
    "ImageNet": reference.imagenet,
    "ImageNet100": imagenet_incremental.imagenet100,
    "ImageNet1000": imagenet_incremental.imagenet1000,
    "ImageNetR": imagenet_r.imagenet_r,
    "CUB200": cub200.cub200,
    "DomainNet": domainnet.domainnet,
}
# A random split of few images, and CIFAR100's of five a class, may leave a class without a training image.
ANY_PART = ("Caltech101", "EuroSAT", "SUN397", "ImageNetR", "CIFAR100")


def load(
    name: str,
    root: str | Path,
    train_transform: Transform | None = None,
    eval_transform: Transform | None = None,
    verify: bool = True,
    options: dict[str, object] | None = None,
    splits: str = MTIL,
) -> ImageSet:
    """The data set `name` below the folder `root`; root "mini" stands for the embedded miniature.

    train_transform and eval_transform take an RGB PIL image; without a transform a part yields RGB PIL images.
    verify: check the published counts and, for CIFAR and Flowers, checksums; False accepts cut copies.
    options: keyword arguments of the data set's reader: `split` of ImageNetR, `lists` of DomainNet and ImageNet100.
    splits: those of CoOp's lists instead of MTIL's, with "coop"; sets that have no such list keep their own.
    Raises UserError for an unknown name and for missing, incomplete or unreadable files.
    """
    if name == CAPTIONS:
        raise UserError(f"{CAPTIONS} has sentences, not labelled images; it can only be used as reference.")
    if str(root) == MINI:
        miniature.require([name], splits)
        return miniature.load_domain(name, train_transform, eval_transform)
    name, root = canonical(name), absolute(root)
    data = read(name, root, verify, options, splits)
    problem = count_problem(name, data, splits) if verify else None
    if problem:
        raise UserError(
            f"{name}: {problem} in {root}. {how_to_get(name, str(root))} To take it as it is: "
            "--no-verify (verify=False)."
        )
    data.train.transform = train_transform
    if data.test is not None:
        data.test.transform = eval_transform
    notes = coop.notes(name, root) if splits == COOP else ["file order: sorted"] if name == "SUN397" else []
    data.fingerprint = fingerprint(data.train, data.test, root, notes)
    return data


def names_and_templates(
    name: str, root: str | Path, verify: bool = True, splits: str = MTIL
) -> tuple[list[str], list[str]]:
    """Class names and prompt templates of a data set; ImageNet's need none of its files. Raises UserError as `load`."""
    if name == "ImageNet" and str(root) != MINI:
        return reference.imagenet_names_and_templates()
    data = load(name, root, verify=verify, splits=splits)
    return data.classnames, data.templates


def read(name: str, root: Path, verify: bool, options: dict[str, object] | None = None, splits: str = MTIL) -> ImageSet:
    """List images and labels of one data set without decoding. Raises UserError for missing or damaged files.

    The paths begin with the full path of `root`.
    """
    root, by_list = absolute(root), _by_list(name, splits)
    missing = missing_paths(name, root, splits)
    if missing:
        raise UserError(
            f"{name}: not found; missing {', '.join(str(root / path) for path in missing)}. "
            f"{hint + ' ' if (hint := nearby(root, missing[0])) else ''}{how_to_get(name, str(root))}"
        )
    try:
        data = coop.coop(name, root) if by_list else READERS[name](root, verify, **(options or {}))
    except UserError:
        raise
    except PermissionError as error:
        raise UserError(f"{name}: {unlisted(error.filename, error)}") from error
    except Exception as error:
        if machine_fault(error):
            raise
        # torchvision, scipy, json and pickle each raise other exceptions for a damaged list
        raise UserError(
            f"{name}: its files below {root} can not be read{f' ({error})' if str(error) else ''}. "
            f"Something is missing or damaged there. {how_to_get(name, str(root))}"
        ) from error
    for part, split in ((data.train, "train"), (data.test, "test")):
        if part is not None and len(part) == 0:
            raise UserError(f"{name}: no {split} images below {root}. {how_to_get(name, str(root))}")
        refuse_outside(getattr(part, "paths", ()), root, "a list of it", name)
    _refuse_labels(name, data, root, by_list)
    _refuse_repeated(name, data)
    return data


def _by_list(name: str, splits: str) -> bool:
    """Whether a list of CoOp's decides what is read, and with which counts."""
    return splits == COOP and name in coop.LISTS


def _refuse_labels(name: str, data: ImageSet, root: Path, by_list: bool) -> None:
    """Raise UserError for a label beyond the classes, and for a class without a training image.

    In the sets of ANY_PART any image will do, unless a list splits them.
    """
    known = {*range(len(data.classnames) if by_list else PUBLISHED[name].classes)}
    train, test = ({*part.labels} if part is not None else set() for part in (data.train, data.test))
    tested = test if name in ANY_PART and not by_list else set()
    bare, beyond = sorted(known - train - tested), sorted((train | test) - known)
    told = [f"label {label}{f' ({data.classnames[label]})' if data.classnames else ''}" for label in bare[:10]]
    problems = []
    if bare:
        problems.append(f"of {len(known)} classes {len(bare)} have no training image below {root}: {', '.join(told)}")
    if beyond:
        problems.append(f"below {root} there are labels beyond the {len(known)} classes, as {beyond[0]}")
    if problems:
        raise UserError(f"{name}: {'; '.join(problems)}. Get a complete copy, or the lists that belong to it.")


def _refuse_repeated(name: str, data: ImageSet) -> None:
    """Raise UserError for an image that stands twice among the training and test images."""
    paths = [path for part in (data.train, data.test) for path in getattr(part, "paths", ())]
    if len({*paths}) < len(paths):
        first = next(path for path, count in Counter(paths).items() if count > 1)
        raise UserError(
            f"{name}: {first} stands twice among the images for training and test. Get the lists anew from one source."
        )


def missing_paths(name: str, root: Path, splits: str = MTIL) -> list[str]:
    """Files and folders of the published layout that do not exist below `root`; CoOp's lists need the images alone."""
    published = PUBLISHED[name]
    if _by_list(name, splits):
        published = replace(published, needs=[coop.LISTS[name][0]])
    missing, missing_instead = (
        [path for path in paths or () if not _exists(root / path)] for paths in (published.needs, published.instead)
    )
    return missing if missing_instead or not published.instead else []


def _exists(path: Path) -> bool:
    """Whether there is a file or folder. Raises UserError where this user may not look."""
    try:
        return path.exists()
    except OSError as error:
        raise UserError(unlisted(path, error)) from error


def count_problem(name: str, data: ImageSet, splits: str = MTIL) -> str | None:
    """How the counts differ from the published ones, or None. A test part that is None is no problem.

    The counts of CoOp's lists are not known here: all files that they name must be there.
    """
    if _by_list(name, splits):
        return None
    published = PUBLISHED[name]
    train, test = len(data.train), published.test if data.test is None else len(data.test)
    expected = published.train or train, published.test or test  # None: not published
    if (train, test) == expected:
        low, high = published.each or (0, train)
        a_class = np.bincount(data.train.labels)
        bad = [
            f"{count:,} of {data.classnames[label]}" for label, count in enumerate(a_class) if not low <= count <= high
        ]
        return (
            f"training images a class are not {low:,} to {high:,}, as published: {', '.join(bad[:5])}" if bad else None
        )
    return "{:,} train and {:,} test images instead of the published {:,} and {:,}".format(train, test, *expected)
