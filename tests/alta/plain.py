"""ALTA and its sister methods written out as plain steps; nothing of the program but CLIP's towers and its tokens.

Each iteration: features of the images from the frozen tower, texts of all classes, cross-entropy, with a reservoir one
draw for both of its terms, one step of SGD. Past classes keep the prompts that the last forward of their task made.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.clip.model import CLIP
from common.clip.tokenizer import encode, tokenize

# v: the image's feature, g: that behind the adapter; w: texts of hard prompts, p: of soft ones
LOGITS: dict[str, Callable[..., Tensor]] = {
    "mlp": lambda cos, v, g, w, p: cos(g, w),
    "resmlp": lambda cos, v, g, w, p: cos(v + g, w),
    "sprompt": lambda cos, v, g, w, p: cos(v, p),
    "cprompt": lambda cos, v, g, w, p: cos(v, p),
    "cprompt_oriprompt": lambda cos, v, g, w, p: cos(v, p) + cos(v, w),
    "cprompt_mlp": lambda cos, v, g, w, p: cos(g, p),
    "cprompt_resmlp": lambda cos, v, g, w, p: cos(v + g, p),
    "oriclip2cprompt_mlp": lambda cos, v, g, w, p: cos(v, w) + cos(g, p),
    "oritext_mlp2cprompt_oriimg": lambda cos, v, g, w, p: cos(v, p) + cos(g, w),
}
Batch = tuple[Tensor, Tensor]  # images, labels


@dataclass
class Numbers:
    """What a run is told. rates: of each epoch, task by task. buffer_size 0: no replay. context: its words."""

    method: str
    rates: list[list[float]]
    sgd: dict[str, float | bool]
    task_size: int
    context: str = ""
    words: int = 4
    position: str = "end"
    alpha: float = 0.0
    beta: float = 0.0
    buffer_size: int = 0
    replay_size: int = 0
    seed: int = 0
    test_epochs: int = 1
    seen_only: bool = False
    masked_to: int = 0  # classes of a task for task-IL, where they are not the task's own


@dataclass
class Plain:
    """What a run leaves: the loss of every step; after each task what is trained, frozen and remembered; accuracies."""

    losses: list[float] = field(default_factory=list)
    trained: list[list[Tensor]] = field(default_factory=list)
    frozen: list[Tensor] = field(default_factory=list)
    memory: list[list[tuple[Tensor, Tensor, Tensor]]] = field(default_factory=list)  # label, logits, feature
    seen: int = 0
    accuracies: dict[tuple[int, int], tuple[list[float], list[float]]] = field(default_factory=dict)


class SoftPrompts:
    """ "{context} {name}." of every class as token embeddings (C, L, W), and CLIP's texts of them."""

    def __init__(self, clip: CLIP, names: Sequence[str], told: Numbers) -> None:
        start = told.context or " ".join(["X"] * told.words)
        names = [name.replace("_", " ") for name in names]
        tokens = tokenize([f"{start} {name}." for name in names], clip.context_length)
        self.clip, self.embedded, self.ends = clip, clip.token_embedding(tokens), tokens.argmax(dim=1)
        self.count, self.name_lengths = len(start.split()), [len(encode(name)) for name in names]
        self.before = {"front": 0, "middle": self.count // 2, "end": self.count}[told.position]

    def prompts(self, context: Tensor, past: Tensor) -> Tensor:
        """With this context, (n, W) or (C, n, W), around or before the names; those of past classes are given."""
        rows, contexts = [], context.expand(len(self.embedded), -1, -1)
        for embedded, length, own in zip(self.embedded, self.name_lengths, contexts):
            start, name, rest = embedded.tensor_split([1 + self.count, 1 + self.count + length])
            rows.append(torch.cat([start[:1], own[: self.before], name, own[self.before :], rest]))
        return torch.cat([past, torch.stack(rows)[len(past) :]])

    def texts(self, prompts: Tensor) -> Tensor:
        """(C, D), each read at the end token."""
        outputs = self.clip.ln_final(self.clip.transformer(prompts + self.clip.positional_embedding))
        return outputs[range(len(outputs)), self.ends] @ self.clip.text_projection


def plain_run(
    clip: CLIP, names: Sequence[str], start: Sequence[Tensor], batches: list[list[list[Batch]]], tests: list[Batch],
    told: Numbers,
) -> Plain:  # fmt: skip
    """The run on these batches, by task and epoch, from these initial values."""
    trained = [value.clone().requires_grad_() for value in start]
    has_context, has_adapter = "prompt" in told.method, "mlp" in told.method
    optimizer = torch.optim.SGD(trained, lr=0.0, **told.sgd)
    hard = clip.encode_text(tokenize([f"a photo of a {name}" for name in names], clip.context_length), cut=False)
    soft, draws, memory, found = SoftPrompts(clip, names, told), np.random.RandomState(told.seed), [], Plain()
    prompts = past = torch.empty(0)

    def cos(images: Tensor, texts: Tensor) -> Tensor:
        return clip.logit_scale.exp() * F.normalize(images, dim=1) @ F.normalize(texts, dim=1).t()

    def forward(v: Tensor) -> tuple[Tensor, Tensor]:
        learned, g, prompts = None, None, past
        if has_context:
            prompts = soft.prompts(trained[0], past)
            learned = soft.texts(prompts)
        if has_adapter:
            w1, b1, w2, b2 = trained[-4:]
            g = F.relu(v @ w1.t() + b1) @ w2.t() + b2
        return LOGITS[told.method](cos, v, g, hard, learned), prompts

    for task, epochs in enumerate(batches):
        if has_context and told.method != "sprompt" and task > 0:
            past = prompts[: task * told.task_size].detach()
        for epoch, (rate, steps) in enumerate(zip(told.rates[task], epochs, strict=True)):
            for images, labels in steps:
                v = clip.encode_image(images)
                logits, prompts = forward(v)
                loss = F.cross_entropy(logits, labels)
                if memory:
                    chosen = draws.choice(len(memory), size=min(told.replay_size, len(memory)), replace=False)
                    old_labels, old_logits, old_v = map(torch.stack, zip(*[memory[slot] for slot in chosen]))
                    again, _ = forward(old_v)
                    loss = loss + told.alpha * F.cross_entropy(again, old_labels)
                    loss = loss + told.beta * (again - old_logits).square().mean()
                optimizer.param_groups[0]["lr"] = rate
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                found.losses.append(loss.item())
                for sample in zip(labels, logits.detach(), v):
                    slot = found.seen if found.seen < told.buffer_size else draws.randint(0, found.seen + 1)
                    if slot < told.buffer_size:
                        memory[slot : slot + 1] = [sample]
                    found.seen += 1
            if (epoch + 1) % told.test_epochs == 0 or epoch + 1 == len(epochs):
                images, labels = (torch.cat(part) for part in zip(*tests[: task + 1]))
                with torch.no_grad():
                    logits, _ = forward(clip.encode_image(images))
                found.accuracies[task, epoch] = accuracies(logits, labels, task, told)
        found.trained.append([value.detach().clone() for value in trained])
        found.frozen.append(past)
        found.memory.append(list(memory))
    return found


def accuracies(logits: Tensor, labels: Tensor, task: int, told: Numbers) -> tuple[list[float], list[float]]:
    """Class-IL and task-IL in percent of the test images of each task so far.

    Class-IL chooses among all classes, unless told, also among those of later tasks; task-IL among the task's own, or
    the mean over groups of so many classes.
    """

    def percent(own: Tensor, first: int, stop: int) -> float:
        return 100 * float((logits[own, first:stop].argmax(dim=1) + first == labels[own]).double().mean())

    class_il, task_il = [], []
    among = (task + 1) * told.task_size if told.seen_only else logits.shape[1]
    for known in range(task + 1):
        first, stop = known * told.task_size, (known + 1) * told.task_size
        own = (labels >= first) & (labels < stop)
        class_il.append(percent(own, 0, among))
        groups = range(first, stop, told.masked_to or told.task_size)
        within = [(own & (labels >= group) & (labels < group + groups.step), group) for group in groups]
        parts = [percent(mine, group, group + groups.step) for mine, group in within if mine.any()]
        task_il.append(sum(parts) / len(parts))
    return class_il, task_il
