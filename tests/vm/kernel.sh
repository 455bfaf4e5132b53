#!/bin/sh
# Unpacks Debian's stock kernel package (nothing is installed) into the directory $1.
set -eu
into=$1
rm -rf "$into"
mkdir -p "$into"
cd "$into"
package=$(apt-cache depends linux-image-amd64 | sed -n 's/^ *Depends: \(linux-image-.*\)/\1/p' | head -n 1)
if [ -z "$package" ]; then
    echo "linux-image-amd64 is not known to apt here: run apt-get update, on Debian for amd64" >&2
    exit 1
fi
echo "fetching $package"
apt-get download -q "$package"
dpkg-deb -x ./*.deb .
rm ./*.deb
depmod -b "$PWD" "${package#linux-image-}"
