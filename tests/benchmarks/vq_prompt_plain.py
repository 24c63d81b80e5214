"""VQ-Prompt the plain way, as the official code goes about it: what the fast paths are held against."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import MultivariateNormal

from vq_prompt.classifier import JITTER, ClassStatistics, Draw
from vq_prompt.prompts import Network


def plain_forward(network: Network, images: Tensor) -> tuple[Tensor, Tensor]:
    """Two whole passes, each with its own patch embedding, the attention matrix written out (models/vit.py:L63-L87)."""
    with torch.no_grad():
        query = _blocks(network, network.tokens(images), None)[0]
    return _blocks(network, network.tokens(images), query)


def _blocks(network: Network, x: Tensor, query: Tensor | None) -> tuple[Tensor, Tensor]:
    """All blocks on tokens (B, n, D), prompted where a query (B, D) is given; class feature and prompt loss."""
    loss = x.new_zeros(())
    for layer, block in enumerate(network.feat.blocks):
        attention, normed = block.attn, block.norm1(x)
        q, k, v = attention.qkv(normed).chunk(3, dim=-1)
        if query is not None and layer in network.prompt.layers:
            prefix_k, prefix_v, layer_loss = network.prompt(layer, query)
            k, v, loss = torch.cat([prefix_k, k], dim=1), torch.cat([prefix_v, v], dim=1), loss + layer_loss
        q, k, v = (part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in (q, k, v))
        weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)
        x = x + attention.proj((weights @ v).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    return network.feat.norm(x)[:, 0], loss


def plain_step(network: Network, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, seen: int) -> Tensor:
    """A training step with every parameter of the backbone trainable and its gradients never cleared; the loss."""
    features, prompt_loss = plain_forward(network, images)
    loss = F.cross_entropy(network.last(features)[:, :seen], labels) + prompt_loss
    optimizer.zero_grad()  # holds prompts and classifier alone (learners/prompt.py:L47-L57)
    loss.backward()
    optimizer.step()
    return loss.detach()


def plain_draw(statistics: ClassStatistics, count: int, epochs: int) -> Iterator[Draw]:
    """A Gaussian with a full covariance matrix a class and epoch, from the global stream (trainer.py:L370-L465)."""
    means, variances = statistics.means.float(), statistics.variances.float()
    eye = torch.eye(means.shape[1], device=means.device)
    for _ in range(epochs):
        samples = [
            MultivariateNormal(mean, torch.diag(variance) + JITTER * eye).sample((count,))
            for mean, variance in zip(means, variances)
        ]
        yield torch.stack(samples), torch.randperm(len(means) * count, device=means.device)
