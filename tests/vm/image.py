"""Images: files that become disks of the emulated machine.

The root of a release and its wheelhouse take minutes and a network, so they are kept in a cache, in a folder
whose name holds a digest of everything they are made from. What changes with every run, the checkout, is a
tar archive that serves as a disk of its own: a change of code builds nothing anew.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.vm.host import KEYRING, Unavailable, debian_mirror, tool
from tests.vm.release import Release

HERE = Path(__file__).parent
CHECKOUT = HERE.parent.parent
INIT = HERE / "init.sh"

# What a Vagrant box has and a minimal debootstrap has not.
BOX_PACKAGES = ("initramfs-tools", "linux-image-cloud-amd64")
ROOT_MIB = 3072
WHEELHOUSE_MIB = 512
# An editable installation needs these two beside the declared requirements.
BUILD_REQUIREMENTS = ("editables", "hatchling")
LOWEST_PRIORITY = 19


@dataclass(frozen=True)
class Root:
    """A release that can be booted: kernel, initial RAM disk, root file system as a disk and as a tree."""

    kernel: Path
    initrd: Path
    disk: Path
    tree: Path


def root_image(release: Release, cache: Path, mirror: str | None) -> Root:
    """The root of `release`, from the cache or by debootstrap from `mirror` (else the one that apt uses).

    Raises `Unavailable` where a tool is missing or where it has to be built and this is not root; the cache
    then stays as it was.
    """
    packages = sorted({*BOX_PACKAGES, *_listed_packages()})
    key = _digest([release.suite, packages, INIT.read_text(), ROOT_MIB])
    folder = cache / f"root-{release.name}-{key}"
    if not folder.exists():
        _require_root(release)
        with _under_construction(folder) as work:
            _debootstrap(release.suite, packages, mirror or debian_mirror(), work)
            _ext4(work / "tree", work / "root.ext4", ROOT_MIB)
            for name in ("vmlinuz", "initrd.img"):
                (built,) = (work / "tree/boot").glob(f"{name}-*")
                shutil.copy(built, work / name)
    return Root(folder / "vmlinuz", folder / "initrd.img", folder / "root.ext4", folder / "tree")


def wheelhouse_image(release: Release, root: Root, cache: Path) -> Path:
    """Every Python package that our tests need, as the Python of `root` chooses them, as an ext4 image.

    Raises `Unavailable` where the download fails.
    """
    requirements = _requirements()
    key = _digest([root.tree.parent.name, requirements, WHEELHOUSE_MIB])
    folder = cache / f"wheelhouse-{release.name}-{key}"
    if not folder.exists():
        with _under_construction(folder) as work:
            _download(requirements, root.tree, work)
            _ext4(work / "tree", work / "wheelhouse.ext4", WHEELHOUSE_MIB)
            shutil.rmtree(work / "tree")
    return folder / "wheelhouse.ext4"


def checkout_image(path: Path, extra: dict[str, str]) -> None:
    """Write a tar archive of the checkout, as it is on the disk now, and of `extra` files.

    Of the checkout what git tracks, and what it would track if it were told to.
    """
    listing = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    git = [tool("git"), "-C", str(CHECKOUT), *listing]
    output = subprocess.run(git, check=True, capture_output=True, text=True).stdout
    with tarfile.open(path, "w") as archive:
        for name in sorted(set(output.split("\0")) - {""}):
            if os.path.lexists(CHECKOUT / name):
                archive.add(CHECKOUT / name, name, recursive=False, filter=_owned_by_root)
        for name, text in extra.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))


def _debootstrap(suite: str, packages: Sequence[str], mirror: str, work: Path) -> None:
    """Fill `work`/tree. In a mount and a pid namespace, so that nothing of it can stay mounted or running."""
    if not KEYRING.exists():
        raise Unavailable(f"{KEYRING} is missing: apt-get install debian-archive-keyring")
    trust = [f"--keyring={KEYRING}", "--force-check-gpg"]
    content = ["--variant=minbase", f"--include={','.join(packages)}"]
    command = [tool("debootstrap"), *trust, *content, suite, str(work / "tree"), mirror]
    _run([tool("unshare"), "--mount", "--pid", "--fork", "--kill-child", *command], work / "debootstrap.log")
    shutil.rmtree(work / "tree/var/cache/apt/archives")
    shutil.copy(INIT, work / "tree/sbin/testbed-init")
    (work / "tree/sbin/testbed-init").chmod(0o755)


def _download(requirements: Sequence[str], tree: Path, work: Path) -> None:
    """Fill `work`/tree with wheels, by the pip of the release itself.

    What a package requires depends on the Python that asks, down to its patch level; the pip of another does
    not see that, not even with --python-version. It is run where it lies, by its own loader and libraries: no
    chroot, no root, and this machine's network, certificates and pip configuration apply.
    """
    libraries = str(tree / "usr/lib/x86_64-linux-gnu")
    loader = [str(tree / "lib64/ld-linux-x86-64.so.2"), "--library-path", libraries]
    (pip_wheel,) = (tree / "usr/share/python-wheels").glob("pip-*.whl")
    pip = [str((tree / "usr/bin/python3").resolve()), "-m", "pip", "--disable-pip-version-check"]
    environment = ["env", f"PYTHONHOME={tree / 'usr'}", f"PYTHONPATH={pip_wheel}"]
    download = ["download", "--only-binary=:all:", "--dest", str(work / "tree"), *requirements]
    _run([*environment, *loader, *pip, *download], work / "pip.log")


def _ext4(tree: Path, image: Path, size_mib: int) -> None:
    """An ext4 image of `tree`, without mounting anything. Without a journal: nothing in it outlives a run."""
    kind = ["-q", "-t", "ext4", "-O", "^has_journal"]
    _run([tool("mke2fs"), *kind, "-d", str(tree), str(image), f"{size_mib}M"], image.with_suffix(".log"))


def _run(command: Sequence[str], log: Path) -> None:
    """Run at the lowest priority; what it says goes to `log`. Raises `Unavailable` with the end of that."""
    niced = ["nice", f"-n{LOWEST_PRIORITY}", *command]
    with log.open("w") as output:
        done = subprocess.run(niced, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False)
    if done.returncode != 0:
        end = "\n  ".join(log.read_text(errors="replace").splitlines()[-5:])
        raise Unavailable(f"{command[0]} ... failed with status {done.returncode}:\n  {end}")


@contextmanager
def _under_construction(folder: Path) -> Iterator[Path]:
    """A folder to build in. It takes the place of `folder` when all went well, and is gone when not."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="building-", dir=folder.parent) as scratch:
        work = Path(scratch) / "image"
        work.mkdir()
        yield work
        work.rename(folder)
    family = folder.name.rpartition("-")[0]
    for outdated in folder.parent.glob(f"{family}-*"):
        if outdated != folder:
            shutil.rmtree(outdated)


def _require_root(release: Release) -> None:
    if os.geteuid() != 0:
        raise Unavailable(
            f"the root image of {release.name} is not in the cache yet, and only root can build it "
            "(debootstrap): run this once with sudo; with --cache, other users can then use what it built"
        )


def _requirements() -> list[str]:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    return sorted({*project["dependencies"], *project["optional-dependencies"]["test"], *BUILD_REQUIREMENTS})


def _listed_packages() -> list[str]:
    lines = (HERE / "packages.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _digest(made_from: object) -> str:
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:12]


def _owned_by_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry
