"""A program in a process forked from this one, whose imports lie behind it; signals and exit codes are a process's."""

import importlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import TextIO

import torch
from torch.distributed import TCPStore
from torch.multiprocessing import start_processes
from tqdm import tqdm

LIBRARIES = ["torch._dynamo", "torchvision", "timm", "open_clip", "pandas", "matplotlib.pyplot"]  # slow to import


def start(main: Callable[[list[str]], None], words: list[str]) -> tuple[BaseProcess, TextIO]:
    """The process that runs an entry point, and what it says: its output joined in one stream."""
    for name in LIBRARIES:
        importlib.import_module(name)
    reading, writing = os.pipe()
    process = multiprocessing.get_context("fork").Process(target=run, args=(main, words, writing))
    process.start()
    os.close(writing)  # the stream ends with the process
    return process, open(reading)


def own_lock() -> None:
    """A lock of its own for a process's progress bars: who is killed with tqdm's shared one would stop all others."""
    tqdm.set_lock(threading.RLock())


def run(main: Callable[[list[str]], None], words: list[str], output: int) -> None:
    own_lock()
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = open(1, "w", buffering=1), open(2, "w", buffering=1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests ignore Ctrl-C
    torch.set_num_threads(1)  # the threads of a pool do not live on in a fork
    main(words)


def on_two_processes(main: Callable[[list[str]], None]) -> Callable[[list[str]], None]:
    """The entry point as torchrun runs it in two processes; where one fails, the other is ended."""

    def job(words: list[str]) -> None:
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # at a port that is free
        start_processes(process, (words, store.port), 2, start_method="fork")

    def process(rank: int, words: list[str], port: int) -> None:
        own_lock()
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        os.environ |= place | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # the store is there: the first process opens none
        main(words)

    return job


def kill(process: BaseProcess) -> None:
    """SIGKILL, and wait for the end."""
    process.kill()
    process.join()


def finish(process: BaseProcess, said: TextIO) -> str:
    """What a process that must end well has said."""
    text = said.read()
    process.join()
    assert process.exitcode == 0, text
    return text
