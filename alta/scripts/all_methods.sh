#!/usr/bin/env bash
# The nine methods and zero-shot CLIP under one configuration, a run each, one after the other.
# From the repository root: all_methods.sh [CONFIG, such as il_cifar100] [flags handed on, --scale mini among them].
set -euo pipefail
config=il_cifar100
if [[ $# -gt 0 && $1 != --* && $1 != *=* ]]; then config=$1; shift; fi
for method in zeroshot mlp resmlp sprompt cprompt cprompt_oriprompt cprompt_mlp cprompt_resmlp oriclip2cprompt_mlp \
    oritext_mlp2cprompt_oriimg; do
  "${PYTHON:-python}" -m alta.main --config-file "alta/configs/$config.yaml" --method "$method" "$@"
done
