#!/bin/bash
# Builds the RPM packages from this checkout as a site would, from vendored crates and without the
# network, and compares the files in them, owners and modes with packaging/rpm/files.expected.
# The packages stay in <target>/testbed/rpm/RPMS.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
top=$(realpath -m "${CARGO_TARGET_DIR:-target}")/testbed/rpm
rm -rf "$top/BUILD" "$top/BUILDROOT" "$top/RPMS"
mkdir -p "$top/SOURCES"

name=shifter-$version
git ls-files -z --cached --others --exclude-standard |
    tar -czf "$top/SOURCES/$name.tar.gz" --null -T - --transform "s,^,$name/,"
cargo vendor --locked --quiet "$top/vendor" >/dev/null
tar -czf "$top/SOURCES/$name-vendor.tar.gz" -C "$top" vendor

# What is in the packages does not depend on how fast it is.
export CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16
# Debian's rpmbuild knows no installed packages: dependencies among them cannot be satisfied.
rpmbuild -bb --nodeps --quiet --define "_topdir $top" --define "shifter_version $version" \
    packaging/rpm/shifter.spec

found=$(for package in "$top"/RPMS/*/*.rpm; do
    rpm -qp --queryformat "[%{=NAME} %{FILEMODES:perms} %{FILEUSERNAME} %{FILEGROUPNAME} %{FILENAMES}\n]" \
        "$package"
done | grep -v /share/man/ | LC_ALL=C sort)
diff -u packaging/rpm/files.expected <(printf '%s\n' "$found") || {
    echo "rpm.sh: the packages do not hold what packaging/rpm/files.expected says" >&2
    exit 1
}
# Installed under another prefix, everything names that one and the programs find each other.
tests/world.sh bash -euc '
    rpm -i --nodeps --force-debian --prefix /apps/shifter "$@"
    grep -qx "prefix = \"/apps/shifter\"" /etc/shifter/shifter.toml
    ! grep -rE "/usr/(s?bin|lib|share)/(shifter|setupRoot)" /etc/shifter /apps/shifter/share/shifter >&2 ||
        exit 1
    grep -qx "ExecStart=/apps/shifter/sbin/shifter-node-clean" \
        /apps/shifter/lib/systemd/system/shifter-node-clean.service
    setpriv --reuid alice --regid alice --init-groups --reset-env /apps/shifter/bin/shifter images
' world "$top"/RPMS/*/*.rpm >/dev/null

echo "rpm.sh: $(ls "$top"/RPMS/*/*.rpm | wc -l) packages hold what they should"
