"""Class names and templates: counts, and (index, name) pairs that other lists would get wrong."""

import pytest
from torchvision import datasets

from common.datasets.names import agreed_names, read_names, read_templates
from common.errors import UserError

COUNTS = {  # stem: (classes, templates, first template)
    "aircraft": (100, 2, "a photo of a {}, a type of aircraft."),
    "caltech101": (101, 34, "a photo of a {}."),
    "cifar10": (10, 18, "a photo of a {}."),
    "cifar100": (100, 18, "a photo of a {}."),
    "dtd": (47, 8, "a photo of a {} texture."),
    "eurosat": (10, 3, "a centered satellite photo of {}."),
    "flowers": (102, 1, "a photo of a {}, a type of flower."),
    "food": (101, 1, "a photo of a {}, a type of food."),
    "mnist": (10, 1, 'a photo of the number: "{}".'),
    "oxford_pet": (37, 1, "a photo of a {}, a type of pet."),
    "stanford_cars": (196, 9, "a photo of a {}, a type of car."),
    "sun397": (397, 2, "a photo of a {}."),
}

PAIRS = [
    ("caltech101", 0, "off-center face"),
    ("caltech101", 1, "centered face"),
    ("caltech101", 2, "leopard"),
    ("cifar100", 1, "aquarium fish"),
    ("eurosat", 0, "annual crop land"),
    ("eurosat", 2, "brushland or shrubland"),
    ("eurosat", 9, "lake or sea"),
    ("flowers", 0, "pink primrose"),
    ("flowers", 59, "pink-yellow dahlia"),
    ("flowers", 101, "blackberry lily"),
    ("mnist", 0, "0 - zero"),
    ("mnist", 9, "9 - nine"),
    ("oxford_pet", 1, "American Bulldog"),
    ("stanford_cars", 0, "AM General Hummer SUV 2000"),
    ("sun397", 0, "abbey"),
    ("tinyimagenet_cil", 0, "Egyptian Mau"),
    ("tinyimagenet_cil", 136, "swim trunks / shorts"),
    ("tinyimagenet_cil", 189, "baluster / handrail"),
]


@pytest.mark.parametrize("stem", COUNTS)
def test_counts_and_first_template(stem: str) -> None:
    classes, templates, first = COUNTS[stem]
    names, prompts = read_names(stem), read_templates(stem)
    assert len(names) == len(set(names)) == classes
    assert all(name.strip() == name and name and "_" not in name for name in names)
    assert len(prompts) == templates and prompts[0] == first
    assert all(prompt.count("{}") == 1 for prompt in prompts)


@pytest.mark.parametrize("stem, index, name", PAIRS)
def test_name_at_index(stem: str, index: int, name: str) -> None:
    assert read_names(stem)[index] == name


def test_sun397_has_slashes_and_caltech_its_two_spaces() -> None:
    sun = read_names("sun397")
    assert sum("/" in name for name in sun) == 126
    assert "apartment building/outdoor" in sun
    assert sun.index("jail/indoor") == 206 and sun.index("jail cell") == 207
    # ClassName.txt lists folders: "jail/indoor" before "jail_cell", sorted with underscores for the spaces.
    assert sun == sorted(sun, key=lambda name: name.replace(" ", "_"))
    assert "head of a  crocodile" in read_names("caltech101")


def test_torchvision_agrees_where_it_carries_names() -> None:
    assert datasets.MNIST.classes == read_names("mnist")
    differing = [
        i for i, (a, b) in enumerate(zip(datasets.Flowers102.classes, read_names("flowers"))) if a != b
    ]
    assert differing == [59]
    assert datasets.Flowers102.classes[59] == "pink-yellow dahlia?"


def test_tinyimagenet_names_and_wnids_go_together() -> None:
    wnids = read_names("tinyimagenet_wnids")
    assert len(wnids) == len(set(wnids)) == len(read_names("tinyimagenet_cil")) == 200
    assert wnids[0] == "n02124075"  # Egyptian Mau


def test_own_names_win_with_one_warning() -> None:
    own = [name.replace(" ", "_") for name in read_names("dtd")]
    own[3] = "of_bubbles"
    with pytest.warns(UserWarning, match="DTD: 1 class names .* 3 'of bubbles' .*'bubbly'") as caught:
        names = agreed_names("DTD", "dtd", own)
    assert len(caught) == 1
    assert names[3] == "of bubbles" and names[:3] == read_names("dtd")[:3]


def test_another_number_of_names_is_an_error() -> None:
    with pytest.raises(UserError, match="DTD: its files name 46 classes, the published set has 47"):
        agreed_names("DTD", "dtd", read_names("dtd")[:-1])


def shared_names(stems: list[str]) -> dict[str, set[str]]:
    """The class names that two of these lists hold to the letter, and the lists that hold each."""
    lists = {stem: read_names(stem) for stem in stems}
    names = {name for same in lists.values() for name in same}
    holders = {name: {stem for stem, same in lists.items() if name in same} for name in names}
    return {name: found for name, found in holders.items() if len(found) > 1}


def test_names_that_two_sets_of_a_sequence_share_are_those_that_the_readme_counts() -> None:
    ten = [stem for stem in COUNTS if stem not in ("cifar10", "cifar100")]
    assert shared_names(ten) == {
        "lotus": {"caltech101", "flowers"}, "sunflower": {"caltech101", "flowers"}, "pizza": {"caltech101", "food"},
        "pagoda": {"caltech101", "sun397"}, "river": {"eurosat", "sun397"},
    }  # fmt: skip
    eleven = shared_names([*ten, "cifar100"])
    with_cifar100 = {name for name, found in eleven.items() if "cifar100" in found}
    assert with_cifar100 == {
        "beaver", "bridge", "butterfly", "castle", "chair", "crab", "crocodile", "cup", "dolphin", "elephant", "forest",
        "house", "kangaroo", "lamp", "leopard", "lobster", "mountain", "rose", "skyscraper", "sunflower",
    }  # fmt: skip
    assert len(eleven) == 24 and eleven["sunflower"] == {"caltech101", "cifar100", "flowers"}
    # case and the plural tell no two sets' names apart
    plain = {name.lower().rstrip("s") for stem in [*ten, "cifar100"] for name in {*read_names(stem)}}
    assert len(plain) == sum(COUNTS[stem][0] for stem in [*ten, "cifar100"]) - 25
