"""What holds for every test: one thread, and a collector of garbage that leaves alone what lasts as long as the tests."""

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is first imported: a worker a core runs the tests
gc.set_threshold(20_000)  # Python's 700 walk through torch and every collected test so often that it takes an eighth


def pytest_collection_finish() -> None:
    gc.freeze()
