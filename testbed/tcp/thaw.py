"""Thaw: make a socket that goes on where a frozen one stood.

    prepare (before the pause) -> thaw (unplugged, nothing is sent) -> release (plugged in)

:func:`prepare` and :class:`~testbed.tcp.injector.Injector` belong into the guest's network namespace; what
they made works from anywhere. The guest's address must be there and its link up (the bridge *port* is what is
unplugged), else ``connect`` says ENETUNREACH or EADDRNOTAVAIL.

What each state is rebuilt from. "FIN" is ours, put into the send queue as sent; "peer" is a segment that the
injector says in the peer's name::

    ESTABLISHED   queues
    FIN_WAIT1     queues, FIN
    FIN_WAIT2     queues, FIN, peer acknowledges it
    CLOSING       queues, FIN, peer's FIN
    CLOSE_WAIT    queues,      peer's FIN
    LAST_ACK      queues,      peer's FIN, FIN

A FIN of ours that had not left yet is not restored but sent anew by :func:`release`, behind the bytes that
had not left either; until then the connection stands in the state before it.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import replace

from testbed.kernel import tcp_repair as kernel
from testbed.tcp import segments
from testbed.tcp.injector import Injector
from testbed.tcp.options import (
    NoRoom,
    apply_options,
    apply_reuse,
    make_room_to_receive,
    make_room_to_send,
    open_with_room,
    set_buffer,
    set_buffer_locks,
)
from testbed.tcp.state import (
    CLOSE,
    CLOSE_WAIT,
    CLOSING,
    ESTABLISHED,
    FIN_WAIT1,
    FIN_WAIT2,
    INET,
    LAST_ACK,
    ConnectionState,
    Endpoint,
    ListenerState,
    Window,
)

_UNSCALED = 0xFFFF
_FIN_FIRST = frozenset({FIN_WAIT1, FIN_WAIT2, CLOSING})
_SMALL_BYTES = 16384
"""A queue that the smallest default of tcp_wmem has room for."""
_OVERHEAD_BYTES = 65536
"""What the kernel's bookkeeping adds to a buffer: under a kilobyte and a half for each 64 KiB of bytes."""


class ThawError(OSError):
    """A connection that could not be rebuilt. Nothing was sent, its half-made socket is closed."""


def prepare(family: int) -> socket.socket:
    """A socket to :func:`thaw` into, made in this thread's network namespace."""
    return kernel.open_repaired(family)


def thaw(
    state: ConnectionState, prepared: socket.socket | None = None, injector: Injector | None = None
) -> socket.socket:
    """A socket in the connection's state, in repair mode: it sends nothing until :func:`release`.

    `prepared` is one of :func:`prepare`, of the state's family, and is used up; `injector` is needed for
    half-closed and closed connections. What is missing is made here, in this thread's namespace, and so is a
    socket for a connection with more to send than an ordinary user's may hold.
    ThawError names the connection and what the kernel said.
    """
    if injector is None and state.state != ESTABLISHED:
        with Injector() as own:
            return thaw(state, prepared, own)
    sock = prepared or kernel.open_repaired(state.family)
    try:
        try:
            _rebuild(sock, state, injector)
        except NoRoom as full:
            sock.close()
            sock = open_with_room(state.family, full.size_bytes)
            _rebuild(sock, state, injector)
    except OSError as error:
        sock.close()
        raise ThawError(error.errno, f"cannot thaw {state}: {error.strerror}") from error
    if not state.options.nonblocking:
        sock.setblocking(True)
    return sock


def release(sock: socket.socket, state: ConnectionState, probe: bool) -> None:
    """Let a thawed socket live: out of repair mode, then what was never sent is sent.

    Plug the guest in first. With `probe` an established connection also sends an empty segment, by which the
    network learns where it lives now. :func:`acknowledge` is the other half, which need not be waited for.
    """
    kernel.repair_off(sock, probe=probe)
    options = state.options
    apply_reuse(sock, options)
    if state.state == CLOSE:
        return
    if options.cork:
        sock.setsockopt(kernel.SOL_TCP, kernel.TCP_CORK, 1)
    if state.unsent:
        _send_all(sock, state.unsent)
    if state.our_fin_unsent:
        sock.shutdown(socket.SHUT_WR)
    if options.buffer_locks & kernel.SOCK_SNDBUF_LOCK:
        set_buffer(sock, socket.SO_SNDBUF, options.send_buffer_bytes)
        set_buffer_locks(sock, options.buffer_locks)


def acknowledge(states: Iterable[ConnectionState], injector: Injector) -> int:
    """Give the acknowledgements that the source had received bytes for and not sent; returns their number.

    The peer would send those bytes again after 200 ms. The source's timer for delayed acknowledgements does
    not move, and the probe of :func:`release` is no acknowledgement: it stands before the peer's window, so
    the peer answers it without reading it. After the guest has resumed is early enough; where it has spoken
    already, this only repeats what it said.
    """
    due = [state for state in states if state.acknowledgement_due]
    for state in due:
        injector.send(state, segments.acknowledgement_request(state))
    return len(due)


def thaw_listener(state: ListenerState) -> socket.socket:
    """A listener like the frozen one, listening, in this thread's network namespace; else ThawError."""
    sock = socket.socket(state.family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC, socket.IPPROTO_TCP)
    put = sock.setsockopt
    options = state.options
    try:
        apply_reuse(sock, options)
        if state.family != INET:
            put(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, state.only_ipv6)
        if state.maximum_segment:
            put(kernel.SOL_TCP, kernel.TCP_MAXSEG, state.maximum_segment)
        apply_options(sock, options, state.congestion_control)
        if options.cork:
            put(kernel.SOL_TCP, kernel.TCP_CORK, 1)
        _lock_buffers(sock, state)
        sock.bind(_name(state.family, state.local))
        if state.defer_accept_s:
            put(kernel.SOL_TCP, kernel.TCP_DEFER_ACCEPT, state.defer_accept_s)
        if state.fast_open:
            put(kernel.SOL_TCP, kernel.TCP_FASTOPEN, state.fast_open)
        sock.listen(state.backlog)
        sock.setblocking(not options.nonblocking)
    except OSError as error:
        sock.close()
        raise ThawError(error.errno, f"cannot thaw {state}: {error.strerror}") from error
    return sock


def _rebuild(sock: socket.socket, state: ConnectionState, injector: Injector | None) -> None:
    """Nothing has been sent, in nobody's name, where this raises NoRoom."""
    if state.state == CLOSE:
        assert injector is not None
        _rebuild_closed(sock, state, injector)
    else:
        _rebuild_open(sock, state, injector)


def _rebuild_open(sock: socket.socket, state: ConnectionState, injector: Injector | None) -> None:
    family = state.family
    scaled = state.handshake_options & kernel.TCPI_OPT_WSCALE
    if not scaled:
        # connect() chooses our scale from the window's limit, and nothing sets it back to none afterwards.
        sock.setsockopt(kernel.SOL_TCP, kernel.TCP_WINDOW_CLAMP, _UNSCALED)
    sock.bind(_name(family, state.local))
    kernel.set_queue_start(sock, kernel.TCP_RECV_QUEUE, state.receive_start)
    kernel.set_queue_start(sock, kernel.TCP_SEND_QUEUE, state.send_start)
    sock.connect(_name(family, state.remote))

    agreed = [(kernel.TCPOPT_MSS, state.maximum_segment)]
    if scaled:
        agreed.append((kernel.TCPOPT_WINDOW, state.peer_scale | state.our_scale << 16))
    if state.handshake_options & kernel.TCPI_OPT_SACK:
        agreed.append((kernel.TCPOPT_SACK_PERM, 0))
    if state.handshake_options & kernel.TCPI_OPT_TIMESTAMPS:
        agreed.append((kernel.TCPOPT_TIMESTAMP, 0))
        kernel.set_timestamp(sock, state.timestamp)
    kernel.set_options(sock, agreed)

    apply_options(sock, state.options, state.congestion_control)
    _fill_queues(sock, state)
    if state.state == ESTABLISHED:
        kernel.set_window(sock, kernel.RepairWindow._make(state.window))
    else:
        assert injector is not None
        _close_halves(sock, state, injector)
    kernel.select_queue(sock, kernel.TCP_NO_QUEUE)


def _fill_queues(sock: socket.socket, state: ConnectionState) -> None:
    options = state.options
    # The peer may send all that we offered, for which the source had room. The kernel would make this room by
    # itself, but not where memory is short.
    make_room_to_receive(sock, options.receive_buffer_bytes)
    if state.unread:
        kernel.select_queue(sock, kernel.TCP_RECV_QUEUE)
        _send_all(sock, state.unread)
    queued = len(state.sent) + len(state.unsent)
    if queued > _SMALL_BYTES:
        make_room_to_send(sock, queued + queued // 4 + _OVERHEAD_BYTES, options.buffer_locks)
    if state.sent:
        kernel.select_queue(sock, kernel.TCP_SEND_QUEUE)
        _send_all(sock, state.sent)
    if options.buffer_locks & kernel.SOCK_RCVBUF_LOCK:
        set_buffer(sock, socket.SO_RCVBUF, options.receive_buffer_bytes)
        set_buffer_locks(sock, options.buffer_locks)


def _close_halves(sock: socket.socket, state: ConnectionState, injector: Injector) -> None:
    fin_sent = state.our_fin and not state.our_fin_unsent
    if fin_sent and state.state in _FIN_FIRST:
        kernel.repair_shutdown(sock)
    kernel.set_window(sock, _window_before_fin(state))
    if state.state == FIN_WAIT2:
        injector.deliver(state, segments.fin_acknowledgement(state), sock, frozenset({FIN_WAIT2}))
    if state.peer_fin:
        injector.deliver(state, segments.fin_segment(state), sock, frozenset({CLOSE_WAIT, CLOSING}))
    if fin_sent and state.state == LAST_ACK:
        kernel.repair_shutdown(sock)
    kernel.set_window(sock, kernel.RepairWindow._make(state.window))


def _window_before_fin(state: ConnectionState) -> kernel.RepairWindow:
    """The windows as they stood before the peer's FIN, which they may count; open for it in any case."""
    before = state.rcv_nxt - state.peer_fin & 0xFFFFFFFF
    opened = state.window._replace(rcv_wup=before, rcv_wnd=max(state.window.rcv_wnd, 1))
    return kernel.RepairWindow._make(opened)


def _rebuild_closed(sock: socket.socket, state: ConnectionState, injector: Injector) -> None:
    """A connection that is over: unread bytes, then the end. Built on loopback: it has no peer any more."""
    home = Endpoint(socket.inet_pton(state.family, "127.0.0.1" if state.family == INET else "::1"), 0)
    sock.bind(_name(state.family, home))
    home = home._replace(port=sock.getsockname()[1])
    nobody = home._replace(port=1)
    length = len(state.unread)
    posed = replace(
        state, state=ESTABLISHED, local=home, remote=nobody, rcv_nxt=length, write_seq=1,
        window=Window(0, 1, 1, 1, length),
    )  # fmt: skip
    kernel.set_queue_start(sock, kernel.TCP_RECV_QUEUE, posed.receive_start)
    kernel.set_queue_start(sock, kernel.TCP_SEND_QUEUE, posed.send_start)
    sock.connect(_name(state.family, nobody))
    _fill_queues(sock, posed)
    injector.deliver(posed, segments.reset(posed), sock, frozenset({CLOSE}))
    sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def _lock_buffers(sock: socket.socket, state: ListenerState) -> None:
    options = state.options
    if options.buffer_locks & kernel.SOCK_SNDBUF_LOCK:
        set_buffer(sock, socket.SO_SNDBUF, options.send_buffer_bytes)
    if options.buffer_locks & kernel.SOCK_RCVBUF_LOCK:
        set_buffer(sock, socket.SO_RCVBUF, options.receive_buffer_bytes)


def _send_all(sock: socket.socket, data: bytes) -> None:
    """Write all of `data`; a queue takes it in pieces. OSError EAGAIN where a buffer was made too small."""
    rest = memoryview(data)
    while rest:
        rest = rest[sock.send(rest, socket.MSG_DONTWAIT) :]


def _name(family: int, end: Endpoint) -> tuple[str, int] | tuple[str, int, int, int]:
    if family == INET:
        return socket.inet_ntop(socket.AF_INET, end.address), end.port
    return socket.inet_ntop(socket.AF_INET6, end.address), end.port, end.flow, end.scope
