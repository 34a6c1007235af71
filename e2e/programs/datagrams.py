"""What a redirect of TCP must leave alone. `serve PORT`: sends UDP datagrams back, over IPv4 and IPv6. `ask PORT HOST...`: one
datagram there and back from each host, and one ICMP echo (as root)."""
import os
import socket
import struct
import sys

what, port, hosts = sys.argv[1], int(sys.argv[2]), sys.argv[3:]


def family(host):
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def ping(host):
    """RFC 792 and RFC 4443. The kernel fills in ICMPv6's checksum."""
    v6 = family(host) == socket.AF_INET6
    echo = socket.socket(family(host), socket.SOCK_RAW, socket.IPPROTO_ICMPV6 if v6 else socket.IPPROTO_ICMP)
    echo.settimeout(20)
    mine = os.getpid() & 0xFFFF
    checksum = 0 if v6 else ~(lambda n: (n & 0xFFFF) + (n >> 16))(0x0800 + mine + 1) & 0xFFFF
    echo.sendto(struct.pack("!BBHHH", 128 if v6 else 8, 0, checksum, mine, 1), (host, 0))
    while True:
        answer, sender = echo.recvfrom(1500)
        kind, _, _, number, _ = struct.unpack("!BBHHH", (answer if v6 else answer[20:])[:8])
        if kind == (129 if v6 else 0) and number == mine:
            return sender[0]


if what == "serve":
    server = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    server.bind(("::", port))
    while True:
        data, sender = server.recvfrom(2000)
        server.sendto(data, sender)
for host in hosts:
    client = socket.socket(family(host), socket.SOCK_DGRAM)
    client.settimeout(1)
    for _ in range(20):
        client.sendto(b"a datagram", (host, port))
        try:
            data, sender = client.recvfrom(2000)
            break
        except TimeoutError:
            continue
    assert (data, sender[:2]) == (b"a datagram", (host, port)), (data, sender)
    assert ping(host) == host
print("there and back")
