#!/bin/bash
# Debian's tcmu-runner unpacked under build/, for the bench's guest alone; nothing is installed here.
set -eu
made=$1
mkdir -p "$made"
cd "$made"
apt-get download -q tcmu-runner libtcmu2
for package in *.deb; do dpkg-deb -x "$package" root; done
