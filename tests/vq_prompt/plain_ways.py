"""VQ-Prompt's fast paths the plain way, as the official code goes about it: what they are held against."""

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import MultivariateNormal

from tests.benchmarks.inputs import OneBatch
from tests.benchmarks.measure import Clock
from tests.vq_prompt.plain_vq import prefix_attention
from vq_prompt.classifier import JITTER, ClassStatistics, Draw
from vq_prompt.prompts import Network

RATES = {"prompt_lr": 0.0125, "lr": 0.0025}


def plain_forward(network: Network, images: Tensor) -> tuple[Tensor, Tensor]:
    """Two whole passes, each with its own patch embedding, the attention matrix written out (models/vit.py:L63-L87)."""
    with torch.no_grad():
        query, _ = plain_pass(network, images, None)
    return plain_pass(network, images, query)


def plain_pass(network: Network, images: Tensor, query: Tensor | None) -> tuple[Tensor, Tensor]:
    """Class feature (B, D) and prompt loss; prompted where a query (B, D) is given."""
    x = network.tokens(images)
    loss = x.new_zeros(())
    for layer, block in enumerate(network.feat.blocks):
        prompt = x[:, :0]
        if query is not None and layer in network.prompt.layers:
            *halves, layer_loss = network.prompt(layer, query)
            prompt, loss = torch.cat(halves, dim=1), loss + layer_loss
        x = x + prefix_attention(block, block.norm1(x), prompt)
        x = x + block.mlp(block.norm2(x))
    return network.feat.norm(x)[:, 0], loss


def plain_draw(statistics: ClassStatistics, count: int) -> Iterator[Draw]:
    """A Gaussian with a full covariance matrix a class, from the global stream (trainer.py:L370-L465); an epoch's."""
    means, variances = statistics.means.float(), statistics.variances.float()
    jitter = JITTER * torch.eye(means.shape[1], device=means.device)
    gaussians = [MultivariateNormal(mean, torch.diag(variance) + jitter) for mean, variance in zip(means, variances)]
    samples = torch.stack([gaussian.sample((count,)) for gaussian in gaussians])
    yield samples, torch.randperm(len(means) * count, device=means.device)


def left_by(model: Network, losses: Tensor) -> dict[str, Tensor]:
    return {"losses": losses} | {key: value for key, value in model.named_parameters() if not key.startswith("feat.")}


def train_plainly(network: Network, batch: OneBatch, clock: Clock) -> dict[str, Tensor]:
    """The same with every parameter of the backbone trainable and its gradients never cleared."""
    model, losses = copy.deepcopy(network).requires_grad_(True), []
    parts = zip((model.prompt, model.last), RATES.values())
    groups = [{"params": list(part.parameters()), "lr": rate} for part, rate in parts]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    for step in clock.steps("plain", clock.calls, {}):
        images, labels = batch[step]
        features, prompt_loss = plain_forward(model, images)
        loss = F.cross_entropy(model.last(features), labels) + prompt_loss
        optimizer.zero_grad()  # holds prompts and classifier alone (learners/prompt.py:L47-L57)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return left_by(model, torch.stack(losses))
