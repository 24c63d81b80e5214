#!/usr/bin/env bash
# LoRA trained task after task, the lower bound, on CIFAR-100.
# From the repository root; --scale mini runs it on the miniature.
set -euo pipefail
exec "${PYTHON:-python}" -m inflora.main --config inflora/configs/cifar100_inflora.json --model-name SeqLoRA "$@"
