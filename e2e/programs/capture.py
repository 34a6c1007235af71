"""capture.py PORT FILE MARKER...: watches the Pod's network for as long as it runs, and keeps in FILE, as JSON, what it has seen.

That is, by marker, the frames with it in them; "tls", what TCP carried from or to PORT and begins with a TLS record; "missed",
frames that came faster than they were looked at. The file is there once it watches.
"""
import json
import os
import socket
import struct
import sys

# linux/if_ether.h, linux/if_packet.h
ETH_P_ALL, SOL_PACKET, PACKET_STATISTICS = 3, 263, 6

port, file, markers = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
seen = {"tls": 0, "missed": 0, **{marker: 0 for marker in markers}}


def payload(frame):
    """What TCP carries in an Ethernet frame from or to the port; nothing, if it is another."""
    if frame[12:14] == b"\x08\x00":
        protocol, tcp = frame[23], frame[14 + (frame[14] & 15) * 4 :]
    elif frame[12:14] == b"\x86\xdd":
        protocol, tcp = frame[20], frame[54:]
    else:
        return b""
    if protocol != socket.IPPROTO_TCP or port not in struct.unpack("!HH", tcp[:4]):
        return b""
    return tcp[(tcp[12] >> 4) * 4 :]


def keep():
    with open(file + ".new", "w") as new:
        json.dump(seen, new)
    os.replace(file + ".new", file)


# Without a protocol it sees nothing until it is bound: not loopback either, where all is in clear.
watching = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
watching.bind(("eth0", ETH_P_ALL))
keep()
while True:
    frame = watching.recv(1 << 17)
    for marker in markers:
        seen[marker] += marker.encode() in frame
    # Handshake or application data, TLS 1.x on the record.
    seen["tls"] += payload(frame)[:2] in (b"\x16\x03", b"\x17\x03")
    seen["missed"] += struct.unpack("II", watching.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]
    keep()
