#!/usr/bin/env bash
# Makes the image attention-base:bookworm in the image storage OUT: a plain Debian root with
# Python, for building the service's image where no image can be pulled. Made once, then kept.
#
#   scripts/image_base.sh OUT
#
# OUT is apart from the system's own images, and any buildah uses it that is told to by
#   CONTAINERS_STORAGE_CONF=OUT/storage.conf
set -euo pipefail

if (($# != 1)); then
  echo "usage: scripts/image_base.sh OUT" >&2
  exit 2
fi
image=attention-base:bookworm
mkdir -p "$1"
out=$(realpath "$1")
# Large files that are needed for a moment lie here, where the next run removes what one that
# was killed has left.
export TMPDIR=$out/tmp
rm -rf "$TMPDIR"
mkdir "$TMPDIR"

# vfs and chroot isolation ask nothing of the kernel but mounts, so this works
# inside a container or a small virtual machine too.
cat >"$out/storage.conf" <<END
[storage]
driver = "vfs"
graphroot = "$out/storage"
runroot = "$out/run"
END
export CONTAINERS_STORAGE_CONF=$out/storage.conf BUILDAH_ISOLATION=chroot
buildah rm --all >/dev/null # of a run that was killed

if buildah inspect --type image "localhost/$image" >/dev/null 2>&1; then
  exit 0
fi

# debootstrap writes straight into the container's root: vfs would copy it at every step.
container=$(buildah from scratch)
log=$(mktemp)
cleanup() {
  buildah rm "$container" >/dev/null
  rm -f "$log"
}
trap cleanup EXIT
root=$(buildah mount "$container")
# DEBIAN_MIRROR may name a mirror; by default debootstrap knows Debian's own.
# Its mounts of /proc and /sys are its own, so they never outlive it.
if ! unshare --mount debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates \
  bookworm "$root" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} >"$log" 2>&1; then
  tail -n 20 "$log" >&2
  echo "image_base: debootstrap failed" >&2
  exit 1
fi
# What apt keeps for its next run is no part of an image.
find "$root/var/cache/apt" "$root/var/lib/apt/lists" -type f -delete

buildah config --cmd /bin/bash --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
  "$container"
buildah commit --quiet "$container" "localhost/$image" >/dev/null
echo "image_base: made $image in $out"
