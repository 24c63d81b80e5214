#!/usr/bin/env bash
# ALTA, CIFAR-10 in five tasks of two classes, RN50.
# From the repository root; further flags are handed on, --scale mini runs it on the miniature.
set -euo pipefail
exec "${PYTHON:-python}" -m alta.main --config-file alta/configs/il_cifar10.yaml --visual RN50 "$@"
