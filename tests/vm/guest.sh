#!/bin/sh
# The run inside the emulated machine, started by init.sh: provision as Vagrant would, run the tests, and write
# what came out to the results disk. Lines that begin with "vm:" tell the host where we are.
#
#   /dev/vdc   the wheelhouse (ext4)
#   /dev/vdd   the results disk: receives a tar archive, nothing else
#   /vagrant/.vm-arguments   written by the host: seconds allowed, user, then pytest's arguments, quoted for a shell

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb
results=/var/tmp/results
mkdir -p "$results" /wheelhouse

run_tests() {
    cd /vagrant || return
    eval "set -- $(cat .vm-arguments)"
    seconds=$1 user=$2
    shift 2
    uname -a >"$results/environment"
    if ! WHEELHOUSE=/wheelhouse sh tests/vm/provision.sh /vagrant; then
        echo "vm: provision.sh failed"
        return
    fi
    . /etc/profile.d/testbed.sh
    echo "TESTBED_REQUIRE=$TESTBED_REQUIRE" >>"$results/environment"
    echo "vm: testing"
    if [ "$user" != root ]; then
        id "$user" >/dev/null 2>&1 || useradd --create-home "$user"
        chown -R "$user" /vagrant "$results"
        set -- setpriv --reuid "$user" --regid "$user" --init-groups env HOME="/home/$user" pytest "$@"
    else
        set -- pytest "$@"
    fi
    timeout --kill-after=10 "$seconds" "$@" --junitxml="$results/junit.xml"
    echo $? >"$results/exit"
}

echo "vm: booted"
mount -o ro /dev/vdc /wheelhouse
run_tests 2>&1 | tee "$results/output.txt"
echo "vm: saving"
tar -cf /dev/vdd -C "$results" .
