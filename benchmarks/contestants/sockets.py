"""A limit: blocking sockets with a header of eight bytes that holds the length."""

from __future__ import annotations

import socket
import struct
import sys
import tempfile
import threading
from pathlib import Path

from benchmarks.contestants.channel import Channel, Result
from benchmarks.contestants.timing import repeat

HEADER = struct.Struct("<Q")

#: Bytes that stand for a small call in each direction.
SMALL = b"x" * 32


def read_into(sock: socket.socket, buffer: memoryview) -> None:
    """Receive bytes until the buffer is full."""
    done = 0
    while done < len(buffer):
        count = sock.recv_into(buffer[done:])
        if not count:
            raise EOFError
        done += count


def echo(sock: socket.socket) -> None:
    """Send each message back after receiving all of it."""
    memory = memoryview(bytearray())
    header = memoryview(bytearray(HEADER.size))
    while True:
        try:
            read_into(sock, header)
        except EOFError:
            return
        (size,) = HEADER.unpack(header)
        if len(memory) != HEADER.size + size:
            memory = memoryview(bytearray(HEADER.size + size))
            memory[: HEADER.size] = header
        read_into(sock, memory[HEADER.size :])
        sock.sendall(memory)


def accept(listening: socket.socket) -> None:
    while True:
        sock, _ = listening.accept()
        if sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=echo, args=[sock], daemon=True).start()


def serve() -> None:
    channel = Channel()
    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory) / "socket")
        tcp = socket.create_server(("127.0.0.1", 0))
        unix = socket.socket(socket.AF_UNIX)
        unix.bind(path)
        unix.listen()
        for listening in (tcp, unix):
            threading.Thread(target=accept, args=[listening], daemon=True).start()
        channel.write({"addresses": {"tcp": f"{tcp.getsockname()[1]}", "unix": path}})
        channel.answer({})


class Client:
    def __init__(self) -> None:
        self.opened: dict[str, socket.socket] = {}
        self.memory = memoryview(bytearray())

    def connected(self, address: str) -> socket.socket:
        if address not in self.opened:
            if address.isdigit():
                sock = socket.create_connection(("127.0.0.1", int(address)))
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            else:
                sock = socket.socket(socket.AF_UNIX)
                sock.connect(address)
            self.opened[address] = sock
        return self.opened[address]

    def sequential(self, address: str, seconds: float) -> Result:
        return self.payload(address, seconds, len(SMALL), "bytes")

    def payload(self, address: str, seconds: float, size: int, kind: str) -> Result:
        sock = self.connected(address)
        header = HEADER.pack(size)
        message = header + b"x" * size
        if len(self.memory) != len(message):
            self.memory = memoryview(bytearray(len(message)))

        def exchange() -> None:
            sock.sendall(message)
            read_into(sock, self.memory)

        return repeat(exchange, seconds)

    def close_all(self) -> Result:
        for sock in self.opened.values():
            sock.close()
        self.opened.clear()
        self.memory = memoryview(bytearray())
        return {}


def call() -> None:
    channel = Channel()
    client = Client()
    channel.write({})
    channel.answer(
        {"sequential": client.sequential, "payload": client.payload, "close_all": client.close_all}
    )


if __name__ == "__main__":
    serve() if sys.argv[1] == "serve" else call()
