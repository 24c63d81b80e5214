"""The data sets of the class-incremental protocols: names, folders, image transforms."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from common.datasets import imagenet_r
from common.datasets.check import require
from common.datasets.images import ImageSet, Transform
from common.datasets.layout import canonical
from common.datasets.loading import load
from common.datasets.names import read_names
from common.datasets.transforms import Normalisation, clip_eval, vit_eval, vit_train
from common.mini import MINI

if TYPE_CHECKING:
    from torchvision.transforms import Compose

RULE_SEED = 40  # of ImageNet-R's split where no lists are at hand: InfLoRA's rule and seed
BAD_PHOTO, GOOD_PHOTO = "a bad photo of a {}.", "a good photo of a {}."  # ZSCL cil/configs/class/*.yaml


@dataclass(frozen=True)
class IncrementalSet:
    """A data set of class-incremental learning. `find` fills in `root`."""

    reader: str  # name in common.datasets
    label: str  # name in records
    classes: int = 0  # 0 where only class orders give the number
    folder: str = ""  # the data set's folder; a location may name it instead of its parent
    subfolder: str = ""  # of the location, where ZSCL's and MoE-Adapters' programs expect the data set
    template: str = ""  # the only prompt of ZSCL and MoE-Adapters; "": the templates of common.datasets
    order: str = ""  # class order in common/datasets/orders
    small: bool = False  # test images are resized to the input size itself, not to 256/224 of it
    least_area: float = 0.08  # of a training crop
    flip: bool = True
    root: Path = Path()


CHARACTERS = IncrementalSet(
    "Characters", "Characters", 40, order="mini", small=True, root=Path(MINI),
    # mirrored or cut, a character is another one: a linear probe of the miniature's ViT would fall from 81 to 56 %
    least_area=0.75, flip=False,
)  # fmt: skip
SETS = {  # by the papers' options, in lower case and without ALTA's seq-
    "cifar10": IncrementalSet("CIFAR10", "CIFAR10", 10),
    "cifar100": IncrementalSet("CIFAR100", "CIFAR100", 100, "", "cifar100", BAD_PHOTO, "cifar100", small=True),
    "tinyimagenet": IncrementalSet(
        "TinyImageNet", "TinyImageNet", 200, "tiny-imagenet-200", "tinyimagenet", BAD_PHOTO, "tinyimagenet"
    ),
    "imagenet100": IncrementalSet("ImageNet100", "ImageNet100", 100, "", "", GOOD_PHOTO, "imagenet100"),
    "imagenet1000": IncrementalSet("ImageNet1000", "ImageNet1000", 1000, "", "", GOOD_PHOTO, "imagenet1000"),
    "imagenet_r": IncrementalSet("ImageNetR", "ImageNet_R", 200, "imagenet-r"),
    "cub200": IncrementalSet("CUB200", "CUB200", 200),
    "domainnet": IncrementalSet("DomainNet", "DomainNet", 345, "domainnet"),
    "characters": CHARACTERS,
}


def find(name: str, root: str | Path) -> IncrementalSet:
    """The data set that a paper's option names, or common.datasets; with root "mini" the miniature's.

    Raises UserError for an unknown name.
    """
    if str(root) == MINI:
        return CHARACTERS
    data = SETS.get(name.lower().removeprefix("seq-")) or IncrementalSet(canonical(name), name)
    root = Path(root).expanduser()
    return replace(data, root=root.parent if data.folder and root.name == data.folder else root)


def vit_transforms(
    data: IncrementalSet, n_px: int, normalisation: Normalisation | None = None
) -> "tuple[Compose, Compose]":
    """Training and test transform for a ViT of input size `n_px`.

    normalisation: the backbone's own, for those of common ground, which resize test images to the input size, bicubic.
    """
    from torchvision.transforms import Compose, Normalize

    train = vit_train(n_px, data.least_area, data.flip)
    if normalisation is None:
        return train, vit_eval(n_px, n_px if data.small else n_px * 256 // 224)
    return Compose([*train.transforms, Normalize(*normalisation)]), clip_eval(n_px, normalisation)


def imagenet_r_split(root: Path, split: str = "auto") -> int | str:
    """`split` of the reader of ImageNet-R below root: a seed of the rule, the folder of lists, or "folders".

    "lists": those beside the images; "auto": the same where there are any, else the rule under seed 40.
    """
    beside = root / imagenet_r.FOLDER
    if split == "lists" or (split == "auto" and imagenet_r.has_lists(beside)):
        return str(beside)
    if split == "auto":
        return RULE_SEED
    return int(split) if split.isdecimal() else split


def reader_options(
    data: IncrementalSet, split: str = "auto", imagenet100_lists: str | Path | None = None
) -> dict[str, object]:
    """Keyword arguments of a data set's reader, for `common.datasets.load` and `require`."""
    if data.reader == "ImageNet100":
        return {"lists": imagenet100_lists}
    return {"split": imagenet_r_split(data.root, split)} if data.reader == "ImageNetR" else {}


def class_names(data: ImageSet) -> list[str]:
    """Class names by label; ImageNet-R's WordNet ids become words, since CLIP's texts are made of these."""
    if data.name != "ImageNetR":
        return data.classnames
    names = dict(zip(sorted(data.classnames), read_names("imagenet_r")))
    return [names[wnid] for wnid in data.classnames]


def load_incremental(
    name: str,
    root: str | Path,
    train_transform: Transform | None = None,
    eval_transform: Transform | None = None,
    verify: bool = True,
    imagenet100_lists: str | Path | None = None,
) -> ImageSet:
    """The data set of ZSCL's and MoE-Adapters' protocols (cifar100, tinyimagenet, imagenet100, imagenet1000).

    Labels, class names and the one template come from ZSCL cil/continual_clip/datasets.py and its configurations;
    CIFAR100's names keep their underscores there ("aquarium_fish"), unlike MTIL's. ImageNet-R, which they do not know,
    is split as its lists say where they lie beside the images, else by seed 40. `root` may hold cifar100/ and
    tinyimagenet/ as in the originals, or the data sets themselves as for `common.datasets.load`; root "mini" gives the
    miniature's characters under any name. Every other data set of common.datasets comes with its own names and
    templates. imagenet100_lists: `lists` of `imagenet100`. Raises UserError as `load` does.
    """
    entry = find(name, root)
    options = reader_options(entry, imagenet100_lists=imagenet100_lists)
    data = load(entry.reader, _original_folder(entry), train_transform, eval_transform, verify, options)
    if entry.template:
        data.templates = [entry.template]
    data.classnames = class_names(data)
    if entry.reader == "CIFAR100":
        data.classnames = [text.replace(" ", "_") for text in data.classnames]
    return data


def require_incremental(
    name: str, root: str | Path, verify: bool = True, imagenet100_lists: str | Path | None = None
) -> None:
    """Raise UserError with all that is missing unless `load_incremental` will read the data set completely."""
    entry = find(name, root)
    options = reader_options(entry, imagenet100_lists=imagenet100_lists)
    require([entry.reader], _original_folder(entry), verify, options)


def _original_folder(entry: IncrementalSet) -> Path:
    """The original programs' subfolder of the location if it exists, else the location itself."""
    folder = entry.root / entry.subfolder
    return folder if folder.is_dir() else entry.root
