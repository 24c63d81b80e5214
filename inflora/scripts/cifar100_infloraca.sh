#!/usr/bin/env bash
# InfLoRA+CA on CIFAR-100, 10 tasks of 10 classes. From the repository root; --scale mini runs it on the miniature.
set -euo pipefail
exec "${PYTHON:-python}" -m inflora.main --config inflora/configs/cifar100_infloraca.json "$@"
