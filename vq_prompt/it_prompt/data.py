"""IT-Prompt's class orders, transforms and class names; the sets themselves are read by vq_prompt.data."""

from common.datasets.images import ImageSet, Transform
from common.datasets.names import read_names
from common.datasets.transforms import clip_eval, clip_train
from common.incremental.scenario import Scenario, read_class_order
from common.incremental.sets import vit_transforms
from vq_prompt import data as vq_data
from vq_prompt.it_prompt.options import ITOptions


def scenario(options: ITOptions, seed: int) -> Scenario:
    """The tasks. CIFAR-100, TinyImageNet and the miniature have one class order, others the seed's (README, 8)."""
    data = vq_data.data_set(options)
    if not data.order:
        return vq_data.scenario(options, seed)
    return vq_data.split_order(options, read_class_order(f"class_orders/{data.order}.yaml"))


def transforms(options: ITOptions, size: int) -> tuple[Transform, Transform]:
    """Training and test transform: CLIP's normalisation and bicubic, or for a ViT those of VQ-Prompt."""
    data = vq_data.data_set(options)
    if options.is_clip:
        return clip_train(size, data.least_area, flip=data.flip), clip_eval(size)
    return vit_transforms(data, size)


def spoken_names(data: ImageSet) -> list[str]:
    """Class names as texts have them, in label order; ImageNet-R's WordNet ids become names (README, section 8)."""
    if data.name != "ImageNetR":
        return [name.replace("_", " ") for name in data.classnames]
    names = dict(zip(sorted(data.classnames), read_names("imagenet_r")))
    return [names[wnid] for wnid in data.classnames]
