#!/usr/bin/env bash
# ALTA, CIFAR-100 in ten tasks, RN50x16 at 384 pixels, which upstream's configurations cannot run.
# From the repository root; further flags are handed on, --scale mini runs it on the miniature.
set -euo pipefail
exec "${PYTHON:-python}" -m alta.main --config-file alta/configs/il_cifar100.yaml --visual RN50x16 "$@"
