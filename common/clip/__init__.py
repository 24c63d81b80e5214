"""CLIP: both towers in OpenAI's state-dict keys, the tokenizer, loading by name or from a file."""

from common.clip.model import CLIP, build_model
from common.clip.pretrained import load
from common.clip.tokenizer import tokenize

__all__ = ["CLIP", "build_model", "load", "tokenize"]
