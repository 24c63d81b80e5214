"""IT-Prompt's class orders, transforms and class names; the sets themselves are read by vq_prompt.data."""

from common.datasets.images import ImageSet, Transform
from common.incremental.scenario import Scenario, read_class_order
from common.datasets.names import read_names
from common.datasets.transforms import characters_train, clip_eval, clip_train, vit_eval, vit_train
from vq_prompt import data as vq_data
from vq_prompt.it_prompt.options import ITOptions

ORDERS = {"CIFAR100": "cifar100", "TinyImageNet": "tinyimagenet"}  # one class order whatever the seed
LEAST_AREA = 0.08  # of a training crop
MINI_LEAST_AREA = 0.75  # a character cut further, or mirrored, is another one


def scenario(options: ITOptions, seed: int) -> Scenario:
    """The tasks. CIFAR-100, TinyImageNet and the miniature have one class order, others that of the seed (B4)."""
    mini = options.dataroot == vq_data.MINI
    if not mini and options.dataset not in ORDERS:
        return vq_data.scenario(options, seed)
    order = read_class_order(f"class_orders/{'mini' if mini else ORDERS[options.dataset]}.yaml")
    first, step = options.first_split_size, options.other_split_size
    return Scenario(order, *((len(order), len(order)) if options.upper_bound_flag else (first, step)))


def transforms(options: ITOptions, size: int) -> tuple[Transform, Transform]:
    """Of training and of everything else: CLIP's normalisation and bicubic, or for a ViT those of VQ-Prompt."""
    mini = options.dataroot == vq_data.MINI
    if options.is_clip:
        return clip_train(size, MINI_LEAST_AREA if mini else LEAST_AREA, flip=not mini), clip_eval(size)
    shorter_side = size if mini or options.dataset == "CIFAR100" else size * 256 // 224
    return (characters_train if mini else vit_train)(size), vit_eval(size, shorter_side)


def spoken_names(data: ImageSet) -> list[str]:
    """The class names as texts have them, in label order; ImageNet-R's WordNet ids become names (B4)."""
    if data.name != "ImageNetR":
        return [name.replace("_", " ") for name in data.classnames]
    names, place = read_names("imagenet_r"), {wnid: row for row, wnid in enumerate(sorted(data.classnames))}
    return [names[place[wnid]] for wnid in data.classnames]
