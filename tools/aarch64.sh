#!/usr/bin/env bash
# The scalar kernels on aarch64, under qemu's user emulation: INT bits equal to this machine's, BF16 and FP32 near.
# Needs aarch64-linux-gnu-g++ and qemu-aarch64-static (Debian: g++-aarch64-linux-gnu, qemu-user-static).
set -euo pipefail
cd "$(dirname "$0")/.."
for tool in c++ aarch64-linux-gnu-g++ qemu-aarch64-static; do
  command -v $tool >/dev/null || { echo "SKIPPED: no $tool, so nothing is known of aarch64 here"; exit 0; }
done
build=build/aarch64
mkdir -p $build
flags=(-std=c++20 -O2 -Inative -DPENSTOCK_ISA=scalar -ffp-contract=off -fno-math-errno -fno-trapping-math -w -Wno-psabi -static)
sources=(tests/native/bits.cpp native/kernels/*.cpp native/pack*.cpp)
c++ "${flags[@]}" "${sources[@]}" -o $build/bits_here
aarch64-linux-gnu-g++ "${flags[@]}" "${sources[@]}" -o $build/bits_aarch64
$build/bits_here >$build/here.txt
qemu-aarch64-static $build/bits_aarch64 >$build/aarch64.txt
paste -d' ' $build/here.txt $build/aarch64.txt | awk '
  $3 == "hash" { same = $4 == $8; printf "%-10s %-5s bits %s\n", $1, $2, same ? "equal" : "DIFFER"; bad += !same; seen++ }
  $3 == "values" {
    far = 0
    for (i = 4; i <= 6; i++) { d = $i - $(i + 6); if (d < 0) d = -d; if (d > far) far = d }
    printf "%-10s %-5s largest difference %.2g\n", $1, $2, far; bad += far > 1e-3; seen++
  }
  END { if (bad || seen < 21) { print "aarch64 is not right"; exit 1 } }'
