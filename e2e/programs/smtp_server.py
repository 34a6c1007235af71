"""A mail server, which speaks first. Arguments: address ("": all), port."""
import asyncio
import sys

from aiosmtpd.controller import UnthreadedController
from aiosmtpd.handlers import Sink

loop = asyncio.new_event_loop()
UnthreadedController(Sink(), hostname=sys.argv[1], port=int(sys.argv[2]), server_hostname="mail.test", loop=loop).begin()
loop.run_forever()
