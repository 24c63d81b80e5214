"""Names for people, and the sheet of each protocol."""

import pytest

from results import labels
from results.published import read_published


@pytest.mark.parametrize(
    ("name", "words", "short", "sheet"),
    [
        ("mtil-order2", "MTIL, order II", "MTIL, order II", "MTIL order 2"),
        ("mtil-order1-5shot", "MTIL, order I, 5-shot", "MTIL, order I, 5-shot", "MTIL 5-shot"),
        ("xtail-order2", "X-TAIL, order II", "X-TAIL, order II", "X-TAIL"),
        ("xtail-16shot", "X-TAIL, ten data sets, 16-shot", "X-TAIL, ten data sets, 16-shot", "X-TAIL"),
        ("xtail-16shot-coop", "X-TAIL, ten data sets, 16-shot, CoOp's splits",
         "X-TAIL, ten data sets, 16-shot, CoOp's splits", "X-TAIL"),
        ("mtil-xtail-16shot", "MTIL, ten data sets, 16-shot", "MTIL, ten data sets, 16-shot", "Other protocols"),
        ("mtil-order1-coop", "MTIL, order I, CoOp's splits", "MTIL, order I, CoOp's splits", "Other protocols"),
        ("mtil-custom-Aircraft+DTD+EuroSAT", "MTIL, Aircraft, DTD, EuroSAT", "MTIL, Aircraft, DTD, EuroSAT",
         "Other protocols"),
        ("mtil-custom-DTD-5shot", "MTIL, DTD, 5-shot", "MTIL, DTD, 5-shot", "Other protocols"),
        ("mtil-custom", "mtil-custom", "mtil-custom", "Other protocols"),
        ("cil-cifar100-10x10", "CIFAR-100: 10 tasks of 10 classes, class-incremental",
         "10 tasks of 10 classes, class-IL", "CIL CIFAR-100"),
        ("cil-tinyimagenet-100+5x20", "TinyImageNet: 100 classes, then 5 steps of 20, class-incremental",
         "100 classes, then 5 steps of 20, class-IL", "CIL TinyImageNet"),
        ("til-cifar10-5x2-buffer200", "CIFAR-10: 5 tasks of 2 classes, task-incremental, buffer of 200",
         "5 tasks of 2 classes, task-IL, buffer of 200", "Class-IL and task-IL"),
        ("cil-imagenet_r-20x10", "ImageNet-R: 20 tasks of 10 classes, class-incremental",
         "20 tasks of 10 classes, class-IL", "ImageNet-R"),
        ("cil-characters-10x4", "Characters, the miniature's: 10 tasks of 4 classes, class-incremental",
         "10 tasks of 4 classes, class-IL", "Characters"),
        ("til-characters-1x40", "Characters, the miniature's: 1 task of 40 classes, task-incremental",
         "1 task of 40 classes, task-IL", "Characters"),
        ("dil-domainnet", "DomainNet: domain-incremental", "domain-IL", "DomainNet"),
        ("cil-tinyimagenet-10x20", "TinyImageNet: 10 tasks of 20 classes, class-incremental",
         "10 tasks of 20 classes, class-IL", "Class-IL and task-IL"),
        ("common-imagenet_r-10x20", "ImageNet-R: 10 tasks of 20 classes, common ground",
         "10 tasks of 20 classes, common ground", "Common ground"),
        ("common-cub200", "CUB-200: all classes at once, common ground", "all classes at once, common ground",
         "Common ground"),
        ("something new", "something new", "something new", "Other protocols"),
    ],
)  # fmt: skip
def test_protocol_in_words(name, words, short, sheet):
    assert labels.protocol(name) == words
    assert labels.setting(name, with_dataset=False) == short
    assert labels.sheet(name) == sheet


def test_settings_of_one_sheet_stay_apart():
    by_sheet = {}
    for protocol in {entry.protocol for entry in read_published()}:
        by_sheet.setdefault((labels.sheet(protocol), labels.setting(protocol, True)), set()).add(protocol)
    assert all(len(protocols) == 1 for protocols in by_sheet.values())


def test_steps_are_sorted_as_numbers():
    assert sorted(["x-20x10", "x-5x40", "x-10x20"], key=labels.natural) == ["x-5x40", "x-10x20", "x-20x10"]


def test_a_variant_stands_with_its_method():
    names = ["Zero-shot CLIP", "Fine-tuning per data set", "Fine-tuning", "LwF", "iCaRL (label smoothing 0)", "LwF-VR",
             "WE + WiSE", "ZSCL- + WC", "ZSCL*", "ZSCL (avg_freq 50)", "MoE-Adapters (oracle task id)",
             "other"]  # fmt: skip
    places = [labels.position(name) for name in names]
    assert places == sorted(set(places)) and places[-1] == len(labels.METHODS)


def test_cross_paper_protocols():
    names = ("cil-cifar100-10x10", "til-cifar100-10x10", "cil-characters-10x4", "til-characters-10x4")
    assert all(labels.is_cross_paper(name) for name in names)
    others = ("cil-cifar100-20x5", "cil-cifar10-5x2", "mtil-order1", "cil-characters-5x8", "joint-characters")
    assert not any(labels.is_cross_paper(name) for name in others)


@pytest.mark.parametrize(
    ("source", "printer"),
    [
        ("Thunderbeee/ZSCL:mtil/results.ipynb cell 5", "ZSCL"),
        ("review text of NuSA-CL (OpenReview tucuU4sQ3s) quoting its Table 3", "NuSA-CL"),
        ("LEBA (Learning and Ensembling Bridge Adapters) Tab. 2, quoting the original tables; identical in DPW (Jang "
         "et al., Dynamic Prefix Weighting) Tab. E.4", "LEBA"),
        ("DPW (Jang et al.) Tab. E.2", "DPW"),
        ("CoDyRA (arXiv 2412.01004) repository README, 5-shot MTIL table", "CoDyRA"),
        ("JiazuoYu/MoE-Adapters4CL:cil/metrics.json; target value in aimagelab/mammoth:reproduce.json", "MoE-Adapters"),
        ("JiazuoYu/MoE-Adapters4CL:cil/metrics.json; reported value as listed by RL-VIG/LibContinual:README.md",
         "MoE-Adapters"),
        ("reported value as listed by RL-VIG/LibContinual:reproduce/moe_adapter4cl/README.md", "LibContinual"),
        ("HyPro paper Tab. I", "HyPro"),
        ("arXiv 2404.00228 Table 4", "InfLoRA"),
        ("liangyanshuo/InfLoRA:logs/cifar100/0.log", "InfLoRA"),
        ("arXiv 2501.13198 (SD-LoRA) main table", "SD-LoRA"),
        ("arXiv 2503.18985 (LoRA subtraction / LoRA-DRS) tables", "LoRA-DRS"),
        ("comparison table of the VPT-NSP2 paper", "VPT-NSP2"),
        ("arXiv 2410.20444 Table 1; arXiv 2410.20444 Table 5", "VQ-Prompt"),
        ("aimagelab/mammoth:README.md@7ab9db9 (table of arXiv 2004.07211)", "Mammoth"),
        ("beta.hyper.ai/en/papers/x (mirror of the Papers with Code entry)", "Papers with Code"),
        ("22 experts, 11 routers and one DDAS autoencoder on CLIP ViT-B/16", "counted here"),
        ("CLIP ViT-B/16 without logit_scale (Thunderbeee/ZSCL:mtil/src/models/finetune.py L68-L86)", "counted here"),
        ("a paper not yet quoted", "a paper not yet quoted"),
    ],
)  # fmt: skip
def test_who_printed_a_number(source, printer):
    assert labels.printed_by(source) == printer
