"""CLIP (Radford et al., arXiv 2103.00020): image tower (ViT or ModifiedResNet), text tower, logits.

Module names give OpenAI's state-dict keys, so published archives and all fine-tuned checkpoints of the papers load
unchanged. Sequences are batch-first, (B, L, D). A paper that changes the network replaces blocks of
`model.visual.transformer.resblocks` and `model.transformer.resblocks`; adapters and prompts are in the papers' folders.
"""

import math
import re
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from common.attention import CLASS_TOKEN, attend, query_key_value, run_block

HEAD_WIDTH = 64  # of every attention head, but for those of ViT-H's image tower
VIT_H_WIDTH, VIT_H_HEADS = 1280, 16
QUICKGELU, GELU = "quickgelu", "gelu"
SIZE_KEYS = ("input_resolution", "context_length", "vocab_size")  # in OpenAI's archives beside the weights


@dataclass(frozen=True)
class CLIPConfig:
    """Sizes of a CLIP; `vision_layers` is a depth (ViT) or four stage depths (ModifiedResNet)."""

    embed_dim: int
    image_resolution: int
    vision_layers: int | tuple[int, int, int, int]
    vision_width: int
    vision_patch_size: int | None
    context_length: int
    vocab_size: int
    transformer_width: int
    transformer_heads: int
    transformer_layers: int


class LayerNorm(nn.LayerNorm):
    """Layer norm computed in float32 and cast back, so that half-precision towers stay stable."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class _QuickGELU(torch.autograd.Function):
    """Keeps its input alone for the backward pass: x * sigmoid(1.702 x) = silu(1.702 x) / 1.702."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (1.702 * x).sigmoid_().mul_(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradient, 1.702 * x)


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the activation of OpenAI's weights, which GELU does not reproduce."""

    def forward(self, x: Tensor) -> Tensor:
        return _QuickGELU.apply(x)


class Attention(nn.Module):
    """Multi-head self-attention in nn.MultiheadAttention's key names, with torch's fused kernel.

    x (B, L, D) -> (B, L, D), or of the tokens x[read] alone (common/attention.py); `causal` hides later positions.
    """

    def __init__(self, width: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, read: Any = ...) -> Tensor:
        queries = ... if self.causal else read  # the kernel's causal mask is that of all queries
        parts = query_key_value(x, self.in_proj_weight, self.in_proj_bias, queries)
        x = attend(*parts, self.heads, self.causal)
        return self.out_proj(x[read] if self.causal else x)


class ResidualAttentionBlock(nn.Module):
    """h = x + attn(ln_1(x)); out = h + mlp(ln_2(h)), for x of shape (B, L, D); with `read` of the tokens x[read]."""

    def __init__(self, width: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.attn = Attention(width, heads, causal)
        self.ln_1 = LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=nn.Linear(width, 4 * width), gelu=QuickGELU(), c_proj=nn.Linear(4 * width, width))
        )
        self.ln_2 = LayerNorm(width)

    def forward(self, x: Tensor, read: Any = ...) -> Tensor:
        hidden = x[read] + self.attn(self.ln_1(x), read)
        return hidden + self.mlp(self.ln_2(hidden))


class Transformer(nn.Module):
    """Blocks in sequence, (B, L, D) -> (B, L, D), or the tokens `read` of the last one's alone (common/attention.py).

    `checkpoint_activations` keeps only the blocks' inputs and recomputes the rest in the backward pass.
    """

    checkpoint_activations = False

    def __init__(self, width: int, layers: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.width, self.layers = width, layers
        self.resblocks = nn.Sequential(*(ResidualAttentionBlock(width, heads, causal) for _ in range(layers)))

    def forward(self, x: Tensor, read: Any = ...) -> Tensor:
        for block in self.resblocks:
            x = run_block(self.checkpoint_activations, block, x, read if block is self.resblocks[-1] else ...)
        return x


class VisionTransformer(nn.Module):
    """images (B, 3, R, R) -> (B, E): patches, class token, blocks, ln_post(class token) @ proj."""

    def __init__(
        self, input_resolution: int, patch_size: int, width: int, layers: int, heads: int, output_dim: int
    ) -> None:
        super().__init__()
        self.input_resolution, self.output_dim = input_resolution, output_dim
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size, bias=False)
        scale = width**-0.5
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn((input_resolution // patch_size) ** 2 + 1, width))
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(width, layers, heads)
        self.ln_post = LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, output_dim))

    def embed(self, images: Tensor) -> Tensor:
        """images (B, 3, R, R) -> tokens (B, L, D) for the first block, class token first."""
        # in the weights' dtype, also under autocast, so that the residual stream is not rounded to bfloat16
        patches = self.conv1(images).flatten(2).transpose(1, 2).to(self.conv1.weight.dtype)
        class_token = self.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        x = torch.cat([class_token, patches], dim=1) + self.positional_embedding.to(patches.dtype)
        return self.ln_pre(x)

    def pool(self, x: Tensor) -> Tensor:
        """Tokens (B, L, D) after the last block, or the first of them alone -> features (B, E)."""
        return self.ln_post(x[:, 0]) @ self.proj

    def forward(self, images: Tensor) -> Tensor:
        return self.pool(self.transformer(self.embed(images), CLASS_TOKEN))


class Bottleneck(nn.Module):
    """ResNet bottleneck with an average pool before the last convolution instead of a stride (anti-aliased)."""

    expansion = 4

    def __init__(self, inplanes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        out = planes * self.expansion
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(planes, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample = None
        if stride > 1 or inplanes != out:
            shortcut = [
                ("-1", nn.AvgPool2d(stride)),
                ("0", nn.Conv2d(inplanes, out, 1, bias=False)),
                ("1", nn.BatchNorm2d(out)),
            ]
            self.downsample = nn.Sequential(OrderedDict(shortcut))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        x = self.bn3(self.conv3(self.avgpool(x)))
        x += identity
        return F.relu(x, inplace=True)


class AttentionPool2d(nn.Module):
    """Attention pooling of a feature map (B, C, S, S) -> (B, E) with the mean token as the only query.

    A single query q needs no keys and values: q (W_k x) = (q W_k) x, and sum a (W_v x) = W_v (sum a x).
    """

    def __init__(self, spacial_dim: int, embed_dim: int, heads: int, output_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(spacial_dim**2 + 1, embed_dim) / embed_dim**0.5)
        self.k_proj = nn.Linear(embed_dim, embed_dim)
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.v_proj = nn.Linear(embed_dim, embed_dim)
        self.c_proj = nn.Linear(embed_dim, output_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self.positional_embedding.to(x.dtype)
        key_weight, value_weight = (p.weight.unflatten(0, (self.heads, -1)) for p in (self.k_proj, self.v_proj))
        key_bias, value_bias = (p.bias.unflatten(0, (self.heads, -1)) for p in (self.k_proj, self.v_proj))
        query = self.q_proj(x[:, 0]).unflatten(-1, (self.heads, -1))  # (B, H, d)
        scores = torch.einsum("bhd,hde,ble->bhl", query, key_weight, x) + (query * key_bias).sum(-1, keepdim=True)
        weights = (query.shape[-1] ** -0.5 * scores).softmax(dim=-1)
        return self.c_proj((torch.einsum("bhl,ble,hde->bhd", weights, x, value_weight) + value_bias).flatten(1))


class ModifiedResNet(nn.Module):
    """images (B, 3, R, R) -> (B, E): three-convolution stem, four stages, attention pooling."""

    def __init__(
        self, layers: tuple[int, int, int, int], output_dim: int, heads: int, input_resolution: int, width: int
    ) -> None:
        super().__init__()
        self.input_resolution, self.output_dim = input_resolution, output_dim
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(2)
        inplanes = width
        for stage, depth in enumerate(layers):
            planes = width * 2**stage
            blocks = [Bottleneck(inplanes, planes, stride=1 if stage == 0 else 2)]
            inplanes = planes * Bottleneck.expansion
            blocks += [Bottleneck(inplanes, planes) for _ in range(1, depth)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.attnpool = AttentionPool2d(input_resolution // 32, inplanes, heads, output_dim)

    def forward(self, images: Tensor) -> Tensor:
        x = images.to(self.conv1.weight.dtype)
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.relu(norm(conv(x)), inplace=True)
        x = self.avgpool(x)
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.attnpool(x)


def fold_batch_norms(tower: nn.Module) -> None:
    """Merge a frozen tower's batch norms into the convolutions before them, in place. For float32: half would round."""
    for parent in list(tower.modules()):
        for (name, convolution), (norm_name, norm) in pairwise(list(parent.named_children())):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(convolution, norm))
                setattr(parent, norm_name, nn.Identity())


class CLIP(nn.Module):
    """Image tower, text tower and logit scale in the sizes of `config`, randomly initialised.

    activation: of the blocks' MLPs, QUICKGELU or GELU, which sizes do not tell.
    The towers compute under `autocast()` and return features in the weights' dtype.
    """

    autocast: Callable[[], AbstractContextManager] = nullcontext

    def __init__(self, config: CLIPConfig, activation: str = QUICKGELU) -> None:
        super().__init__()
        self.config, self.context_length, self.activation = config, config.context_length, activation
        layers, width, resolution = config.vision_layers, config.vision_width, config.image_resolution
        self.visual: VisionTransformer | ModifiedResNet
        if isinstance(layers, tuple):
            heads = width * 32 // HEAD_WIDTH
            self.visual = ModifiedResNet(layers, config.embed_dim, heads, resolution, width)
        else:
            assert config.vision_patch_size is not None
            heads = VIT_H_HEADS if width == VIT_H_WIDTH else max(1, width // HEAD_WIDTH)
            self.visual = VisionTransformer(
                resolution, config.vision_patch_size, width, layers, heads, config.embed_dim
            )
        width = config.transformer_width
        self.transformer = Transformer(width, config.transformer_layers, config.transformer_heads, causal=True)
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(config.context_length, width))
        self.ln_final = LayerNorm(width)
        self.text_projection = nn.Parameter(width**-0.5 * torch.randn(width, config.embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        if activation == GELU:
            for module in self.modules():
                if isinstance(module, ResidualAttentionBlock):
                    module.mlp.gelu = nn.GELU()

    @property
    def dtype(self) -> torch.dtype:
        return self.visual.conv1.weight.dtype

    def encode_image(self, images: Tensor) -> Tensor:
        """images (B, 3, R, R) -> features (B, E), not normalised."""
        with self.autocast():
            return self.visual(images.to(self.dtype)).to(self.dtype)

    def encode_text(self, tokens: Tensor, cut: bool = True) -> Tensor:
        """tokens (N, context) int64 -> features (N, E), not normalised, read at the end token.

        `cut` drops the columns behind the batch's last end token. Attention is causal, so values and gradients are
        those of the full length.
        """
        end = tokens.argmax(dim=-1)  # the end token has the highest id
        if cut:
            tokens = tokens[:, : int(end.max()) + 1]
        return self.encode_prompts(self.token_embedding(tokens).to(self.dtype), end)

    def encode_prompts(self, embeddings: Tensor, end: Tensor) -> Tensor:
        """Token embeddings (N, L, W), L <= context, and the position `end` (N,) of the end token -> (N, E)."""
        with self.autocast():
            x = embeddings + self.positional_embedding[: embeddings.shape[1]].to(embeddings.dtype)
            end_token = torch.arange(len(x), device=x.device)[:, None], end[:, None]
            x = self.ln_final(self.transformer(x, end_token)[:, 0])
            return (x @ self.text_projection).to(self.dtype)

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(images, tokens) -> logits per image (B, N) and per text (N, B): exp(logit_scale) x cosine."""
        image_features = F.normalize(self.encode_image(images), dim=-1)
        text_features = F.normalize(self.encode_text(tokens), dim=-1)
        logits = self.logit_scale.exp() * image_features @ text_features.t()
        return logits, logits.t()


def config_from_state_dict(state_dict: dict[str, Tensor]) -> CLIPConfig:
    """Sizes from the shapes of a state dict in OpenAI's keys. Raises KeyError if it is not CLIP's."""

    def indices(pattern: str) -> int:
        return len({match.group(1) for key in state_dict if (match := re.match(pattern, key))})

    if "visual.proj" in state_dict:
        width, _, _, patch = state_dict["visual.conv1.weight"].shape
        layers: int | tuple = indices(r"visual\.transformer\.resblocks\.(\d+)\.")
        grid = round(math.sqrt(len(state_dict["visual.positional_embedding"]) - 1))
        resolution = patch * grid
    else:
        width, patch = len(state_dict["visual.layer1.0.conv1.weight"]), None
        layers = tuple(indices(rf"visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
        resolution = 32 * round(math.sqrt(len(state_dict["visual.attnpool.positional_embedding"]) - 1))
    text_width = len(state_dict["ln_final.weight"])
    return CLIPConfig(
        embed_dim=state_dict["text_projection"].shape[1],
        image_resolution=resolution,
        vision_layers=layers,
        vision_width=width,
        vision_patch_size=patch,
        context_length=len(state_dict["positional_embedding"]),
        vocab_size=len(state_dict["token_embedding.weight"]),
        transformer_width=text_width,
        transformer_heads=max(1, text_width // HEAD_WIDTH),
        transformer_layers=indices(r"transformer\.resblocks\.(\d+)\."),
    )


def build_model(state_dict: dict[str, Tensor], activation: str = QUICKGELU) -> CLIP:
    """A CLIP of the sizes of the weights, with copies of them in float32, in eval mode.

    Raises KeyError (not a CLIP) or RuntimeError (keys missing or unexpected, from load_state_dict).
    """
    state_dict = {key: value for key, value in state_dict.items() if key not in SIZE_KEYS}
    with torch.device("meta"):  # draws no random weights
        model = CLIP(config_from_state_dict(state_dict), activation)
    copies = {
        key: value.to(torch.float32 if value.is_floating_point() else value.dtype, copy=True)
        for key, value in state_dict.items()
    }
    model.load_state_dict(copies, assign=True)
    return model.eval()
