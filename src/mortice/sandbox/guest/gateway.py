"""The guest's end of the egress proxy."""

import binascii
import select
import socket

from mortice.sandbox.guest.jobs import CHUNK, HIGH_WATER, b64


class Gateway:
    """The guest's end of the egress proxy: a listener on loopback whose connections travel over the channel."""

    WINDOW = 256 * 1024

    def __init__(self, agent):
        self.agent = agent
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(("127.0.0.1", 3128))
        self.listener.listen(64)
        self.listener.setblocking(False)
        self.conns = {}  # id -> [socket, bytes to write, window left, closing]
        self.by_fd = {}
        self.next_id = 1
        agent.poll.register(self.listener, select.POLLIN)

    def event(self, fd, event):
        if fd == self.listener.fileno():
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            if len(self.conns) >= 64:
                sock.close()
                return
            sock.setblocking(False)
            name, self.next_id = self.next_id, self.next_id + 1
            self.conns[name] = [sock, bytearray(), self.WINDOW, False]
            self.by_fd[sock.fileno()] = name
            self.agent.poll.register(sock, select.POLLIN)
            self.agent.send(ev="net", c=name, k="open")
            return
        name = self.by_fd.get(fd)
        if name is None:
            return
        if event & select.POLLOUT:
            self.write(name)
        if name in self.conns and event & (select.POLLIN | select.POLLHUP | select.POLLERR):
            self.read(name)

    def read(self, name):
        conn = self.conns[name]
        if conn[2] <= 0 or len(self.agent.outbuf) > HIGH_WATER:
            self.interest(name)
            return
        try:
            data = conn[0].recv(min(CHUNK, conn[2]))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.agent.send(ev="net", c=name, k="eof")
            conn[2] = 0
            self.interest(name)
            if conn[3] and not conn[1]:
                self.drop(name)
            return
        conn[2] -= len(data)
        self.agent.send(ev="net", c=name, k="data", d=b64(data))
        self.interest(name)

    def interest(self, name):
        conn = self.conns[name]
        mask = (select.POLLIN if conn[2] > 0 else 0) | (select.POLLOUT if conn[1] else 0)
        self.agent.poll.modify(conn[0], mask)

    def write(self, name):
        conn = self.conns[name]
        try:
            sent = conn[0].send(conn[1][:65536])
        except BlockingIOError:
            sent = 0
        except OSError:
            self.agent.send(ev="net", c=name, k="close")
            self.drop(name)
            return
        del conn[1][:sent]
        if sent:
            self.agent.send(ev="net", c=name, k="room", n=sent)
        if not conn[1] and conn[3]:
            self.drop(name)
        else:
            self.interest(name)

    def from_host(self, request):
        name = request["c"]
        conn = self.conns.get(name)
        if conn is None:
            return
        if request["k"] == "data":
            conn[1] += binascii.a2b_base64(request["d"])
            self.write(name)
        elif request["k"] == "room":
            conn[2] += request["n"]
            self.interest(name)
        elif request["k"] == "close":
            conn[3] = True
            if not conn[1]:
                self.drop(name)

    def drop(self, name):
        conn = self.conns.pop(name)
        self.by_fd.pop(conn[0].fileno(), None)
        self.agent.poll.unregister(conn[0])
        conn[0].close()

    def drop_all(self):
        for name in list(self.conns):
            self.agent.send(ev="net", c=name, k="close")
            self.drop(name)
