"""CLIP's byte-pair encoding with open_clip's vocabulary (OpenAI's file), by OpenAI's and ZSCL's rules.

The rules differ in the spelling of special words inside a text and in the treatment of an over-long text; all other
texts are encoded alike.
"""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from common.errors import UserError

if TYPE_CHECKING:
    from open_clip.tokenizer import SimpleTokenizer

START, END = 49406, 49407
OPENAI_SPECIAL_WORDS = ("<|startoftext|>", "<|endoftext|>")
ZSCL_SPECIAL_WORDS = ("<start_of_text>", "<end_of_text>")  # open_clip's spelling; same ids


@functools.cache
def _tokenizer(special_words: tuple[str, str]) -> "SimpleTokenizer":
    """open_clip's SimpleTokenizer that recognises these two words in a text as START and END."""
    import regex
    from open_clip.tokenizer import SimpleTokenizer  # slow to import

    tokenizer = SimpleTokenizer()
    if special_words == ZSCL_SPECIAL_WORDS:
        return tokenizer
    for old, word in zip(ZSCL_SPECIAL_WORDS, special_words, strict=True):
        token = tokenizer.encoder.pop(old)
        tokenizer.encoder[word], tokenizer.decoder[token] = token, word
        del tokenizer.cache[old]
        tokenizer.cache[word] = word  # a cached word is one token, without byte-pair merges
    old, new = "|".join(ZSCL_SPECIAL_WORDS), "|".join(map(regex.escape, special_words))
    tokenizer.pat = regex.compile(new + tokenizer.pat.pattern.removeprefix(old), regex.IGNORECASE)
    return tokenizer


def encode(text: str, special_words: tuple[str, str] = OPENAI_SPECIAL_WORDS) -> list[int]:
    """Token ids of `text`, cleaned and lower-cased, without start and end tokens."""
    return _tokenizer(special_words).encode(text)


def single_token_words() -> list[str]:
    """Texts that are one token, in the order of their ids, the most frequent first."""
    return [token.removesuffix("</w>") for token in _tokenizer(OPENAI_SPECIAL_WORDS).encoder if token.endswith("</w>")]


def tokenize(texts: str | list[str], context_length: int = 77, truncate: bool | str = False) -> Tensor:
    """Token ids (N, context_length) int64: START, the text, END, zeros.

    A text of more than context_length tokens raises UserError; `truncate=True` cuts it and keeps END as the
    last token (openai/CLIP clip/clip.py:L205-L245). `truncate="zscl"` reads special words as ZSCL does and
    cuts without restoring END (Thunderbeee/ZSCL mtil/clip/clip.py:L300-L310): the feature is then read at
    position 0, START being the highest id left, and is the same for all such texts.
    """
    if truncate not in (False, True, "zscl"):
        raise ValueError(f'truncate is False, True or "zscl", not {truncate!r}')
    special_words = ZSCL_SPECIAL_WORDS if truncate == "zscl" else OPENAI_SPECIAL_WORDS
    texts = [texts] if isinstance(texts, str) else texts
    tokens = torch.zeros(len(texts), context_length, dtype=torch.int64)
    for row, text in zip(tokens, texts, strict=True):
        ids = [START, *encode(text, special_words), END]
        if len(ids) > context_length:
            if not truncate:
                raise UserError(
                    f"a text is too long for CLIP: {len(ids)} tokens with start and end, the limit is "
                    f"{context_length}. Shorten it: {text!r}"
                )
            last = ids[context_length - 1] if truncate == "zscl" else END
            ids = [*ids[: context_length - 1], last]
        row[: len(ids)] = torch.tensor(ids)
    return tokens


def class_prompts(classnames: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Token ids (C, T, 77) of C class names under T templates with {} for the name."""
    prompts = [template.replace("{}", name) for name in classnames for template in templates]
    return tokenize(prompts).view(len(classnames), len(templates), -1)


def training_prompts(classnames: Sequence[str], template: str) -> Tensor:
    """Token ids (C, L) of C class names under one template, cut behind the longest prompt."""
    return cut_prompts(class_prompts(classnames, [template])[:, 0])


def cut_prompts(tokens: Tensor) -> Tensor:
    """Tokens (N, context) without the columns behind the last end token of any row."""
    return tokens[:, : int(tokens.argmax(dim=-1).max()) + 1]
