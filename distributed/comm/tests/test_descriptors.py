"""Sockets that pass file descriptors: each arrives with the byte that it was attached to."""

from __future__ import annotations

import errno
import os
import resource
import socket
import sys

import pytest

from distributed.comm.descriptors import DescriptorSocket
from distributed.protocol.shared_frames import Descriptors

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="tested on Linux")


@pytest.fixture
def pair():
    """Two connected sockets, each with the descriptors that it has received."""
    one, two = socket.socketpair()
    ends = [
        (DescriptorSocket(sock, received), received)
        for sock in (one, two)
        for received in [Descriptors(10)]
    ]
    yield ends
    for sock, _ in ends:
        sock.close()


def pipe():
    reading, writing = os.pipe()
    os.close(writing)
    return reading


def fill(sock):
    """Send until the socket accepts no more; return the number of bytes."""
    filled = 0
    try:
        while True:
            filled += sock.send(bytes(10_000))
    except BlockingIOError:
        return filled


def is_open(descriptor):
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def test_descriptors_come_with_the_first_byte_that_they_were_sent_with(pair):
    (sender, _), (receiver, received) = pair
    descriptor = pipe()
    sender.send(b"before")
    assert sender.send_with([b"with", b"out"], [descriptor]) == 7
    sender.send(b"after")
    data = b""
    memory = bytearray(100)
    counts = []
    while len(data) < 18:
        count = receiver.recv_into(memory)
        data += memory[:count]
        counts.append((len(data), len(received)))
    assert data == b"beforewithoutafter"
    # The kernel does not return later bytes together with these.
    assert counts[0] == (13, 1)
    (taken,) = [received.pop()]
    assert not os.get_inheritable(taken)
    assert os.path.sameopenfile(taken, descriptor)
    for number in (taken, descriptor):
        os.close(number)


def test_attached_descriptors_wait_for_the_bytes_before_them(pair):
    (sender, _), (receiver, received) = pair
    descriptors = [pipe(), pipe()]
    owner = object()
    sender.attach([descriptors[0]], owner, after=6)
    sender.attach([descriptors[1]], owner, after=10)
    data = memoryview(b"beforewithafter")
    sent = 0
    memory = bytearray(100)
    arrived = []
    while sent < len(data):
        # As Tornado does, with all that waits.
        sent += sender.send(data[sent:]) if sent else sender.sendmsg([data[sent:], b"more"])
        receiver.recv_into(memory)
        arrived.append((sent, len(received)))
    assert arrived[0] == (6, 0)
    assert arrived[-1] == (len(data), 2)
    for number in descriptors:
        os.close(number)


def test_descriptors_are_sent_once_a_full_socket_accepts_bytes(pair):
    (sender, _), (receiver, received) = pair
    descriptor = pipe()
    filled = fill(sender)
    with pytest.raises(BlockingIOError):
        sender.send_with([b"x"], [descriptor])
    sender.attach([descriptor], None, after=0)
    with pytest.raises(BlockingIOError):
        sender.send(b"x")
    memory = bytearray(filled)
    while filled:
        filled -= receiver.recv_into(memory)
    assert len(received) == 0
    assert sender.send(b"x") == 1
    receiver.recv_into(memory)
    assert len(received) == 1
    os.close(descriptor)


def test_attached_descriptors_are_sent_again_if_too_many_wait_to_be_received(pair, monkeypatch):
    (sender, _), (receiver, received) = pair
    descriptor = pipe()

    def refuse(self, buffers, descriptors):
        # The kernel exempts root from its limit.
        raise OSError(errno.ETOOMANYREFS, "too many references")

    sender.attach([descriptor], None, after=0)
    with monkeypatch.context() as patch:
        patch.setattr(DescriptorSocket, "send_with", refuse)
        with pytest.raises(BlockingIOError):
            sender.send(b"x")
    assert sender.send(b"x") == 1
    receiver.recv_into(bytearray(100))
    assert len(received) == 1
    os.close(descriptor)


def test_descriptors_that_were_not_used_are_closed_with_the_socket(pair):
    (sender, _), (receiver, received) = pair
    descriptors = [pipe() for _ in range(3)]
    sender.send_with([b"x"], descriptors)
    receiver.recv_into(bytearray(1))
    numbers = list(received._numbers)
    assert all(map(is_open, numbers))
    receiver.close()
    assert not any(map(is_open, numbers))
    for number in descriptors:
        os.close(number)


def test_too_many_descriptors_are_an_error_and_are_closed(pair):
    (sender, _), (receiver, received) = pair
    descriptor = pipe()
    before = len(os.listdir("/proc/self/fd"))
    sender.send_with([b"x"], [descriptor] * 11)
    with pytest.raises(OSError, match="at most 10 are accepted") as caught:
        receiver.recv_into(bytearray(1))
    assert caught.value.errno == errno.EPROTO
    assert len(received) == 0
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(descriptor)


def test_a_socket_that_receives_no_descriptors_closes_them():
    plain, other = socket.socketpair()
    with plain:
        sender = DescriptorSocket(other, Descriptors(1))
        before = len(os.listdir("/proc/self/fd"))
        descriptor = pipe()
        sender.send_with([b"x"], [descriptor] * 5)
        assert plain.recv(10) == b"x"
        os.close(descriptor)
        assert len(os.listdir("/proc/self/fd")) == before
        sender.close()


def test_descriptors_that_find_no_room_are_an_error(pair):
    (sender, _), (receiver, received) = pair
    descriptor = pipe()
    sender.send_with([b"x"], [descriptor] * 5)
    os.close(descriptor)
    before = len(os.listdir("/proc/self/fd"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # All numbers below the limit are in use, except for two.
    free = [os.dup(0) for _ in range(2)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(free) + 1, hard))
    try:
        for number in free:
            os.close(number)
        with pytest.raises(OSError, match="were lost") as caught:
            receiver.recv_into(bytearray(1))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.errno == errno.EMFILE
    assert 0 < len(received) < 5
    received.close()
    assert len(os.listdir("/proc/self/fd")) == before
