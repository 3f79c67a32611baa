"""Which tests a run begins. Emulation is ten to twenty times slower than the machine, so by default few."""

from __future__ import annotations

_MIGRATION = "tests/system/test_migration.py"
_HANDOVER = "tests/system/test_tcp_handover.py"
_FOR_EMULATION = ("-o", "timeout=600")

QUICK = (
    *_FOR_EMULATION,
    "-m",
    "not slow",
    "tests/kernel",
    f"{_MIGRATION}::test_a_live_migration_leaves_every_client_unbroken_and_a_result_that_fits_its_schema",
    f"{_MIGRATION}::test_auto_takes_the_best_tracker_of_this_kernel",
    f"{_MIGRATION}::test_each_tracker_carries_a_guest_that_writes",
    f"{_MIGRATION}::test_a_guest_that_writes_behind_the_trackers_back_is_rolled_back_and_lives",
    f"{_MIGRATION}::test_stop_and_copy_moves_the_guest_without_a_round",
    f"{_HANDOVER}::test_an_idle_connection",
    f"{_HANDOVER}::test_unread_bytes",
    f"{_HANDOVER}::test_both_directions_full",
    f"{_HANDOVER}::test_fin_wait2",
    f"{_HANDOVER}::test_there_and_back_and_there_again",
)
"""What the kernel decides, and one migration of each kind that its kernel could spoil."""
QUICK_S = 1800

FULL = (*_FOR_EMULATION, "tests/kernel", "tests/system", "tests/faults")
FULL_S = 4 * 3600
