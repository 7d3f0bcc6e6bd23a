#!/bin/bash
# Brings a Debian machine to where the Makefile can build, test and demonstrate Ironspan.
#
#   tools/bootstrap.sh              install what is missing (root, or sudo)
#   tools/bootstrap.sh --check      only report; exit status 1 if something is missing
#   tools/bootstrap.sh --exec CMD   run CMD with the Go that fits go.mod first in PATH
#   tools/bootstrap.sh --probe-lab  can the lab's servers run here? says why not; exit status 1 then
#
# When nothing is missing it does nothing and takes a fraction of a second. Packages come from the
# mirror the machine's apt already uses. A backports suite, where one is needed, is given to apt in a
# private directory for this one run: nothing under /etc/apt changes. Someone who may not install
# packages can go on without those that only the lab needs.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

readonly GO_SWITCH=1.21  # the first Go that can fetch the toolchain go.mod names

# One requirement a line: what it is for, package, then a file that shows it is there (a pattern), then
# why. The lab's own stand under "lab"; kernels and QEMU it fetches by itself.
readonly REQUIREMENTS='
build  ca-certificates     /etc/ssl/certs/ca-certificates.crt          TLS roots, for the Go module proxy
build  git                 /usr/bin/git                                version stamps
build  make                /usr/bin/make                               the build
build  gcc                 /usr/bin/gcc                                cgo in package verbs, and the race detector
build  libc6-dev           /usr/include/stdio.h                        headers for gcc
build  pkg-config          /usr/bin/pkg-config                         finds libibverbs
build  libibverbs-dev      /usr/include/infiniband/verbs.h             the RDMA interface
lab    ibverbs-providers   /usr/lib/*/libibverbs/librxe-rdmav*.so      its drivers, soft-RoCE among them
lab    rdma-core           /etc/rdma/modules/rdma.conf                 RDMA device set-up
lab    perftest            /usr/bin/ib_read_lat                        raw RDMA figures to compare with
lab    cpio                /usr/bin/cpio                               looks into initial RAM disks
lab    kmod                /usr/sbin/modprobe|/sbin/modprobe           kernel modules
lab    xz-utils            /usr/bin/xz                                 unpacks kernel packages
lab    zstd                /usr/bin/zstd                               unpacks kernel packages
'

say()  { printf 'bootstrap: %s\n' "$*" >&2; }
die()  { say "$*"; exit 1; }

# at_least A B: version A is not older than version B.
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

# present PATTERN: some file matches it; alternatives are divided by |.
present() {
	local pattern
	for pattern in ${1//|/ }; do
		compgen -G "$pattern" >/dev/null && return 0
	done
	return 1
}

# ---- Go ----------------------------------------------------------------------------------------

go_wanted=$(awk '$1 == "go" { print $2; exit }' "$root/go.mod")

# go_version FILE: the version of that Go itself, such as 1.26.8, or nothing.
go_version() { GOTOOLCHAIN=local "$1" version 2>/dev/null | sed -n 's/^go version go\([0-9.]*\).*/\1/p'; }

# find_go sets go_bin, go_has and go_fetch (1: it must fetch the toolchain of go.mod first).
# A Go that is new enough wins over one that can fetch a newer self.
find_go() {
	local bin has
	go_bin='' go_has='' go_fetch=0
	for bin in "$(command -v go || true)" /usr/local/go/bin/go $(compgen -G '/usr/lib/go-*/bin/go' | sort -rV); do
		[ -n "$bin" ] && [ -x "$bin" ] || continue
		has=$(go_version "$bin")
		[ -n "$has" ] || continue
		if at_least "$has" "$go_wanted"; then
			go_bin=$bin go_has=$has go_fetch=0
			return 0
		fi
		if [ -z "$go_bin" ] && at_least "$has" "$GO_SWITCH"; then
			go_bin=$bin go_has=$has go_fetch=1
		fi
	done
	[ -n "$go_bin" ]
}

# use_go puts the Go found into this process's environment.
use_go() {
	export PATH="$(dirname "$go_bin"):$PATH"
	if [ "$go_fetch" = 1 ]; then
		# The version by name: "auto" would do, but some distributions set it to "local".
		export GOTOOLCHAIN="go$go_wanted+auto"
	fi
}

# fetch_toolchain makes a Go that is too old download the one go.mod names.
fetch_toolchain() {
	[ "$go_fetch" = 1 ] || return 0
	local got
	if ! got=$(cd "$root" && GOPROXY=off go version 2>/dev/null); then
		say "Go $go_has is older than go.mod's $go_wanted: fetching Go $go_wanted through the Go module proxy (about 75 MB, once)"
		got=$(cd "$root" && go version) || die "cannot fetch Go $go_wanted: see above; check GOPROXY ($(go env GOPROXY)), or install Go $go_wanted in /usr/local/go yourself"
	fi
	go_now=${got#go version }
}

# ---- what is missing -----------------------------------------------------------------------------

# survey sets missing (packages) and go_missing (1: Go, which may need a backport), and says why each is
# wanted. unbuildable counts those the build needs. It fails if anything is missing.
survey() {
	local tier package pattern why
	missing=() go_missing=0 unbuildable=0
	while read -r tier package pattern why; do
		[ -n "$package" ] || continue
		present "$pattern" && continue
		say "missing: $package ($why)"
		missing+=("$package")
		[ "$tier" = lab ] || unbuildable=$((unbuildable + 1))
	done <<<"$REQUIREMENTS"

	if ! find_go; then
		say "missing: Go $GO_SWITCH or newer (go.mod wants $go_wanted, which such a Go fetches by itself)"
		go_missing=1
		unbuildable=$((unbuildable + 1))
	fi
	[ ${#missing[@]} -eq 0 ] && [ "$go_missing" = 0 ]
}

# supplied says which of the lab's kernel and QEMU is neither here nor to be fetched, and fails if one is.
supplied() {
	local tool without=() cache=${XDG_CACHE_HOME:-${HOME:-}/.cache}/ironspan own
	for tool in apt-get apt-cache dpkg-deb; do
		command -v "$tool" >/dev/null || without+=("$tool")
	done
	[ ${#without[@]} -gt 0 ] || return 0
	if ! compgen -G "$cache/kernel/${IRONSPAN_LAB_KERNEL:-6.12}/*/vmlinuz" >/dev/null; then
		say "missing: ${without[*]} (the lab fetches its kernels with apt, and has none yet)"
		return 1
	fi
	own=$(qemu-system-x86_64 --version 2>/dev/null | sed -n '1s/.*version \([0-9.]*\).*/\1/p' || true)
	if ! compgen -G "$cache/qemu/*/qemu-system-x86_64" >/dev/null && ! at_least "${own:-0}" 7.2; then
		say "missing: QEMU 7.2 or newer, or ${without[*]} (the lab fetches a QEMU with apt)"
		return 1
	fi
}

# lab_probe says on standard output why the lab cannot run here, if so.
lab_probe() {
	local why bad=0
	why=$({ survey || bad=1; supplied || bad=1; [ "$bad" = 0 ]; } 2>&1) && return 0
	printf '%s\n' "$why" | sed 's/^bootstrap: //' | paste -sd ';'
	return 1
}

# ---- apt, with a private directory ---------------------------------------------------------------

# backports_of CODENAME FILE...: the machine's own entry for the main archive, rewritten to its
# backports suite, so that mirror, keys and options stay what the administrator chose. Reads .list
# and deb822 .sources files; prints the entry in the form it was found in, or nothing.
backports_of() {
	local codename=$1 file
	shift
	for file; do
		case $file in
		*.sources) backports_of_sources "$codename" "$file" ;;
		*)         backports_of_list "$codename" "$file" ;;
		esac && return 0
	done
	return 1
}

backports_of_list() {
	awk -v codename="$1" '
		$1 == "deb" {
			options = ""; rest = $0; sub(/^[ \t]*deb[ \t]+/, "", rest)
			if (rest ~ /^\[/) { n = index(rest, "]"); options = substr(rest, 1, n) " "; rest = substr(rest, n + 1) }
			split(rest, field, " ")
			if (field[1] ~ /^cdrom:/ || (field[2] != codename && field[2] !~ /^(old)*stable$/)) next
			print "deb " options field[1] " " codename "-backports main"
			found = 1; exit
		}
		END { exit !found }' "$2"
}

backports_of_sources() {
	grep -v '^[ \t]*#' "$2" | awk -v codename="$1" '
		BEGIN { RS = ""; FS = "\n" }
		{
			deb = main = off = 0; entry = ""; skip = 0
			for (i = 1; i <= NF; i++) {
				if ($i ~ /^[ \t]/) { if (!skip) entry = entry $i "\n"; continue }
				skip = 0
				name = tolower($i); sub(/:.*/, "", name)
				value = $i; sub(/^[^:]*:[ \t]*/, "", value)
				if (name == "types")           { deb = (" " value " ") ~ / deb /; entry = entry "Types: deb\n" }
				else if (name == "suites")     { main = (" " value " ") ~ (" (" codename "|(old)*stable) "); skip = 1
				                                 entry = entry "Suites: " codename "-backports\n" }
				else if (name == "components") { skip = 1; entry = entry "Components: main\n" }
				else                           { if (name == "enabled" && tolower(value) ~ /^no/) off = 1
				                                 entry = entry $i "\n" }
			}
			if (deb && main && !off) { printf "%s", entry; found = 1; exit }
		}
		END { exit !found }'
}

# private_apt makes a directory that holds a copy of the machine's sources and its own package lists.
private_apt() {
	apt_dir=$(mktemp -d "${TMPDIR:-/tmp}/ironspan-apt.XXXXXX")
	trap '[ -z "${apt_dir:-}" ] || $sudo rm -rf "$apt_dir"' EXIT
	chmod 755 "$apt_dir" # apt downloads as another user
	mkdir -p "$apt_dir/sources" "$apt_dir/lists/partial" "$apt_dir/cache/archives/partial"
	local file
	[ ! -s /etc/apt/sources.list ] || cp /etc/apt/sources.list "$apt_dir/sources/machine.list"
	for file in /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
		[ ! -f "$file" ] || cp "$file" "$apt_dir/sources/"
	done
	apt_options=(
		-o "Dir::Etc::sourcelist=/dev/null" -o "Dir::Etc::sourceparts=$apt_dir/sources"
		-o "Dir::State::lists=$apt_dir/lists" -o "Dir::Cache=$apt_dir/cache"
		-o "Dir::Cache::archives=$apt_dir/cache/archives"
		-o "Acquire::Languages=none" -o "Acquire::Retries=3" -o "DPkg::Lock::Timeout=300"
	)
}

apt() { $sudo env DEBIAN_FRONTEND=noninteractive apt-get "${apt_options[@]}" "$@"; }

# versions PACKAGE: "version suite" lines of what the private lists offer, without the epoch.
versions() {
	apt-cache "${apt_options[@]}" madison "$1" 2>/dev/null |
		sed -n 's/^[^|]*| *\([^ |]*\) *| *[^ ]* \([^ /]*\).*/\1 \2/p' | sed 's/^[0-9]*://'
}

# choose PACKAGE MINIMUM: prints package or package/suite of the first offer that is new enough.
choose() {
	local version suite
	while read -r version suite; do
		at_least "$version" "$2" && { echo "$1/$suite"; return 0; }
	done < <(versions "$1")
	return 1
}

# may_install sets sudo to what makes this user root, or says why packages cannot be installed.
may_install() {
	sudo=''
	if ! command -v apt-get >/dev/null; then
		say "this script knows only apt: install the above by other means (BUILD.md lists them)"
		return 1
	fi
	[ "$(id -u)" != 0 ] || return 0
	if command -v sudo >/dev/null; then
		sudo=sudo
		[ -t 0 ] || sudo='sudo -n'
		$sudo true && return 0
	fi
	say "packages have to be installed: run this as root, or with sudo"
	return 1
}

install_missing() {
	local codename chosen entry
	codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
	private_apt

	say "reading the package lists of this machine's mirror"
	apt update -qq || die "apt-get update failed: see above; this machine's apt configuration has to work first"

	if [ "$go_missing" = 1 ] && ! choose golang-go "$GO_SWITCH" >/dev/null; then
		[ -n "$codename" ] || die "this system does not say its code name in /etc/os-release: install Go $GO_SWITCH or newer yourself"
		entry=$(backports_of "$codename" $(compgen -G "$apt_dir/sources/*")) ||
			die "no entry for $codename in this machine's apt sources to derive $codename-backports from: install Go $GO_SWITCH or newer yourself"
		say "$codename has no Go $GO_SWITCH or newer: looking in $codename-backports (for this run only, /etc/apt stays as it is)"
		case $entry in
		deb\ *) printf '%s\n' "$entry" >"$apt_dir/sources/ironspan-backports.list" ;;
		*)      printf '%s\n' "$entry" >"$apt_dir/sources/ironspan-backports.sources" ;;
		esac
		apt update -qq || die "cannot read $codename-backports from this machine's mirror: see above"
	fi
	# Stable's packages first, then Go from backports with its dependencies: asking for both at once would
	# draw the libraries of the first from backports too.
	[ ${#missing[@]} -eq 0 ] || install_packages "${missing[@]}"
	[ "$go_missing" = 1 ] || return 0
	chosen=$(choose golang-go "$GO_SWITCH") || die "no Go $GO_SWITCH or newer, in backports neither: install it yourself"
	case $chosen in
	*-backports) install_packages -t "$codename-backports" golang-go ;;
	*)           install_packages golang-go ;;
	esac
}

# install_packages shows apt's sizes and one line for each package; all of it only if it failed.
install_packages() {
	say "installing $*"
	apt install -y -q --no-install-recommends -o Dpkg::Use-Pty=0 "$@" </dev/null 2>&1 |
		tee "$apt_dir/log" | sed -u -n 's/^\(Need to get\|Setting up\|E:\)/  &/p' >&2 || {
		cat "$apt_dir/log" >&2
		die "apt-get install failed: see above"
	}
}

# ---- main ----------------------------------------------------------------------------------------

[ "$(uname -sm)" = "Linux x86_64" ] || die "Ironspan is for Linux on x86-64; this is $(uname -sm)"

case "${1:-}" in
'' | --check) ;;
--exec)
	shift
	[ $# -gt 0 ] || die "--exec wants a command"
	find_go || die "no Go that fits go.mod ($go_wanted): run tools/bootstrap.sh"
	use_go
	exec "$@"
	;;
--probe-lab)
	lab_probe
	exit
	;;
--backports-of) # CODENAME FILE...: what would be derived from these sources; for tests
	shift
	backports_of "$@"
	exit
	;;
-h | --help)
	sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
	exit 0
	;;
*) die "unknown argument $1; try --help" ;;
esac

if ! survey; then
	if [ "${1:-}" = --check ]; then
		say "not ready: run tools/bootstrap.sh (it installs the above with apt)"
		exit 1
	fi
	if may_install; then
		install_missing
		survey || die "still missing after the installation: see above"
	elif [ "$unbuildable" -gt 0 ]; then
		exit 1
	else
		say "going on without the lab"
	fi
fi
if [ "${1:-}" = --check ]; then
	if [ "$go_fetch" = 1 ]; then
		say "ready; Go $go_has will fetch Go $go_wanted through the Go module proxy"
	else
		say "ready: Go $go_has"
	fi
	exit 0
fi
use_go
go_now="go$go_has"
fetch_toolchain
say "ready: $go_now"
