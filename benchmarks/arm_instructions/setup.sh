#!/bin/bash
# Collects in FOLDER what benchmarks.arm_instructions needs: QEMU's user-mode emulation with the plugin, and
# Python, numpy and ONNX Runtime for ARM64. For Debian 12 on x86, as root. Nothing outside FOLDER is installed.
#
#     bash benchmarks/arm_instructions/setup.sh FOLDER
set -euo pipefail

mkdir -p "$1"
folder=$(realpath "$1") here=$(realpath "$(dirname "$0")")
packages=(python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libc6 libgcc-s1 libstdc++6 zlib1g
    libexpat1 libffi8 libbz2-1.0 liblzma5 libssl3)
cd "$folder"
dpkg --add-architecture arm64
apt-get update -qq
apt-get download -qq qemu-user libcapstone4 liburing2 "${packages[@]/%/:arm64}"
for package in *_amd64.deb; do dpkg -x "$package" .; done
for package in *_arm64.deb; do dpkg -x "$package" root; done
gcc -O2 -Wall -shared -fPIC -fvisibility=hidden "$here/plugin.c" -o plugin.so
requirements=$(grep -oE '^(numpy|onnxruntime)==[0-9.]+' "$here/../../requirements.txt")
python3 -m pip download -q --no-deps --only-binary :all: --python-version 3.11 \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64 \
    -d wheels $requirements
for wheel in wheels/*.whl; do python3 -m zipfile -e "$wheel" root/site; done
