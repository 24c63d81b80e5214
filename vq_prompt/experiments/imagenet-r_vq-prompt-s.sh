#!/usr/bin/env bash
# VQ-Prompt-S, without statistics and classifier re-training (Table 5), on ImageNet-R in 5, 10 and 20 tasks.
# From the repository root; see imagenet-r_all.sh.
set -euo pipefail
NAME=vq-prompt-s exec bash vq_prompt/experiments/imagenet-r_all.sh --adaptive_pred "$@"
