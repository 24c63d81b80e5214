"""The miniature's models: sizes, keys, and the accuracy that the pre-training's log records."""

import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

import common.mini
from common import vit
from common.clip.model import build_model
from common.clip.pretrained import find_weights, load_state_dict
from common.clip.tokenizer import tokenize
from common.datasets.miniature import load_domain
from common.datasets.transforms import clip_eval
from common.errors import UserError, exit_cleanly
from common.evaluation.zero_shot import accuracy, zeroshot_logits, zeroshot_weights
from common.files import unwritable
from common.mini import CLIP_FILE, VIT_FILE, pretrain, show
from common.mini.domains import DOMAINS, INCREMENTAL
from common.mini.weights import ddas_features
from common.vit import MINI_SIZES, backbone_weights

FOLDER = Path(common.mini.__file__).parent
SCORE = re.compile(r"zero-shot (\w+): web ([\d.]+) train ([\d.]+) test ([\d.]+)")


def logged(model: str) -> str:
    return (FOLDER / f"pretrain_{model}.log").read_text()


@pytest.fixture(scope="module")
def clip():
    return build_model(load_state_dict(CLIP_FILE))


@torch.no_grad()
def score(clip, data):
    prompts = [[wording.replace("{}", name) for wording in data.templates] for name in data.classnames]
    weights = zeroshot_weights(torch.stack([clip.encode_text(tokenize(row)) for row in prompts]))
    images, labels = zip(*(data.test[k] for k in range(len(data.test))))
    logits = zeroshot_logits(clip.encode_image(torch.stack(images)), weights)
    return accuracy(logits, torch.tensor(labels), topk=(1,))[0]


def test_zero_shot_accuracies_are_those_of_the_log(clip):
    scores = {name: float(test) for name, _, _, test in SCORE.findall(logged("clip"))}
    assert set(scores) == {*DOMAINS, "Characters"}
    for name in DOMAINS:
        assert score(clip, load_domain(name, None, clip_eval(32))) == pytest.approx(scores[name], abs=0.5)
    assert score(clip, load_domain(INCREMENTAL, None, clip_eval(32))) == pytest.approx(scores["Characters"], abs=0.5)


def test_zero_shot_accuracies_spread_as_real_ones_do():
    scores = sorted(float(test) for name, _, _, test in SCORE.findall(logged("clip")) if name in DOMAINS)
    assert 45 <= sum(scores) / len(scores) <= 70  # CLIP ViT-B/16 on the real eleven: mean 65, from 24 to 89
    assert scores[0] < 45 and scores[-1] > 90


def test_clip_has_between_half_and_three_million_parameters_besides_the_token_table(clip):
    size = sum(parameter.numel() for name, parameter in clip.named_parameters() if "token" not in name)
    assert 0.5e6 < size < 3e6
    assert clip.token_embedding.weight.shape == (49408, 64) and clip.context_length == 77


def test_unseen_tokens_have_initial_values_and_not_zeros(clip):
    rows = clip.token_embedding.weight[tokenize("wombats gossip")[0, 1:3]]
    assert rows.std().item() == pytest.approx(0.02, rel=0.3)
    assert torch.equal(load_state_dict(CLIP_FILE)["token_embedding.weight"], clip.token_embedding.weight)


def test_vit_loads_into_timm():
    model = VisionTransformer(**MINI_SIZES, num_classes=0)
    model.load_state_dict(backbone_weights(VIT_FILE), strict=True)
    features = model.eval()(torch.randn(2, 3, 32, 32))
    assert features.shape == (2, MINI_SIZES["embed_dim"]) and features.isfinite().all()


def test_chooser_features_are_fixed_and_leave_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.randn(4)
    torch.manual_seed(5)
    first = ddas_features()
    assert torch.equal(torch.randn(4), expected)
    images = torch.randn(3, 3, 32, 32)
    assert torch.equal(first(images), ddas_features()(images))
    assert first(images).shape == (3, 2048) and not first.training
    assert not any(parameter.requires_grad for parameter in first.parameters())


def test_folder_stays_below_ten_megabytes():
    files = (path for path in FOLDER.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert sum(path.stat().st_size for path in files) < 10e6


def test_its_name_is_that_of_files():
    assert (find_weights("mini"), vit.find_weights("mini")) == (CLIP_FILE, VIT_FILE)
    with pytest.raises(UserError, match="Did you mean mini"):
        find_weights("mimi")


@pytest.mark.parametrize(("program", "words"), [(show, []), (pretrain, ["vit", "--steps", "9999999", "--out"])])
def test_an_output_that_cannot_be_written_is_told_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture, program: ModuleType, words: list[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert unwritable(tmp_path / "nowhere" / "x.png") is None  # a folder that will be made
    for path, told in (
        (tmp_path / "file" / "folder" / "x.png", f"{tmp_path / 'file'} is no folder that can be written."),
        (tmp_path, "a folder. Give a file's name."),
    ):
        with pytest.raises(SystemExit) as stop:
            exit_cleanly(program.main)([*words, str(path)])
        said = capsys.readouterr().err
        assert stop.value.code == 2 and said.endswith(f" {path}: {told}\n")
