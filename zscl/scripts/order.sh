# What the scripts of MTIL and X-TAIL share; they source it. An optional first argument chooses the sequence, order 1
# (default) or 2 of MTIL, or xtail; the arguments left in "$@" are handed on to `python -m zscl.main`, so a later flag
# overrides one that stands here.
#   ORDER            order1, order2 or xtail
#   PROTOCOL         flags of every run: every checkpoint on every test set; for X-TAIL also labels, shots, batch size
#   STEPS            iterations of a task
#   SEQUENCE         flags of a run over all tasks in one process, each from the checkpoint before it
#   SLOW_MNIST_RATES the learning rates of the two scripts that learn MNIST at 1e-5 as well
case "${1:-}" in
  1 | 2) ORDER=order$1 && shift ;;
  xtail) ORDER=xtail && shift ;;
  "" | -* | *=*) ORDER=order1 ;;
  *) echo "error: the order is 1, 2 or xtail, not $1. Flags come behind it." >&2 && exit 2 ;;
esac
STEPS=1000
PROTOCOL=(--eval-datasets="$ORDER")
# 5e-5 for Aircraft and MNIST, 1e-5 for the others.
case $ORDER in
  order1) # Aircraft Caltech101 CIFAR100 DTD EuroSAT Flowers Food MNIST OxfordPet StanfordCars SUN397
    RATES=5e-5,1e-5,1e-5,1e-5,1e-5,1e-5,1e-5,5e-5,1e-5,1e-5,1e-5
    SLOW_MNIST_RATES=5e-5,1e-5,1e-5,1e-5,1e-5,1e-5,1e-5,1e-5,1e-5,1e-5,1e-5 ;;
  order2) # StanfordCars Food MNIST OxfordPet Flowers SUN397 Aircraft Caltech101 DTD EuroSAT CIFAR100
    RATES=1e-5,1e-5,5e-5,1e-5,1e-5,1e-5,5e-5,1e-5,1e-5,1e-5,1e-5
    SLOW_MNIST_RATES=1e-5,1e-5,1e-5,1e-5,1e-5,1e-5,5e-5,1e-5,1e-5,1e-5,1e-5 ;;
  xtail) # Aircraft Caltech101 DTD EuroSAT Flowers Food MNIST OxfordPet StanfordCars SUN397
    RATES=5e-5,1e-5,1e-5,1e-5,1e-5,1e-5,5e-5,1e-5,1e-5,1e-5
    SLOW_MNIST_RATES=5e-5,1e-5,1e-5,1e-5,1e-5,1e-5,1e-5,1e-5,1e-5,1e-5
    STEPS=500 # the protocol names none: as in MoE-Adapters' few-shot script
    PROTOCOL+=(--label-space all --few-shot 16 --batch-size 128) ;;
esac
SEQUENCE=(--train-mode=whole --train-dataset="$ORDER" --lr="$RATES" --ls 0.2 --iterations "$STEPS" "${PROTOCOL[@]}")
