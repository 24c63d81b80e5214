"""DomainNet, class-incremental: 345 classes whose images come from several domains at once.

Two data sets have that name. InfLoRA reads CODA-Prompt's lists: a random 80/20 split of five domains, without quickdraw
(utils/data.py:L278-L307). The official lists have six domains and another split. Labels come from the lists, whose
order of classes is not quite alphabetical.
"""

import re
from pathlib import Path

from common.datasets.images import ImageFiles, ImageSet
from common.datasets.lists import listed_classes, read_list, read_text_list, refuse_missing, refuse_outside
from common.errors import UserError

FOLDER, CLASSES = "domainnet", 345
DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
SPLITS = ("train", "test")
NUMBER = re.compile(r"[a-z]+_(\d{3})_")  # of the class, in all names but quickdraw's: painting_192_000378.jpg


def domainnet(root: Path, verify: bool, lists: str | Path | None = None) -> ImageSet:
    """DomainNet below root/domainnet/<domain>/<class>/; names are those of the class folders.

    lists: the folder with domainnet_train.yaml and domainnet_test.yaml (keys data and targets), or else with the
    official <domain>_train.txt and <domain>_test.txt; None: root/domainnet. Only the last three parts of a listed path
    are read. Raises UserError for lists that are absent, contradict themselves or name missing files.
    """
    folder = root / FOLDER
    list_folder = folder if lists is None else Path(lists).expanduser()
    coda = {split: list_folder / f"domainnet_{split}.yaml" for split in SPLITS}
    official = {split: [list_folder / f"{domain}_{split}.txt" for domain in DOMAINS] for split in SPLITS}
    if all(path.is_file() for path in coda.values()):
        sources = {split: [(coda[split], *read_list(coda[split], "DomainNet"))] for split in SPLITS}
    elif all(path.is_file() for paths in official.values() for path in paths):
        sources = {split: [(path, *read_text_list(path, "DomainNet")) for path in official[split]] for split in SPLITS}
    else:
        raise UserError(
            f"DomainNet: {list_folder} holds neither domainnet_train.yaml and domainnet_test.yaml (CODA-Prompt's, as "
            "InfLoRA reads them) nor the twelve official lists clipart_train.txt to sketch_test.txt."
        )
    train, test = (_part(folder, sources[split]) for split in SPLITS)
    return ImageSet("DomainNet", train, test, listed_classes("DomainNet", list_folder, (train, test), CLASSES), [])


def _part(folder: Path, sources: list[tuple[Path, list[str], list[int]]]) -> ImageFiles:
    """The images of one split. Raises UserError for a label whose files all have another class's number."""
    rows: list[tuple[Path, int]] = []
    for source, files, targets in sources:
        refuse_outside(files, folder, source, "DomainNet")
        listed = [folder.joinpath(*Path(file).parts[-3:]) for file in files]
        named: dict[int, dict[int, str]] = {}  # by label: the numbers in names, and a file of each
        for path, label in zip(listed, targets):
            if match := NUMBER.match(path.name):
                named.setdefault(label, {}).setdefault(int(match[1]), path.name)
        for label, found in named.items():
            if label + 1 not in found:
                number, file = next(iter(found.items()))
                raise UserError(
                    f"DomainNet: {source} gives label {label} to {file}, whose class is number {number:03}, from 001 "
                    "on. Take the published lists: labels in another order make other tasks."
                )
        rows += zip(listed, targets)
    images = ImageFiles(rows)
    refuse_missing(images, sources[0][0] if len(sources) == 1 else sources[0][0].parent, "DomainNet")
    return images
