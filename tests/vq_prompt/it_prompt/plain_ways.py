"""IT-Prompt's fast paths the plain way, as a first version would have them: what they are held against."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import MultivariateNormal

from tests.benchmarks.inputs import OneBatch
from tests.benchmarks.measure import Clock
from vq_prompt.it_prompt.network import Encoder, Model, clip_block
from vq_prompt.it_prompt.options import ITOptions, settled
from vq_prompt.it_prompt.training import PseudoFeatures, cosine_lr, task_losses

LAYERS, TRAINED_TASK, TRAINED_CLASSES = (0, 1, 2, 3, 4), 1, range(10, 20)


def options(**changes: Any) -> ITOptions:
    return settled(ITOptions(learner_name="ITPromptCNCM", **changes))


def train_plainly(learned: Model, batch: OneBatch, clock: Clock) -> dict[str, Tensor]:
    """As a first version would be: u and z each from the images on, weight gradients of all of CLIP, never read."""
    model, own, losses = copy.deepcopy(learned), options(epochs=clock.calls), []
    encoder, parts = model.encoder, model.parts
    parts.prompt.copy_previous(TRAINED_TASK)
    trained = parts.of_task(TRAINED_TASK)
    for parameter in [*encoder.parameters(), *trained.values()]:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained.values(), lr=own.lr, weight_decay=0.0)
    for step in clock.steps("plain", clock.calls, {}):
        optimizer.param_groups[0]["lr"] = cosine_lr(step, own.lr, clock.calls)
        images, labels = batch[step]
        x = encoder.tower.embed(images)
        for number, block in enumerate(encoder.blocks):
            prompts = [parts.prompt.prompts(TRAINED_TASK)[number].expand(len(x), -1, -1)] if number in LAYERS else []
            x = clip_block(block, x, *prompts[0].chunk(2, dim=1)) if prompts else block(x)
        z = F.normalize(encoder.tower.pool(x), dim=-1)
        cls, text, key, _ = task_losses(parts, model, encoder.plain(images), z, labels, TRAINED_TASK)
        loss = cls + own.lambda_text * text + own.lambda_key * key
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return {"losses": torch.stack(losses)} | trained


class PlainPseudoFeatures(PseudoFeatures):
    """Class after class from a multivariate normal distribution over a diagonal matrix, as VQ-Prompt's code draws."""

    def epoch(self, number: int) -> tuple[Tensor, Tensor]:
        device, count = self.mean.device, len(self.mean)
        generator = torch.Generator(device).manual_seed(self.seed * 1_000_003 + number)
        noise = torch.randn(count, self.per_class, self.mean.shape[1], generator=generator, device=device)
        samples = []
        for mean, deviation, drawn in zip(self.mean, self.deviation, noise):
            gaussian = MultivariateNormal(mean, torch.diag(deviation**2))
            samples.append(F.normalize(mean + drawn @ gaussian.scale_tril.t(), dim=-1))
        order = torch.randperm(count * self.per_class, generator=generator, device=device)
        return torch.cat(samples)[order], torch.arange(count, device=device).repeat_interleave(self.per_class)[order]


def necessary(encoder: Encoder, images: Tensor) -> None:
    """What no step can do without: a pass for the queries, and one to the entries and back."""
    encoder.plain(images)
    x = encoder.tower.embed(images).requires_grad_()
    encoder.tower.pool(encoder.tower.transformer(x)).sum().backward()
