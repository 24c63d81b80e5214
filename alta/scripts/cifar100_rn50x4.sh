#!/usr/bin/env bash
# ALTA, CIFAR-100 in ten tasks, RN50x4 at 288 pixels: a published row (buffer size not stated there).
# From the repository root; further flags are handed on, --scale mini runs it on the miniature.
set -euo pipefail
exec "${PYTHON:-python}" -m alta.main --config-file alta/configs/il_cifar100.yaml --visual RN50x4 "$@"
