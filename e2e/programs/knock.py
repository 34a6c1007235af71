"""knock.py HOST PORT HELLO: sends bytes, escaped as in Python, to a server, as somebody who knows nothing of a mesh.

Prints "answered" and what came, or "closed" if the connection ended without a byte. Fails if there was no connection, or
neither came.
"""
import codecs
import socket
import sys

host, port, hello = sys.argv[1], int(sys.argv[2]), codecs.escape_decode(sys.argv[3].encode())[0]
with socket.create_connection((host, port), timeout=10) as connection:
    try:
        connection.sendall(hello)
        answer = connection.recv(4096)
    except (ConnectionResetError, BrokenPipeError):
        answer = b""
print("answered" if answer else "closed", answer[:80])
