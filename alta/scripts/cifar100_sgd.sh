#!/usr/bin/env bash
# The same head without a buffer, CIFAR-100 in ten tasks, RN50: what replay adds.
# From the repository root; further flags are handed on, --scale mini runs it on the miniature.
set -euo pipefail
exec "${PYTHON:-python}" -m alta.main --config-file alta/configs/sgd_cifar100.yaml --visual RN50 "$@"
