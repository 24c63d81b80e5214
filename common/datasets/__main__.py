"""python -m common.datasets check | download: whether the data sets are complete; fetch those that can be."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.datasets.check import absence, details, inspect, same_files, table
from common.datasets.layout import PUBLISHED, canonical
from common.errors import UserError, exit_cleanly
from common.options import check_rules, option, read, unknown


def downloaders() -> dict[str, Callable[[Path], object]]:
    """Functions of the data location that download a data set with torchvision, by name."""
    from torchvision import datasets

    return {
        "Aircraft": lambda root: datasets.FGVCAircraft(root, "train", download=True),
        "Caltech101": lambda root: datasets.Caltech101(root, download=True),
        "CIFAR10": lambda root: datasets.CIFAR10(root, download=True),
        "CIFAR100": lambda root: datasets.CIFAR100(root, download=True),
        "DTD": lambda root: datasets.DTD(root, download=True),
        "EuroSAT": lambda root: datasets.EuroSAT(root, download=True),
        "Flowers": lambda root: datasets.Flowers102(root, download=True),
        "Food": lambda root: datasets.Food101(root, download=True),
        "MNIST": lambda root: datasets.MNIST(root, download=True),
        "OxfordPet": lambda root: datasets.OxfordIIITPet(root, download=True),
    }


def check(names: list[str], root: Path, verify: bool, decode: bool = False) -> bool:
    """Print the table of the named data sets and their problems below it; True if all are complete."""
    statuses = []
    for name in names:
        if sys.stderr.isatty():
            print(f"\rlooking at {name} ...".ljust(40), end="\r", file=sys.stderr, flush=True)
        statuses.append(inspect(name, root, verify, decode=decode))
    statuses = same_files(statuses)
    print(f"Data location: {root}{absence(root)}\n")
    print(table(statuses))
    if problems := details(statuses, root):
        print(f"\n{problems}")
    complete = sum(status.found == "yes" for status in statuses)
    print(f"\n{complete} of {len(statuses)} {'complete' if verify else 'found'}.")
    return complete == len(statuses)


def download(names: list[str], root: Path) -> list[str]:
    """Fetch incomplete data sets with torchvision; returns a message for each data set that failed."""
    failed, functions = [], downloaders()
    for name in names:
        if inspect(name, root).found == "yes":
            print(f"{name} is complete already")
            continue
        if name not in functions:
            failed.append(f"{name}: torchvision can not fetch it, it has to be placed by hand (see above).")
            continue
        print(f"downloading {name} into {root} ...", flush=True)
        try:
            root.mkdir(parents=True, exist_ok=True)
            functions[name](root)
        except Exception as error:
            # Network, checksum, disk: torchvision raises many kinds; the other data sets are still fetched.
            failed.append(f"{name}: download failed ({type(error).__name__}: {error}).")
    return failed


@dataclass(frozen=True)
class Options:
    names: list[str] = option(
        [], "data sets (check: all)", positional=True, convert=lambda names: [canonical(name) for name in names]
    )
    data_location: Path = option(help="folder of all data sets", flags=("--data-location",))


@dataclass(frozen=True)
class Check(Options):
    no_verify: bool = option(
        False, "accept fewer images than published and skip checksums (cut copies); missing files still count",
        flags=("--no-verify",),
    )  # fmt: skip
    decode: bool = option(False, "also open every image file, and list those that can not be decoded to their end")


@dataclass(frozen=True)
class Download(Options):
    pass


COMMANDS: dict[str, tuple[type[Options], str]] = {
    "check": (Check, "Print which data sets are complete; exit code 1 if one is not."),
    "download": (Download, "Fetch what torchvision still can, tell what to do for the rest, then check."),
}


def parse(argv: Sequence[str]) -> Options:
    """Options of the command, the first word. Raises UserError."""
    command, example = next(iter(argv), "(none)"), "common.datasets check --data-location ~/data Aircraft MNIST"
    epilog = f"Known data sets: {', '.join(PUBLISHED)}. Example: python -m {example}"
    if command in ("-h", "--help"):
        description = " ".join(f"{name}: {text}" for name, (_, text) in COMMANDS.items())
        return read(Options, argv, "common.datasets check|download", description, epilog)
    if command not in COMMANDS:
        raise UserError(unknown(f"command {command}", command, COMMANDS))
    kind, description = COMMANDS[command]
    options = read(kind, argv[1:], f"common.datasets {command}", description, epilog)
    check_rules([(kind is Download and not options.names, "NAMES: missing. Name the data sets to fetch.")])
    return options


@exit_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    options = parse(sys.argv[1:] if argv is None else argv)
    root, names = options.data_location.expanduser(), options.names or list(PUBLISHED)
    if isinstance(options, Check):
        sys.exit(0 if check(names, root, not options.no_verify, options.decode) else 1)
    failed = download(names, root)
    complete = check(names, root, verify=True)
    if failed:
        raise UserError("not downloaded:\n" + "\n".join(f"  {message}" for message in failed))
    sys.exit(0 if complete else 1)


if __name__ == "__main__":
    main()
