"""A mail server, which speaks first. Arguments: address, port."""
import sys
import time

from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Sink


class Quick(Controller):
    def _trigger_server(self):
        """Would call its own address: not needed."""


Quick(Sink(), hostname=sys.argv[1], port=int(sys.argv[2]), server_hostname="mail.test").start()
while True:
    time.sleep(3600)
