"""ImageNet in the class-incremental protocols: its first hundred classes, and all; templates are in their configs."""

import os
from pathlib import Path

from common.datasets.images import ImageFiles, ImageSet
from common.datasets.names import read_names
from common.datasets.reference import imagenet_names_and_templates, imagenet_parts, validation_folder
from common.errors import UserError


def imagenet1000(root: Path, verify: bool) -> ImageSet:
    """All of ImageNet, below root/imagenet1000 if it exists, else below root/ImageNet.

    Label = position of the sorted class folder, names = CLIP's (ZSCL cil/continual_clip/datasets.py,
    cil/dataset_reqs/imagenet1000_classes.txt). Two pairs of classes share a name: "missile", "sunglasses".
    """
    folder = root / ("imagenet1000" if (root / "imagenet1000").is_dir() else "ImageNet")
    train, val = imagenet_parts(folder)
    if val is None:
        raise UserError(f"ImageNet1000: {folder} has no validation images, which are its test set; add val/<wnid>/.")
    return ImageSet("ImageNet1000", train, val, imagenet_names_and_templates()[0], [])


def imagenet100(root: Path, verify: bool, lists: str | Path | None = None) -> ImageSet:
    """The first 100 ImageNet wnids in sorted order, label = position, as in ZSCL cil/dataset_reqs.

    This is not the random choice of 100 classes that other papers call ImageNet-100. `lists` is a folder with
    train_100.txt, val_100.txt or both, lines "val/<wnid>/<file> <label>" relative to ImageNet. A split without a list
    has all images of these wnids, sorted: the same as val_100.txt; train_100.txt was never released. Names are the
    first 100 of CLIP's.
    """
    wnids, folder = read_names("imagenet100_wnids"), root / "ImageNet"
    paths = {split: Path(lists or "").expanduser() / f"{split}_100.txt" for split in ("train", "val")}
    listed = {split for split, path in paths.items() if lists and path.is_file()}
    if lists and not listed:
        raise UserError(f"ImageNet100: {lists} holds neither train_100.txt nor val_100.txt.")
    folders = {"train": folder / "train", "val": validation_folder(folder)}
    train, test = (
        _listed_images(paths[split], folder, wnids) if split in listed else _images_of(folders[split], wnids)
        for split in ("train", "val")
    )
    return ImageSet("ImageNet100", train, test, imagenet_names_and_templates()[0][:100], [])


def _listed_images(path: Path, folder: Path, wnids: list[str]) -> ImageFiles:
    images, labels = [], []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        file, _, label = line.rpartition(" ")
        if not (label.isdigit() and int(label) < len(wnids)) or Path(file).parent.name != wnids[int(label)]:
            raise UserError(
                f"ImageNet100: {path}, line {number} ({line!r}): expected <split>/<wnid>/<file> <label> with the wnids "
                "of common/datasets/names/imagenet100_wnids.txt. A list of other classes would get wrong names."
            )
        images.append(folder / file)
        labels.append(int(label))
    return ImageFiles(images, labels)


def _images_of(folder: Path, wnids: list[str]) -> ImageFiles:
    from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension

    if not folder.is_dir():
        raise UserError(f"ImageNet100: {folder} does not exist; class folders <wnid>/ with images belong there.")
    missing = [wnid for wnid in wnids if not (folder / wnid).is_dir()]
    if missing:
        raise UserError(f"ImageNet100: {folder} lacks {len(missing)} of {len(wnids)} classes: {', '.join(missing)}.")
    images, labels = [], []
    for label, wnid in enumerate(wnids):
        files = sorted(file for file in os.listdir(folder / wnid) if has_file_allowed_extension(file, IMG_EXTENSIONS))
        images += [folder / wnid / file for file in files]
        labels += [label] * len(files)
    return ImageFiles(images, labels)
