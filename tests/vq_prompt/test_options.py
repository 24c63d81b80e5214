"""What both learners' options share: where they are read from, what is derived from them, what is refused."""

import pytest
import yaml

from common.errors import UserError
from vq_prompt.data import scenario
from vq_prompt.options import VQOptions, device_of, log_dir_of, run_seeds, scale_of
from vq_prompt.it_prompt.options import ITOptions
from vq_prompt.run import parse
from vq_prompt.run import main

CIFAR = ["--config", "configs/cifar-100_prompt_vq.yaml"]
VQ = [*CIFAR, "--learner_type", "prompt", "--learner_name", "VQPrompt", "--prompt_param", "10", "8", "1"]
IT = ["--config", "configs/cifar-100_it_prompt.yaml", "--learner_type", "it_prompt", "--learner_name", "ITPrompt"]


@pytest.mark.parametrize(
    "words", [["--learner_type=it_prompt"], ["learner_type=it_prompt"], ["--learner-type", "it_prompt"]]
)
def test_the_learner_is_read_first(words):
    options = parse([*IT[:2], *words, "--learner_name", "NCM", "n_clusters=3"])
    assert isinstance(options, ITOptions) and options.learner_type == "it_prompt"
    assert isinstance(parse(VQ), VQOptions)


def test_the_learner_may_stand_in_the_file(tmp_path):
    content = {"dataset": "CUB200", "first_split_size": 20, "other_split_size": 20, "learner_name": "ITPrompt"}
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(content | {"learner_type": "it_prompt", "epochs": 3}))
    options = parse(["--config", str(path)])
    assert isinstance(options, ITOptions) and options.epochs == 3 and options.selector == "softmax"


def test_left_to_right():
    """The file, then the command line, on which a preset is overridden by what follows it."""
    assert parse(VQ).lr == 0.0025
    mini = parse([*VQ, "lr=0.5", "--scale", "mini"])
    assert (mini.lr, mini.prompt_param, mini.dataroot) == (0.01, [10, 2, 1], "mini")
    assert parse([*VQ, "--scale", "mini", "--set", "lr=0.5", "ca_lr=0.3"]).lr == 0.5
    assert parse([*IT, "--scale", "mini", "--prompt_layers", "0,2"]).prompt_layers == [0, 2]
    assert not parse([*VQ, "--no_ca"]).adaptive_pred and not parse([*VQ, "--adaptive_pred"]).adaptive_pred
    assert not parse([*VQ, "adaptive_pred=false"]).adaptive_pred and parse(VQ).adaptive_pred


def test_the_linear_probe_on_common_ground():
    """All classes at once, whatever the sizes of tasks; --prompt_param is without a meaning."""
    words = ["--learner_name", "LinearProbe", "--prompt_param", "0", "0", "1", "protocol=common", "transforms=common"]
    options = parse([*CIFAR, "--learner_type", "prompt", *words, "class_order=class_orders/common/{dataset}-seed{seed}.yaml"])
    assert [len(task) for task in scenario(options, 0).tasks] == [100] and options.first_split_size == 10


def test_seeds_and_folder():
    options = parse([*VQ, "--repeat", "3", "--seeds", "7", "--log_dir", "here"])
    assert (options.seeds, run_seeds(options)) == ([7], [7, 1, 2])
    assert run_seeds(parse([*VQ, "--seeds", "7", "8", "9"])) == [7]
    assert (scale_of(options), log_dir_of(options)) == ("paper", "here")
    for words in (["--scale", "mini"], ["dataroot=mini"], *(["--pretrained_weight", name] for name in ("mini", "clip-mini"))):
        options = parse([*VQ, "--log_dir", "here", *words])
        assert (scale_of(options), log_dir_of(options), options.log_dir) == ("mini", "here-mini", "here")
    for word in ("clip_weights=mini", "backbone=vit_mini", "backbone=vit_clip-mini"):
        assert scale_of(parse([*IT, word, "prompt_layers=0"])) == "mini"
    assert scale_of(parse([*IT, "backbone=vit_sup1k", "clip_weights=mini"])) == "paper"  # a CLIP that has no part


@pytest.mark.parametrize(
    "words, device",
    [
        ([], "auto"),
        (["--gpuid", "0"], "auto"),
        (["--gpuid", "-1"], "cpu"),
        (["--gpuid", "2"], "cuda:2"),
        (["--gpuid", "2", "--device", "cpu"], "cpu"),
    ],
)
def test_device(words, device):
    assert device_of(parse([*VQ, *words])) == device


@pytest.mark.parametrize(
    "words, told",
    [
        (CIFAR, "--learner_type: missing. Give prompt or it_prompt."),
        ([*CIFAR, "--learner_type", "prompt"], "--learner_name: missing"),
        (["--learner_type", "prompt", "--learner_name", "NCM"], "--config: missing. Give a yaml file"),
        ([*VQ, "--n_clusters", "3"], "n_clusters: IT-Prompt's, and without effect on VQ-Prompt. Leave them out."),
        ([*VQ, "--set", "selector=key", "scope=task"], "scope, selector: IT-Prompt's"),
        ([*VQ, "--repeat", "2", "--seeds", "3", "3"], "--seeds 3 3: a value occurs twice"),
        ([*VQ, "--repeat", "2", "--seeds", "1"], "--seeds 1 1, one a run: one occurs twice"),
        ([*VQ, "--seeds", "-1"], "--seeds -1: give 0 or more"),
        ([*VQ, "--repeat", "0"], "--repeat 0: give 1 or more"),
        ([*VQ, "--overwrite", "2"], "--overwrite 2: unknown. Known are 0, 1."),
        ([*VQ, "max_task=0"], "max_task 0: give 1 or more, -1 for all"),
        ([*VQ, "split=99999999999"], "split 99999999999: a seed is at most"),
        ([*VQ, "schedule=[1,1]"], r"schedule \[1, 1\], iter_step 40: give \[freeze"),
        ([*VQ, "schedule=[40,0,1]"], "no iterations are left"),
        ([*VQ, "schedule=[1,-1,1]"], "schedule -1: give 0 or more"),
        ([*VQ, "ca_batch_size_ratio=0.001"], "--ca_batch_size_ratio 0.001: of batch_size 128 no sample is left"),
        ([*VQ, "prompt_lr_mult=0"], "prompt_lr_mult 0.0: give more than 0"),
        ([*VQ, "--crct_epochs", "0"], "--crct_epochs 0: give 1 or more"),
        ([*VQ, "--prompt_param", "10", "8", "0"], "give a temperature above 0"),
        ([*VQ, "--prompt_param", "10", "8", "nan"], "--prompt_param nan: give a finite number"),
        ([*VQ, "--log_dir", ""], "--log_dir: it is empty"),
        ([*IT, "other_split_size=7"], "first_split_size 10, other_split_size 7: increment 7 does not divide"),
        ([*VQ, "protocol=common", "transforms=null"], "^protocol common: give transforms=common"),
        ([*VQ, "protocol=common", "class_order=null", "--repeat", "2"], "the classes are not in the seed's order"),
        ([*IT, "protocol=common", "split=7", "dataset=ImageNet_R"], "protocol common: 20 tasks, of 10 classes"),
        ([*IT, "dataset=CIFAR"], "dataset CIFAR: unknown. Did you mean CIFAR100?"),
    ],
)
def test_refused(words, told):
    with pytest.raises(UserError, match=told):
        parse(words)


def test_nothing_is_written_for_what_is_refused(tmp_path):
    with pytest.raises(SystemExit) as stop:
        main([*IT, "--log_dir", str(tmp_path / "out"), "other_split_size=7"])
    assert stop.value.code == 2 and not list(tmp_path.iterdir())


def test_without_effect_is_told(capsys):
    parse(VQ)  # the configuration names dead keys of the original, at their defaults
    assert not capsys.readouterr().out
    parse([*VQ, "--temp", "3", "momentum=0.5"])
    assert capsys.readouterr().out.count("no effect, as in the original") == 2


@pytest.mark.parametrize("words, own, other", [([], "--prompt_param", "it_prompt"), (IT, "--n_clusters", "prompt")])
def test_help(words, own, other, capsys):
    with pytest.raises(SystemExit) as stop:
        parse([*words, "--help"])
    said = capsys.readouterr().out
    assert stop.value.code == 0 and own in said and f"--learner_type {other} --help" in " ".join(said.split())
