"""ALTA's fast paths the plain way, as the official code goes about it: what they are held against."""

from collections.abc import Sequence

import torch
from torch import Tensor

from alta.buffer import Buffer, Replay
from alta.heads import HARD_PROMPT, Head, PromptOptions, normalised
from common.clip.model import CLIP
from common.clip.tokenizer import tokenize


class PlainHead(Head):
    """All hard and all soft prompts, at 77 tokens, in every forward: for the batch, and for the replay once more."""

    def __init__(self, clip: CLIP, method: str, classnames: Sequence[str], prompts: PromptOptions) -> None:
        super().__init__(clip, method, classnames, prompts, encoding="original")
        self.hard_tokens = tokenize([HARD_PROMPT.format(name) for name in classnames]).to(clip.logit_scale.device)

    def texts(self) -> dict[str, Tensor]:
        return super().texts() | {"hard": normalised(self.clip.encode_text(self.hard_tokens, cut=False))}


class PlainBuffer(Buffer):
    """One sample after the other: a draw, three writes (upstream utils/fea_buffer.py:L89-L97, L110-L135)."""

    def add_data(self, labels: Tensor, logits: Tensor, image_features: Tensor) -> None:
        batch = {"labels": labels, "logits": logits.detach(), "image_features": image_features.detach()}
        if not self.fields:
            self.fields = {name: torch.zeros(self.size, *values.shape[1:], dtype=values.dtype, device=self.device)
                           for name, values in batch.items()}  # fmt: skip
        for row in range(len(labels)):
            slot = self.num_seen if self.num_seen < self.size else int(self.random.randint(0, self.num_seen + 1))
            self.num_seen += 1
            if slot < self.size:
                for name, values in batch.items():
                    self.fields[name][slot] = values[row].to(self.device)

    def get_data(self, count: int) -> Replay:
        index = self.choose(count)
        return Replay(
            *(torch.stack([self.fields[name][i].cpu() for i in index]).to(self.device) for name in Replay._fields)
        )
