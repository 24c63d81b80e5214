"""Several mistakes, told at once; faults of the machine, each told in a sentence."""

import faulthandler
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import UserError, all_checked, machine_fault
from tests import forked


def fails(message: str) -> None:
    raise UserError(message)


def test_results_of_all_checks() -> None:
    assert all_checked([lambda: 1, lambda: None, lambda: "three"]) == [1, None, "three"]


def test_all_problems_in_one_message() -> None:
    with pytest.raises(UserError) as caught:
        all_checked([lambda: fails("no data."), lambda: 1, lambda: fails("no weights.")])
    assert str(caught.value) == "no data.\nno weights."


def test_an_error_that_is_no_user_s_is_not_held_back() -> None:
    with pytest.raises(ZeroDivisionError):
        all_checked([lambda: fails("no data."), lambda: 1 / 0])


# Faults of the machine, in processes of their own

PROGRAM = """
import os, resource, signal, sys, threading
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from common.datasets.images import ImageFiles
from common.errors import exit_cleanly
from common.training.batches import Batches


class Samples(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        if torch.utils.data.get_worker_info():  # at once: what a worker has handed on, its end may break
            worker()
        return torch.ones(3, size, size), 0


size, worker = 8, lambda: None


def train(workers=2, batch_size=2):
    batches = Batches(Samples(), batch_size, 0, workers)
    for step in range(len(batches)):
        batches[step]


@exit_cleanly
def main():
    {body}


main()
"""
FAULTS = {
    "array": ("np.ones(10**15)", "the machine's memory is full.* --workers"),
    "tensor": ("torch.ones(10**15)", "the machine's memory is full"),
    "array in a worker": ("global worker; worker = lambda: np.ones(10**15); train()", "the machine's memory is full"),
    "killed worker": (
        "global worker; worker = lambda: os.kill(os.getpid(), signal.SIGKILL); train()",
        "the machine's memory is full.* --workers"),
    "ended worker": (
        "global worker; worker = lambda: os._exit(3); train()", "a loader process has ended.* --workers 0"),
    "crashed worker": (
        "global worker; worker = lambda: os.kill(os.getpid(), signal.SIGABRT); train()", "a loader process has ended"),
    "open files": (
        "Image.new('RGB', (8, 8)).save('a.png'); images = ImageFiles([('a.png', 0)]); images[0]; "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (30, 30)); kept = [os.dup(0) for _ in range(31 - "
        "len(os.listdir('/proc/self/fd')))]; images[0]", "too many files are open.*ulimit"),
    "open files of loaders": (
        "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)); kept = [os.open(os.devnull, 0) for _ in range(25)]; "
        "train(8)", "too many files are open.* fewer --workers"),
    "card": (
        "raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')",
        "the GPU's memory is full.* --checkpoint-activations.* batch size .*--precision bf16"),
    "home": ("from pathlib import Path; Path('~no-such-user/x').expanduser()", "there is no home directory.* HOME"),
}  # fmt: skip


def said(body: str, folder: Path) -> tuple[int | None, str]:
    """Exit code and words of the program, in a fork."""

    def main(words: list[str]) -> None:
        faulthandler.disable()  # pytest's
        os.closerange(3, 256)  # descriptors are counted
        os.chdir(folder)
        exec(PROGRAM.replace("{body}", body), {"__name__": "__main__"})

    process, output = forked.start(main, [])
    text = output.read()
    process.join()
    return process.exitcode, text


CARD = ["cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"]  # fmt: skip


@pytest.mark.parametrize("words", CARD)
def test_what_torch_says_of_a_full_card(words: str) -> None:
    assert "GPU's memory is full" in machine_fault(RuntimeError(words))


def test_a_loader_process_that_ends_while_it_hands_over_a_batch() -> None:
    assert "a loader process has ended" in machine_fault(ConnectionResetError(104, "Connection reset by peer"))


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_machine_is_one_sentence(tmp_path: Path, name: str) -> None:
    body, expected = FAULTS[name]
    code, text = said(body, tmp_path)
    (told,) = [line for line in text.splitlines() if line.startswith("Stopped: ")] or [text]
    assert code == 1 and re.search(expected, told), text
    assert told.endswith(" What was saved before is intact; the same command goes on from there.")
    assert "Traceback" not in text and "damaged" not in text


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    program = PROGRAM.replace("{body}", "raise RuntimeError('mat1 and mat2 shapes cannot be multiplied')")
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr and "Stopped" not in done.stderr


def test_a_small_shared_memory_is_told(tmp_path: Path) -> None:
    """/dev/shm as a container has it, with less than a batch."""
    mount = "mount -t tmpfs -o size=64k tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("mounting needs root")
    words = [sys.executable, "-c", PROGRAM.replace("{body}", "global size; size = 224; train()")]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh", *words],
        cwd=Path(__file__).parents[2], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert re.search("^Stopped: .*/dev/shm.* is full. Give --workers 0, .*--shm-size", done.stderr, re.MULTILINE)
