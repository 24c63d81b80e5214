#!/usr/bin/env bash
# CLIP as it is, hard prompts alone, CIFAR-100 in ten tasks; another tower: --visual ViT-B/16.
# From the repository root; further flags are handed on, --scale mini runs it on the miniature.
set -euo pipefail
exec "${PYTHON:-python}" -m alta.main --config-file alta/configs/il_cifar100.yaml --visual RN50 --method zeroshot "$@"
