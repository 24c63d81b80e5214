"""The tokenizer against the ids of openai/CLIP and of ZSCL's vendored copy."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.clip.tokenizer import END, START, ZSCL_SPECIAL_WORDS, class_prompts, encode, tokenize, training_prompts
from common.errors import UserError
from tests.golden_files import GOLDEN

FIXTURE = json.loads((GOLDEN / "clip/tokenizer.json").read_text())
PROMPTS = json.loads((GOLDEN / "common/tokens.json").read_text())


def padded(ids, length=77):
    return ids + [0] * (length - len(ids))


def test_ids_of_all_strings():
    assert len(FIXTURE["items"]) == 427
    wrong = [item["text"] for item in FIXTURE["items"] if encode(item["text"]) != item["ids"]]
    assert wrong == []


def test_rows_of_all_strings():
    """One batch for all 427: start, ids, end, zeros; over-long texts cut with the end token kept."""
    rows = tokenize([item["text"] for item in FIXTURE["items"]], truncate=True)
    assert rows.dtype == torch.int64 and rows.shape == (427, 77)
    for item, row in zip(FIXTURE["items"], rows.tolist(), strict=True):
        expected = item.get("truncated_row") or padded([START, *item["ids"], END])
        assert row == expected, item["text"]


def test_over_long_text_is_an_error_that_names_text_and_limit():
    long = [item["text"] for item in FIXTURE["items"] if "tokenize" in item]
    assert long
    for text in long:
        with pytest.raises(UserError) as caught:
            tokenize(["a cat", text])
        assert repr(text) in str(caught.value) and "77" in str(caught.value)


def test_texts_that_fit_need_no_truncation():
    texts = [item["text"] for item in FIXTURE["items"] if "tokenize" not in item]
    assert torch.equal(tokenize(texts), tokenize(texts, truncate=True))


@pytest.mark.parametrize("case", FIXTURE["context_length_cases"])
def test_context_lengths(case):
    length = case["context_length"]
    assert tokenize(case["text"], length, truncate=True).tolist() == [case["row_truncate_true"]]
    if case.get("error_without_truncate"):
        with pytest.raises(UserError, match=f"limit is {length}"):
            tokenize(case["text"], length)
    else:
        assert tokenize(case["text"], length).tolist() == [case["row_truncate_true"]]


@pytest.mark.parametrize("case", FIXTURE["cil_variant"], ids=lambda case: ascii(case["text"][:20]))
def test_zscl_cut(case):
    """ZSCL's own special words, and a cut that loses the end token: the feature is read at position 0."""
    row = tokenize(case["text"], truncate="zscl")[0]
    assert encode(case["text"], ZSCL_SPECIAL_WORDS) == case["ids"]
    assert row.tolist() == case["row77"]
    assert int(row.argmax()) == case["eot_position_argmax"]


def test_zscl_cut_changes_no_other_string():
    different = {case["text"] for case in FIXTURE["cil_variant"]}
    same = [item["text"] for item in FIXTURE["items"] if item["text"] not in different]
    assert torch.equal(tokenize(same, truncate="zscl"), tokenize(same))


def test_prompts_of_the_data_sets():
    texts = [row["text"] for row in PROMPTS["rows"]]
    assert tokenize(texts, truncate=True).tolist() == [padded(row["ids"]) for row in PROMPTS["rows"]]
    expected = [padded(row.get("ids_zscl", row["ids"])) for row in PROMPTS["rows"]]
    assert tokenize(texts, truncate="zscl").tolist() == expected


def test_vocabulary():
    from open_clip.tokenizer import default_bpe

    from common.clip.tokenizer import OPENAI_SPECIAL_WORDS, _tokenizer

    tokenizer = _tokenizer(OPENAI_SPECIAL_WORDS)
    assert {word: tokenizer.encoder[word] for word in FIXTURE["encoder_probes"]} == FIXTURE["encoder_probes"]
    assert len(tokenizer.encoder) == len(tokenizer.decoder) == FIXTURE["meta"]["vocab_size"]
    assert (START, END) == (FIXTURE["meta"]["sot"], FIXTURE["meta"]["eot"])
    assert hashlib.sha256(Path(default_bpe()).read_bytes()).hexdigest() == FIXTURE["meta"]["bpe_sha256"]


def test_one_string_is_a_batch_of_one_and_an_empty_list_of_none():
    assert tokenize("a cat").tolist() == tokenize(["a cat"]).tolist()
    assert tokenize([]).shape == (0, 77)


def test_unknown_truncate():
    with pytest.raises(ValueError, match="zscl"):
        tokenize("a cat", truncate="ZSCL")


def test_class_prompts_are_classes_by_templates():
    tokens = class_prompts(["cat", "polar bear"], ["a photo of a {}.", "{}"])
    assert tokens.shape == (2, 2, 77)
    assert torch.equal(tokens[1, 0], tokenize("a photo of a polar bear.")[0])
    assert torch.equal(tokens[:, 1], tokenize(["cat", "polar bear"]))


def test_training_prompts_end_where_the_longest_one_does():
    names = ["cat", "polar bear"]
    tokens = training_prompts(names, "a {}")
    assert tokens.shape == (2, len("START a polar bear END".split()))
    assert torch.equal(tokens, tokenize(["a cat", "a polar bear"])[:, :5]) and tokens[1, -1] == END


def test_import_does_not_load_open_clip():
    code = "import sys, common.clip; sys.exit('open_clip' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3]).returncode == 0
