#!/usr/bin/env bash
# InfLoRA on DomainNet, 5 tasks of 69 classes. From the repository root; --scale mini runs it on the miniature.
set -euo pipefail
exec "${PYTHON:-python}" -m inflora.main --config inflora/configs/domainnet_inflora.json "$@"
