"""Evaluation against golden/moe_adapters/eval_ddas, and the official checkpoints' key layout at the real sizes."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from common.clip.model import CLIP, CLIPConfig, build_model
from common.datasets.transforms import CLIP_MEAN, CLIP_STD
from common.evaluation.zero_shot import class_vectors, zeroshot_logits
from moe_adapters.adapters import ORIGINAL_CLIP, insert_adapters, is_adapter_key, use_router
from moe_adapters.ddas import AutoEncoder, autoencoder_input, build_autoencoders, reconstruction_errors, select_task
from moe_adapters.evaluation import Checkpoint, EvaluationSet, is_unused
from moe_adapters.options import Options
from tests.golden_files import Golden

TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}  # the fixtures' README


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden("moe_adapters/eval_ddas")


def golden_clip(golden: Golden) -> CLIP:
    """The fixture's CLIP with adapters at their initial state; the adapters come as a checkpoint."""
    weights = golden.under("sd/")
    plain = {key: value for key, value in weights.items() if not is_adapter_key(key) and not is_unused(key)}
    return insert_adapters(build_model(plain), golden.meta["E"], golden.meta["k"])


def golden_adapters(golden: Golden) -> dict[str, torch.Tensor]:
    return {key: value for key, value in golden.under("sd/").items() if is_adapter_key(key)}


def golden_extractor(golden: Golden) -> nn.Module:
    """The fixture's tiny AlexNet, cut as upstream cuts it: the last convolution without its ReLU."""
    channels, out = golden.meta["ch"], golden.meta["c2"]
    layers = [nn.Conv2d(3, channels, 3, stride=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(channels, out, 3, padding=1)]
    features = nn.Sequential(*layers)
    features.load_state_dict({key.removeprefix("features."): value for key, value in golden.under("alexnet/").items()})
    return features.eval().requires_grad_(False)


def golden_autoencoders(golden: Golden) -> list[AutoEncoder]:
    autoencoders = [AutoEncoder(golden.meta["feat_dim"], golden.meta["code"]) for _ in range(12)]
    for index, autoencoder in enumerate(autoencoders):
        autoencoder.load_state_dict(golden.under(f"ae/{index}."))
    return autoencoders


@pytest.fixture(scope="module")
def model(golden: Golden) -> CLIP:
    model = golden_clip(golden)
    weights = golden_adapters(golden)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert not [key for key in missing if is_adapter_key(key) and ".adaptmlp." not in key]
    return model


@pytest.mark.parametrize("task_id", range(ORIGINAL_CLIP, 11))
def test_class_vectors_of_every_router(golden: Golden, model: CLIP, task_id: int) -> None:
    use_router(model, task_id)
    assert_close(class_vectors(model, golden["tokens"]), golden["class_vectors"][task_id + 1], **TOLERANCE)


@pytest.mark.parametrize("task_id", [-1, 0, 1, 5, 10])
def test_features_of_a_router(golden: Golden, model: CLIP, task_id: int) -> None:
    use_router(model, task_id)
    with torch.no_grad():
        images, texts = model.encode_image(golden["batch0/images"]), model.encode_text(golden["tokens"][:, 0])
    assert_close(images, golden[f"router{task_id}/image_features"], **TOLERANCE)
    assert_close(texts, golden[f"router{task_id}/text_features"], **TOLERANCE)


def batches_of(golden: Golden) -> range:
    return range(len(golden["task_ids"]))


def test_ddas_errors_and_choices(golden: Golden) -> None:
    extractor, autoencoders = golden_extractor(golden), golden_autoencoders(golden)
    for batch in batches_of(golden):
        features = autoencoder_input(extractor, golden[f"batch{batch}/images"])
        errors = reconstruction_errors(autoencoders, features).mean(dim=0)
        assert_close(errors, golden["ae_losses"][batch], **TOLERANCE)
        assert select_task(errors, float(golden["threshold"])) == int(golden["task_ids"][batch])


def test_logits_of_the_chosen_router(golden: Golden, model: CLIP) -> None:
    for batch in batches_of(golden):
        use_router(model, int(golden["task_ids"][batch]))
        with torch.no_grad():
            features = model.encode_image(golden[f"batch{batch}/images"])
        assert_close(features, golden[f"batch{batch}/image_features_raw"], **TOLERANCE)
        logits = zeroshot_logits(features, class_vectors(model, golden["tokens"]))
        assert_close(logits, golden[f"batch{batch}/logits"], **TOLERANCE)


def test_test_sets_reach_the_official_accuracy(golden: Golden) -> None:
    """One set a stored batch (they are ragged), from a model without the adapters: the checkpoint brings them."""
    extractor, autoencoders = golden_extractor(golden), golden_autoencoders(golden)
    model = golden_clip(golden)
    checkpoint = Checkpoint(10, golden_adapters(golden), list(range(12)))
    options = Options(autorouter=True, threshold=float(golden["threshold"]))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    top1 = top5 = images = 0.0
    for batch in batches_of(golden):
        pixels = (golden[f"batch{batch}/images"] * std + mean) * 255  # the fixture's images are no whole grey levels
        labels = golden[f"batch{batch}/labels"]
        test = EvaluationSet(model, pixels, labels, golden["tokens"], batch_size=len(pixels))
        test.measure_errors(extractor, autoencoders)
        cell = test.evaluate(checkpoint, options, task_id=None)
        assert cell.routed == {int(golden["task_ids"][batch]): len(pixels)}
        top1, images = top1 + cell.top1 * len(labels), images + len(labels)
        top5 += cell.accuracies["accuracy_top5"] * len(labels)
    assert top1 / images == pytest.approx(float(golden["top1"]), abs=1e-9)
    assert top5 / images == pytest.approx(float(golden["top5"]), abs=1e-9)


def test_official_keys_at_the_real_sizes() -> None:
    """ViT-B/16 with 22 experts and 11 routers: keys, shapes and order of the authors' checkpoints."""
    golden = Golden("moe_adapters/state_dict_keys_mtil")
    with torch.device("meta"):
        model = CLIP(CLIPConfig(512, 224, 12, 768, 16, 77, 49408, 512, 8, 12))
        insert_adapters(model, golden.meta["experts"], topk=2)
        autoencoders = build_autoencoders(12, 256 * 13 * 13)
    for module, prefix in ((model, ""), (autoencoders, "ae_")):
        state_dict = module.state_dict()
        assert list(state_dict) == golden.lines(f"{prefix}keys")
        assert [str(list(value.shape)) for value in state_dict.values()] == golden.lines(f"{prefix}shapes")
    assert [name for name, _ in model.named_parameters()] == golden.lines("named_parameters")
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trainable == golden.meta["trainable_params"]
