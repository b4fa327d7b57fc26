#!/usr/bin/env bash
# Builds the service's image as attention-service:VERSION and attention-service:latest with
# the first of docker, podman and buildah that works.
#
#   scripts/image.sh [further options of the build, such as --build-arg EXTRA=server-gpu]
#   make image [IMAGE_OPTIONS="further options of the build"]
#
# ENGINE=buildah (or docker, or podman) leaves the others out.
set -euo pipefail
cd "$(dirname "$0")/.."

# A client may be on the path without its daemon: `info` asks the engine itself.
engine=
for candidate in ${ENGINE:-docker podman buildah}; do
  if command -v "$candidate" >/dev/null && "$candidate" info >/dev/null 2>&1; then
    engine=$candidate
    break
  fi
done
case $engine in
  docker) build=(docker build) ;;
  # Their own default format, OCI, has no HEALTHCHECK.
  podman | buildah) build=("$engine" build --format docker) ;;
  *)
    echo "image: found no ${ENGINE:-docker, podman or buildah} whose \`info\` succeeds." >&2
    echo "image: start the Docker daemon, or install podman or buildah." >&2
    exit 1
    ;;
esac

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
# Without the user and password that a remote's address may hold.
source=$(git remote get-url origin 2>/dev/null | sed 's#//[^/@]*@#//#' || echo unknown)

echo "image: building attention-service:$version with $engine"
exec "${build[@]}" \
  --build-arg VERSION="$version" \
  --build-arg REVISION="$revision" \
  --build-arg SOURCE="$source" \
  --tag "attention-service:$version" \
  --tag attention-service:latest \
  "$@" .
