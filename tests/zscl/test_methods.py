"""The names of methods: the tables' rows for the scripts of the paper, short and telling ones for the rest."""

import pytest

from results.labels import METHODS, position
from zscl.methods import method_label
from zscl.options import parse

KD = "--method ZSCL --image_loss --text_loss"
IMAGENET = f"{KD} --ref-dataset ImageNet"
NAMES = {
    "": "Fine-tuning",
    f"{KD} --ref-dataset current --ref-model previous": "LwF",
    f"{KD} --ref-dataset current --ref-model previous --ref-sentences random": "LwF-VR",
    "--wise_merge": "WiSE-FT",
    "--l2 1": "WC",
    "--we": "WE",
    "--we_wise --we_wise_alpha 0.99": "WE-WiSE 0.99",
    f"{IMAGENET} --ref-sentences ImageNet": "ZSCL-",
    f"{IMAGENET}": "ZSCL-",
    f"{IMAGENET} --l2 1": "ZSCL- + WC",
    f"{IMAGENET} --ref-sentences conceptual_captions --we": "ZSCL*",
    f"{IMAGENET} --ref-sentences conceptual_captions --we --l2 1": "ZSCL",
    # ablations: the nearest row and what differs
    f"{IMAGENET} --ref-sentences conceptual_captions": "ZSCL- (captions)",
    f"{IMAGENET} --ref-sentences conceptual_captions --wise_merge": "ZSCL- + WiSE-FT (captions)",
    f"{IMAGENET} --ref-sentences conceptual_captions --l2 1 --wise_merge": "ZSCL- + WC + WiSE-FT (captions)",
    f"{IMAGENET} --text-datasets seen": "ZSCL- (all prompts seen)",
    f"{IMAGENET} --text-datasets DTD,Food": "ZSCL- (prompts of DTD Food)",
    f"{IMAGENET} --ref-sentences random": "ZSCL- (random sentences)",
    f"{IMAGENET} --ref-sentences current": "ZSCL- (current prompts)",
    f"{IMAGENET} --ref-model previous": "ZSCL- (teacher previous model)",
    f"{IMAGENET} --ref-wise": "ZSCL- (teacher CLIP pulled 0.8 to theta0)",
    f"{IMAGENET} --weight_adjust --T 4": "ZSCL- (half weight, T 4)",
    f"{IMAGENET} --l2 1 --we": "ZSCL- + WE + WC",
    f"{KD} --ref-dataset current --ref-sentences ImageNet": "ZSCL- (current images)",
    f"{KD} --ref-dataset ImageNetSM --num 100 --ref-sentences ImageNet": "ZSCL- (ImageNetSM 100)",
    f"{KD} --ref-dataset ImageNetSUB --num 100000 --ref-sentences conceptual_captions --we --l2 1": (
        "ZSCL (ImageNetSUB 100000)"
    ),
    f"{KD} --ref-dataset current --ref-model previous --ref-sentences conceptual_captions": "LwF (captions)",
    "--method ZSCL --ref-dataset ImageNet --image_loss": "ZSCL- (image loss)",
    "--method ZSCL --ref-dataset ImageNet --feature_mse --ablation_loss_2": "ZSCL- (image-image + feature MSE loss)",
    "--method ZSCL --ref-dataset ImageNet": "Fine-tuning",
    "--l2 0.5 --we": "WE + WC 0.5",
    "--wise_merge --wise_ft_alpha 0.5 --wise_ft_model zeroshot": "WiSE-FT 0.5 with CLIP",
    "--moving_avg": "moving average 0.999",
    "--moving_avg --mv_avg_model t": "moving average 0.999 to the last",
    "--train-mode image": "Fine-tuning (image encoder only)",
}
ICARL_NAMES = {
    "--image_loss --text_loss": "iCaRL",
    "": "iCaRL (no distillation)",
    "--image_loss --text_loss --icarl-quota exact --icarl-herding fixed": "iCaRL (exact quota, fixed herding)",
}


def label(flags: str) -> str:
    return method_label(parse([*flags.split(), "--iterations", "1000", "--save", "x"]))


@pytest.mark.parametrize("flags", NAMES)
def test_names(flags: str) -> None:
    assert label(f"--train-dataset order1 {flags}") == NAMES[flags]


@pytest.mark.parametrize("flags", ICARL_NAMES)
def test_names_of_icarl(flags: str) -> None:
    assert label(f"--method icarl --dataset_order order2 {flags}") == ICARL_NAMES[flags]


def test_one_task_calls_have_the_names_of_their_sequence() -> None:
    own = f"--train-dataset DTD {KD} --ref-dataset DTD"
    assert label(own) == "LwF"  # the first of a sequence, where the model before is CLIP
    assert label(f"{own} --load b.pth --ref-model b.pth") == "LwF"
    assert label(f"{own} --load b.pth --ref-model b.pth --ref-sentences random") == "LwF-VR"
    assert label(f"{own} --load b.pth") == "ZSCL- (current images, current prompts)"
    assert label(f"{own} --load b.pth --ref-model a.pth").endswith("teacher a.pth)")


def test_every_name_has_its_place_in_the_tables() -> None:
    places = [position(name) for name in (*NAMES.values(), *ICARL_NAMES.values())]
    assert max(places) < len(METHODS)
    rows = {
        "ZSCL- + WC": "ZSCL-",
        "ZSCL*": "ZSCL*",
        "ZSCL (T 4)": "ZSCL",
        "WE-WiSE 0.99": "WE",
        "LwF (captions)": "LwF",
    }
    assert all(METHODS[position(name)] == row for name, row in rows.items())
