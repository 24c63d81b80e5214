"""IT-Prompt's options: defaults, presets, and what is refused with one message."""

import pytest

from common.datasets.images import ImageSet
from common.datasets.names import read_names
from common.errors import UserError
from vq_prompt.it_data import spoken_names
from vq_prompt.it_options import it_options, method_label

DEFAULTS = {  # spec B5
    "learner_name": "ITPromptCNCM", "backbone": "clip_vitb16", "selector": "cncm", "classifier": "cncm",
    "scope": "seen", "train_head": False, "text_guide": "ce", "text_classes": "current", "template": "a photo of {}",
    "logit_scale": 100.0, "lambda_text": 1.0, "lambda_key": 1.0, "tpi_hidden": 512, "prompt_layers": (0, 1, 2, 3, 4),
    "prompt_length": 8, "prompt_init": 1.0, "init_from_prev": True, "lr": 0.0025, "weight_decay": 0.0, "epochs": 20,
    "batch_size": 128, "drop_last": False, "rebalance": True, "rebalance_epochs": 10, "rebalance_per_class": 256,
    "rebalance_batch": 128, "rebalance_lr": 0.0025, "n_clusters": 10, "tukey_beta": 1.0, "center": False,
    "renorm_centroids": True, "aggregate": "min", "zero_shot": "plain", "clip_weights": "ViT-B/16",
}  # fmt: skip


def test_defaults():
    assert vars(it_options("ITPromptCNCM", {})) == DEFAULTS
    softmax = {"learner_name": "ITPrompt", "selector": "softmax", "classifier": "softmax", "train_head": True}
    assert vars(it_options("ITPrompt", {})) == DEFAULTS | softmax
    assert vars(it_options("ITPrompt", {"selector": "key"}))["selector"] == "key"
    assert it_options("NCM", {"n_clusters": 5}).n_clusters == 1


@pytest.mark.parametrize(
    "name, given, head",
    [
        ("ITPromptCNCM", {"text_guide": "off"}, True),
        ("ITPromptCNCM", {"text_guide": False}, True),  # YAML's own reading of off
        ("ITPromptCNCM", {"train_head": True}, True),
        ("ITPromptCNCM", {"backbone": "vit_dino1k"}, True),
        ("ITPrompt", {"classifier": "text"}, False),
        ("NCM", {}, False),
    ],
)
def test_a_head_where_it_is_needed(name, given, head):
    options = it_options(name, given)
    assert options.train_head is head
    assert options.text_guide in ("ce", "off") and (options.is_clip or options.text_guide == "off")


@pytest.mark.parametrize(
    "name, given, told",
    [
        ("ITPrompts", {}, "learner_name ITPrompts: unknown. Did you mean ITPrompt\\?"),
        ("ITPrompt", {"selectr": "key"}, "unknown key selectr. Did you mean selector\\?"),
        ("ITPrompt", {"selector": "cnmc"}, r"selector cnmc: unknown. Did you mean cncm\? Known are softmax, cncm, key"),
        ("ITPrompt", {"selector": "none"}, "selector none: unknown"),
        ("ITPrompt", {"backbone": "vit_dino"}, "backbone vit_dino: unknown. Did you mean vit_dino1k\\?"),
        ("ITPrompt", {"train_head": "yes"}, "train_head yes: unknown. .*auto, True, False"),
        ("ITPrompt", {"train_head": 1}, "train_head 1: unknown"),
        ("ITPrompt", {"zero_shot": "prompted"}, "zero_shot prompted: unknown"),
        ("ITPrompt", {"epochs": 2.5}, "epochs is 2.5, which is no int"),
        ("ITPrompt", {"center": "no"}, "center is 'no', which is no bool"),
        ("ITPrompt", {"prompt_layers": ["a"]}, "prompt_layers is .* no list of whole numbers"),
        ("ITPrompt", {"prompt_layers": []}, r"prompt_layers \[\]: give different block numbers"),
        ("ITPrompt", {"prompt_layers": [1, 1]}, r"prompt_layers \[1, 1\]"),
        ("ITPrompt", {"prompt_length": 5}, "prompt_length 5: one half .* even number"),
        ("ITPrompt", {"lr": 0}, "lr 0.0: give more than 0"),
        ("ITPrompt", {"lr": float("nan")}, "lr nan: give more than 0"),
        ("ITPrompt", {"lambda_key": -1}, "lambda_key -1.0: give 0 or more"),
        ("ITPrompt", {"n_clusters": 0}, "n_clusters 0: give 1 or more"),
        ("ITPrompt", {"template": "a photo"}, "template 'a photo' needs {}"),
        ("ITPrompt", {"backbone": "vit_moco1k", "text_guide": "ce"}, "text_guide ce: vit_moco1k has no texts"),
        ("ITPrompt", {"backbone": "vit_moco1k", "classifier": "text"}, "classifier text needs CLIP's texts"),
        ("ZeroShot", {"backbone": "vit_moco1k"}, "ZeroShot needs CLIP's texts"),
        ("ITPrompt", {"train_head": False}, "train_head false contradicts it"),
        ("ITPromptCNCM", {"text_guide": "off", "train_head": False}, "no loss would reach the prompts"),
        ("ITPromptCNCM", {"lambda_text": 0}, "no loss would reach the prompts"),
        ("ZeroShot", {"selector": "cncm"}, "ZeroShot has no prompts"),
    ],
)
def test_refused(name, given, told):
    with pytest.raises(UserError, match=told):
        it_options(name, given)


def test_records_name_what_is_another_method():
    assert method_label(it_options("ITPromptCNCM", {"epochs": 1})) == "IT-Prompt + C-NCM (our reading)"
    assert method_label(it_options("ITPrompt", {"rebalance": False})) == "IT-Prompt (our reading), rebalance False"
    oracle = it_options("ITPromptCNCM", {"selector": "oracle", "scope": "task"})
    assert method_label(oracle) == "IT-Prompt + C-NCM (our reading), scope task, selector oracle"
    assert method_label(it_options("NCM", {})) == "NCM, no prompts (CLIP)"
    assert method_label(it_options("ITPrompt", {"backbone": "vit_dino1k"})) == "IT-Prompt (our reading)"


def test_image_net_r_is_named_by_wordnet_id():
    """Names are kept in the order of the sorted ids; VQ-Prompt's labels are in another one, which texts follow."""
    wnids = [f"n{2_000_000 + 7 * label:08d}" for label in range(200)]
    wnids[0], wnids[1] = "n01443537", "n01484850"  # goldfish and great white shark, the lowest ids of ImageNet-R
    shuffled = [wnids[(37 * label + 5) % 200] for label in range(200)]
    names = spoken_names(ImageSet("ImageNetR", None, None, shuffled, []))
    assert names[shuffled.index("n01443537")] == "goldfish"
    assert names[shuffled.index("n01484850")] == "great white shark"
    assert sorted(names) == sorted(read_names("imagenet_r"))
    birds = ImageSet("CUB200", None, None, ["Black footed Albatross"], [])
    assert spoken_names(birds) == ["Black footed Albatross"]
