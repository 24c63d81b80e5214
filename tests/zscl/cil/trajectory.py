"""A class-incremental run of the official code, three tasks of a tiny CLIP, fed to our loop task by task."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from common.clip.model import CLIP, build_model
from common.evaluation.seen_classes import seen_logits
from common.incremental.scenario import Scenario
from common.training.schedules import cil_cosine_with_warmup
from tests.golden_files import Golden
from tests.zscl.trajectory import RecordedBatches
from zscl.cil.memory import EXEMPLARS_AT_ONCE, RULES
from zscl.cil.options import KD_WEIGHT
from zscl.cil.reference import earlier_classes
from zscl.icarl import updated_memory
from zscl.teacher import FeatureCache, Reference, sentence_features
from zscl.training import TrainingOptions, train_task
from zscl.weights import Weights

DATA = Golden("zscl_cil/data")
SIZES = DATA.meta["config"]
SCENARIO = Scenario(DATA["class_order"].tolist(), SIZES["B"], SIZES["I"])


def pixels(images: Tensor) -> Tensor:
    """uint8 (N, R, R, 3) -> the fixtures' input (N, 3, R, R)."""
    return ((images.float() / 255 - 0.5) / 0.25).permute(0, 3, 1, 2).contiguous()


def samples(split: str, task_id: int) -> tuple[Tensor, Tensor]:
    """Images and new labels of one task, in the order of the data set."""
    labels = torch.from_numpy(SCENARIO.remap(DATA[f"y_{split}"].numpy()))
    members = torch.from_numpy(SCENARIO.task_ids(labels)) == task_id
    return pixels(DATA[f"x_{split}"])[members], labels[members]


def drawn(orders: list[list[int]], batch_size: int, steps: int) -> list[list[int]]:
    """The batches of the first steps: consecutive entries of an order, the last one smaller, then the next order."""
    batches = [row[start : start + batch_size] for row in orders for start in range(0, len(row), batch_size)]
    return batches[:steps]


@dataclass
class Task:
    """What one task of our loop looked like."""

    gradients: list[Weights]
    weights: list[Weights]
    terms: list[dict[str, Tensor]]
    rates: list[float]
    columns: list[int]
    first_logits: Tensor
    similarities: tuple[Tensor, Tensor] | None  # A_t, A_s at step 0
    teacher: CLIP | None
    memory: list[list[int]]


class Replay:
    """One fixture run task by task; `tasks` holds what was seen, `model` the weights after the last one run."""

    def __init__(self, name: str, joint: bool = True, known: bool = True) -> None:
        self.golden, self.joint, self.keeps = Golden(f"zscl_cil/{name}"), joint, known
        self.config = self.golden.meta["cfg"]
        self.aliased = "aliased" in str(self.golden.meta["teacher"])
        self.start = {key: value.float() for key, value in DATA.under("w/").items()}
        self.model, self.pretrained = build_model(self.start), build_model(self.start)
        self.memory: list[list[int]] = []
        self.known = FeatureCache()

    def learn(self, task_id: int) -> Task:
        golden, prefix, config = self.golden, f"t{task_id}/", self.config
        images, labels = samples("train", task_id)
        orders, size = golden[f"{prefix}train_perm"].tolist(), config["batch_size"]
        total = -(-len(images) // size)
        batches = RecordedBatches(images, labels, drawn(orders, size, total + 1))
        options = TrainingOptions(
            lr=config["lr"], iterations=total, warmup=30, label_smoothing=config["ls"],
            weight_decay=config["weight_decay"], terms=("img", "txt"), l2=config["l2"],
            ensemble="we" if config["we"] is not None else None, avg_freq=config["avg_freq"], joint_pass=self.joint,
            kd_weight=KD_WEIGHT, loss_interval=None, schedule=cil_cosine_with_warmup,
        )  # fmt: skip
        reference = self.reference(task_id, images, size, total + 1)
        texts = self.texts(task_id)
        task = self.seen(task_id, texts, batches, reference)
        names = [name for name, _ in self.model.named_parameters()]

        def steps(stage: str, count: int, state: dict[str, Any]) -> Iterator[int]:
            for step in range(count):
                yield step
                task.terms.append({name: values[step].clone() for name, values in state["log"].tensors.items()})
                named = dict(self.model.named_parameters())
                task.gradients.append(
                    {name: named[name].grad.clone() for name in names if named[name].grad is not None}
                )
                task.weights.append({name: parameter.detach().clone() for name, parameter in named.items()})
                task.rates.append(state["optimizer"].param_groups[0]["lr"])
                task.columns.append(len(texts(step)))

        first_class = SCENARIO.tasks[task_id].start
        train_task(self.model, texts, batches, reference, None, options, "task", steps, first_class=first_class)
        return task

    @torch.no_grad()
    def seen(self, task_id: int, texts: Any, batches: RecordedBatches, reference: Reference | None) -> Task:
        """The record of a task, begun with what its first step will compute."""
        images, _ = batches[0]
        logits, similarities = seen_logits(self.model, images, texts(0)), None
        if reference:
            reference_images, teacher, sentences = reference[0]
            scale = self.model.logit_scale.exp()
            student = F.normalize(self.model.encode_image(reference_images), dim=-1)
            similarities = scale * teacher @ sentences.t(), scale * student @ sentences.t()
        teacher = reference.teacher if reference else None
        return Task([], [], [], [], [], logits, similarities, teacher, self.memory)

    def texts(self, task_id: int) -> Any:
        golden, task, prompts = self.golden, SCENARIO.tasks[task_id], self.prompts()
        own = prompts[task.start : task.stop]
        if self.config["ce_method"] == "ext":
            captions = DATA["caption_tokens"].long()
            return lambda step: torch.cat([own, captions[golden[f"t{task_id}/ext_caption_idx"][step].long()]])
        if self.config["ce_method"] == "previous":
            own = torch.cat([own, prompts[: earlier_classes(task.stop, task, SIZES["B"], compat=True)]])
        return lambda step: own

    def prompts(self) -> Tensor:
        return DATA["prompt_tokens"][DATA["class_order"].long()].long()

    def reference(self, task_id: int, images: Tensor, size: int, steps: int) -> Reference | None:
        golden, prefix, method = self.golden, f"t{task_id}/", self.config["method"]
        own = self.prompts()[SCENARIO.tasks[task_id].start : SCENARIO.tasks[task_id].stop]
        if method == "ZSCL":
            drawn_images = drawn(golden[f"{prefix}cc_perm"].tolist(), size, steps)
            batches, tokens = RecordedBatches(pixels(DATA["cc_images"]), None, drawn_images), DATA["caption_tokens"]
            known = self.known if self.keeps else None
            return self.frozen(self.pretrained, batches, tokens.long(), known)
        if method in ("lwf", "lwfvr"):
            batches = RecordedBatches(images, None, drawn(golden[f"{prefix}ref_perm"].tolist(), size, steps))
            tokens = own if method == "lwf" else golden[f"{prefix}random_tokens"].long()
            return self.previous(batches, tokens, None)
        if method != "iCaRL":
            return None
        with torch.no_grad():
            features = F.normalize(self.model.encode_image(images), dim=-1)
        stored_before = dict(enumerate(self.memory))
        updated = updated_memory(stored_before, task_id, features, golden.meta["memory"], *RULES[True])
        self.memory = list(updated.values())
        stored = torch.cat([samples("train", place)[0][indices] for place, indices in enumerate(self.memory)])
        in_order = drawn([list(range(len(stored)))] * steps, EXEMPLARS_AT_ONCE, steps)
        return self.previous(RecordedBatches(stored, None, in_order), own, FeatureCache() if self.keeps else None)

    def previous(self, batches: RecordedBatches, tokens: Tensor, known: FeatureCache | None) -> Reference:
        if self.aliased:
            return Reference(self.model, batches, tokens, None, None)
        return self.frozen(build_model(self.model.state_dict()), batches, tokens, known)

    def frozen(
        self, teacher: CLIP, batches: RecordedBatches, tokens: Tensor, known: FeatureCache | None
    ) -> Reference:
        return Reference(teacher, batches, tokens, sentence_features(teacher, tokens), known)
