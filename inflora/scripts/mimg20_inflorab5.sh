#!/usr/bin/env bash
# InfLoRA-b5 on ImageNet-R, 20 tasks of 10 classes. From the repository root; --scale mini runs it on the miniature.
set -euo pipefail
exec "${PYTHON:-python}" -m inflora.main --config inflora/configs/mimg20_inflorab5.json "$@"
