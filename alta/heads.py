"""The nine methods: one head that matches representations of the image with representations of the classes' texts.

Symbols of the pipeline figure: x_f, x_l the task-invariant and the task-aware representation of an image, w_f, w_l
those of a class's text. CLIP is frozen; trained are the adapter g and the context vectors. "Alternating" is the
crossed pairing x_f with w_l and x_l with w_f, whose similarities are added in one loss; there are no phases (upstream
models/coop.py:L734-L805).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.clip.model import CLIP
from common.clip.tokenizer import encode, tokenize
from common.training.distributed import all_gather_rows, local_rows

HARD_PROMPT = "a photo of a {}"  # whatever CTX_INIT is; names as listed, no period (upstream main.py:L64)
REDUCTION = 16  # CLIP's embedding width by the adapter's
ENCODINGS = ("cut", "full", "original")
CONTEXT_STD = 0.02  # of context vectors that no words initialise


@dataclass(frozen=True)
class Method:
    """label: the name in records. pairs: which image is matched with which text; the similarities are added.

    Images: `raw` v, `adapted` g(v), `residual` v + g(v). Texts: `hard` prompts; `soft` ones, in which each past class
    keeps the context it had at the end of its task; `shared` soft ones, with the live context for all classes.
    """

    label: str
    pairs: tuple[tuple[str, str], ...]

    @property
    def adapts(self) -> bool:
        return any(image != "raw" for image, _ in self.pairs)

    @property
    def prompts(self) -> bool:
        return any(text != "hard" for _, text in self.pairs)

    @property
    def freezes(self) -> bool:
        return any(text == "soft" for _, text in self.pairs)


METHODS = {
    "mlp": Method("Adapter", (("adapted", "hard"),)),
    "resmlp": Method("Residual adapter", (("residual", "hard"),)),
    "sprompt": Method("Shared prompt", (("raw", "shared"),)),
    "cprompt": Method("Task prompts", (("raw", "soft"),)),
    "cprompt_oriprompt": Method("Task prompts + hard prompts", (("raw", "soft"), ("raw", "hard"))),
    "cprompt_mlp": Method("Task prompts x adapter", (("adapted", "soft"),)),
    "cprompt_resmlp": Method("Task prompts x residual adapter", (("residual", "soft"),)),
    "oriclip2cprompt_mlp": Method("CLIP + task prompts x adapter", (("raw", "hard"), ("adapted", "soft"))),
    "oritext_mlp2cprompt_oriimg": Method("ALTA", (("raw", "soft"), ("adapted", "hard"))),
    # ours: upstream has the class but no way to choose it. Other papers' zero-shot CLIP chooses among classes seen
    "zeroshot": Method("Zero-shot CLIP, hard prompts", (("raw", "hard"),)),
}


def cosine_logits(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """cos(a, B) = s (a / |a|) (B / |B|)^T: images (B, D), texts (C, D) normalised already -> (B, C).

    The order counts in half precision: the normalised image is scaled before the product (models/coop.py:L375-L381).
    """
    return (scale * normalised(images)) @ texts.t()


def normalised(features: Tensor) -> Tensor:
    return features / features.norm(dim=-1, keepdim=True)


class Adapter(nn.Module):
    """g(z) = W2 relu(W1 z + b1) + b2 (models/customclip.py:L88-L92); no residual, no dropout, no activation after."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, width // REDUCTION)
        self.linear2 = nn.Linear(width // REDUCTION, width)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear2(F.relu(self.linear1(features)))


@dataclass(frozen=True)
class PromptOptions:
    """words: CTX_INIT. count, per_class: N_CTX and CSC, which act where words is empty. position: of the name."""

    words: str = "a photo of a"
    position: str = "end"
    count: int = 4
    per_class: bool = False


class PromptLearner(nn.Module):
    """Soft prompts "{context} {name}." as token embeddings (models/coop.py:L161-L352).

    ctx (n, W), or (C, n, W) with a context a class; token_prefix (C, 1, W), the start token; token_suffix
    (C, 76 - n, W), the rest behind the context, all of CLIP's dtype. tokens (C, 77) on the host; end (C,), where the
    end token is in each, and order on the device, so that no step sends them there.
    """

    token_prefix: Tensor
    token_suffix: Tensor
    end: Tensor
    order: Tensor  # (C, 77), where in [start, context, name, rest] each position of `middle` and `front` is

    def __init__(self, clip: CLIP, classnames: Sequence[str], options: PromptOptions) -> None:
        super().__init__()
        names = [name.replace("_", " ") for name in classnames]
        words = options.words.replace("_", " ")
        count = len(words.split(" ")) if words else options.count
        prefix = words or " ".join(["X"] * count)
        self.tokens = tokenize([f"{prefix} {name}." for name in names], clip.context_length)
        end, self.position = self.tokens.argmax(dim=-1), options.position
        self.longest = int(end.max()) + 1
        self.name_lengths = [len(encode(name)) for name in names]
        with torch.no_grad():
            embeddings = clip.token_embedding(self.tokens.to(clip.logit_scale.device)).to(clip.dtype)
            if words:
                start = clip.token_embedding(tokenize(words, clip.context_length).to(embeddings.device))
                context = start[0, 1 : 1 + count].to(clip.dtype)
            else:
                shape = (len(names), count) if options.per_class else (count,)
                context = CONTEXT_STD * torch.randn(*shape, embeddings.shape[-1])
                context = context.to(embeddings.device, clip.dtype)
        self.ctx = nn.Parameter(context)
        self.register_buffer("token_prefix", embeddings[:, :1])
        self.register_buffer("token_suffix", embeddings[:, 1 + count :])
        self.register_buffer("end", end.to(embeddings.device), persistent=False)
        self.register_buffer("order", self._order(count).to(embeddings.device), persistent=False)

    def forward(self, first: int = 0, length: int | None = None, ctx: Tensor | None = None) -> Tensor:
        """Prompts (C - first, length, W) of the classes from `first` on, with this context instead of the live one."""
        ctx, classes = self.ctx if ctx is None else ctx, len(self.tokens)
        length = length or self.tokens.shape[1]
        ctx = ctx.expand(classes, -1, -1) if ctx.dim() == 2 else ctx
        suffix = self.token_suffix[first:, : length - 1 - ctx.shape[1]]
        prompts = torch.cat([self.token_prefix[first:], ctx[first:], suffix], dim=1)
        if self.position == "end":
            return prompts
        rows = torch.arange(classes - first, device=prompts.device)[:, None]
        return prompts[rows, self.order[first:, :length]]

    def _order(self, count: int) -> Tensor:
        half = count // 2 if self.position == "middle" else 0
        orders = []
        for name in self.name_lengths:
            before, after = range(1, 1 + half), range(1 + half, 1 + count)
            rest = range(1 + count + name, self.tokens.shape[1])
            orders.append([0, *before, *range(1 + count, 1 + count + name), *after, *rest])
        return torch.tensor(orders)


class Head(nn.Module):
    """One of the methods on a frozen CLIP: features of images in, logits over all classes out.

    Named parts: `prompt_learner`, and the adapter `mlp_visual`, which lies within the prompt learner where there is
    one, as in the original's checkpoints; `clip`.

    encoding: how class texts are encoded. `cut`: hard prompts once, those of past classes, whose rows are frozen, once
    a task (`freeze`), all of them cut behind the longest one's end token: equal up to rounding. `full`: the same at the
    full 77 tokens; in half precision even rounding counts, since the replay's squared differences are hardly larger.
    `original`: all rows together, for current and replayed features anew: the original's bits.
    """

    hard_texts: Tensor  # w_f of all classes, normalised (C, D)

    def __init__(
        self, clip: CLIP, method: str, classnames: Sequence[str], prompts: PromptOptions, encoding: str = "cut"
    ) -> None:
        super().__init__()
        if encoding not in ENCODINGS:
            raise ValueError(f"encoding is one of {', '.join(ENCODINGS)}, not {encoding!r}")
        self.method, self.cut, self.original = METHODS[method], encoding == "cut", encoding == "original"
        self.clip = clip.requires_grad_(False).eval()
        if self.method.prompts:
            self.prompt_learner = PromptLearner(clip, classnames, prompts)
        if self.method.adapts:
            adapter = Adapter(clip.text_projection.shape[1])  # made in float32, then cast (main.py:L45)
            holder = self.prompt_learner if self.method.prompts else self
            holder.add_module("mlp_visual", adapter.to(clip.logit_scale.device, clip.dtype))
        tokens = tokenize([HARD_PROMPT.format(name) for name in classnames], clip.context_length)
        with torch.no_grad():
            hard = clip.encode_text(tokens.to(clip.logit_scale.device), cut=self.cut)
        self.register_buffer("hard_texts", normalised(hard), persistent=False)
        self.last_context = {"ctx": self.prompt_learner.ctx.detach().clone()} if self.method.prompts else {}
        self.freeze(None)

    def trained(self) -> dict[str, nn.Parameter]:
        """What is trained, by the original's keys and in its optimiser's order."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def adapter(self, features: Tensor) -> Tensor:
        """g(z) of (B, D)."""
        return (self.prompt_learner if self.method.prompts else self).get_submodule("mlp_visual")(features)

    # Texts

    @torch.no_grad()
    def freeze(self, prompts: Tensor | None) -> None:
        """Take prompts (n, 77, W) for those of the first n classes from now on; None: no class is frozen."""
        if not self.method.freezes or prompts is None or not len(prompts):
            self.frozen_prompts = self.frozen_texts = None
            return
        self.frozen_prompts = prompts.detach()
        self.frozen_texts = self._encode(self.frozen_prompts[:, : self._length()], slice(len(prompts)))

    def remember_context(self) -> None:
        """Keep the context that the forward pass just made had, for `snapshot`."""
        if self.method.prompts:
            self.last_context["ctx"].copy_(self.prompt_learner.ctx.detach())

    @torch.no_grad()
    def snapshot(self, classes: int) -> Tensor | None:
        """Prompts (classes, 77, W) to be frozen: those frozen already, then rows with the remembered context."""
        if not self.method.freezes:
            return None
        return self.prompts(self.last_context["ctx"])[:classes]

    def _length(self) -> int:
        return self.prompt_learner.longest if self.cut else self.clip.context_length

    def _encode(self, prompts: Tensor, classes: slice) -> Tensor:
        """Normalised texts of prompts (n, L, W), those of these classes."""
        return normalised(self.clip.encode_prompts(prompts, self.prompt_learner.end[classes]))

    def prompts(self, ctx: Tensor | None = None) -> Tensor:
        """P (C, 77, W): frozen rows of past classes, which pass no gradient, then those of this or the live context."""
        frozen = self.frozen_prompts
        live = self.prompt_learner(0 if frozen is None else len(frozen), ctx=ctx)
        return live if frozen is None else torch.cat([frozen, live])

    def soft_texts(self) -> Tensor:
        """w_l of all classes, normalised (C, D); only rows with the live context go through the text tower."""
        if self.original:
            return self._encode(self.prompts(), slice(None))
        first = 0 if self.frozen_texts is None else len(self.frozen_texts)
        prompts = self.prompt_learner(first, self._length())
        rows = local_rows(len(prompts))  # each process encodes its part
        live = self._encode(prompts[rows], slice(first + rows.start, first + rows.stop))
        live = all_gather_rows(live, len(prompts))
        return live if self.frozen_texts is None else torch.cat([self.frozen_texts, live])

    def texts(self) -> dict[str, Tensor]:
        """The normalised texts (C, D) that the method matches images with, to be shared by all of a step's images."""
        texts = {text for _, text in self.method.pairs}
        return {text: self.hard_texts if text == "hard" else self.soft_texts() for text in texts}

    # Images

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """v: CLIP's own image features (B, D), not normalised, of CLIP's dtype; images (B, 3, R, R)."""
        return self.clip.encode_image(images)

    def logits(self, features: Tensor, texts: dict[str, Tensor]) -> Tensor:
        """Logits (B, C) over all classes, from v (B, D) and `texts()`."""
        images = {"raw": features}
        if self.method.adapts:
            adapted = self.adapter(features)
            images |= {"adapted": adapted, "residual": features + adapted}
        scale = self.clip.logit_scale.exp()
        first, *others = (cosine_logits(images[image], texts[text], scale) for image, text in self.method.pairs)
        return sum(others, start=first)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits(self.features(images), self.texts())
