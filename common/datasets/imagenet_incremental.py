"""ImageNet in the class-incremental protocols: its first hundred classes, and all; templates are in their configs."""

import os
from pathlib import Path

from common.datasets.imagenet_validation import no_validation, validation_files
from common.datasets.images import ImageFiles, ImageSet, class_files
from common.datasets.lists import refuse_outside, text_lines
from common.datasets.names import read_names
from common.datasets.reference import imagenet_names_and_templates
from common.errors import UserError


def imagenet1000(root: Path, verify: bool) -> ImageSet:
    """All of ImageNet, below root/imagenet1000 if it exists, else below root/ImageNet.

    Label = position of the sorted class folder, names = CLIP's (ZSCL cil/continual_clip/datasets.py,
    cil/dataset_reqs/imagenet1000_classes.txt). Two pairs of classes share a name: "missile", "sunglasses".
    """
    folder = root / ("imagenet1000" if os.path.isdir(root / "imagenet1000") else "ImageNet")
    wnids = read_names("imagenet_wnids")
    train = class_files("ImageNet1000", folder / "train", wnids)
    val = validation_files("ImageNet1000", folder, wnids)
    if val is None:
        raise no_validation("ImageNet1000", folder)
    return ImageSet("ImageNet1000", train, val, imagenet_names_and_templates()[0], [])


def imagenet100(root: Path, verify: bool, lists: str | Path | None = None) -> ImageSet:
    """The first 100 ImageNet wnids in sorted order, label = position, as in ZSCL cil/dataset_reqs.

    This is not the random choice of 100 classes that other papers call ImageNet-100. `lists` is a folder with
    train_100.txt, val_100.txt or both, lines "val/<wnid>/<file> <label>" relative to ImageNet. A split without a list
    has all images of these wnids, sorted: the same as val_100.txt; train_100.txt was never released. Names are the
    first 100 of CLIP's.
    """
    wnids, others, folder = read_names("imagenet100_wnids"), read_names("imagenet_wnids"), root / "ImageNet"
    paths = {split: Path(lists or "").expanduser() / f"{split}_100.txt" for split in ("train", "val")}
    listed = {split for split, path in paths.items() if lists and path.is_file()}
    if lists and not listed:
        raise UserError(f"ImageNet100: {lists} holds neither train_100.txt nor val_100.txt.")
    parts = {split: _listed_images(paths[split], folder, wnids) for split in listed}
    train = parts.get("train") or class_files("ImageNet100", folder / "train", wnids, more=others)
    test = parts.get("val") or validation_files("ImageNet100", folder, wnids, more=others)
    if test is None:
        raise no_validation("ImageNet100", folder)
    return ImageSet("ImageNet100", train, test, imagenet_names_and_templates()[0][:100], [])


def _listed_images(path: Path, folder: Path, wnids: list[str]) -> ImageFiles:
    rows: list[tuple[str | Path, int]] = []
    for number, line in text_lines(path, "ImageNet100"):
        file, _, label = line.rpartition(" ")
        if not (label.isdigit() and int(label) < len(wnids)) or Path(file).parent.name != wnids[int(label)]:
            raise UserError(
                f"ImageNet100: {path}, line {number} ({line!r}): expected <split>/<wnid>/<file> <label> with the wnids "
                "of common/datasets/names/imagenet100_wnids.txt. A list of other classes would get wrong names."
            )
        refuse_outside([file], folder, path, "ImageNet100")
        rows.append((folder / file, int(label)))
    return ImageFiles(rows)
