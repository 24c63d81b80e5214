"""What holds for every test: one thread, files in memory, and a collector of garbage that leaves alone what lasts."""

import gc
import os
import shutil

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is first imported: a worker a core runs the tests
MEMORY = "/dev/shm"  # where Linux has a file system in memory: a disk takes seconds for the many small files and fsyncs
if os.path.isdir(MEMORY) and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 4 * 2**30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", MEMORY)
gc.set_threshold(20_000)  # Python's 700 walk through torch and every collected test so often that it takes an eighth


def pytest_collection_finish() -> None:
    gc.freeze()
