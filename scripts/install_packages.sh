#!/bin/sh
# Installs what is missing to build switchback on Debian or Ubuntu. Arguments: more packages to install.
set -eu
packages="g++ meson ninja-build pkg-config nlohmann-json3-dev libcli11-dev doctest-dev libjpeg-dev libpng-dev \
zlib1g-dev libutf8proc-dev libopenblas-dev libwebp-dev $*"
missing=""
for package in $packages; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing="$missing $package"
done
[ -z "$missing" ] && exit 0
echo "installing:$missing"
sudo=""
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || { echo "install_packages: not root and no sudo; install these yourself:$missing" >&2; exit 1; }
  sudo=sudo
fi
$sudo apt-get update -qq
# shellcheck disable=SC2086
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
