#!/usr/bin/env bash
# InfLoRA on ImageNet-R, 5 tasks of 40 classes. From the repository root; --scale mini runs it on the miniature.
set -euo pipefail
exec "${PYTHON:-python}" -m inflora.main --config inflora/configs/mimg5_inflora.json "$@"
