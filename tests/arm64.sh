#!/usr/bin/env bash
# Set-up and a very small run on aarch64, tried on an x86-64 machine: Debian's arm64 in a folder, run by qemu.
#
#   tests/arm64.sh [FOLDER]      as root on Debian with: apt-get install debootstrap qemu-user-static python3-pip
#
# FOLDER [build/arm64] takes 4 GB; what is there is kept, and running it again goes on with the step that failed. Set-up takes half an hour on
# two cores, the pipeline hours, so CI leaves it out. The last line is "arm64: ok"; the first command that fails ends it.
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)
work=$(realpath -m "${1:-$repository/build/arm64}")
root=$work/root
wheels=$work/wheels
binfmt=/proc/sys/fs/binfmt_misc
# As pip spells what glibc 2.36 runs.
platforms=$(for minor in 36 34 31 28 27 26 24 17; do echo "--platform manylinux_2_${minor}_aarch64"; done; echo "--platform manylinux2014_aarch64")

[ "$(id -u)" = 0 ] || { echo "error: root is needed, for debootstrap, chroot and binfmt_misc" >&2; exit 2; }
for program in debootstrap qemu-aarch64-static python3; do
  command -v "$program" >/dev/null || { echo "error: $program not found; apt-get install debootstrap qemu-user-static python3-pip" >&2; exit 2; }
done
mkdir -p "$work"

registered=
finish() {
  findmnt -rno TARGET | grep -F "$root/" | sort -r | xargs -r umount || true
  [ -z "$registered" ] || echo -1 >"$binfmt/qemu-aarch64" || true
}
trap finish EXIT

timed() {
  local name=$1 start=$SECONDS
  shift
  echo "== $name" >&2
  "$@" || { echo "error: $name: failed after $((SECONDS - start)) s" >&2; exit 1; }
  echo "== $name: $((SECONDS - start)) s" >&2
}

inside() {
  env -i PATH=/usr/bin:/bin:/usr/sbin:/sbin HOME=/root LC_ALL=C.UTF-8 GLOG_v=3 PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels \
    PIP_NO_COMPILE=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore chroot "$root" bash -euc "cd /src; $*"
}

# The flag F opens the interpreter now, so that it is found from inside a chroot.
[ -e "$binfmt/register" ] || mount -t binfmt_misc binfmt_misc "$binfmt"
if ! [ -e "$binfmt/qemu-aarch64" ]; then
  cat /usr/lib/binfmt.d/qemu-aarch64.conf >"$binfmt/register"
  registered=1
fi
grep -q '^flags:.*F' "$binfmt/qemu-aarch64" || { echo "error: $binfmt/qemu-aarch64 lacks the flag F" >&2; exit 2; }

# What the README asks for: Python 3.11, make, g++.
mirror=$(awk '$1 == "URIs:" {print $2; exit}' /etc/apt/sources.list.d/debian.sources 2>/dev/null || true)
if ! [ -e "$root/.first" ]; then
  rm -rf "$root"
  timed "Debian for arm64, fetched" debootstrap --arch=arm64 --foreign --variant=minbase --include=ca-certificates,python3,python3-venv,make,g++ \
    bookworm "$root" "${mirror:-http://deb.debian.org/debian}" >"$work/debootstrap.log"
  touch "$root/.first"
fi
mkdir -p "$root/proc" "$root/sys"
mountpoint -q "$root/proc" || mount -t proc proc "$root/proc"
mountpoint -q "$root/sys" || mount -t sysfs -o ro sysfs "$root/sys"
if ! [ -e "$root/.second" ]; then
  timed "Debian for arm64, unpacked and configured in itself" chroot "$root" /debootstrap/debootstrap --second-stage >>"$work/debootstrap.log"
  touch "$root/.second"
fi

# The wheels are fetched by this machine's pip, which is quicker; `make setup` installs them in the chroot, from the lock as it is, hashes and all.
mkdir -p "$wheels"
sed -n 's/^\([^#; ]*==[^; ]*\).*/\1/p' "$repository"/requirements/{run,hashed}.lock >"$work/run.lock"
printf 'setuptools>=77\nwheel\n' >"$work/build.lock"
# shellcheck disable=SC2086
timed "wheels for aarch64, fetched" python3 -m pip download --quiet --disable-pip-version-check --dest "$wheels" --no-deps \
  --implementation cp --python-version 3.11 --abi cp311 --abi abi3 --abi none $platforms -r "$work/run.lock" -r "$work/build.lock"

mkdir -p "$root/wheels" "$root/src"
mountpoint -q "$root/wheels" || mount --bind "$wheels" "$root/wheels"
tar -C "$repository" --exclude=./.git --exclude=./.venv --exclude=./build --exclude=./runs --exclude=__pycache__ -c . | tar -C "$root/src" -x

timed "make setup" inside make setup
timed "MindSpore" inside '.venv/bin/python -c "
import platform, mindspore
print(platform.machine(), mindspore.__version__, (mindspore.ops.ones((2, 3)) @ mindspore.ops.ones((3, 2))).asnumpy().tolist())"'
timed "latte --help" inside .venv/bin/latte --help

# `make demo` in small, over a SeaweedFS of that architecture. MindSpore waits five minutes for its fused kernels, which an emulated
# machine needs almost wholly, so they are left out here and built below for one network only.
timed "the demo's clips" inside .venv/bin/latte-pipeline demo-clips runs/clips
inside 'for group in bikes bunny; do
  mkdir -p runs/few/$group
  ls runs/clips/$group/*.mp4 | head -2 | xargs cp -t runs/few/$group
done'
timed "the whole pipeline" inside LATTE_FUSED_KERNELS=0 .venv/bin/latte-pipeline run -c configs/demo/pipeline.yaml --run-dir runs/few-run pretrained={} \
  encode.dataset.videos=runs/few encode.num_tasks=1 train.model.hidden_size=32 train.model.depth=2 train.model.num_heads=2 \
  train.steps=6 train.batch_size=2 train.preview_clips=1 train.preview_steps=2 sample.num_videos=2 sample.num_sampling_steps=4 \
  sample.num_tasks=1 score.protocol.num_clips=2
inside 'ls -l runs/few-run/store/*.dat runs/few-run/report.html'

timed "weights" inside .venv/bin/latte convert --kind vae --source configs/demo/autoencoder/diffusion_pytorch_model.safetensors \
  root=file:///src/runs/fused name=vae
timed "encode with fused kernels" inside '.venv/bin/latte encode root=file:///src/runs/fused name=few dataset.videos=runs/few image_size=64 \
  vae=$(ls runs/fused/weights/vae/*/manifest.json)'
echo "arm64: ok"
