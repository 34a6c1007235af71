"""Sends mail, and prints how long the greetings took, ms, one per line. Arguments: host, port."""
import smtplib
import sys
import time

for _ in range(21):
    began = time.monotonic()
    client = smtplib.SMTP(local_hostname="client.test")
    client._host = sys.argv[1]
    code, _ = client.connect(sys.argv[1], int(sys.argv[2]))
    took = time.monotonic() - began
    assert code == 220, code
    client.ehlo("client.test")
    assert client.sendmail("a@client.test", ["b@mail.test"], "Subject: test\r\n\r\n" + "line\r\n" * 2000) == {}
    client.quit()
    print(f"{took * 1000:.1f}")
