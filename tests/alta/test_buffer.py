"""The reservoir and its stream of draws, exactly."""

import numpy as np
import pytest
import torch

from alta.buffer import Buffer
from common.runs import load_tensors, save_tensors
from tests.golden_files import Golden


def equal_to(buffer, golden, state):
    return all(torch.equal(buffer.fields[name], golden[f"{state}.{name}"]) for name in buffer.fields)


def test_draws_and_contents():
    golden = Golden("alta/buffer")
    meta = golden.meta
    buffer = Buffer(meta["buffer_size"], meta["np_seed"])
    for i in range(len(meta["batches"])):
        if i > 0:
            before = buffer.random.get_state()
            index = buffer.choose(meta["get_size"])
            assert np.array_equal(index, golden[f"get{i}.index"])
            buffer.random.set_state(before)
            for name, found in zip(("labels", "logits", "image_features"), buffer.get_data(meta["get_size"])):
                assert torch.equal(found, golden[f"get{i}.{name}"])
        buffer.add_data(*(golden[f"add{i}.{name}"] for name in ("labels", "logits", "image_features")))
        assert equal_to(buffer, golden, f"state{i}")
        assert buffer.filled == int(golden[f"len{i}"]) and buffer.num_seen == int(golden["num_seen"][i])
    counts = torch.bincount(buffer.fields["labels"], minlength=10)
    assert torch.equal(counts, golden["final_class_counts"].long())


@pytest.mark.parametrize("size", [1, 3, 7])
def test_vectorised_equals_one_sample_after_the_other(size):
    """The original's loop, with NumPy's own generator under the same seed; batches larger than the buffer too."""
    buffer, kept, seen = Buffer(size, seed=11), [None] * size, 0
    np.random.seed(11)
    for place in range(40):
        count = (1, 5, 8)[place % 3]
        labels = torch.arange(seen, seen + count)
        buffer.add_data(labels, torch.zeros(count, 2), labels[:, None].float())
        for label in labels.tolist():
            slot = seen if seen < size else np.random.randint(0, seen + 1)
            if slot < size:
                kept[slot] = label
            seen += 1
        filled = [label for label in kept if label is not None]
        assert buffer.fields["labels"][: len(filled)].tolist() == filled
        assert torch.equal(buffer.fields["image_features"][: len(filled), 0], torch.tensor(filled).float())
        assert np.array_equal(
            buffer.choose(4), np.random.choice(min(seen, size), size=min(4, buffer.filled), replace=False)
        )


def test_a_saved_buffer_goes_on_with_the_same_draws(tmp_path):
    torch.manual_seed(0)
    batches = [(torch.randint(4, (6,)), torch.randn(6, 4).half(), torch.randn(6, 3).half()) for _ in range(8)]
    whole, first = Buffer(5, seed=2), Buffer(5, seed=2)
    save_tensors(tmp_path / "empty.pth", Buffer(5, seed=2).state_dict())
    first.load_state_dict(load_tensors(tmp_path / "empty.pth"))
    for batch in batches[:4]:
        whole.add_data(*batch)
        first.add_data(*batch)
    save_tensors(tmp_path / "buffer.pth", first.state_dict())
    second = Buffer(5, seed=99)
    second.load_state_dict(load_tensors(tmp_path / "buffer.pth"))
    for batch in batches[4:]:
        assert all(torch.equal(*both) for both in zip(whole.get_data(3), second.get_data(3)))
        whole.add_data(*batch)
        second.add_data(*batch)
    assert whole.num_seen == second.num_seen and whole.fields["logits"].dtype == torch.float16
    assert all(torch.equal(whole.fields[name], second.fields[name]) for name in whole.fields)
    assert not torch.equal(first.fields["labels"], second.fields["labels"])  # nothing is shared with what was saved
