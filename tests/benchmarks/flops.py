"""How much arithmetic a training step is: 2 FLOPs a multiply-add, matrix products, convolutions and attention alone.

Figures of towers are of one image or one text. A backward pass costs a forward for the gradients of the inputs and
another for those of the weights (in a product of two activations, of the other input); what has no gradient costs
nothing. Biases, norms, softmax, losses and optimisers are left out, and of what a paper adds to its backbone whatever
is below a thousandth of a step at the paper's sizes.
"""

from dataclasses import dataclass

from timm.models.vision_transformer import VisionTransformer

from common.clip.model import CLIPConfig


@dataclass(frozen=True)
class Tower:
    """Forward FLOPs of a transformer: before its first block, after its last; of a block by tokens n and width d."""

    entry: float
    head: float
    depth: int
    tokens: int
    width: int

    @property
    def projections(self) -> float:
        """Query, key and value of one block."""
        return 6 * self.tokens * self.width**2

    @property
    def attention(self) -> float:
        """The two products with one block's attention matrix."""
        return 4 * self.tokens**2 * self.width

    @property
    def block(self) -> float:
        """With the output's projection, 2 n d^2, and the MLP, 16 n d^2."""
        return 4 * self.projections + self.attention

    @property
    def forward(self) -> float:
        return self.entry + self.depth * self.block + self.head

    @property
    def trained(self) -> float:
        """Forward and backward where all weights train; nothing asks for the gradient of the pixels."""
        return 3 * self.forward - self.entry

    @property
    def through(self) -> float:
        """Forward and backward where all weights are frozen, down to the input of the first block."""
        return 2 * self.forward - self.entry + self.depth * self.attention

    @property
    def above_first_attention(self) -> float:
        """As `through`, but no further down than the first block's queries, keys and values."""
        return self.through - self.projections

    @property
    def above_first_block(self) -> float:
        """As `through`, with nothing of the first block."""
        return self.through - self.block - self.attention

    def prefix(self, length: int) -> float:
        """Forward and backward of so many more keys and values in one block's attention."""
        return 3 * 4 * self.tokens * length * self.width


def vit(resolution: int, patch: int, width: int, depth: int, output: int = 0) -> Tower:
    """35.13 GF for ViT-B/16 at 224 pixels; output 0: no projection."""
    patches = (resolution // patch) ** 2
    entry, head = 6 * patches * patch**2 * width, 2 * width * output
    return Tower(entry, head, depth, patches + 1, width)


def timm_vit(model: VisionTransformer) -> Tower:
    embed = model.patch_embed
    return vit(embed.img_size[0], embed.patch_size[0], model.embed_dim, len(model.blocks))


def image_tower(config: CLIPConfig) -> Tower:
    """Of a CLIP with a ViT."""
    resolution, patch, width = config.image_resolution, config.vision_patch_size, config.vision_width
    return vit(resolution, patch, width, config.vision_layers, config.embed_dim)


def text_tower(config: CLIPConfig, tokens: int) -> Tower:
    """5.96 GF at 77 tokens."""
    width = config.transformer_width
    return Tower(0, 2 * width * config.embed_dim, config.transformer_layers, tokens, width)


def image_forward(config: CLIPConfig) -> float:
    """Of either image tower."""
    return resnet(config) if config.vision_patch_size is None else image_tower(config).forward


def resnet(config: CLIPConfig) -> float:
    """CLIP's ModifiedResNet: convolutions at the resolution they work at, attention pooling with a single query.

    11.59 GF for RN50; 12.22 where the pooling computes all queries, of which one is used.
    """
    width, side = config.vision_width, config.image_resolution // 2
    half, total = width // 2, 0
    total += 18 * side**2 * (3 * half + half * half + half * width)  # stem: three 3 x 3 convolutions
    side, inputs = side // 2, width
    for stage, depth in enumerate(config.vision_layers):
        planes = width * 2**stage
        for number in range(depth):
            smaller = side // 2 if stage and number == 0 else side  # pooled before the last convolution
            total += 2 * side**2 * (inputs * planes + 9 * planes**2) + 2 * smaller**2 * planes * 4 * planes
            total += 2 * smaller**2 * inputs * 4 * planes if number == 0 else 0
            side, inputs = smaller, 4 * planes
    tokens = side**2 + 1
    return total + 2 * inputs**2 + 4 * tokens * inputs**2 + 4 * tokens * inputs + 2 * inputs * config.embed_dim


def similarity(images: int, texts: int, width: int) -> float:
    """Of so many images and texts, forward."""
    return 2 * images * texts * width


# A step of each paper


def zscl_step(config: CLIPConfig, batch: int, texts: tuple[int, int]) -> float:
    """Fine-tuning on a batch of images and (count, tokens) of texts."""
    count, tokens = texts
    towers = batch * image_tower(config).trained + count * text_tower(config, tokens).trained
    return towers + 3 * similarity(batch, count, config.embed_dim)


def zscl_distillation(config: CLIPConfig, batch: int, sentences: int, known: bool = False) -> float:
    """What a batch of reference images adds, whose teacher's features are `known` or computed."""
    tower = image_tower(config)
    images = batch * (tower.trained + (0 if known else tower.forward))
    return images + 3 * similarity(batch, sentences, config.embed_dim)


def zscl_plain_step(config: CLIPConfig, batch: int, classes: int, captions: int) -> float:
    """ZSCL at 77 tokens, the captions encoded too."""
    encoded = captions * text_tower(config, config.context_length).forward
    step = zscl_step(config, batch, (classes, config.context_length))
    return step + zscl_distillation(config, batch, captions) + encoded


def frozen_clip_step(config: CLIPConfig, batch: int, texts: tuple[int, int]) -> float:
    """Both towers frozen, down to their first blocks' inputs."""
    count, tokens = texts
    towers = batch * image_tower(config).through + count * text_tower(config, tokens).through
    return towers + 3 * similarity(batch, count, config.embed_dim)


def moe_step(config: CLIPConfig, batch: int, texts: tuple[int, int], topk: int, bottleneck: int) -> float:
    """The same with `topk` experts a block; below the first block's experts nothing has a gradient."""
    count, tokens = texts
    step = 3 * similarity(batch, count, config.embed_dim)
    for samples, tower in ((batch, image_tower(config)), (count, text_tower(config, tokens))):
        experts = topk * 4 * tower.tokens * tower.width * bottleneck
        step += samples * (tower.above_first_block + 3 * tower.depth * experts - experts / 2)
    return step


def inflora_step(tower: Tower, batch: int, rank: int) -> float:
    """The branches of one task in k and v of every block; A is frozen, B trains."""
    down = up = 4 * tower.tokens * tower.width * rank  # of both together
    branches = tower.depth * (2 * down + 3 * up) - down
    return batch * (tower.above_first_attention + branches)


def inflora_plain_step(tower: Tower, batch: int, rank: int, tasks: int) -> float:
    """k and v get products of the size of W, gradients too; the B A of `tasks` tasks are made anew in each block."""
    update = 4 * tower.tokens * tower.width**2
    made = tower.depth * (4 * tasks + 4) * rank * tower.width**2  # all tasks forwards, the last one's B backwards
    return batch * (tower.above_first_attention + 3 * tower.depth * update - update) + made


def prompted_step(tower: Tower, batch: int, layers: int, prefix: int) -> float:
    """A pass without prompts, then one with prefixes and its backward pass; both share the patches."""
    plain = tower.forward - tower.entry
    return batch * (plain + tower.above_first_attention + layers * tower.prefix(prefix))


def prompted_plain_step(tower: Tower, batch: int, layers: int, prefix: int) -> float:
    """The same, the patches anew and the gradients of all frozen weights with it."""
    return batch * (tower.forward + tower.trained + layers * tower.prefix(prefix))


def alta_step(config: CLIPConfig, batch: int, live: int, tokens: int) -> float:
    """Images without gradient, the prompts of `live` classes down to their context."""
    return batch * image_forward(config) + live * text_tower(config, tokens).through


def alta_plain_step(config: CLIPConfig, batch: int, classes: int) -> float:
    """All soft and all hard prompts at full length, for the batch and once more for the replay."""
    tower = text_tower(config, config.context_length)
    return batch * image_forward(config) + 2 * classes * (tower.through + tower.forward)


def frozen_twice(tower: Tower, batch: int) -> float:
    """A pass without gradients and one down to the first block's input, each from the pixels on."""
    return batch * (tower.forward + tower.through)
