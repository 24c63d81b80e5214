#!/usr/bin/env bash
# ALTA, CIFAR-100 in ten tasks, ViT-B/32.
# From the repository root; further flags are handed on, --scale mini runs it on the miniature.
set -euo pipefail
exec "${PYTHON:-python}" -m alta.main --config-file alta/configs/il_cifar100.yaml --visual ViT-B/32 "$@"
