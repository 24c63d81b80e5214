#!/usr/bin/env bash
# ALTA, CIFAR-100 in ten tasks, RN101: a published row (buffer size not stated there; here the default).
# From the repository root; further flags are handed on, --scale mini runs it on the miniature.
set -euo pipefail
exec "${PYTHON:-python}" -m alta.main --config-file alta/configs/il_cifar100.yaml --visual RN101 "$@"
