"""The numbers of testbed.kernel.userfaultfd, pagemap and ptrace against the headers that are installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from testbed.kernel import pagemap, ptrace, userfaultfd
from tests.conftest import require

HEADERS = ("linux/userfaultfd.h", "linux/fs.h", "sys/syscall.h", "linux/ptrace.h", "linux/wait.h")

PREFIXES = ("UFFD", "PAGEMAP_SCAN", "PM_SCAN_", "PAGE_IS_", "PTRACE_")

# Name in the C headers: our value. Sizes of structures stand as expressions; they need a type that is there.
MACROS = {
    "SYS_userfaultfd": userfaultfd.NR_USERFAULTFD,
    "__WALL": ptrace.WALL,
    **{
        name: value
        for module in (userfaultfd, pagemap, ptrace)
        for name, value in vars(module).items()
        if name.startswith(PREFIXES) and isinstance(value, int)
    },
}
SIZES = {
    "struct uffdio_api": ("UFFDIO_API", userfaultfd.UFFDIO_API_STRUCT.size),
    "struct uffdio_register": ("UFFDIO_REGISTER", userfaultfd.UFFDIO_REGISTER_STRUCT.size),
    "struct uffdio_range": ("UFFDIO_UNREGISTER", userfaultfd.UFFDIO_RANGE_STRUCT.size),
    "struct uffdio_writeprotect": ("UFFDIO_WRITEPROTECT", userfaultfd.UFFDIO_WRITEPROTECT_STRUCT.size),
    "struct pm_scan_arg": ("PAGEMAP_SCAN", pagemap.PM_SCAN_ARG.size),
    "struct page_region": ("PAGEMAP_SCAN", 8 * pagemap.PAGE_REGION_WORDS),
}
@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What the headers say, by name; what they do not know is absent."""
    require("a C compiler", shutil.which("cc") is not None)
    folder = tmp_path_factory.mktemp("probe")
    lines = [f"#include <{header}>" for header in HEADERS] + ["#include <stdio.h>", "int main(void) {"]
    for name in MACROS:
        lines += [f"#ifdef {name}", f'printf("{name}=%llu\\n", (unsigned long long) {name});', "#endif"]
    for type_, (macro, _) in SIZES.items():
        lines += [f"#ifdef {macro}", f'printf("{type_}=%zu\\n", sizeof({type_}));', "#endif"]
    lines += ["#ifdef PAGEMAP_SCAN", "struct pm_scan_arg a;"]
    lines += ['printf("walk_end=%ld\\n", (char *) &a.walk_end - (char *) &a);', "#endif", "return 0;", "}"]
    source = folder / "probe.c"
    source.write_text("\n".join(lines))
    subprocess.run(["cc", "-o", folder / "probe", source], check=True, capture_output=True)
    output = subprocess.run([folder / "probe"], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, _, value in (line.rpartition("=") for line in output.splitlines())}


OURS = {**MACROS, **{type_: size for type_, (_, size) in SIZES.items()}, "walk_end": 8 * pagemap.WALK_END}


def test_what_the_headers_know_is_what_we_say(known: dict[str, int]) -> None:
    assert len(known) > 15
    assert known == {name: OURS[name] for name in known}


def test_the_headers_know_it_all(known: dict[str, int]) -> None:
    """Headers older than the kernel that runs leave numbers unproved; those of Linux 6.7 know every one."""
    unproved = OURS.keys() - known.keys()
    require("linux-headers-6.7", not unproved)


def test_an_error_says_which_call_it_was() -> None:
    with Path("/dev/null").open() as null:
        with pytest.raises(OSError, match="UFFDIO_API: "):
            userfaultfd.api(null.fileno(), 0)
        with pytest.raises(OSError, match="PTRACE_SEIZE: "):
            ptrace.seize(1 << 22)
    with pytest.raises(OSError, match="userfaultfd: "):
        userfaultfd.userfaultfd(1 << 30)
