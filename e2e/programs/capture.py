"""capture.py MARKER: watches the Pod's network until its input ends; says which kinds of bytes TCP carried.

Prints a JSON object: packets with the marker in them, and packets that begin with a TLS record.
"""
import json
import select
import socket
import sys

marker = sys.argv[1].encode()
watching = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(0x0003))
watching.bind(("eth0", 0))
print("watching", flush=True)

seen = {"marker": 0, "tls": 0, "tcp": 0}
while True:
    ready, _, _ = select.select([watching, sys.stdin], [], [])
    if watching in ready:
        packet = watching.recv(65536)
        # IPv4 after 14 bytes of Ethernet; protocol 6 is TCP.
        if packet[12:14] == b"\x08\x00" and packet[23] == 6:
            tcp = packet[14 + (packet[14] & 15) * 4 :]
            payload = tcp[(tcp[12] >> 4) * 4 :]
            seen["tcp"] += 1
            seen["marker"] += marker in payload
            # Handshake or application data, TLS 1.x on the record.
            seen["tls"] += payload[:2] in (b"\x16\x03", b"\x17\x03")
    elif sys.stdin.readline() == "":
        break
print(json.dumps(seen))
