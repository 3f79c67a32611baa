#!/bin/sh
# The run inside the emulated machine, started by init.sh: provision as Vagrant would, let the doctor look, run a
# demo, run the tests, and write what came out to the results disk. Lines that begin with "vm:" tell the host where
# we are.
#
#   /dev/vdc   the wheelhouse (ext4)
#   /dev/vdd   the results disk: receives a tar archive, nothing else
#   /vagrant/.vm-arguments   written by the host: seconds allowed, user, then pytest's arguments, quoted for a shell

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb
results=/var/tmp/results
demo_seconds=300
mkdir -p "$results" /wheelhouse

run() {
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
    printf 'TESTBED_REQUIRE=%s\nuser=%s\n' "$TESTBED_REQUIRE" "$user" >>"$results/environment"
    if [ "$user" != root ]; then
        id "$user" >/dev/null 2>&1 || useradd --create-home "$user"
        chown -R "$user" /vagrant "$results"
    fi

    echo "vm: testbed doctor"
    as_user testbed doctor | tee "$results/doctor.txt"
    as_user testbed doctor --json >"$results/doctor.json"
    echo "vm: testbed demo"
    {
        as_user timeout --kill-after=10 $demo_seconds testbed demo --runs "$results/runs"
        echo $? >"$results/demo-exit"
    } | tee "$results/demo.txt"
    echo "vm: testing"
    as_user timeout --kill-after=10 "$seconds" pytest "$@" --junitxml="$results/junit.xml"
    echo $? >"$results/exit"
}

as_user() {
    if [ "$user" = root ]; then
        "$@"
    else
        setpriv --reuid "$user" --regid "$user" --init-groups env HOME="/home/$user" "$@"
    fi
}

echo "vm: booted"
mount -o ro /dev/vdc /wheelhouse
run 2>&1 | tee "$results/output.txt"
echo "vm: saving"
tar -cf /dev/vdd -C "$results" .
