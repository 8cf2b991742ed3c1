#!/usr/bin/env bash
# Everything that needs a CUDA device, in order of worth, within the minutes given.
#
#   bash benchmarks/gpu.sh MINUTES      stop after so many minutes; what is done is kept, run it again to go on
#   bash benchmarks/gpu.sh --dry-run    every step on the CPU, with tiny settings, into a temporary folder
#
# Reads DIFFVIT_DATA. Writes OUT/reports and OUT/runs (OUT: the project's root unless set). Skips what reports/ holds already.
# PYTHON: the interpreter (.venv/bin/python where there is one, else python3). Nothing has to be installed.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export PYTHONPATH="$root/src${PYTHONPATH:+:$PYTHONPATH}"

usage() { echo "error: usage: bash benchmarks/gpu.sh MINUTES | --dry-run" >&2; exit 2; }
[ $# -eq 1 ] || usage
dry=false
case "$1" in
  --dry-run) dry=true minutes=60 ;;
  '' | *[!0-9]*) usage ;;
  *) minutes=$1 ;;
esac

seeds="0 1 2"
# bf16 alone: every model is compiled anew in each dtype, which takes longer than measuring it.
bench=(--precision bf16 --batch-size 1024 --steps 10) layer=(--precision bf16 --tokens-per-step 65536 --steps 20)
tiny=() compiled=(--compiled) memory=()
profiled=(configs/cifar10_vit.yaml configs/cifar10_diffvit.yaml configs/cifar10_80_gpu.yaml)
precisions=(--device cuda --batch-sizes 1,2,4,8,16,32,64,128,256,512 --images 512 --budget 180)
together=(configs/cifar10_vit.yaml --epochs-each 5 --checkpoint-every 50)
tier=full device=cuda
experiments=(vit-vs-diffvit patch-size position augmentation width depth mlp-ratio heads pooling head optimizer initialisation search)
if $dry; then
  OUT=$(mktemp -d) && trap 'rm -rf "$OUT"' EXIT
  seeds="0"
  tier=smoke device=cpu
  experiments=(vit-vs-diffvit)
  export TMPDIR=$OUT # what the compiler keeps goes too
  unset DIFFVIT_DATA
  # A variable beats the recipe's file, so every step runs as it is written, only small. No figure of it is kept.
  export DIFFVIT_DEVICE=cpu DIFFVIT_EPOCHS=2 DIFFVIT_BATCH_SIZE=32 DIFFVIT_VALIDATION_SIZE=0 DIFFVIT_COMPILE=false
  export DIFFVIT_MODEL__EMBED_DIM=16 DIFFVIT_MODEL__DEPTH=2 DIFFVIT_MODEL__NUM_HEADS=2 DIFFVIT_THREADS=1
  export DIFFVIT_SHAPES__TRAIN=200 DIFFVIT_SHAPES__TEST=40
  tiny=(--data shapes)
  # No peers: theirs need no CUDA to be tested, and an extra. Nothing compiled: that takes longer than all else together.
  # Float32: a CPU without instructions for bf16 takes seconds for the large product that the rates are measured against.
  # No peak memory: each figure takes a process of its own.
  compiled=() memory=(--no-memory)
  bench=(--device cpu --embed-dim 32 --depth 1 --num-heads 2 --batch-size 2 --rounds 1 --warmup 0 --peers none --precision fp32)
  layer=(--device cpu --widths 64 --tokens 16 --tokens-per-step 64 --rounds 1 --peers none)
  profiled=(configs/cifar10_diffvit.yaml --data shapes --steps 3)
  precisions=(--device cpu --threads 1 --batch-sizes 1 --images 2 --budget 16)
  together=(configs/cifar10_vit.yaml --epochs-each 2 --epochs 200)
elif ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "error: CUDA device: none found. Nothing was run; try every step on the CPU with --dry-run." >&2
  exit 4
fi
OUT=${OUT:-$root}
deadline=$((SECONDS + minutes * 60))
reserve=60 # seconds at the end for the reports of what is done by then
left_undone=()

# spend NAME COMMAND...: run it within what is left of the time; a training stopped by that saves its state.
spend() {
  local name=$1 left=$((deadline - reserve - SECONDS)) code=0
  shift
  case "$name" in report*) left=$((deadline - SECONDS)) ;; esac
  if [ "$left" -lt 10 ]; then left_undone+=("$name"); return 1; fi
  echo "== $name (${left} s left)"
  [ "$1" = diffvit ] && set -- "$PYTHON" -m diffvit.cli.main "${@:2}"
  timeout --signal=TERM --kill-after=90 "$left" "$@" || code=$?
  [ "$code" -eq 0 ] && return 0
  left_undone+=("$name (exit code $code)")
  return 1
}

# held STUDY RUN: whether a committed or a new row tells of that run.
held() {
  local file
  for file in "$root/reports/$1/rows.csv" "$OUT/reports/$1/rows.csv"; do
    if ! $dry || [ "$file" = "$OUT/reports/$1/rows.csv" ]; then
      [ -f "$file" ] && cut -d, -f1 "$file" | grep -qx "$2" && return 0
    fi
  done
  return 1
}

# train STUDY CONFIG SEED: one run, taken up where it stopped.
train() {
  local study=$1 config=$2 seed=$3 name
  name="$config-s$seed"
  local folder="$OUT/runs/$name"
  held "$study" "$name" && { echo "== $name: in reports/$study already"; return 0; }
  [ -f "$folder/result.json" ] && return 0
  local start=(train "configs/$config.yaml" --seed "$seed" --out "$folder" "${tiny[@]}")
  [ -f "$folder/environment.json" ] && start=(train --resume "$folder" "${tiny[@]}")
  spend "$name" diffvit "${start[@]}"
}

# study NAME CONFIG...: the recipes with each seed, then one report of all that is finished.
study() {
  local name=$1 config seed folder finished=()
  shift
  for seed in $seeds; do
    for config in "$@"; do train "$name" "$config" "$seed" || true; done
  done
  for config in "$@"; do
    for seed in $seeds; do
      [ -f "$OUT/runs/$config-s$seed/result.json" ] && finished+=("$OUT/runs/$config-s$seed")
    done
  done
  [ ${#finished[@]} -eq 0 ] && return 0
  local before=()
  # Rows of earlier calls take part.
  for folder in "$OUT" "$root"; do
    if [ -f "$folder/reports/$name/rows.csv" ] && ! $dry; then before=(--committed "$folder/reports/$name"); break; fi
  done
  spend "report $name" diffvit compare "${finished[@]}" --out "$OUT/reports/$name" "${before[@]}" || true
}

# exact_resume: a run stopped half-way and taken up against one left alone, bit for bit, with deterministic kernels.
exact_resume() {
  local folder="$OUT/reports/gpu-resume" runs="$OUT/runs/resume"
  [ -f "$root/reports/gpu-resume/result.json" ] && ! $dry && { echo "== exact resume: in reports/ already"; return 0; }
  mkdir -p "$folder"
  local long=()
  $dry && long=(DIFFVIT_EPOCHS=12) # long enough to be stopped in the middle
  spend "exact resume" env CUBLAS_WORKSPACE_CONFIG=:4096:8 "${long[@]}" "$PYTHON" benchmarks/exact_resume.py \
    configs/cifar10_80_gpu.yaml --runs "$runs" --out "$folder/result.json" "${tiny[@]}" || true
}

# two_at_once: whether two trainings on one device get more done than one.
two_at_once() {
  local folder="$OUT/reports/gpu-two-at-once"
  [ -f "$root/reports/gpu-two-at-once/result.json" ] && ! $dry && { echo "== two at once: in reports/ already"; return 0; }
  mkdir -p "$folder"
  spend "two at once" "$PYTHON" benchmarks/two_at_once.py "${together[@]}" \
    --runs "$OUT/runs/two" --out "$folder/result.json" "${tiny[@]}" || true
}

# precision: CLIP's image encoder in every precision and memory format, with peak memory and drift.
precision() {
  local folder=clip-precision-cuda
  [ -f "$root/reports/$folder/precision.json" ] && ! $dry && { echo "== clip precision: in reports/ already"; return 0; }
  spend "clip precision" diffvit clip precision --out "$OUT/reports/$folder" "${precisions[@]}" || true
}

# experiment NAME: every trial of a study of ours that is not done, then its report; trials in reports/ are not run again.
experiment() {
  local name=$1 where=(--runs "$OUT/runs/studies" --reports "$root/reports")
  $dry && where=(--runs "$OUT/runs/studies" --reports "$OUT/reports")
  spend "study $name" diffvit study run "$name" --tier "$tier" --device "$device" "${where[@]}" || true
  [ -d "$OUT/runs/studies/$tier" ] || return 0
  # Committed rows that the machine was given take part. What is there already is left as it is.
  [ ! -d "$root/reports/$name" ] || [ "$OUT" = "$root" ] || $dry || [ -d "$OUT/reports/$name" ] ||
    { mkdir -p "$OUT/reports" && cp -r "$root/reports/$name" "$OUT/reports/"; }
  # Without the tier: of the largest one that is complete. Rows of the others are kept beside it.
  spend "report $name" diffvit study report "$name" --runs "$OUT/runs/studies" --reports "$OUT/reports" || true
}

benchmark() {
  local kind=$1
  shift
  [ -f "$root/reports/speed-cuda/$kind.json" ] && ! $dry && { echo "== bench $kind: in reports/ already"; return 0; }
  spend "bench $kind" diffvit bench "$kind" --out "$OUT/reports/speed-cuda" "$@" || true
}

study gpu-50-epochs cifar10_vit cifar10_diffvit
study gpu-time-to-80 cifar10_80_gpu
study gpu-time-to-85 cifar10_85_gpu
benchmark train "${compiled[@]}" "${memory[@]}" "${bench[@]}"
benchmark inference "${compiled[@]}" --no-memory "${bench[@]}"
benchmark attention "${layer[@]}"
benchmark profile "${profiled[@]}"
# Minutes each. The studies come last, for they take whatever time there is.
precision
exact_resume
two_at_once
for name in "${experiments[@]}"; do experiment "$name"; done

if [ ${#left_undone[@]} -eq 0 ]; then
  echo "finished"
else
  printf 'not done: %s\n' "${left_undone[@]}"
  echo "Run it again to go on; runs and reports so far are in $OUT."
  exit 1
fi
