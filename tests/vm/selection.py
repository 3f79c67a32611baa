"""Which tests a run begins. Emulation is ten to twenty times slower than the machine, so by default few."""

from __future__ import annotations

_SYSTEM = "tests/system"
_MIGRATION = f"{_SYSTEM}/test_migration.py"
_HANDOVER = f"{_SYSTEM}/test_tcp_handover.py"
_FOR_EMULATION = ("-o", "timeout=600")

_MIGRATIONS = (
    f"{_MIGRATION}::test_a_live_migration_leaves_every_client_unbroken_and_a_result_that_fits_its_schema",
    f"{_MIGRATION}::test_auto_takes_the_best_tracker_of_this_kernel",
    f"{_MIGRATION}::test_each_tracker_carries_a_guest_that_writes",
    f"{_MIGRATION}::test_a_guest_that_writes_behind_the_trackers_back_is_rolled_back_and_lives",
    f"{_MIGRATION}::test_stop_and_copy_moves_the_guest_without_a_round",
    f"{_SYSTEM}/test_udp_handover.py::test_datagrams_that_wait_at_the_pause_are_neither_lost_nor_doubled",
    f"{_SYSTEM}/test_scenarios.py::test_links_programs_commands_and_checks_are_told_of",
    f"{_SYSTEM}/test_standing.py::test_a_lab_that_is_asked_by_signal_goes_down_in_order",
)
_CONNECTIONS = (
    f"{_HANDOVER}::test_an_idle_connection",
    f"{_HANDOVER}::test_unread_bytes",
    f"{_HANDOVER}::test_both_directions_full",
    f"{_HANDOVER}::test_fin_wait2",
    f"{_HANDOVER}::test_a_frozen_socket_sends_nothing_new_while_its_way_out_is_open",
    f"{_HANDOVER}::test_after_a_rollback_a_socket_goes_on_sending_what_had_to_wait",
    f"{_HANDOVER}::test_there_and_back_and_there_again",
    f"{_SYSTEM}/test_late_frames.py",
)
_LINKS = (
    f"{_SYSTEM}/test_conditioned_link.py",
    f"{_SYSTEM}/test_sounding.py",
    f"{_SYSTEM}/test_netem_against_relay.py",
)
_CALIBRATION = (
    f"{_SYSTEM}/test_calibration.py::test_a_stalled_guest_serves_nothing_and_then_goes_on",
    f"{_SYSTEM}/test_calibration.py::test_known_loss_is_counted_as_the_link_counts_it",
    f"{_SYSTEM}/test_calibration.py::test_pings_wait_while_the_way_to_the_guest_stands_still_and_none_is_lost",
)

QUICK = (
    *_FOR_EMULATION, "-m", "not slow", "tests/kernel", *_LINKS, *_CONNECTIONS, *_MIGRATIONS, *_CALIBRATION
)  # fmt: skip
"""What the kernel decides: its interfaces, links under conditions by netem and by the relay, connections by
state; one migration of each kind that a kernel could spoil, of TCP and UDP, in a scenario and in a lab that
stands; and the instrument's own truth."""
QUICK_S = 1800

FULL = (*_FOR_EMULATION, "tests/kernel", "tests/system", "tests/faults")
FULL_S = 4 * 3600
