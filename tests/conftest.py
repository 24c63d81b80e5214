"""A worker a core runs the tests, so each, and what it starts, takes one thread."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is first imported
