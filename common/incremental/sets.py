"""The data sets of the class-incremental protocols: their names, where they lie, how their images are cut."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from common.datasets.check import require
from common.datasets.images import ImageSet, Transform
from common.datasets.layout import canonical
from common.datasets.loading import load
from common.datasets.transforms import vit_eval, vit_train
from common.mini import MINI

if TYPE_CHECKING:
    from torchvision.transforms import Compose

BAD_PHOTO, GOOD_PHOTO = "a bad photo of a {}.", "a good photo of a {}."  # ZSCL cil/configs/class/*.yaml


@dataclass(frozen=True)
class IncrementalSet:
    """A data set of class-incremental learning. Where it lies, `find` fills in."""

    reader: str  # its name in common.datasets
    label: str  # in records
    classes: int = 0  # none is said where only class orders need to know
    folder: str = ""  # its own folder, which a location may name instead of the one it lies in
    subfolder: str = ""  # of the location, where ZSCL's and MoE-Adapters' programs keep it
    template: str = ""  # their only prompt; without one, those of common.datasets
    order: str = ""  # its class order in common/datasets/orders
    small: bool = False  # test images are resized to the input size itself, others to 256/224 of it
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
    """The set of a paper's option, or of a name in common.datasets; the miniature's where root is "mini".

    Raises UserError for an unknown name.
    """
    if str(root) == MINI:
        return CHARACTERS
    data = SETS.get(name.lower().removeprefix("seq-")) or IncrementalSet(canonical(name), name)
    root = Path(root).expanduser()
    return replace(data, root=root.parent if data.folder and root.name == data.folder else root)


def vit_transforms(data: IncrementalSet, n_px: int) -> "tuple[Compose, Compose]":
    """The training and the test transform of `common.datasets.transforms` for a ViT of this input size."""
    return vit_train(n_px, data.least_area, data.flip), vit_eval(n_px, n_px if data.small else n_px * 256 // 224)


def load_incremental(
    name: str,
    root: str | Path,
    train_transform: Transform | None = None,
    eval_transform: Transform | None = None,
    verify: bool = True,
    imagenet100_lists: str | Path | None = None,
) -> ImageSet:
    """The data set of ZSCL's and MoE-Adapters' protocols (cifar100, tinyimagenet, imagenet100, imagenet1000).

    Labels, class names and the one template are those of ZSCL cil/continual_clip/datasets.py and its configurations;
    CIFAR100's names keep their underscores there ("aquarium_fish"), unlike MTIL's. `root` may hold cifar100/ and
    tinyimagenet/ as the originals do, or the sets themselves as for `common.datasets.load`; root "mini" gives the
    miniature's characters whatever the name. Any other data set of common.datasets comes with its own names and
    templates. imagenet100_lists: see `common.datasets.load`. Raises UserError as `load` does.
    """
    known, place = _original_place(find(name, root))
    data = load(known.reader, place, train_transform, eval_transform, verify, imagenet100_lists)
    if known.template:
        data.templates = [known.template]
    if known.reader == "CIFAR100":
        data.classnames = [text.replace(" ", "_") for text in data.classnames]
    return data


def require_incremental(
    name: str, root: str | Path, verify: bool = True, imagenet100_lists: str | Path | None = None
) -> None:
    """Return if `load_incremental` will find the set complete, else raise UserError with all that is missing."""
    known, place = _original_place(find(name, root))
    require([known.reader], place, verify, imagenet100_lists)


def _original_place(data: IncrementalSet) -> tuple[IncrementalSet, Path]:
    """The set, and the original programs' subfolder where there is one, else the location itself."""
    own = data.root / data.subfolder
    return data, own if own.is_dir() else data.root
