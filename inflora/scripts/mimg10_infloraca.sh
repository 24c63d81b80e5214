#!/usr/bin/env bash
# InfLoRA+CA on ImageNet-R, 10 tasks of 20 classes. From the repository root; --scale mini runs it on the miniature.
set -euo pipefail
exec "${PYTHON:-python}" -m inflora.main --config inflora/configs/mimg10_infloraca.json "$@"
