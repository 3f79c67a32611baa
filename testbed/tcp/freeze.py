"""Freeze: read the whole state of a socket, and leave it so that it can go on here or vanish unheard.

Cut the guest's ingress first. A frozen socket still acknowledges what reaches it, and what it acknowledges
after it was read is lost to the target. A frame may have passed the cut before, and come late. So
:func:`freeze_again` looks once more when the egress is cut too: what comes after that is acknowledged to
nobody, and its sender sends it again.

Nor does repair mode keep the kernel from sending what the program wrote before: its timers (pacing, tail loss
probe) and the tasklet that waits for a sent segment to leave the machine (net/ipv4/tcp_output.c,
tcp_tsq_handler) go on. The peer would acknowledge what the target believes was never sent, and TCP drops an
acknowledgement of the future without a word: the connection would hang for ever. So a frozen socket believes
that its peer's window is closed. It sends nothing new; what is under way it may send again.

A frozen socket is in repair mode. :func:`unfreeze` takes it back as if nothing had happened (rollback);
``close`` ends it without a word to the peer (after the commit).
"""

from __future__ import annotations

import socket

from testbed.kernel import tcp_repair as kernel
from testbed.tcp.options import apply_reuse, read_congestion_control, read_options
from testbed.tcp.state import (
    CLOSE,
    INET,
    OUR_FIN_STATES,
    STATES,
    ConnectionState,
    Endpoint,
    ListenerState,
    SocketOptions,
    Window,
)

_PEEK = socket.MSG_PEEK | socket.MSG_DONTWAIT


class FreezeError(OSError):
    """A socket whose state cannot be read, or not moved. How it is left, whoever raises this says."""


def freeze(sock: socket.socket) -> ConnectionState:
    """The state of the TCP connection `sock`, which is left in repair mode.

    FreezeError, with the socket as it was: state that cannot be moved (connecting, listening), no
    CAP_NET_ADMIN.
    """
    options = read_options(sock)
    before = kernel.tcp_info(sock)
    if before.state not in STATES:
        raise FreezeError(95, f"a socket in TCP state {before.state} cannot be moved")
    if before.state == CLOSE:
        return _freeze_closed(sock, options, before)
    try:
        kernel.repair_on(sock)
        return _shut_and_read(sock, options)
    except OSError as error:
        if kernel.in_repair(sock):
            _leave(sock, options, None)
        raise FreezeError(error.errno, f"cannot freeze {sock!r}: {error.strerror}") from error


def freeze_again(sock: socket.socket, state: ConnectionState) -> ConnectionState:
    """The state of the frozen `sock` as it is now: `state` itself where no segment came since it was read.

    Nothing is sent for it: that would count as sent, and reach nobody. FreezeError where it cannot be read;
    :func:`unfreeze` with the old `state` takes the socket back.
    """
    try:
        while not unchanged(sock, state):
            state = _shut_and_read(sock, state.options, state.window.snd_wnd)
    except OSError as error:
        raise FreezeError(error.errno, f"cannot read {sock!r} again: {error.strerror}") from error
    return state


def unchanged(sock: socket.socket, state: ConnectionState) -> bool:
    """Whether the peer was not heard since `state` was read: no segment came and the state is the same."""
    now = kernel.tcp_info(sock)
    return now.segs_in == state.segments_in and now.state == state.state


def unfreeze(sock: socket.socket, state: ConnectionState) -> None:
    """Let a frozen socket go on here as if nothing had happened. Its timers ran on; nothing extra is sent,
    but what had to wait is."""
    if state.state != CLOSE:
        _leave(sock, state.options, kernel.RepairWindow._make(state.window))


def freeze_listener(sock: socket.socket) -> ListenerState:
    """The state of the listener `sock`, which goes on listening. FreezeError where it is no TCP listener."""
    info = kernel.tcp_info(sock)
    if info.state != kernel.TcpState.LISTEN:
        raise FreezeError(22, f"{sock!r} does not listen")
    get = sock.getsockopt
    six = sock.family == socket.AF_INET6
    # A listener tells its TCP_MAXSEG where one was set, else the protocol's smallest default.
    maximum_segment = get(kernel.SOL_TCP, kernel.TCP_MAXSEG)
    return ListenerState(
        family=int(sock.family),
        local=_endpoint(sock.family, sock.getsockname()),
        backlog=info.sacked,
        only_ipv6=six and bool(get(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)),
        defer_accept_s=get(kernel.SOL_TCP, kernel.TCP_DEFER_ACCEPT),
        fast_open=get(kernel.SOL_TCP, kernel.TCP_FASTOPEN),
        maximum_segment=0 if maximum_segment == _DEFAULT_SEGMENT else maximum_segment,
        options=read_options(sock),
        congestion_control=read_congestion_control(sock),
    )


_DEFAULT_SEGMENT = 536
"""TCP_MSS_DEFAULT, RFC 9293 section 3.7.1."""


def _shut_and_read(sock: socket.socket, options: SocketOptions, offer: int = 0) -> ConnectionState:
    """Let `sock`, in repair mode, believe that its peer's window is closed, and read it; anew where a segment
    came in the middle of it and moved a queue. `offer` is what the peer's window was before it was shut.

    A connection that its peer has ended meanwhile is out of repair mode. OSError: the window is open again.
    """
    while True:
        info = kernel.tcp_info(sock)
        if info.state == CLOSE:
            _leave(sock, options, None)
            return _freeze_closed(sock, options, info)
        window = kernel.window(sock)
        window = window._replace(snd_wnd=window.snd_wnd or offer)
        kernel.set_window(sock, window._replace(snd_wnd=0))
        try:
            return _read(sock, options, info, window)
        except OSError:
            if kernel.tcp_info(sock).segs_in == info.segs_in:
                kernel.set_window(sock, window)
                raise
        offer = window.snd_wnd


def _read(
    sock: socket.socket, options: SocketOptions, info: kernel.TcpInfo, window: kernel.RepairWindow
) -> ConnectionState:
    state, handshake, scales = info.state, info.options, info.scales
    unread = kernel.inq(sock)
    rcv_nxt = kernel.queue_end(sock, kernel.TCP_RECV_QUEUE)
    unread_bytes = _peek(sock, unread) if unread else b""
    write_seq = kernel.queue_end(sock, kernel.TCP_SEND_QUEUE)
    sent = unsent = b""
    fin_unsent = False
    if info.unacked or info.notsent_bytes:
        our_fin = state in OUR_FIN_STATES
        queued = kernel.outq(sock)
        not_sent = kernel.outq_not_sent(sock)
        fin_unsent = our_fin and not_sent > 0
        queued -= our_fin and queued > 0
        not_sent -= fin_unsent
        if queued:
            both = _peek(sock, queued)
            sent, unsent = both[: queued - not_sent], both[queued - not_sent :]
    # Deselected, so that a plain write by mistake fails instead of landing in a queue.
    kernel.select_queue(sock, kernel.TCP_NO_QUEUE)
    family = sock.family
    return ConnectionState(
        int(family), state,
        _endpoint(family, sock.getsockname()), _endpoint(family, sock.getpeername()),
        rcv_nxt, write_seq, Window._make(window),
        handshake, scales & 15, scales >> 4, kernel.maximum_segment(sock),
        kernel.timestamp(sock) if handshake & kernel.TCPI_OPT_TIMESTAMPS else 0,
        fin_unsent, info.segs_in,
        options, read_congestion_control(sock), unread_bytes, sent, unsent,
    )  # fmt: skip


def _peek(sock: socket.socket, length: int) -> bytes:
    if sock.gettimeout():
        # Python would first wait for something to read, which a send queue never gives.
        twin = socket.socket(sock.family, sock.type, sock.proto, sock.fileno())
        try:
            return _peek(twin, length)
        finally:
            twin.detach()
    # One byte more than there should be: a short buffer on the send queue is EFAULT, and more than was
    # counted means that the queue is not what we think it is.
    data = sock.recv(length + 1, _PEEK)
    if len(data) != length:
        raise OSError(5, f"the kernel counts {length} bytes in a queue and shows {len(data)}")
    return data


def _freeze_closed(sock: socket.socket, options: SocketOptions, info: kernel.TcpInfo) -> ConnectionState:
    """A connection that is over has no peer any more; what is left of it is what the program has not read."""
    # Only where there is something: a read of an empty queue would take away the error that the program has
    # to see.
    count = kernel.inq(sock)
    unread = _peek(sock, count) if count else b""
    nowhere = Endpoint(bytes(4 if sock.family == INET else 16), 0)
    return ConnectionState(
        int(sock.family), CLOSE, nowhere, nowhere, 0, 0, Window(0, 0, 0, 0, 0), 0, 0, 0, 0, 0,
        False, info.segs_in, options, read_congestion_control(sock), unread, b"", b"",
    )  # fmt: skip


def _leave(sock: socket.socket, options: SocketOptions, before: kernel.RepairWindow | None) -> None:
    """Out of repair mode, with the peer's window as it was `before`, unless the peer has said it anew."""
    if before is not None:
        now = kernel.window(sock)
        if now.snd_wnd == 0:
            kernel.set_window(sock, now._replace(snd_wnd=before.snd_wnd))
    kernel.repair_off(sock, probe=False)
    apply_reuse(sock, options)
    if not options.cork:
        sock.setsockopt(kernel.SOL_TCP, kernel.TCP_CORK, 0)  # pushes (net/ipv4/tcp.c, __tcp_sock_set_cork)


def _endpoint(family: int, name: tuple[str, int] | tuple[str, int, int, int]) -> Endpoint:
    if family == INET:
        return Endpoint(socket.inet_pton(socket.AF_INET, name[0]), name[1])
    host, port, flow, scope = name  # type: ignore[misc]
    return Endpoint(socket.inet_pton(socket.AF_INET6, host.partition("%")[0]), port, flow, scope)
