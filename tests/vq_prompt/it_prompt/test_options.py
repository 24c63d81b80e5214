"""IT-Prompt's options: defaults, presets, and what is refused with one message."""

from dataclasses import fields

import pytest

from common.datasets.images import ImageSet
from common.datasets.names import read_names
from common.errors import UserError
from common.incremental.sets import class_names
from vq_prompt.options import Options
from vq_prompt.it_prompt.learner import method_label
from vq_prompt.it_prompt.options import ITOptions, settled
from vq_prompt.run import parse

DEFAULTS = {
    "learner_name": "ITPromptCNCM", "backbone": "clip_vitb16", "selector": "cncm", "classifier": "cncm",
    "scope": "seen", "train_head": False, "text_guide": "ce", "text_classes": "current", "template": "a photo of {}",
    "logit_scale": 100.0, "lambda_text": 1.0, "lambda_key": 1.0, "tpi_hidden": 512, "prompt_layers": [0, 1, 2, 3, 4],
    "prompt_length": 8, "prompt_init": 1.0, "init_from_prev": True, "lr": 0.0025, "weight_decay": 0.0, "epochs": 20,
    "batch_size": 128, "drop_last": False, "rebalance": True, "rebalance_epochs": 10, "rebalance_per_class": 256,
    "rebalance_batch": 128, "rebalance_lr": 0.0025, "n_clusters": 10, "tukey_beta": 1.0, "center": False,
    "renorm_centroids": True, "aggregate": "min", "clip_weights": "ViT-B/16", "activation": "auto",
}  # fmt: skip


def of(name, **given):
    """The options of a learner, with what was given of its own, as a run has them."""
    return settled(ITOptions(learner_name=name, **given))


def read(name, *words):
    """The options that a command line on CIFAR-100 comes to."""
    about = ["--learner_type", "it_prompt", "--learner_name", name, "--config", "configs/cifar-100_it_prompt.yaml"]
    return parse([*about, *words])


def test_defaults():
    for options in (of("ITPromptCNCM"), read("ITPromptCNCM")):  # as which the configurations keep them
        assert {key: getattr(options, key) for key in DEFAULTS} == DEFAULTS
    own = {item.name for item in fields(ITOptions)} - {item.name for item in fields(Options)}
    assert own < DEFAULTS.keys()
    softmax = {"learner_name": "ITPrompt", "selector": "softmax", "classifier": "softmax", "train_head": True}
    assert {key: getattr(of("ITPrompt"), key) for key in DEFAULTS} == DEFAULTS | softmax
    assert of("ITPrompt", selector="key").selector == "key"
    assert of("NCM", n_clusters=5).n_clusters == read("NCM", "--scale", "mini").n_clusters == 1


@pytest.mark.parametrize(
    "name, given, head",
    [
        ("ITPromptCNCM", "text_guide=off", True),
        ("ITPromptCNCM", "train_head=true", True),
        ("ITPromptCNCM", "backbone=vit_dino1k", True),
        ("ITPrompt", "classifier=text", False),
        ("ITPrompt", "train_head=auto", True),
        ("NCM", "epochs=20", False),
    ],
)
def test_a_head_where_it_is_needed(name, given, head):
    options = read(name, given)
    assert options.train_head is head
    assert options.text_guide in ("ce", "off") and (options.is_clip or options.text_guide == "off")


def test_off_in_a_file(tmp_path):
    """YAML reads off as false."""
    path = tmp_path / "off.yaml"
    sizes = "dataset: CIFAR100\nfirst_split_size: 10\nother_split_size: 10\n"
    path.write_text(sizes + "text_guide: off\ntrain_head: true\n")
    options = read("ITPromptCNCM", "--config", str(path))
    assert (options.text_guide, options.train_head, options.batch_size) == ("off", True, 128)


@pytest.mark.parametrize(
    "name, given, told",
    [
        ("ITPrompts", "", "learner_name ITPrompts: unknown. Did you mean ITPrompt\\?"),
        ("ITPrompt", "selectr=key", "selectr: unknown option. Did you mean selector\\?"),
        ("ITPrompt", "selector=cnmc", r"selector cnmc: unknown. Did you mean cncm\? Known are softmax, cncm, key"),
        ("ITPrompt", "selector=none", "selector none: unknown"),
        ("ITPrompt", "backbone=vit_dino", "backbone vit_dino: unknown. Did you mean vit_dino1k\\?"),
        ("ITPrompt", "train_head=yes", "train_head yes: unknown. .*auto, True, False"),
        ("ITPrompt", "train_head=1", "train_head 1: unknown"),
        ("ITPrompt", "zero_shot=plain", "zero_shot: unknown option"),
        ("ITPrompt", "epochs=2.5", "epochs 2.5: a whole number is expected"),
        ("ITPrompt", "center=maybe", "center maybe: true or false is expected"),
        ("ITPrompt", "prompt_layers=[a]", r"prompt_layers \[a\]: a whole number, or a list of such, is expected"),
        ("ITPrompt", "prompt_layers=[]", "prompt_layers: it is empty"),
        ("ITPrompt", "prompt_layers=[1, 1]", "prompt_layers 1 1: a value occurs twice"),
        ("ITPrompt", "prompt_layers=[-1]", "prompt_layers -1: give 0 or more"),
        ("ITPrompt", "prompt_layers=0,12", r"prompt_layers \[0, 12\]: the backbone has blocks 0 to 11"),
        ("ITPrompt", "clip_weights=mini", r"prompt_layers \[0, 1, 2, 3, 4\]: the backbone has blocks 0 to 3"),
        ("ITPrompt", "clip_weights=RN50", "clip_weights RN50: a ResNet"),
        ("ITPrompt", "prompt_length=5", "prompt_length 5: one half .* even number"),
        ("ITPrompt", "prompt_length=0", "prompt_length 0: give 2 or more"),
        ("ITPrompt", "lr=0", "lr 0.0: give more than 0"),
        ("ITPrompt", "lr=nan", "lr nan: give more than 0"),
        ("ITPrompt", "logit_scale=0", "logit_scale 0.0: give more than 0"),
        ("ITPrompt", "rebalance_lr=0", "rebalance_lr 0.0: give more than 0"),
        ("ITPrompt", "tukey_beta=0", "tukey_beta 0.0: give more than 0"),
        ("ITPrompt", "prompt_init=0", "prompt_init 0.0: give more than 0"),
        ("ITPrompt", "lambda_key=-1", "lambda_key -1.0: give 0 or more"),
        ("ITPrompt", "lambda_text=-1", "lambda_text -1.0: give 0 or more"),
        ("ITPrompt", "weight_decay=-1", "weight_decay -1.0: give 0 or more"),
        ("ITPrompt", "n_clusters=0", "n_clusters 0: give 1 or more"),
        ("ITPrompt", "epochs=0", "epochs 0: give 1 or more"),
        ("ITPrompt", "batch_size=0", "batch_size 0: give 1 or more"),
        ("ITPrompt", "tpi_hidden=0", "tpi_hidden 0: give 1 or more"),
        ("ITPrompt", "rebalance_epochs=0", "rebalance_epochs 0: give 1 or more"),
        ("ITPrompt", "rebalance_per_class=0", "rebalance_per_class 0: give 1 or more"),
        ("ITPrompt", "rebalance_batch=0", "rebalance_batch 0: give 1 or more"),
        ("ITPrompt", "template=a photo", "template a photo: give {} once"),
        ("ITPrompt", "template=a {", "template a {: give {} once"),
        ("ITPrompt", "backbone=vit_moco1k text_guide=ce", "text_guide ce: vit_moco1k has no texts"),
        ("ITPrompt", "backbone=vit_moco1k classifier=text", "classifier text needs CLIP's texts"),
        ("ZeroShot", "backbone=vit_moco1k", "ZeroShot needs CLIP's texts"),
        ("ITPrompt", "backbone=vit_clip-vit-b16 activation=gelu", "activation: CLIP's; vit_clip-vit-b16 has one of its"),
        ("ITPrompt", "backbone=vit_clip-mini", r"prompt_layers \[0, 1, 2, 3, 4\]: the backbone has blocks 0 to 3"),
        ("ITPrompt", "train_head=false", "train_head false contradicts it"),
        ("ITPromptCNCM", "text_guide=off train_head=false", "no loss would reach the prompts"),
        ("ITPromptCNCM", "lambda_text=0", "no loss would reach the prompts"),
        ("ZeroShot", "selector=cncm", "ZeroShot has no prompts"),
        ("NCM", "classifier=cncm", "NCM has no prompts"),
        ("ITPrompt", "--n_centroids 2 --ca_lr 1", "ca_lr, n_centroids: VQ-Prompt's, and without effect on IT-Prompt"),
        ("ITPrompt", "schedule=[1]", "schedule: VQ-Prompt's, and without effect on IT-Prompt. Leave them out."),
    ],
)  # fmt: skip
def test_refused(name, given, told):
    words = [given] if "[" in given or given.startswith("template") else given.split()
    with pytest.raises(UserError, match=told):
        read(name, *words)


def test_records_name_what_is_another_method():
    assert method_label(of("ITPromptCNCM", epochs=1)) == "IT-Prompt + C-NCM (our reading)"
    assert method_label(of("ITPrompt", rebalance=False)) == "IT-Prompt (our reading), rebalance False"
    oracle = of("ITPromptCNCM", selector="oracle", scope="task")
    assert method_label(oracle) == "IT-Prompt + C-NCM (our reading), scope task, selector oracle"
    assert method_label(of("NCM")) == "NCM, no prompts (CLIP)"
    assert method_label(of("ITPrompt", backbone="vit_dino1k")) == "IT-Prompt (our reading)"


def test_image_net_r_is_named_by_wordnet_id():
    """Names are kept in the order of the sorted ids; VQ-Prompt's labels are in another one, which texts follow."""
    wnids = [f"n{2_000_000 + 7 * label:08d}" for label in range(200)]
    wnids[0], wnids[1] = "n01443537", "n01484850"  # goldfish and great white shark, the lowest ids of ImageNet-R
    shuffled = [wnids[(37 * label + 5) % 200] for label in range(200)]
    names = class_names(ImageSet("ImageNetR", None, None, shuffled, []))
    assert names[shuffled.index("n01443537")] == "goldfish"
    assert names[shuffled.index("n01484850")] == "great white shark"
    assert sorted(names) == sorted(read_names("imagenet_r"))
    birds = ImageSet("CUB200", None, None, ["Black footed Albatross"], [])
    assert class_names(birds) == ["Black footed Albatross"]
