#!/bin/sh
# Makes a Debian machine ready for the tests. Run as root:  provision.sh [CHECKOUT]
#
# With a network it installs packages.txt by apt and the Python packages from the index. With WHEELHOUSE=folder it
# uses no network: the packages must be there already, and Python packages come from that folder alone.
#
# Afterwards `testbed` and `pytest` are on the PATH of every user, and TESTBED_REQUIRE demands everything that this
# release's kernel has: a test that would skip for want of it fails instead.

set -eu

checkout=${1:-/vagrant}
venv=/opt/testbed
packages=$(sed 's/#.*//' "$checkout/tests/vm/packages.txt")
. /etc/os-release

# Three large programs are left out: what they look at does not depend on the kernel.
tools=all,-vagrant,-chromium,-tshark
case $VERSION_CODENAME in
bookworm) # Linux 6.1
    require="$tools,-userfaultfd-wp-async,-pagemap-scan,-linux-headers-6.7,-headers that know all of it"
    require="$require,-tcp_shrink_window,-a kernel that takes windows back"
    ;;
trixie) # Linux 6.12
    require="$tools"
    ;;
*)
    echo "provision.sh knows Debian 12 (bookworm) and 13 (trixie), not $PRETTY_NAME" >&2
    exit 3
    ;;
esac

if [ -n "${WHEELHOUSE:-}" ]; then
    dpkg-query --show $packages >/dev/null
    set -- --no-index --find-links "$WHEELHOUSE" --no-compile
else
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    apt-get install -q -y --no-install-recommends $packages
    set --
fi

# The venv stays out of the checkout: that may be a shared folder, where links and modes do not hold.
[ -x $venv/bin/pip ] || python3 -m venv $venv
$venv/bin/pip install --quiet --disable-pip-version-check "$@" --editable "$checkout[test]"
ln -sf $venv/bin/testbed $venv/bin/pytest /usr/local/bin/

# An ordinary user cannot load modules, so they are loaded now and at every boot: links, queues, what leads a link
# around through a relay, and what tells of sockets.
modules="bridge veth sch_netem sch_tbf sch_ingress cls_u32 act_mirred tcp_diag udp_diag"
mkdir -p /etc/modules-load.d
printf '%s\n' $modules >/etc/modules-load.d/testbed.conf
modprobe --all $modules

echo "export TESTBED_REQUIRE='$require'" >/etc/profile.d/testbed.sh
if [ -d /etc/sudoers.d ]; then
    echo 'Defaults env_keep += "TESTBED_REQUIRE"' >/etc/sudoers.d/testbed
fi
